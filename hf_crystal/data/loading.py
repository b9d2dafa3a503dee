# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""`load_crystal_dataset`: any table or folder of crystals → memory-mapped splits of plain records."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, load_dataset, load_from_disk
from transformers.utils import logging

from hf_crystal.models.feature_extraction_crystal import CrystalFeatureExtractor
from hf_crystal.models.structures_crystal import CrystalInputError, structure_to_record

from .records import crystal_features, has_crystal_columns
from .sources import (
    STRUCTURE_COLUMN,
    find_label_table,
    find_structure_column,
    iter_csv,
    iter_folder,
    iter_frames,
    iter_json,
    structure_files,
)
from .tables import CrystalDatasetDict, build_tables, cache_root, fingerprint

__all__ = ["convert_rows", "load_crystal_dataset"]

logger = logging.get_logger(__name__)

Row = dict[str, Any]
RowSource = Callable[[], Iterator[Row]]

_ROWS_TO_INFER_TYPES = 1000
_ROWS_PER_CHECK = 256
_MISSING = {"", "na", "n/a", "nan", "none", "null"}  # JARVIS writes "na"
# never numbers, even where every value looks like one
_TEXT_COLUMNS = {"id", "material_id", "jid", "file", "filename", "file_name", "name", "formula", "split"}
_SPLIT_OF_FILE = re.compile(r"^(train|validation|valid|val|test)(?=[-_.0-9]|$)", re.IGNORECASE)
_HUB_NAME = re.compile(r"^[\w][\w.-]*(/[\w][\w.-]*)?$")


# ---------------------------------------------------------------------------------------------- rows to plain rows


