"""Mean and spread of the training targets, estimated without loading the table into memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

_READ_ROWS = 10_000


@dataclass(frozen=True)
class TargetScaling:
    """What `set_target_scaling` of a property model takes.

    Attributes:
        mean: Mean of the known labels of each target, in the target's unit.
        std: Population standard deviation of the known labels, in the target's unit.
        count: Number of known labels.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    count: tuple[int, ...]


def _label_blocks(rows: Any, columns: Sequence[str]) -> Iterator[np.ndarray]:
    """Blocks (rows, columns) of float64 labels, NaN where unknown."""
    if hasattr(rows, "select_columns"):  # datasets.Dataset and IterableDataset: read Arrow blocks of these columns
        blocks: Iterable[Mapping[str, Any]] = rows.select_columns(list(columns)).iter(batch_size=_READ_ROWS)
    else:
        blocks = ({name: [row[name]] for name in columns} for row in rows)
    for block in blocks:
        # None, the null of Arrow, becomes NaN under float64
        yield np.stack([np.asarray(block[name], dtype=np.float64) for name in columns], axis=1)


def compute_target_scaling(rows: "Dataset", columns: Sequence[str]) -> TargetScaling:
    """Mean and population standard deviation of the known labels of each column.

    Call it with the training split only. Blocks are merged with the pairwise update of Chan, Golub and LeVeque
    (1979), so one pass in float64 suffices for tables of any length.

    Args:
        rows: `datasets.Dataset` (or `IterableDataset`), or an iterable of dicts.
        columns: Label columns, in the order of the model's targets; None and NaN are unknown.

    Returns:
        One entry per column.

    Raises:
        ValueError: If a column has no known label, an infinite one, or all its labels are equal.
    """
    count = np.zeros(len(columns), dtype=np.int64)
    mean = np.zeros(len(columns))
    squares = np.zeros(len(columns))
    for block in _label_blocks(rows, columns):
        for index, column in enumerate(block.T):
            known = column[~np.isnan(column)]
            if known.size == 0:
                continue
            if np.isinf(known).any():
                raise ValueError(f"target column {columns[index]!r} holds an infinite label; use NaN for unknown")
            delta = known.mean() - mean[index]
            total = count[index] + known.size
            squares[index] += known.var() * known.size + delta**2 * count[index] * known.size / total
            mean[index] += delta * known.size / total
            count[index] = total
    std = np.sqrt(squares / np.maximum(count, 1))
    for name, known_labels, spread, center in zip(columns, count, std, mean, strict=True):
        if known_labels == 0:
            raise ValueError(f"target column {name!r} has no known label in the training split")
        # below a few ulp the spread is rounding of equal values, and dividing by it would blow the labels up
        if spread <= 4 * np.finfo(np.float64).eps * abs(center):
            raise ValueError(
                f"target column {name!r}: all {known_labels} known training labels equal {center:g}, so there is "
                "no scale to learn on"
            )
    return TargetScaling(tuple(mean.tolist()), tuple(std.tolist()), tuple(count.tolist()))
