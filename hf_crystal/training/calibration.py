"""The data-dependent attention scale, set once from the first training batch."""

from collections.abc import Callable
from typing import Any

import torch

from hf_crystal.typing import PropertyModel


def calibrate_model(model: PropertyModel, rows: list[Any], collator: Callable[[list[Any]], dict[str, Any]]) -> None:
    """Set the data-dependent scale of an uncalibrated model from the first global training batch.

    Every process reads the same rows and so finds the same values, whatever the number of processes or
    accumulation steps; process 0's are sent to the others all the same.

    Args:
        model: Property model; left alone when it is calibrated already.
        rows: Data-set rows of the batch.
        collator: Turns them into a batch.
    """
    if model.is_calibrated:
        return
    device = next(model.parameters()).device
    model.calibrate({name: value.to(device) for name, value in collator(rows).items()})
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for tensor in model.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)
