# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Columns of tables: those of one crystal in Arrow, for any parquet reader, and the names that others give theirs."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hf_crystal.crystals.occupancy import mixed_sites
from hf_crystal.crystals.reading import as_columns
from hf_crystal.crystals.record import CRYSTAL_COLUMNS, SPECIES_COLUMN, atomic_number_of
from hf_crystal.typing import CrystalLike

if TYPE_CHECKING:
    from datasets import Features

__all__ = [
    "CONTENT_COLUMNS",
    "FILE_COLUMNS",
    "KEY_COLUMNS",
    "TEXT_COLUMNS",
    "composition_numbers",
    "crystal_features",
    "crystal_row",
    "has_crystal_columns",
    "name_columns",
    "name_of",
    "num_disordered",
]

_PARTS = 1000  # atoms that stand for the composition of a disordered crystal
_NAMES = ("material_id", "jid", "id", "name")  # of this package's tables and others' downloads
FILE_COLUMNS = ("file", "filename", "file_name", "path")  # of a table that lists the files beside it
KEY_COLUMNS = tuple(dict.fromkeys((*FILE_COLUMNS, "id", *_NAMES)))  # what tells the row of a file, the best first
CONTENT_COLUMNS = ("structure", "cif", "atoms", "poscar", "crystal", "attributes", *FILE_COLUMNS)  # hold a crystal
TEXT_COLUMNS = {*KEY_COLUMNS, "formula", "split"}  # never numbers, even where every value looks like one
_IDS = re.compile(r"(.*[_\- ])?(id|identifier)|mpid|uid")


def crystal_features(labels: Mapping[str, str] | Iterable[str] = (), *, disordered: bool = False) -> "Features":
    """Arrow schema of a table of crystals.

    Args:
        labels: further columns: names (float64), or a mapping from name to Arrow type name ("string", "float64").
        disordered: with the column `species`, which is null of ordered crystals.

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
            **({SPECIES_COLUMN: List(Value("string"))} if disordered else {}),
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


def composition_numbers(rows: Mapping[str, Sequence[Any]]) -> list[list[int]]:
    """Atomic numbers in the proportion of each crystal's composition, for what reads formulas.

    Args:
        rows: columns of a table: `atomic_numbers`, and `species` where crystals are disordered.

    Returns:
        The atomic numbers of an ordered crystal; of a disordered one about a thousand, at least one of each element.
    """
    species = rows.get(SPECIES_COLUMN) or [None] * len(rows["atomic_numbers"])
    return [
        _proportional(sites) if (sites := mixed_sites(own, SPECIES_COLUMN)) else list(numbers)
        for numbers, own in zip(rows["atomic_numbers"], species, strict=True)
    ]


def _proportional(sites: list[dict[str, float]]) -> list[int]:
    amounts: Counter[int] = Counter()
    for site in sites:
        for symbol, amount in site.items():
            amounts[atomic_number_of(symbol)] += amount  # type: ignore[assignment]  # any number can be counted
    total = sum(amounts.values())
    return [z for z, amount in amounts.items() for _ in range(max(1, round(_PARTS * amount / total)))]


def num_disordered(rows: Mapping[str, Sequence[Any]]) -> int:
    """How many crystals of a table have partly occupied sites; its columns as for `composition_numbers`."""
    return sum(
        any(list(site.values()) != [1.0] for site in mixed_sites(own, SPECIES_COLUMN))
        for own in rows.get(SPECIES_COLUMN, ())
    )


def name_of(row: Mapping[str, Any]) -> str | None:
    """What a message calls a row: its file or id."""
    return next((str(row[key]) for key in KEY_COLUMNS if row.get(key)), None)


@lru_cache(maxsize=256)  # asked for each row, and most rows of a table have the same columns
def name_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Columns that may name crystals, the best first: `material_id`, `jid`, `id`, other ids, `name`; in any case."""
    *known, last = _NAMES
    found = []
    for column in columns:
        word = column.strip().lower()
        if word in _NAMES or _IDS.fullmatch(word):
            found.append((known.index(word) if word in known else len(known) + (word == last), column))
    return tuple(column for _, column in sorted(found, key=lambda pair: pair[0]))
