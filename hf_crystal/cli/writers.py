"""Results as a table, CSV, JSON, JSON lines or parquet, to standard output or a file."""

import contextlib
import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO, get_args

from .._partial import partial_path

_WIDEST_CELL = 80  # of a table to look at; the other formats hold everything
FileFormat = Literal["csv", "json", "jsonl", "parquet"]
Format = Literal["table", "csv", "json", "jsonl", "parquet"]


def format_of_file(path: Path | None) -> FileFormat | None:
    """The format that the ending of a file names, None without a file or with another ending."""
    ending = "" if path is None else path.suffix.lower().removeprefix(".")
    return ending if ending in get_args(FileFormat) else None  # type: ignore[return-value]


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose warnings are one text."""
    return {**row, "warnings": "; ".join(row["warnings"])} if "warnings" in row else row


class Writer(Protocol):
    """Takes rows, then is finished."""

    def write(self, row: dict[str, Any]) -> None:
        """Take one row."""

    def finish(self) -> None:
        """Write what is left."""


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    text = "" if value is None else str(value)
    return text if len(text) <= _WIDEST_CELL else text[: _WIDEST_CELL - 1] + "…"


class _Table:
    """Aligned columns; keeps all rows until the end to know the widths."""

    def __init__(self, stream: TextIO, columns: Sequence[str]):
        self.stream = stream
        # the standard error of a value is beside it, in one cell
        self.errors = {name: f"{name}_standard_error" for name in columns if f"{name}_standard_error" in columns}
        merged = {f"{name}_{field}" for name in self.errors for field in ("standard_error", "low", "high")}
        self.columns = [name for name in columns if name not in {*merged, "is_metal"}]
        self.rows: list[list[str]] = []

    def write(self, row: dict[str, Any]) -> None:
        """Keep one row."""
        row = _flat(row)
        cells = {name: _cell(row.get(name)) for name in self.columns}
        cells |= {name: f"{cells[name]} ± {_cell(row[error])}" for name, error in self.errors.items() if error in row}
        self.rows.append(list(cells.values()))

    def finish(self) -> None:
        """Print all rows, now that the widths are known."""
        # a column that nothing fills (no errors, no units) is left out
        used = [index for index in range(len(self.columns)) if any(row[index] for row in self.rows)]
        lines = [[self.columns[index] for index in used], *([row[index] for index in used] for row in self.rows)]
        widths = [max(len(line[place]) for line in lines) for place in range(len(used))]
        lines.insert(1, ["-" * width for width in widths])
        for line in lines:
            text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            self.stream.write(text.rstrip() + "\n")


class _Csv:
    """A header and one line per row."""

    def __init__(self, stream: TextIO, columns: Sequence[str]):
        self.writer = csv.DictWriter(stream, list(columns), lineterminator="\n")
        self.writer.writeheader()

    def write(self, row: dict[str, Any]) -> None:
        """Write one row."""
        self.writer.writerow(_flat(row))

    def finish(self) -> None:
        """Do nothing: all rows are written."""


class _Json:
    """One JSON array, written row by row."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.separator = "[\n"

    def write(self, row: dict[str, Any]) -> None:
        """Write one row."""
        self.stream.write(self.separator + json.dumps(row, ensure_ascii=False))
        self.separator = ",\n"

    def finish(self) -> None:
        """Close the array."""
        self.stream.write("[]\n" if self.separator == "[\n" else "\n]\n")


class _JsonLines:
    """One JSON object per line, each sent on at once, so that a pipe can work on it."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, row: dict[str, Any]) -> None:
        """Write one row."""
        self.stream.write(json.dumps(_flat(row), ensure_ascii=False) + "\n")
        self.stream.flush()

    def finish(self) -> None:
        """Do nothing: all rows are written."""


class _Parquet:
    """A parquet file in row groups of 10,000."""

    def __init__(self, path: Path, columns: Sequence[str], types: dict[str, Any], notes: dict[str, str] | None):
        import pyarrow
        import pyarrow.parquet

        def type_of(kind: Any) -> Any:
            """The Arrow type of a name; a type stays what it is."""
            return pyarrow.type_for_alias(kind) if isinstance(kind, str) else kind

        fields = [(name, type_of(types.get(name, "string"))) for name in columns]
        self.schema = pyarrow.schema(fields, metadata=notes)
        self.table = pyarrow.Table
        self.writer = pyarrow.parquet.ParquetWriter(path, self.schema, compression="zstd")
        self.rows: list[dict[str, Any]] = []

    def write(self, row: dict[str, Any]) -> None:
        """Take one row; every 10,000 are written together."""
        self.rows.append(_flat(row))
        if len(self.rows) == 10_000:
            self._flush()

    def _flush(self) -> None:
        self.writer.write_table(self.table.from_pylist(self.rows, schema=self.schema))
        self.rows.clear()

    def finish(self) -> None:
        """Write the last rows and the footer."""
        self._flush()
        self.writer.close()


@contextlib.contextmanager
def open_writer(
    output: Format,
    path: Path | None,
    columns: Sequence[str],
    types: dict[str, Any],
    notes: dict[str, str] | None = None,
) -> Iterator[Writer]:
    """A writer for rows with `columns`; a file appears under its name only when all rows are in it.

    The list under `warnings` becomes one text, except in JSON.

    Where the reader of standard output has gone (`| head`), the rest of the work is dropped without an error.

    Args:
        output: the format.
        path: file, None for standard output.
        columns: names and order of the fields.
        types: Arrow types, or their names, of the columns that are not text, for parquet.
        notes: metadata of the file, for parquet.

    Raises:
        ValueError: parquet without a file, or the folder of the file does not exist.
    """
    if path is None:
        if output == "parquet":
            raise ValueError("--output parquet needs --output-file")
        writer = _text_writer(output, sys.stdout, columns)
        try:
            yield writer
            writer.finish()
            sys.stdout.flush()
        except BrokenPipeError:
            # Python flushes standard output once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if not path.parent.is_dir():
        raise ValueError(f"folder of --output-file does not exist: {path.parent}")
    partial = partial_path(path)
    try:
        with contextlib.ExitStack() as stack:
            if output == "parquet":
                writer = _Parquet(partial, columns, types, notes)
            else:
                stream = stack.enter_context(partial.open("w", encoding="utf-8", newline=""))
                writer = _text_writer(output, stream, columns)
            yield writer
            writer.finish()
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _text_writer(output: Format, stream: TextIO, columns: Sequence[str]) -> Writer:
    if output == "csv":
        return _Csv(stream, columns)
    if output == "jsonl":
        return _JsonLines(stream)
    return _Json(stream) if output == "json" else _Table(stream, columns)
