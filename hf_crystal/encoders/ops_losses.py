"""Losses over labels some of which are unknown."""

import torch
from torch import nn

__all__ = ["LOSSES", "known_loss"]

LOSSES = {
    "l1": nn.functional.l1_loss,
    "mse": nn.functional.mse_loss,
    "smooth_l1": nn.functional.smooth_l1_loss,
}


def known_loss(name: str, predicted: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean loss over known labels, 0 where none is.

    Args:
        name (`str`): of `LOSSES`.
        predicted, labels (`torch.Tensor` of one shape): labels are NaN where unknown.
    """
    known = torch.isfinite(labels)
    losses = LOSSES[name](predicted, labels.where(known, predicted.detach()), reduction="none")
    return losses.sum() / known.sum().clamp_min(1)
