# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""`load_crystal_dataset`: any table or folder of crystals → memory-mapped splits of plain records."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from datasets import DatasetDict, IterableDatasetDict, load_dataset, load_from_disk
from transformers.utils import logging

from .columns import has_crystal_columns
from .conversion import ROWS_TO_INFER_TYPES, Row, tables_from_source
from .folders import find_label_table, iter_folder
from .plain_tables import finish_tables, stream_tables
from .sources import (
    STRUCTURE_COLUMN,
    form_of,
    iter_parquet,
    iter_rows,
    structure_files,
    take_crystal,
)
from .tables import CrystalDatasetDict

__all__ = ["load_crystal_dataset"]

logger = logging.get_logger(__name__)

_SPLIT_OF_FILE = re.compile(r"^(train|validation|valid|val|test)(?=[-_.0-9]|$)", re.IGNORECASE)
_HUB_NAME = re.compile(r"^[\w][\w.-]*(/[\w][\w.-]*)?$")


def _finish(tables: Any, options: dict[str, Any], arguments: dict[str, Any]) -> CrystalDatasetDict:
    given = {name: arguments[name] for name in ("on_error", "disorder")}
    return finish_tables(tables, arguments["split_column"], check=options["check"], **given)


def _parquet_rows(files: list[Path], structure_column: str | None) -> Iterator[Row]:
    for path in files:
        yield from iter_parquet(path, structure_column)


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
        return tables_from_source(
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
        return stream_tables(tables, files, split_column, arguments["disorder"])
    return _finish(tables, options, arguments)


def _hub_rows(tables: Any, structure_column: str | None, name: str) -> Iterator[Row]:
    for split, table in tables.items():
        for row in table:
            crystal = take_crystal(row, structure_column, name)
            yield {"split": str(split), **row, STRUCTURE_COLUMN: crystal}


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
            return stream_tables(tables, [], arguments["split_column"], arguments["disorder"])
        return _finish(tables, options, arguments)

    content = [getattr(table, "_fingerprint", "") for table in tables.values()]
    options = {**options, "hub": name, "revision": revision, "content": content}
    arguments = {**arguments, "split_column": arguments["split_column"] or "split"}
    source = partial(_hub_rows, tables, options["structure_column"], name)
    return tables_from_source(source, [], options, **arguments)


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
            return _finish(tables, options, arguments)
        parquet = sorted(file for file in path.rglob("*.parquet") if file.is_file())
        if parquet:
            return _load_parquet(path, parquet, options, arguments)
        files = structure_files(path)
        if not files:
            raise ValueError(f"{path} holds no parquet and no structure files (CIF, POSCAR, extended XYZ, JSON)")
        labels = options["label_table"] or find_label_table(path)
        _report_other_files(path, files)
        if arguments["split_column"] is None and any(
            "split" in row for row in islice(iter_folder(path, labels), ROWS_TO_INFER_TYPES)
        ):
            arguments = {**arguments, "split_column": "split"}
        watched = [*files, *([labels] if labels else [])]
        return tables_from_source(partial(iter_folder, path, labels), watched, options, **arguments)
    if form_of(path) == "parquet":
        return _load_parquet(path, [path], options, arguments)
    return tables_from_source(partial(iter_rows, path, column), [path], options, **arguments)


def _check_labels(splits: Mapping[str, Any], label_names: Iterable[str]) -> None:
    """Raise `ValueError` where a label column is missing, or holds no numbers."""
    for rows in splits.values():
        for name in label_names:
            if name not in rows.column_names:
                raise ValueError(f"label column {name!r} is not in the data; it has {', '.join(rows.column_names)}")
            dtype = str(getattr(rows.features[name], "dtype", "nested"))
            if not dtype.startswith(("float", "int", "uint", "bool", "double")):
                raise ValueError(f"label column {name!r} holds {dtype}; accepted: numbers")


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
    disorder: Literal["refuse", "mix"] = "refuse",
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> CrystalDatasetDict | IterableDatasetDict:
    """Load crystals with labels as splits of plain records on disk.

    Accepted: a parquet file or folder (plain columns `lattice`, `frac_coords`, `atomic_numbers`, or a column of CIF
    text or dicts); a folder of CIF, POSCAR, extended XYZ or JSON files with an optional CSV of labels; a CSV with a
    column of CIF text or file names; a JSON list, JSON lines or matbench JSON with pymatgen or JARVIS crystals,
    responses of OPTIMADE and of the Materials Project; a database or trajectory of ASE; a CIF or extended XYZ file of
    many crystals (text files also as `.gz`, `.bz2`, `.xz` or `.zip`); a folder written by `save_to_disk`; the name of
    a dataset on the Hub.

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
        disorder: `"refuse"` leaves out crystals with partly occupied sites; `"mix"` keeps them: the column `species`
            has the occupancies, null of ordered crystals, `atomic_numbers` the main element of each site.
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
    if disorder not in ("refuse", "mix"):
        raise ValueError(f"disorder is {disorder!r}; accepted are 'refuse' and 'mix'")
    options: dict[str, Any] = {
        "structure_column": structure_column,
        "label_table": None if labels is None else Path(labels),
        "check": check,
    }
    arguments: dict[str, Any] = {
        "split_column": split_column,
        "label_names": list(label_names) if label_names is not None else None,
        "on_error": on_error,
        "disorder": disorder,
        "cache_dir": cache_dir,
        "streaming": streaming,
    }
    path = Path(name_or_path)
    if path.exists():
        found = _load_path(path, options, arguments)
        if not streaming and label_names:
            _check_labels(found, label_names)
        return found
    name = str(name_or_path)
    known_suffix = re.search(r"\.(parquet|csv|tsv|jsonl?|cif|gz|zip)$", name, re.IGNORECASE)
    if not _HUB_NAME.match(name) or known_suffix or path.is_absolute():
        raise ValueError(f"no such file or folder: {name}")
    return _load_hub(name, revision, options, arguments)
