# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Rows that hold crystals in any form → rows of plain columns, as tables on disk or as streams."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from datasets import Features, IterableDataset, IterableDatasetDict
from transformers.utils import logging

from hf_crystal.crystals.reading import CrystalInputError, as_columns
from hf_crystal.crystals.record import CRYSTAL_COLUMNS, printable

from .columns import TEXT_COLUMNS, crystal_features, name_of
from .sources import STRUCTURE_COLUMN
from .tables import CrystalDatasetDict, build_tables, cache_root, fingerprint

__all__ = [
    "ROWS_TO_INFER_TYPES",
    "Row",
    "RowSource",
    "convert_rows",
    "is_missing",
    "tables_from_source",
]

logger = logging.get_logger(__name__)

Row = dict[str, Any]
RowSource = Callable[[], Iterator[Row]]
Disorder = Literal["refuse", "mix"]

ROWS_TO_INFER_TYPES = 1000
_MISSING = {"", "na", "n/a", "nan", "none", "null"}  # JARVIS writes "na"


def is_missing(text: str) -> bool:
    """Whether a value, as text, is none; 0 and False are values."""
    return text.strip().lower() in _MISSING


def _number(value: Any) -> float | None:
    """Number of a label; None for missing.

    Raises:
        ValueError, TypeError: something that is neither.
    """
    if value is None or (isinstance(value, str) and is_missing(value)):
        return None
    return float(value)


def _infer_types(rows: Iterator[Row], label_names: list[str] | None) -> dict[str, str]:
    """Arrow type of each further column, from the first rows."""
    values: dict[str, list[Any]] = {}
    for row in islice(rows, ROWS_TO_INFER_TYPES):
        for name, value in row.items():
            if name != STRUCTURE_COLUMN and not isinstance(value, dict | list | tuple):
                values.setdefault(name, []).append(value)
    types: dict[str, str] = {}
    for name, column in values.items():
        if name in (*CRYSTAL_COLUMNS, "num_atoms"):
            continue
        try:
            known = [number for number in map(_number, column) if number is not None]
            numeric = bool(known) and name not in TEXT_COLUMNS
        except (TypeError, ValueError):
            numeric = False
        types[name] = "float64" if numeric else "string"
    for name in label_names or []:
        if name not in values:
            raise ValueError(f"label column {name!r} is not in the data; it has {', '.join(sorted(values))}")
        types[name] = "float64"
    return types


def _comma_hint(value: object) -> str:
    """What to write instead, for a number with a decimal comma."""
    text = value.strip() if isinstance(value, str) else ""
    return f", with a decimal point: {text.replace(',', '.')}" if re.fullmatch(r"[+-]?\d+,\d+", text) else ""


def _plain_row(row: Row, types: dict[str, str], required: set[str], disorder: Disorder) -> Row:
    """Crystal and further columns of one row in their Arrow types."""
    plain = as_columns(row[STRUCTURE_COLUMN], nested=True, disorder=disorder)
    for name, type_name in types.items():
        value = row.get(name)
        if type_name == "string":
            plain[name] = None if value is None else printable(str(value))
            continue
        try:
            plain[name] = _number(value)
        except (TypeError, ValueError) as error:
            if name in required:
                accepted = f"a number is accepted{_comma_hint(value)}"
                raise CrystalInputError(f"label {name} is {value!r}; {accepted}") from error
            logger.warning_once(f"column {name} holds {value!r}, which is no number; such values become null")
            plain[name] = None
    return plain


