"""AdamW as both papers use it, Muon, which on a small budget gets further, and the papers' schedule."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_crystal.training.arguments import RecipeTrainingArguments

# The release gives its bias group no weight_decay, so torch's AdamW default applies to it.
RELEASE_BIAS_WEIGHT_DECAY = 1e-2


def orthogonalized(matrix: torch.Tensor, coefficients: Sequence[float], steps: int, eps: float) -> torch.Tensor:
    """About U Vᵀ of a matrix U S Vᵀ, in its own precision.

    Each of the Newton-Schulz steps maps singular values s to a s + b s³ + c s⁵, which for Muon's coefficients brings
    all of them near 1.

    Args:
        matrix: Two-dimensional.
        coefficients: a, b, c.
        steps: Number of steps.
        eps: Smallest norm that is divided by.
    """
    linear, cubic, quintic = coefficients
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp_min(eps)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = linear * wide + torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


class Muon(torch.optim.Muon):
    """torch's Muon; of matrices on a CPU the update is found in their own precision.

    torch's works in bfloat16, which takes twenty times as long on a CPU that has no instructions for it. Groups and
    state are the same.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step."""
        trained = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        usual = all(group["adjust_lr_fn"] in (None, "original") for group in self.param_groups)
        if closure is not None or not usual or any(p.device.type != "cpu" for _, p in trained):
            return super().step(closure)
        for group, parameter in trained:
            state, momentum = self.state[parameter], group["momentum"]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter.grad)
            mean = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
            update = parameter.grad.lerp(mean, momentum) if group["nesterov"] else mean
            update = orthogonalized(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
            rows, columns = parameter.shape
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, rows / columns)))
        return None


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for some parameters and AdamW for the others, as one optimizer with one `state_dict`.

    Muon (K. Jordan et al., 2024) makes the update of a matrix orthogonal; it is defined for matrices only, and
    embeddings are better left to AdamW. Schedulers see the groups of both.

    Args:
        muon: Optimizer of the matrices.
        adamw: Optimizer of everything else.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW):
        self.parts: list[torch.optim.Optimizer] = [muon, adamw]
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """States of both."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read what `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        # loading replaces the groups; the schedulers have to see the new ones
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def parameter_groups(
    model: torch.nn.Module,
    weight_decay: float = 1e-5,
    bias_weight_decay: float = 0.0,
    *,
    leave_out: Iterable[torch.Tensor] = (),
) -> list[dict[str, Any]]:
    """Split trainable parameters into vectors (biases, scales of normalization) and the rest, each with its decay.

    Args:
        model: Any module.
        weight_decay: Decay of everything else, embeddings and position encodings included.
        bias_weight_decay: Decay of vectors: 0 in the paper, `RELEASE_BIAS_WEIGHT_DECAY` in the release.
        leave_out: Parameters that another optimizer has.

    Returns:
        Groups for a torch optimizer, without empty ones.
    """
    others = {id(parameter) for parameter in leave_out}
    trained = [p for p in model.parameters() if p.requires_grad and id(p) not in others]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": bias_weight_decay},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    model: PreTrainedModel, args: RecipeTrainingArguments, *, rest_weight_decay: float | None = None
) -> torch.optim.Optimizer:
    """Optimizer of a property model or generator: AdamW, or Muon for the linear maps inside its layers.

    With Muon, heads, embeddings, position encodings, normalization and biases stay with AdamW, as Muon's authors
    advise.

    Args:
        model: Model to train.
        args: `optimizer`, rates, moment decays and weight decays.
        rest_weight_decay: With Muon, weight decay of the matrices that stay with AdamW; None for that of `args`.
    """
    decay, matrices = args.weight_decay, []
    if args.optimizer == "muon":
        linear = [module for module in model.base_model.modules() if isinstance(module, torch.nn.Linear | Conv1D)]
        matrices = [module.weight for module in linear if module.weight.requires_grad]
        decay = decay if rest_weight_decay is None else rest_weight_decay
    groups = parameter_groups(model, decay, args.bias_weight_decay, leave_out=matrices)
    adamw = torch.optim.AdamW(
        groups, lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon
    )
    if args.optimizer == "adamw":
        return adamw
    muon = Muon(matrices, lr=args.muon_learning_rate, weight_decay=args.weight_decay, momentum=0.95)
    return MuonWithAdamW(muon, adamw)


class InverseSqrtSchedule(torch.optim.lr_scheduler.LRScheduler):
    r"""Inverse square-root decay without warm-up, `lr_t = lr * sqrt(T / (T + t))`.

    `t` counts finished optimizer steps, so the first step uses the full rate. From `freeze` on the rate stays where
    it is: the papers hold it constant while they average weights. The freeze is part of `state_dict`, so a resumed
    run keeps it. (The README of the release prints the formula inverted; its code does this.)

    Args:
        optimizer: Optimizer whose groups' `lr` is the rate at `t = 0`.
        decay_steps: `T`, in steps; the papers use 4000.
        last_epoch: Finished steps minus one; -1 for a new run.

    Raises:
        ValueError: If `decay_steps` is not positive.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, decay_steps: int = 4000, last_epoch: int = -1):
        if decay_steps <= 0:
            raise ValueError(f"decay_steps={decay_steps}: expected a positive number of steps")
        self.decay_steps = decay_steps
        self.frozen_at: int | None = None
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Rates of all parameter groups for the coming step."""
        finished = self.last_epoch if self.frozen_at is None else min(self.last_epoch, self.frozen_at)
        scale = math.sqrt(self.decay_steps / (self.decay_steps + finished))
        return [base * scale for base in self.base_lrs]

    def freeze(self) -> None:
        """Hold the current rate from now on; a second call changes nothing."""
        if self.frozen_at is None:
            self.frozen_at = self.last_epoch
