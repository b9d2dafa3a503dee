# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Tables that hold plain columns already: checked a batch at a time, split by a column, streamed."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from transformers.utils import logging

from hf_crystal.crystals.reading import CrystalInputError, as_record
from hf_crystal.crystals.record import CRYSTAL_COLUMNS, SPECIES_COLUMN
from hf_crystal.encoders.feature_extraction_crystal import CrystalFeatureExtractor

from .columns import name_of
from .conversion import Disorder, Row, is_missing
from .tables import CrystalDatasetDict

__all__ = ["finish_tables", "stream_tables"]

logger = logging.get_logger(__name__)

_ROWS_PER_CHECK = 256


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False)


def _bad_rows(rows: Dataset, disorder: Disorder) -> list[dict[str, Any]]:
    """Rows of a plain table that hold no usable crystal; whole batches are checked at once."""
    extractor = CrystalFeatureExtractor()
    columns = rows.select_columns(_crystal_columns(rows.column_names)).with_format("arrow")
    bad: list[dict[str, Any]] = []
    for start in range(0, len(rows), _ROWS_PER_CHECK):
        batch: pa.Table = columns[start : start + _ROWS_PER_CHECK]
        if _batch_is_good(extractor, batch):
            continue
        for place, row in enumerate(batch.to_pylist()):
            try:
                as_record(row, disorder=disorder)
            except CrystalInputError as error:
                index = start + place
                bad.append({"index": index, "name": name_of(rows[index]) or error.name, "reason": error.reason})
    return bad


def _crystal_columns(names: Iterable[str]) -> list[str]:
    return [*CRYSTAL_COLUMNS, *({SPECIES_COLUMN} & set(names))]


def _batch_is_good(extractor: CrystalFeatureExtractor, batch: pa.Table) -> bool:
    if any(batch.column(name).null_count for name in CRYSTAL_COLUMNS):
        return False
    if SPECIES_COLUMN in batch.column_names and batch.column(SPECIES_COLUMN).null_count < len(batch):
        return False
    counts = pc.list_value_length(batch.column("atomic_numbers")).to_numpy()
    lengths = pc.list_value_length(batch.column("frac_coords")).to_numpy()
    lattice, numbers = _flat(batch.column("lattice")), _flat(batch.column("atomic_numbers"))
    frac = batch.column("frac_coords")
    if pa.types.is_nested(frac.type.value_type) or not counts.all() or len(lattice) != 9 * len(counts):
        return False
    if not np.array_equal(lengths, 3 * counts) or numbers.dtype.kind not in "iu":
        return False
    points = _flat(frac).astype(np.float64).reshape(-1, 3)
    return extractor.accepts_rows(counts, numbers, points, lattice.astype(np.float64).reshape(-1, 3, 3))


def _with_num_atoms(rows: Dataset) -> Dataset:
    if "num_atoms" in rows.column_names:
        return rows
    table = rows.select_columns(["atomic_numbers"]).with_format("arrow")
    counts = [
        pc.fill_null(pc.list_value_length(table[start : start + 10_000].column("atomic_numbers")), 0).to_numpy()
        for start in range(0, len(rows), 10_000)
    ]
    return rows.add_column("num_atoms", np.concatenate(counts).astype(np.int32) if counts else np.zeros(0, np.int32))


def _split_by_column(rows: Dataset, split_column: str, skipped: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Indices of the rows of each split; rows without a split go to `skipped`."""
    if split_column not in rows.column_names:
        raise ValueError(f"split_column {split_column!r} is not in the table; it has {', '.join(rows.column_names)}")
    values = np.array([str(value) for value in rows[split_column]])
    left_out = np.array([is_missing(value) for value in values], dtype=bool)
    if left_out.all():
        raise ValueError(f"split_column {split_column!r} is empty in every row")
    if left_out.any():
        logger.info(f"{int(left_out.sum())} rows have no {split_column} and belong to no split")
    skipped.extend(
        {"index": int(row), "name": None, "reason": f"no split: column {split_column} is empty"}
        for row in np.flatnonzero(left_out)
    )
    return {name: np.flatnonzero(values == name) for name in dict.fromkeys(values[~left_out].tolist())}


def finish_tables(
    tables: DatasetDict, split_column: str | None, *, check: bool, on_error: str, disorder: Disorder
) -> CrystalDatasetDict:
    """Add `num_atoms`, leave out bad rows, split by a column."""
    skipped: list[dict[str, Any]] = []
    splits: dict[str, Dataset] = {}
    num_bad = 0
    for table_name, table in tables.items():
        rows = _with_num_atoms(table)
        bad = _bad_rows(rows, disorder) if check else []
        if bad and on_error == "raise":
            raise CrystalInputError(bad[0]["reason"], index=bad[0]["index"], name=bad[0]["name"])
        num_bad += len(bad)
        skipped.extend(bad)
        if split_column is None:
            parts = {str(table_name): np.arange(len(rows))}
        else:
            parts = _split_by_column(rows, split_column, skipped)
        for name, indices in parts.items():
            good = np.setdiff1d(indices, [item["index"] for item in bad], assume_unique=True)
            # selecting nothing away keeps the table free of an index mapping
            splits[name] = rows if len(good) == len(rows) else rows.select(good)
    result = CrystalDatasetDict(splits)
    result.num_skipped = len(skipped)
    result._skipped_rows = skipped
    if num_bad:
        logger.warning(f"{num_bad} rows hold no usable crystal and were left out; see .skipped for the reasons")
    return result


def stream_tables(
    streams: IterableDatasetDict, files: list[Path], split_column: str | None, disorder: Disorder
) -> IterableDatasetDict:
    """Streams of plain rows with `num_atoms`; bad rows are logged and left out as they pass."""

    def is_good(row: Row) -> bool:
        """Whether the crystal of a row can be read."""
        try:
            as_record({key: row[key] for key in _crystal_columns(row)}, disorder=disorder)
        except CrystalInputError as error:
            logger.warning(f"left out {name_of(row)}: {error.reason}")
            return False
        return True

    def count(row: Row) -> Row:
        """The column of numbers of atoms, which batches are built by."""
        return {"num_atoms": len(row["atomic_numbers"])}

    result: dict[str, IterableDataset] = {}
    for name, rows in streams.items():
        if split_column is None:
            result[str(name)] = rows.filter(is_good).map(count)
            continue
        if not files:
            raise ValueError("split_column with streaming=True needs a local table; use the splits of the repository")
        for split in _split_names(files, split_column):
            chosen = rows.filter(lambda row, wanted: str(row[split_column]) == wanted, fn_kwargs={"wanted": split})
            result[split] = chosen.filter(is_good).map(count)
    return IterableDatasetDict(result)


def _split_names(files: list[Path], split_column: str) -> list[str]:
    import pyarrow.parquet as pq

    names: dict[str, None] = {}
    for path in files:
        schema = pq.read_schema(path)
        if split_column not in schema.names:
            raise ValueError(f"split_column {split_column!r} is not in {path.name}; it has {', '.join(schema.names)}")
        column = pq.read_table(path, columns=[split_column]).column(0)
        names.update(dict.fromkeys(name for name in map(str, column.unique().to_pylist()) if not is_missing(name)))
    return list(names)
