"""AdamW as both papers use it, and Muon, which on a small budget goes further."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

# The release gives its bias group no weight_decay, so torch's AdamW default applies to it (SPEC_ENCODERS 4).
RELEASE_BIAS_WEIGHT_DECAY = 1e-2


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for some parameters and AdamW for the others, as one optimiser with one `state_dict`.

    Muon (K. Jordan et al., 2024) makes the update of a matrix orthogonal; it is defined for matrices only, and
    embeddings are better left to AdamW. Schedulers see the groups of both.

    Args:
        muon: Optimiser of the matrices.
        adamw: Optimiser of everything else.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW):
        self.parts: list[torch.optim.Optimizer] = [muon, adamw]
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
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
    *,
    weight_decay: float = 1e-5,
    bias_weight_decay: float = 0.0,
    leave_out: Iterable[torch.Tensor] = (),
) -> list[dict[str, Any]]:
    """Split trainable parameters into biases and the rest, each with its weight decay.

    Args:
        model: Any module; a parameter is a bias when its name contains "bias".
        weight_decay: Decay of everything else, embeddings and position encodings included.
        bias_weight_decay: Decay of biases: 0 in the paper, `RELEASE_BIAS_WEIGHT_DECAY` in the release.
        leave_out: Parameters that another optimiser has.

    Returns:
        Groups for a torch optimiser, without empty ones.
    """
    weights: list[torch.nn.Parameter] = []
    biases: list[torch.nn.Parameter] = []
    others = {id(parameter) for parameter in leave_out}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in others:
            (biases if "bias" in name else weights).append(parameter)
    groups = [
        {"params": weights, "weight_decay": weight_decay},
        {"params": biases, "weight_decay": bias_weight_decay},
    ]
    return [group for group in groups if group["params"]]


def build_adamw(
    model: torch.nn.Module,
    *,
    learning_rate: float = 5e-4,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-8,
    weight_decay: float = 1e-5,
    bias_weight_decay: float = 0.0,
    leave_out: Iterable[torch.Tensor] = (),
) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; the defaults are the papers' values.

    Args:
        model: Model to train.
        learning_rate: Rate of the first step.
        betas: Decay of the first and second moments.
        eps: Added to the denominator.
        weight_decay: See `parameter_groups`.
        bias_weight_decay: See `parameter_groups`.
        leave_out: See `parameter_groups`.
    """
    groups = parameter_groups(
        model, weight_decay=weight_decay, bias_weight_decay=bias_weight_decay, leave_out=leave_out
    )
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps)


def build_optimizer(
    model: PreTrainedModel,
    optimizer: str = "adamw",
    *,
    muon_learning_rate: float = 0.005,
    weight_decay: float = 1e-5,
    **adamw: Any,
) -> torch.optim.Optimizer:
    """Optimiser of a property model.

    With Muon, the head, embeddings, position encodings, normalisation and biases stay with AdamW, as Muon's authors
    advise.

    Args:
        model: Property model to train.
        optimizer: "adamw" for all parameters, or "muon" for the linear maps inside the encoder and AdamW for the rest.
        muon_learning_rate: Rate of Muon's first step.
        weight_decay: Decoupled weight decay of everything but biases.
        **adamw: Other arguments of `build_adamw`.
    """
    if optimizer == "adamw":
        return build_adamw(model, weight_decay=weight_decay, **adamw)
    linear = [module for module in model.base_model.modules() if isinstance(module, torch.nn.Linear)]
    matrices = [module.weight for module in linear if module.weight.requires_grad]
    muon = torch.optim.Muon(matrices, lr=muon_learning_rate, weight_decay=weight_decay, momentum=0.95)
    return MuonWithAdamW(muon, build_adamw(model, weight_decay=weight_decay, leave_out=matrices, **adamw))


class InverseSqrtSchedule(torch.optim.lr_scheduler.LRScheduler):
    r"""Inverse square-root decay without warm-up, `lr_t = lr * sqrt(T / (T + t))`.

    `t` counts finished optimiser steps, so the first step uses the full rate. From `freeze` on the rate stays where
    it is: the papers hold it constant while they average weights. The freeze is part of `state_dict`, so a resumed
    run keeps it. (The README of the release prints the formula inverted; its code does this.)

    Args:
        optimizer: Optimiser whose groups' `lr` is the rate at `t = 0`.
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
