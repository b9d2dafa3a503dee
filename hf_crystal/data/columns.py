# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Arrow columns of one crystal: readable by any parquet reader without this package."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hf_crystal.crystals.reading import as_columns
from hf_crystal.crystals.record import CRYSTAL_COLUMNS
from hf_crystal.typing import CrystalLike

if TYPE_CHECKING:
    from datasets import Features

__all__ = ["crystal_features", "crystal_row", "has_crystal_columns"]


def crystal_features(labels: Mapping[str, str] | Iterable[str] = ()) -> "Features":
    """Arrow schema of a table of crystals.

    Args:
        labels: further columns: names (float64), or a mapping from name to Arrow type name ("string", "float64").

    Returns:
        `datasets.Features` with `lattice` (9 floats), `frac_coords` (3n floats), `atomic_numbers` (n),
        `num_atoms` and the further columns.
    """
    from datasets import Features, List, Value

    types = dict(labels) if isinstance(labels, Mapping) else dict.fromkeys(labels, "float64")
    return Features(
        {
            "lattice": List(Value("float64"), length=9),
            "frac_coords": List(Value("float64")),
            "atomic_numbers": List(Value("int16")),
            "num_atoms": Value("int32"),
            **{name: Value(type_name) for name, type_name in types.items()},
        }
    )


def has_crystal_columns(columns: Iterable[str]) -> bool:
    """Whether a table already holds crystals as plain columns (`num_atoms` can be added)."""
    return set(columns).issuperset(CRYSTAL_COLUMNS)


def crystal_row(structure: CrystalLike, **values: float | str | None) -> dict[str, Any]:
    """One row of a table of crystals.

    Args:
        structure: any form that `CrystalFeatureExtractor` accepts.
        **values: further columns, such as an id and labels.

    Returns:
        dict of plain Python values, ready for Arrow.

    Raises:
        CrystalInputError: the crystal cannot be read or used.
    """
    return {**as_columns(structure), **values}
