# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Rows of a table of crystals → one padded batch with labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_crystal.encoders.feature_extraction_crystal import CrystalFeatureExtractor

__all__ = ["CrystalCollator"]

# columns that Trainer leaves of a table with remove_unused_columns=True, its default
_ARGUMENTS_OF_THE_MODEL = {"atomic_numbers", "positions", "cell", "attention_mask", "occupancies", "pbc"}
_ARGUMENTS_OF_THE_MODEL |= {"labels", "label", "label_ids"}


@dataclass
class CrystalCollator:
    """Data collator for `DataLoader` and `Trainer`; picklable, so it works in worker processes.

    Rows are dicts with plain crystal columns (`lattice`, `frac_coords`, `atomic_numbers`), or any record that
    `CrystalFeatureExtractor` accepts. Use `TrainingArguments(remove_unused_columns=False)`: the columns are not
    arguments of the model.

    Attributes:
        feature_extractor: settings for reading and padding.
        label_names: columns that become `labels`, in the order of the model's targets; empty for no labels.
        return_tensors: `"pt"` or `"np"`.

    Example:
        >>> collator = CrystalCollator(CrystalFeatureExtractor(), label_names=["mb_e_form"])
        >>> batch = collator([dataset[0], dataset[1]])
        >>> batch["labels"].shape  # (2, 1); NaN = unknown
    """

    feature_extractor: CrystalFeatureExtractor = field(default_factory=CrystalFeatureExtractor)
    label_names: Sequence[str] | None = None
    return_tensors: str = "pt"

    @property
    def tokenizer(self) -> CrystalFeatureExtractor:
        """The feature extractor under the name by which `Trainer` saves it beside the model."""
        return self.feature_extractor

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Pad the crystals of the rows and gather their labels.

        Args:
            rows: rows of a table.

        Returns:
            dict with `atomic_numbers (B, N)`, `positions (B, N, 3)`, `cell (B, 3, 3)`, `attention_mask (B, N)`,
            `occupancies (B, N, 118)` where a row is disordered, and with `label_names` `labels (B, T)` in the type of
            `positions`; None and NaN become NaN.

        Raises:
            CrystalInputError: a row that holds no usable crystal; it names the row's id where it has one.
            ValueError: Trainer has removed the columns of the crystals; a row lacks a label column or holds a label
                that is no number.
        """
        rows = list(rows)
        if rows and set(rows[0]) <= _ARGUMENTS_OF_THE_MODEL and not {"cell", "lattice"} & set(rows[0]):
            raise ValueError(
                f"the rows have only the columns {sorted(rows[0])}, no cell. Trainer removes columns that are no "
                "arguments of the model: set remove_unused_columns=False in TrainingArguments"
            )
        batch = dict(self.feature_extractor(rows, return_tensors="np"))
        if self.label_names:
            batch["labels"] = self._labels(rows).astype(batch["positions"].dtype)
        if self.return_tensors == "np":
            return batch
        import torch

        return {name: torch.from_numpy(value) for name, value in batch.items()}

    def _labels(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        names = list(self.label_names or ())
        try:
            # numpy reads None as NaN when told the type
            return np.array([[row[name] for name in names] for row in rows], dtype=np.float64)
        except KeyError as error:
            raise ValueError(
                f"label column {error.args[0]!r} is missing; the rows have {sorted(rows[0])}. Trainer "
                "removes columns unless remove_unused_columns=False"
            ) from error
        except (TypeError, ValueError) as error:
            bad = [(name, row[name]) for row in rows for name in names if not _is_number(row[name])][:1]
            raise ValueError(f"label {bad[0][0]!r} is {bad[0][1]!r}; a number, None or NaN is accepted") from error


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float | np.number)