def convert_rows(
    source: RowSource,
    types: dict[str, str],
    split_column: str | None,
    required: set[str],
    on_error: str,
    disorder: Disorder = "refuse",
) -> Iterator[tuple[str, Row] | Row]:
    """Read the crystals of a source row by row.

    Args:
        source: gives the rows; the crystal of each is under `STRUCTURE_COLUMN`.
        types: Arrow type name of each further column.
        split_column: column with the split; "train" for all rows without it.
        required: label columns whose text makes the row unusable.
        on_error: `"skip"` or `"raise"`.
        disorder: see `as_record`.

    Yields:
        `(split, row)`, or `{"index", "name", "reason"}` for a row left out.

    Raises:
        CrystalInputError: with `on_error="raise"`, the first fault.
    """
    for index, row in enumerate(source()):
        split = "train" if split_column is None else str(row.get(split_column))
        name = name_of(row)
        try:
            if is_missing(split):
                raise CrystalInputError(f"no split: column {split_column} is empty")
            yield split, _plain_row(row, types, required, disorder)
        except CrystalInputError as error:
            if on_error == "raise":
                raise CrystalInputError(error.reason, index=index, name=name or error.name) from error.__cause__
            yield {"index": index, "name": name or error.name, "reason": error.reason}


def tables_from_source(
    source: RowSource,
    files: list[Path],
    options: dict[str, Any],
    *,
    split_column: str | None,
    label_names: list[str] | None,
    on_error: str,
    cache_dir: str | os.PathLike | None,
    streaming: bool,
    disorder: Disorder,
) -> CrystalDatasetDict | IterableDatasetDict:
    """Plain tables of a source: converted once to Arrow files, or streamed.

    Args:
        source: gives the rows; the crystal of each is under `STRUCTURE_COLUMN`.
        files: what the rows come from; a change of one makes a new table.
        options: what else a table depends on.
        split_column: column with the split; "train" for all rows without it.
        label_names: columns that must be numbers.
        on_error: `"skip"` or `"raise"`.
        cache_dir: folder for converted tables.
        streaming: give streams, and write nothing.
        disorder: see `as_record`.

    Raises:
        ValueError: a named column is not there, or no row holds a crystal.
    """
    types = _infer_types(source(), label_names)
    if split_column is not None and split_column not in types:
        raise ValueError(f"split_column {split_column!r} is not in the data; it has {', '.join(types)}")
    features = crystal_features(types, disordered=disorder == "mix")
    required = set(label_names or [])
    if streaming:
        return _stream_source(source, features, types, split_column, required, on_error, disorder)
    options = {**options, "types": types, "split": split_column, "labels": label_names, "on_error": on_error}
    if disorder == "mix":  # tables of ordered crystals keep their names
        options["disorder"] = disorder
    folder = cache_root(cache_dir) / fingerprint(files, options)
    rows = convert_rows(source, types, split_column, required, on_error, disorder)
    return build_tables(folder, rows, features)


def _stream_source(
    source: RowSource,
    features: Features,
    types: dict[str, str],
    split_column: str | None,
    required: set[str],
    on_error: str,
    disorder: Disorder,
) -> IterableDatasetDict:
    """One stream per split; rows left out are logged, as there is no file to list them in."""
    names = ["train"]
    if split_column is not None:
        found = Counter(str(row.get(split_column)) for row in source())  # reads no crystal
        names = sorted(name for name in found if not is_missing(name))

    stream = _SourceStream(source, types, split_column, required, on_error, disorder)
    return IterableDatasetDict(
        {name: IterableDataset.from_generator(stream, features=features, gen_kwargs={"split": name}) for name in names}
    )


class _SourceStream:
    """Rows of one split as they are read; a class, because `datasets` and worker processes pickle it."""

    def __init__(
        self,
        source: RowSource,
        types: dict[str, str],
        split_column: str | None,
        required: set[str],
        on_error: str,
        disorder: Disorder,
    ):
        self.source = source
        self.types = types
        self.split_column = split_column
        self.required = required
        self.on_error = on_error
        self.disorder = disorder

    def _chosen(self, split: str) -> Iterator[Row]:
        for row in self.source():
            if self.split_column is None or str(row.get(self.split_column)) == split:
                yield row

    def __call__(self, split: str) -> Iterator[Row]:
        rows = partial(self._chosen, split)
        for item in convert_rows(rows, self.types, self.split_column, self.required, self.on_error, self.disorder):
            if isinstance(item, tuple):
                yield item[1]
            else:
                logger.warning(f"left out {item['name'] or item['index']}: {item['reason']}")