def _number(value: Any) -> float | None:
    """Number of a label; None for missing.

    Raises:
        ValueError, TypeError: something that is neither.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in _MISSING):
        return None
    return float(value)


def _infer_types(rows: Iterator[Row], label_names: list[str] | None) -> dict[str, str]:
    """Arrow type of each further column, from the first rows."""
    values: dict[str, list[Any]] = {}
    for row in islice(rows, _ROWS_TO_INFER_TYPES):
        for name, value in row.items():
            if name != STRUCTURE_COLUMN and not isinstance(value, dict | list | tuple):
                values.setdefault(name, []).append(value)
    types: dict[str, str] = {}
    for name, column in values.items():
        if name in ("lattice", "frac_coords", "atomic_numbers", "num_atoms"):
            continue
        try:
            known = [number for number in map(_number, column) if number is not None]
            numeric = bool(known) and name not in _TEXT_COLUMNS
        except (TypeError, ValueError):
            numeric = False
        types[name] = "float64" if numeric else "string"
    for name in label_names or []:
        if name not in values:
            raise ValueError(f"label column {name!r} is not in the data; it has {', '.join(sorted(values))}")
        types[name] = "float64"
    return types


def _plain_row(row: Row, types: dict[str, str], required: set[str]) -> Row:
    """Crystal and further columns of one row in their Arrow types."""
    plain = structure_to_record(row[STRUCTURE_COLUMN])
    for name, type_name in types.items():
        value = row.get(name)
        if type_name == "string":
            plain[name] = None if value is None else str(value)
            continue
        try:
            plain[name] = _number(value)
        except (TypeError, ValueError) as error:
            if name in required:
                raise CrystalInputError(f"label {name} is {value!r}; a number is accepted") from error
            logger.warning_once(f"column {name} holds {value!r}, which is no number; such values become null")
            plain[name] = None
    return plain


def convert_rows(
    source: RowSource, types: dict[str, str], split_column: str | None, required: set[str], on_error: str
) -> Iterator[tuple[str, Row] | Row]:
    """Read the crystals of a source row by row.

    Args:
        source: gives the rows; the crystal of each is under `STRUCTURE_COLUMN`.
        types: Arrow type name of each further column.
        split_column: column with the split; "train" for all rows without it.
        required: label columns whose text makes the row unusable.
        on_error: `"skip"` or `"raise"`.

    Yields:
        `(split, row)`, or `{"index", "name", "reason"}` for a row left out.

    Raises:
        CrystalInputError: with `on_error="raise"`, the first fault.
    """
    for index, row in enumerate(source()):
        split = "train" if split_column is None else str(row.get(split_column) or "")
        name = next((str(row[key]) for key in ("file", "id", "material_id", "jid", "name") if row.get(key)), None)
        try:
            if split.strip().lower() in _MISSING:
                raise CrystalInputError(f"no split: column {split_column} is empty")
            yield split, _plain_row(row, types, required)
        except CrystalInputError as error:
            if on_error == "raise":
                raise CrystalInputError(error.reason, index=index, name=name or error.name) from error.__cause__
            yield {"index": index, "name": name or error.name, "reason": error.reason}


def _tables_from_source(
    source: RowSource,
    files: list[Path],
    options: dict[str, Any],
    *,
    split_column: str | None,
    label_names: list[str] | None,
    on_error: str,
    cache_dir: str | os.PathLike | None,
    streaming: bool,
) -> CrystalDatasetDict | IterableDatasetDict:
    types = _infer_types(source(), label_names)
    if split_column is not None and split_column not in types:
        raise ValueError(f"split_column {split_column!r} is not in the data; it has {', '.join(types)}")
    features = crystal_features(types)
    required = set(label_names or [])
    if streaming:
        return _stream_source(source, features, types, split_column, required, on_error)
    options = {**options, "types": types, "split": split_column, "labels": label_names, "on_error": on_error}
    folder = cache_root(cache_dir) / fingerprint(files, options)
    rows = convert_rows(source, types, split_column, required, on_error)
    return build_tables(folder, rows, features)


def _stream_source(
    source: RowSource,
    features: Features,
    types: dict[str, str],
    split_column: str | None,
    required: set[str],
    on_error: str,
) -> IterableDatasetDict:
    """One stream per split; rows left out are logged, as there is no file to list them in."""
    names = ["train"]
    if split_column is not None:
        found = Counter(str(row.get(split_column) or "") for row in source())  # reads no crystal
        names = sorted(name for name in found if name.strip().lower() not in _MISSING)

    stream = _SourceStream(source, types, split_column, required, on_error)
    return IterableDatasetDict(
        {name: IterableDataset.from_generator(stream, features=features, gen_kwargs={"split": name}) for name in names}
    )


class _SourceStream:
    """Rows of one split as they are read; a class, because `datasets` and worker processes pickle it."""

    def __init__(
        self, source: RowSource, types: dict[str, str], split_column: str | None, required: set[str], on_error: str
    ):
        self.source = source
        self.types = types
        self.split_column = split_column
        self.required = required
        self.on_error = on_error

    def _chosen(self, split: str) -> Iterator[Row]:
        for row in self.source():
            if self.split_column is None or str(row.get(self.split_column)) == split:
                yield row

    def __call__(self, split: str) -> Iterator[Row]:
        rows = partial(self._chosen, split)
        for item in convert_rows(rows, self.types, self.split_column, self.required, self.on_error):
            if isinstance(item, tuple):
                yield item[1]
            else:
                logger.warning(f"left out {item['name'] or item['index']}: {item['reason']}")


# ----------------------------------------------------------------------------------------------------- plain tables


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False)


def _bad_rows(rows: Dataset) -> list[dict[str, Any]]:
    """Rows of a plain table that hold no usable crystal; whole batches are checked at once."""
    extractor = CrystalFeatureExtractor()
    columns = rows.select_columns(["lattice", "frac_coords", "atomic_numbers"]).with_format("arrow")
    names = next((c for c in ("material_id", "jid", "id", "file", "name") if c in rows.column_names), None)
    bad: list[dict[str, Any]] = []
    for start in range(0, len(rows), _ROWS_PER_CHECK):
        batch: pa.Table = columns[start : start + _ROWS_PER_CHECK]
        if _batch_is_good(extractor, batch):
            continue
        for place, row in enumerate(batch.to_pylist()):
            try:
                extractor.read(row)
            except CrystalInputError as error:
                index = start + place
                name = str(rows[index][names]) if names else error.name
                bad.append({"index": index, "name": name, "reason": error.reason})
    return bad


def _batch_is_good(extractor: CrystalFeatureExtractor, batch: pa.Table) -> bool:
    if any(batch.column(name).null_count for name in batch.column_names):
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
    values = np.array([str(value or "") for value in rows[split_column]])
    left_out = np.array([value.strip().lower() in _MISSING for value in values], dtype=bool)
    if left_out.all():
        raise ValueError(f"split_column {split_column!r} is empty in every row")
    if left_out.any():
        logger.info(f"{int(left_out.sum())} rows have no {split_column} and belong to no split")
    skipped.extend(
        {"index": int(row), "name": None, "reason": f"no split: column {split_column} is empty"}
        for row in np.flatnonzero(left_out)
    )
    return {name: np.flatnonzero(values == name) for name in dict.fromkeys(values[~left_out].tolist())}


def _finish_tables(tables: DatasetDict, split_column: str | None, *, check: bool, on_error: str) -> CrystalDatasetDict:
    """Add `num_atoms`, leave out bad rows, split by a column."""
    skipped: list[dict[str, Any]] = []
    splits: dict[str, Dataset] = {}
    num_bad = 0
    for table_name, table in tables.items():
        rows = _with_num_atoms(table)
        bad = _bad_rows(rows) if check else []
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


def _stream_tables(streams: IterableDatasetDict, files: list[Path], split_column: str | None) -> IterableDatasetDict:
    """Streams of plain rows with `num_atoms`; bad rows are logged and left out as they pass."""
    extractor = CrystalFeatureExtractor()

    def is_good(row: Row) -> bool:
        try:
            extractor.read({key: row[key] for key in ("lattice", "frac_coords", "atomic_numbers")})
        except CrystalInputError as error:
            logger.warning(f"left out {row.get('material_id') or row.get('jid') or row.get('id')}: {error.reason}")
            return False
        return True

    def count(row: Row) -> Row:
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
        names.update(dict.fromkeys(str(value) for value in column.unique().to_pylist() if value))
    return list(names)


# ---------------------------------------------------------------------------------------------------------- sources


def _parquet_rows(files: list[Path], structure_column: str | None) -> Iterator[Row]:
    import pyarrow.parquet as pq

    for path in files:
        with pq.ParquetFile(path) as table:
            column = find_structure_column(table.schema_arrow.names, structure_column, path.name)
            for batch in table.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    yield {**row, STRUCTURE_COLUMN: row.pop(column)}


def _split_of_file(path: Path, root: Path) -> str:
    relative = path.relative_to(root) if root.is_dir() else Path(path.name)
    for part in relative.parts:
        match = _SPLIT_OF_FILE.match(part)
        if match:
            return match.group(1).lower()
    return "train"


def _load_parquet(path: Path, files: list[Path], options: dict[str, Any], arguments: dict[str, Any]) -> Any:
    import pyarrow.parquet as pq

    split_column, streaming = arguments["split_column"], arguments["streaming"]
    plain = has_crystal_columns(pq.read_schema(files[0]).names) and options["structure_column"] is None
    if not plain:
        return _tables_from_source(
            partial(_parquet_rows, files, options["structure_column"]), files, options, **arguments
        )
    data_files: dict[str, list[str]] = {}
    for file in files:
        split = "train" if split_column is not None else _split_of_file(file, path)
        data_files.setdefault(split, []).append(str(file))
    tables = load_dataset(
        "parquet",
        data_files=data_files,
        streaming=streaming,
        cache_dir=None if arguments["cache_dir"] is None else str(arguments["cache_dir"]),
    )
    if streaming:
        return _stream_tables(tables, files, split_column)
    return _finish_tables(tables, split_column, check=options["check"], on_error=arguments["on_error"])


def _hub_rows(tables: Any, structure_column: str | None, name: str) -> Iterator[Row]:
    for split, table in tables.items():
        for row in table:
            column = find_structure_column(list(row), structure_column, name)
            yield {"split": str(split), **row, STRUCTURE_COLUMN: row.pop(column)}


def _load_hub(name: str, revision: str | None, options: dict[str, Any], arguments: dict[str, Any]) -> Any:
    from huggingface_hub import HfApi, snapshot_download

    listed = HfApi().list_repo_files(name, repo_type="dataset", revision=revision)
    if not any(file.endswith((".parquet", ".csv", ".json", ".jsonl", ".arrow")) for file in listed):
        # left to itself, datasets would read a folder of CIFs as protein mmCIF
        folder = snapshot_download(name, repo_type="dataset", revision=revision)
        return _load_path(Path(folder), options, arguments)
    cache_dir = None if arguments["cache_dir"] is None else str(arguments["cache_dir"])
    tables = load_dataset(name, revision=revision, streaming=arguments["streaming"], cache_dir=cache_dir)
    first = next(iter(tables.values()))
    if has_crystal_columns(first.column_names or list(next(iter(first)))):
        if arguments["streaming"]:
            return _stream_tables(tables, [], arguments["split_column"])
        return _finish_tables(
            tables, arguments["split_column"], check=options["check"], on_error=arguments["on_error"]
        )

    content = [getattr(table, "_fingerprint", "") for table in tables.values()]
    options = {**options, "hub": name, "revision": revision, "content": content}
    arguments = {**arguments, "split_column": arguments["split_column"] or "split"}
    source = partial(_hub_rows, tables, options["structure_column"], name)
    return _tables_from_source(source, [], options, **arguments)


def _report_other_files(folder: Path, files: list[Path]) -> None:
    """Say which files of a folder are not taken for crystals, so that none is missed unnoticed."""
    taken = set(files)
    others = [
        file.name
        for file in folder.rglob("*")
        if file.is_file()
        and file not in taken
        and file.suffix not in (".csv", ".md")
        and not file.name.startswith(".")
    ]
    if others:
        logger.warning(f"{len(others)} files of {folder} are no structure files by name: {', '.join(others[:5])}")


def _load_path(path: Path, options: dict[str, Any], arguments: dict[str, Any]) -> Any:
    column = options["structure_column"]
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = load_from_disk(str(path))
            tables = loaded if isinstance(loaded, DatasetDict) else DatasetDict({"train": loaded})
            return _finish_tables(
                tables, arguments["split_column"], check=options["check"], on_error=arguments["on_error"]
            )
        parquet = sorted(file for file in path.rglob("*.parquet") if file.is_file())
        if parquet:
            return _load_parquet(path, parquet, options, arguments)
        files = structure_files(path)
        if not files:
            raise ValueError(f"{path} holds no parquet and no structure files (CIF, POSCAR, extended XYZ, JSON)")
        labels = options["label_table"] or find_label_table(path)
        _report_other_files(path, files)
        if arguments["split_column"] is None and any(
            "split" in row for row in islice(iter_folder(path, labels), _ROWS_TO_INFER_TYPES)
        ):
            arguments = {**arguments, "split_column": "split"}
        watched = [*files, *([labels] if labels else [])]
        return _tables_from_source(partial(iter_folder, path, labels), watched, options, **arguments)
    name = path.name.lower().removesuffix(".gz").removesuffix(".zip")
    if name.endswith(".parquet"):
        return _load_parquet(path, [path], options, arguments)
    if name.endswith((".csv", ".tsv")):
        return _tables_from_source(partial(iter_csv, path, column), [path], options, **arguments)
    if name.endswith((".json", ".jsonl")):
        return _tables_from_source(partial(iter_json, path, column), [path], options, **arguments)
    if name.endswith((".xyz", ".extxyz")):
        return _tables_from_source(partial(iter_frames, path), [path], options, **arguments)
    raise ValueError(
        f"{path.name}: expected is a table (parquet, CSV, JSON, XYZ) or a folder; for single crystals use as_structure"
    )


def load_crystal_dataset(
    name_or_path: str | os.PathLike,
    *,
    split_column: str | None = None,
    structure_column: str | None = None,
    label_names: list[str] | None = None,
    labels: str | os.PathLike | None = None,
    streaming: bool = False,
    check: bool = True,
    on_error: Literal["skip", "raise"] = "skip",
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> CrystalDatasetDict | IterableDatasetDict:
    """Load crystals with labels as splits of plain records on disk.

    Accepted: a parquet file or folder (plain columns `lattice`, `frac_coords`, `atomic_numbers`, or a column of CIF
    text or dicts); a folder of CIF, POSCAR, extended XYZ or JSON files with an optional CSV of labels; a CSV with a
    column of CIF text or file names; a JSON list, JSON lines or matbench JSON with pymatgen or JARVIS crystals
    (`.gz` and `.zip` too); an extended XYZ file of many frames; a folder written by `save_to_disk`; the name of a
    dataset on the Hub.

    Rows are converted one at a time to Arrow files, found again by fingerprint on the next call, and memory-mapped.

    Args:
        name_or_path: see above.
        split_column: column with the name of the split; its values become the splits. Without it: splits of the Hub
            dataset, file or folder names that start with train, val, validation or test, else all rows in "train".
        structure_column: column with the crystal, where its name is not one of the usual.
        label_names: columns that must be numbers; other columns are typed by their first rows.
        labels: CSV of labels for a folder; the only CSV in the folder otherwise.
        streaming: give `IterableDataset`s that read as they go and write nothing.
        check: check the crystals of plain tables too (converted ones always are).
        on_error: `"skip"` leaves unreadable rows out and lists them in `.skipped`; `"raise"` stops at the first.
        revision: branch, tag or commit of a Hub dataset.
        cache_dir: folder for converted tables.

    Returns:
        `CrystalDatasetDict`, a `DatasetDict` with `.skipped` and `.num_skipped`; or `IterableDatasetDict`. Rows have
        `lattice` (9 floats, vectors in rows, Å), `frac_coords` (3n), `atomic_numbers` (n), `num_atoms`, labels.

    Raises:
        ValueError: nothing there, an unknown form, a missing column, or no readable crystal at all.
        CrystalInputError: with `on_error="raise"`, the first unreadable crystal.
    """
    if on_error not in ("skip", "raise"):
        raise ValueError(f"on_error is {on_error!r}; accepted are 'skip' and 'raise'")
    options: dict[str, Any] = {
        "structure_column": structure_column,
        "label_table": None if labels is None else Path(labels),
        "check": check,
    }
    arguments: dict[str, Any] = {
        "split_column": split_column,
        "label_names": list(label_names) if label_names is not None else None,
        "on_error": on_error,
        "cache_dir": cache_dir,
        "streaming": streaming,
    }
    path = Path(name_or_path)
    if path.exists():
        return _load_path(path, options, arguments)
    name = str(name_or_path)
    known_suffix = re.search(r"\.(parquet|csv|tsv|jsonl?|cif|gz|zip)$", name, re.IGNORECASE)
    if not _HUB_NAME.match(name) or known_suffix or path.is_absolute():
        raise ValueError(f"no such file or folder: {name}")
    return _load_hub(name, revision, options, arguments)
