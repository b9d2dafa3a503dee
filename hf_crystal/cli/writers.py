"""Results as a table, CSV, JSON, JSON lines or parquet, to standard output or a file."""

import contextlib
import csv
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO, get_args

import typer

from .._partial import partial_path

_NARROWEST_CELL = 8
_WIDEST_CELL = 80  # of a table to look at; the other formats hold everything
# of columns that have none beside them
_PER_ATOM = ("e_above_hull", "known_e_above_hull", "energy", "initial_energy")
_UNITS = dict.fromkeys(_PER_ATOM, "eV/atom") | {"volume": "Å³"}
FileFormat = Literal["csv", "json", "jsonl", "parquet"]
Format = Literal["table", "csv", "json", "jsonl", "parquet"]


def format_of_file(path: Path | None) -> FileFormat | None:
    """The format that the ending of a file names, None without a file or with another ending."""
    ending = "" if path is None else path.suffix.lower().removeprefix(".")
    return ending if ending in get_args(FileFormat) else None  # type: ignore[return-value]


def chosen_format(output: Format | None, path: Path | None, usual: Format = "table") -> Format:
    """What `--output` says, or the ending of `--output-file`, or `usual`.

    Raises:
        typer.BadParameter: parquet without a file; a file whose ending names no format, and no `--output`.
    """
    named = format_of_file(path)
    if path is not None and output is None and named is None and path.suffix.lower() not in ("", ".txt"):
        endings = ", ".join(f".{form}" for form in get_args(FileFormat))
        raise typer.BadParameter(f"{path} ends in none of {endings} (.txt is the table)", param_hint="--output-file")
    output = output or named or usual
    if output == "parquet" and path is None:
        raise typer.BadParameter("parquet needs --output-file", param_hint="--output")
    return output


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
    return _cut_end(text, _WIDEST_CELL)


class _Table:
    """Aligned columns, cut to the width of a terminal; keeps all rows until the end to know the widths."""

    def __init__(self, stream: TextIO, columns: Sequence[str]):
        self.stream = stream
        # the standard error of a value is beside it, in one cell
        self.errors = {name: f"{name}_standard_error" for name in columns if f"{name}_standard_error" in columns}
        merged = {f"{name}_{field}" for name in self.errors for field in ("standard_error", "low", "high")}
        self.columns = [name for name in columns if name not in {*merged, "is_metal", "model", "model_digest"}]
        self.rows: list[list[str]] = []

    def write(self, row: dict[str, Any]) -> None:
        """Keep one row."""
        row = _flat(row)
        cells = {name: _cell(row.get(name)) for name in self.columns}
        cells |= {
            name: f"{cells[name]} ± {_cell(row[error])}"
            for name, error in self.errors.items()
            if cells[name] and row.get(error) is not None
        }
        self.rows.append(list(cells.values()))

    def finish(self) -> None:
        """Print all rows, now that the widths are known."""
        # a column that nothing fills (no errors, no units) is left out
        columns = {
            name: cells for name, *cells in zip(self.columns, *self.rows, strict=True) if any(cells) or not self.rows
        }
        # a column of one unit is a word under the name of its value
        units = {name: unit for name, unit in _UNITS.items() if name in columns}
        units |= {
            name: next(iter({*columns[f"{name}_unit"]} - {""}))
            for name in columns
            if len({*columns.get(f"{name}_unit", ())} - {""}) == 1
        }
        shown = {
            name: cells for name, cells in columns.items() if name.removesuffix("_unit") not in units or name in units
        }
        head = [[name, *([units.get(name, "")] if units else [])] for name in shown]
        widths = [max(map(len, [*names, *cells])) for names, cells in zip(head, shown.values(), strict=True)]
        if self.stream.isatty():
            widths = _fitting(
                widths, [_is_text(cells) for cells in shown.values()], shutil.get_terminal_size().columns
            )
        # of a path the end matters
        cutters = [_cut_start if name in ("source", "file") else _cut_end for name in shown]
        table = [*zip(*head, strict=True), tuple("-" * width for width in widths), *zip(*shown.values(), strict=True)]
        for line in table:
            cells = (cut(cell, width).ljust(width) for cut, cell, width in zip(cutters, line, widths, strict=True))
            self.stream.write("  ".join(cells).rstrip() + "\n")


