"""AdamW as both papers use it."""

from typing import Any

import torch

# The release gives its bias group no weight_decay, so torch's AdamW default applies to it (SPEC_ENCODERS 4).
RELEASE_BIAS_WEIGHT_DECAY = 1e-2


def parameter_groups(
    model: torch.nn.Module, *, weight_decay: float = 1e-5, bias_weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Split trainable parameters into biases and the rest, each with its weight decay.

    Args:
        model: Any module; a parameter is a bias when its name contains "bias".
        weight_decay: Decay of everything else, embeddings and position encodings included.
        bias_weight_decay: Decay of biases: 0 in the paper, `RELEASE_BIAS_WEIGHT_DECAY` in the release.

    Returns:
        Groups for a torch optimiser, without empty ones.
    """
    weights: list[torch.nn.Parameter] = []
    biases: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
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
) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; the defaults are the papers' values.

    Args:
        model: Model to train.
        learning_rate: Rate of the first step.
        betas: Decay of the first and second moments.
        eps: Added to the denominator.
        weight_decay: See `parameter_groups`.
        bias_weight_decay: See `parameter_groups`.
    """
    groups = parameter_groups(model, weight_decay=weight_decay, bias_weight_decay=bias_weight_decay)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps)
