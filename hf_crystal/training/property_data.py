"""Rows of a recipe: crystals and labels, split, on disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import PartialState

from hf_crystal.crystals.doubts import training_domain
from hf_crystal.crystals.record import CRYSTAL_COLUMNS, SPECIES_COLUMN
from hf_crystal.data.columns import composition_numbers, num_disordered

if TYPE_CHECKING:
    import datasets

    from hf_crystal.training.arguments import DataArguments

_STRUCTURE_COLUMNS = (*CRYSTAL_COLUMNS, SPECIES_COLUMN, "num_atoms", "material_id")


def label_columns(data: "DataArguments") -> list[str]:
    """Columns of the labels, in the order of the model's targets."""
    return [target.column for target in data.targets]


def crystal_blocks(rows: "datasets.Dataset") -> Iterator[dict[str, list[Any]]]:
    """Columns that hold the elements of all crystals of a table, a few thousand crystals at a time."""
    names = [name for name in ("atomic_numbers", SPECIES_COLUMN) if name in rows.column_names]
    yield from rows.select_columns(names).iter(batch_size=4096)


def trained_on(rows: "datasets.Dataset") -> dict[str, Any]:
    """Config fields that record the elements, and the number of disordered crystals, of training rows."""
    elements = training_domain(map(composition_numbers, crystal_blocks(rows)))
    return {**elements, "trained_disordered": sum(map(num_disordered, crystal_blocks(rows))) or None}


def _read_splits(data: "DataArguments") -> "datasets.DatasetDict":
    import hf_crystal.data as sources

    if data.source == "file":
        if data.path is None:
            raise ValueError("data.path is not set: give the table of crystals (--data)")
        return sources.load_crystal_dataset(data.path, split_column=data.split_column, disorder="mix")
    if data.path is not None and Path(data.path).suffix in (".parquet", ".csv", ".jsonl"):
        raise ValueError(
            f"data.source={data.source} reads the file of that benchmark, not {Path(data.path).name}; for a table of "
            "crystals: --set data.source=file, with data.targets and data.split_column"
        )
    return getattr(sources, f"load_{data.source}")(data.property_name, path=data.path)


def _with_a_known_label(rows: "datasets.Dataset", columns: list[str]) -> "datasets.Dataset":
    known = np.zeros(len(rows), dtype=bool)
    for column in columns:
        known |= ~np.isnan(np.asarray(rows[column], dtype=np.float64))
    return rows if known.all() else rows.select(np.flatnonzero(known))


def _choose(rows: "datasets.Dataset", limit: int | None, seed: int) -> "datasets.Dataset":
    if limit is None or limit >= len(rows):
        return rows
    chosen = np.random.default_rng(seed).permutation(len(rows))[:limit]
    return rows.select(np.sort(chosen))


def load_property_data(data: "DataArguments", seed: int) -> dict[str, Any]:
    """Splits of a recipe with the columns that training needs.

    Rows without any known label are left out; a row with some of several labels stays.

    Args:
        data: Section of the recipe.
        seed: Chooses the rows where the recipe limits their number.

    Returns:
        "train", "validation" and "test", each a `datasets.Dataset` on disk, memory-mapped: a table may be larger than
        memory, which holds a few numbers per row (one column of labels at a time, size and order of the rows). A
        stream would take less, but could be resumed only by reading again all that was read.

    Raises:
        ValueError: If a split or column is missing, or a split has no labeled row.
    """
    # one process converts a table that is not in the cache yet, the others find it there
    with PartialState().local_main_process_first():
        splits = _read_splits(data)
    columns = label_columns(data)
    chosen: dict[str, Any] = {}
    for role, name, limit in (
        ("train", data.train_split, data.max_train_rows),
        ("validation", data.validation_split, data.max_validation_rows),
        ("test", data.test_split, None),
    ):
        if name not in splits:
            raise ValueError(f"data.{role}_split={name!r}: the data has splits {', '.join(map(str, splits))}")
        rows = splits[name]
        missing = [column for column in columns if column not in rows.column_names]
        if missing:
            raise ValueError(f"data.targets: no column {missing} in the data; it has {', '.join(rows.column_names)}")
        rows = rows.select_columns([c for c in rows.column_names if c in (*_STRUCTURE_COLUMNS, *columns)])
        rows = _with_a_known_label(rows, columns)
        if len(rows) == 0:
            raise ValueError(f"data.{role}_split={name!r}: no row has a known label in {columns}")
        chosen[role] = _choose(rows, limit, seed)
    return chosen