def _is_text(cells: Sequence[str]) -> bool:
    return not all(cell.lstrip("-").replace(".", "", 1).isdigit() for cell in cells if cell)


def _fitting(widths: Sequence[int], may_shrink: Sequence[bool], total: int) -> list[int]:
    """Widths whose sum with two spaces between them fits, where columns of text can be cut so far."""
    fitting = list(widths)
    while sum(fitting) + 2 * (len(fitting) - 1) > total:
        widest = max(((width, place) for place, width in enumerate(fitting) if may_shrink[place]), default=(0, 0))
        if widest[0] <= _NARROWEST_CELL:
            break
        fitting[widest[1]] -= 1
    return fitting


def _cut_end(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _cut_start(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


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
        self.stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.stream.flush()

    def finish(self) -> None:
        """Do nothing: all rows are written."""


class _Counting:
    """Hands rows on and counts them."""

    def __init__(self, writer: Writer):
        self.writer = writer
        self.count = 0

    def write(self, row: dict[str, Any]) -> None:
        """Hand one row on."""
        self.writer.write(row)
        self.count += 1

    def finish(self) -> None:
        """Finish the other writer."""
        self.writer.finish()


class _Parquet:
    """A parquet file in row groups of 10,000."""

    def __init__(self, path: Path, columns: Sequence[str], types: dict[str, Any], notes: dict[str, str] | None):
        import pyarrow
        import pyarrow.parquet

        def type_of(kind: object) -> Any:
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


def announce_written(what: str) -> None:
    """The last line of a command that writes files."""
    print(f"hf-crystal: written: {what}", file=sys.stderr)


@contextlib.contextmanager
def open_writer(
    output: Format,
    path: Path | None,
    columns: Sequence[str],
    types: dict[str, Any],
    notes: dict[str, str] | None = None,
    announce: bool = True,
) -> Iterator[Writer]:
    """A writer for rows with `columns`; a file appears under its name only when all rows are in it.

    The list under `warnings` becomes one text, except in JSON and JSON lines.

    Where the reader of standard output has gone (`| head`), the rest of the work is dropped without an error.

    Args:
        output: the format.
        path: file, None for standard output.
        columns: names and order of the fields.
        types: Arrow types, or their names, of the columns that are not text, for parquet.
        notes: metadata of the file, for parquet.
        announce: whether a line on standard error says what was written.

    Raises:
        ValueError: the folder of the file does not exist.
    """
    if path is None:
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
    if (named := format_of_file(path)) not in (None, output):
        print(f"hf-crystal: warning: {path} is written as {output}, not as {named}: --output says so", file=sys.stderr)
    partial = partial_path(path)
    try:
        with contextlib.ExitStack() as stack:
            if output == "parquet":
                writer = _Parquet(partial, columns, types, notes)
            else:
                stream = stack.enter_context(partial.open("w", encoding="utf-8", newline=""))
                writer = _text_writer(output, stream, columns)
            counting = _Counting(writer)
            yield counting
            counting.finish()
        os.replace(partial, path)
        if announce:
            announce_written(f"{path} ({counting.count} row{'s' * (counting.count != 1)})")
    finally:
        partial.unlink(missing_ok=True)


def _text_writer(output: Format, stream: TextIO, columns: Sequence[str]) -> Writer:
    if output == "csv":
        return _Csv(stream, columns)
    if output == "jsonl":
        return _JsonLines(stream)
    return _Json(stream) if output == "json" else _Table(stream, columns)
