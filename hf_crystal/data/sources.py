# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Row readers: folders of structure files, CSV and JSON tables, one row at a time."""

import codecs
import csv
import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from hf_crystal.crystals.formats import parse_json_text, split_frames
from hf_crystal.crystals.reading import crystals_in
from hf_crystal.crystals.record import CrystalInputError

__all__ = [
    "STRUCTURE_COLUMN",
    "find_structure_column",
    "iter_blocks",
    "iter_csv",
    "iter_folder",
    "iter_frames",
    "iter_json",
    "structure_files",
]

# every reader puts the crystal here, in a form that `as_record` accepts
STRUCTURE_COLUMN = "__structure__"

_STRUCTURE_SUFFIXES = (".cif", ".mcif", ".vasp", ".poscar", ".xyz", ".extxyz", ".json")
_LIKELY_COLUMNS = ("structure", "cif", "atoms", "poscar", "crystal", "file", "filename", "path")
_FILE_COLUMNS = ("file", "filename", "file_name", "path", "id", "material_id", "jid", "name")
_READ_CHARS = 1 << 20
_COMMENT_WORD = re.compile(r"([\w-]+)=([^\s\"'{\[]+)(?:\s|$)")  # plain words only: quoted ones are arrays
_NO_LABEL = {"lattice", "properties", "pbc", "id"}
# a CIF of a big cell in a CSV field exceeds the default of 128 KiB
_CSV_FIELD_LIMIT = 1 << 26


@contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    """Open a text file, unpacking `.gz` and single-member `.zip` on the fly.

    Raises:
        ValueError: a fault of the file that comes out while it is read, with the name of the file.
    """
    try:
        with ExitStack() as files:
            stream: Any = files.enter_context(open(path, "rb"))
            if path.suffix == ".gz":
                stream = files.enter_context(gzip.open(stream))
            elif path.suffix == ".zip":
                archive = files.enter_context(zipfile.ZipFile(stream))
                members = [name for name in archive.namelist() if not name.endswith("/")]
                if len(members) != 1:
                    raise ValueError(f"holds {len(members)} files {members[:5]}; one table is expected")
                stream = files.enter_context(archive.open(members[0]))
            stream = io.BufferedReader(stream)
            wide = stream.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # "Unicode text" of Excel
            # signs beyond UTF-8 are in names and comments, where a mark is enough
            yield io.TextIOWrapper(stream, "utf-16" if wide else "utf-8-sig", errors="replace", newline="")
    except CrystalInputError as error:
        raise ValueError(f"{path.name}: {error.reason}") from error
    except (ValueError, EOFError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, csv.Error, RuntimeError) as error:
        known = str(error).startswith(path.name)
        raise ValueError(str(error) if known else f"{path.name} cannot be read: {error}") from error


# ---------------------------------------------------------------------------------------------------------- folder


def structure_files(folder: Path) -> list[Path]:
    """Structure files of a folder and its sub-folders, sorted by path."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not path.name.startswith(".")
        and (
            path.name.lower().removesuffix(".gz").endswith(_STRUCTURE_SUFFIXES)
            or any(word in path.name.upper() for word in ("POSCAR", "CONTCAR"))
        )
    )


def _label_table(path: Path) -> dict[str, dict[str, Any]]:
    """Rows of a label CSV by file name; without a header it is read as `id, label` (CGCNN's id_prop.csv)."""
    with _open_text(path) as stream:
        lines = list(csv.reader(stream))
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"{path.name} is empty; a header with one of {', '.join(_FILE_COLUMNS)} is expected")
    header = [word.strip() for word in lines[0]]
    key = next((name for name in _FILE_COLUMNS if name in header), None)
    if key is not None:
        rows = [dict(zip(header, line, strict=False)) for line in lines[1:]]
    elif len(header) == 2:
        key, rows = "id", [dict(zip(("id", "label"), line, strict=False)) for line in lines]
    else:
        raise ValueError(f"{path.name} has columns {header}; one of {', '.join(_FILE_COLUMNS)} must name the file")
    return {row[key].strip(): {k: v for k, v in row.items() if k != key} for row in rows if row.get(key)}


def find_label_table(folder: Path) -> Path | None:
    """The CSV beside the structure files, where there is exactly one."""
    tables = sorted(folder.glob("*.csv"))
    if len(tables) > 1:
        raise ValueError(f"{folder} has {len(tables)} CSV files {[t.name for t in tables]}; pass labels=<file>")
    return tables[0] if tables else None


def iter_folder(folder: Path, labels: Path | None) -> Iterator[dict[str, Any]]:
    """Rows of a folder of structure files, with labels from a CSV and a split from the first-level folder.

    Args:
        folder: sub-folders named train, val, validation, valid or test become the column `split`.
        labels: CSV whose column file, id, … matches the file name with or without suffix.

    Yields:
        dicts with `id`, `file`, labels and the crystal's path; rows of the CSV without a file come as paths that do
        not exist, so that they are reported.
    """
    table = _label_table(labels) if labels is not None else {}
    unused = set(table)
    for path in structure_files(folder):
        relative = path.relative_to(folder)
        stem = path.name.removesuffix(".gz")
        stem = stem if Path(stem).suffix.lower() not in _STRUCTURE_SUFFIXES else Path(stem).stem
        keys = (str(relative), path.name, stem)
        key = next((key for key in keys if key in table), None)
        unused.discard(key or "")
        row: dict[str, Any] = {"id": stem, "file": str(relative)}
        if relative.parts[0] in ("train", "val", "validation", "valid", "test"):
            row["split"] = relative.parts[0]
        row.update(table.get(key, {}) if key else {})
        # the label of a file is that of one crystal: of several its reader takes the first and announces it
        for part, crystal in crystals_in(path) if key is None else [("", path)]:
            own = {"id": f"{stem}:{part}", "file": f"{relative}:{part}"} if part else {}
            yield {**row, **own, STRUCTURE_COLUMN: crystal}
    for key in sorted(unused):
        yield {"id": key, "file": key, **table[key], STRUCTURE_COLUMN: folder / key}


def iter_frames(path: Path) -> Iterator[dict[str, Any]]:
    """Frames of an extended XYZ file; `key=value` words of the comment line become columns."""
    with _open_text(path) as stream:
        for place, frame in enumerate(split_frames(stream)):
            yield {"id": f"{path.name}:{place}", **_frame_columns(frame), STRUCTURE_COLUMN: frame}


def _frame_columns(frame: str) -> dict[str, str]:
    values = dict(_COMMENT_WORD.findall("".join(frame.splitlines()[1:2])))
    return {key: value for key, value in values.items() if key.lower() not in _NO_LABEL}


def iter_blocks(path: Path) -> Iterator[dict[str, Any]]:
    """Crystals of one CIF, each data block with sites a row."""
    for name, crystal in crystals_in(path):
        yield {"id": f"{path.name}:{name}" if name else path.name, STRUCTURE_COLUMN: crystal}


# ------------------------------------------------------------------------------------------------------ CSV, JSON


def find_structure_column(columns: list[str], structure_column: str | None, source: str) -> str:
    """The column that holds crystals.

    Raises:
        ValueError: none of the usual names is there.
    """
    if structure_column is not None:
        if structure_column not in columns:
            raise ValueError(f"{source} has no column {structure_column!r}; it has {', '.join(columns)}")
        return structure_column
    found = next((name for name in _LIKELY_COLUMNS if name in columns), None)
    if found is None:
        raise ValueError(f"{source} has columns {', '.join(columns)}; pass structure_column=<the one with crystals>")
    return found


def iter_csv(path: Path, structure_column: str | None) -> Iterator[dict[str, Any]]:
    """Rows of a CSV with a column of CIF text, POSCAR text or file names (relative to the CSV)."""
    csv.field_size_limit(_CSV_FIELD_LIMIT)
    with _open_text(path) as stream:
        header = stream.readline()
        # Excel writes semicolons or tabs where the comma is the decimal sign
        delimiter = max(",;\t", key=header.count)
        reader = csv.DictReader(chain([header], stream), delimiter=delimiter)
        column = find_structure_column(list(reader.fieldnames or []), structure_column, path.name)
        for row in reader:
            crystal: Any = row.pop(column)
            row.pop(None, None)  # cells beyond the header
            if crystal and "\n" not in crystal and len(crystal) < 1024 and crystal.lstrip()[:1] not in "{[":
                name = Path(crystal.strip())
                # a table names files beside or below itself and no others
                crystal = crystal if name.is_absolute() or ".." in name.parts else path.parent / name
            yield {**row, STRUCTURE_COLUMN: crystal or ""}


def iter_json(path: Path, structure_column: str | None) -> Iterator[dict[str, Any]]:
    """Rows of a JSON list, JSON lines, an object of entries by id, or a column table (`columns`, `data`).

    A top-level list is decoded entry by entry, so a file of any size needs memory for one entry.
    """
    with _open_text(path) as stream:
        first = _first_character(stream)
        if first == "[":
            entries: Iterator[Any] = _iter_list(stream, path.name)
        elif first == "{":
            entries = _iter_object(stream)
        else:
            raise ValueError(f"{path.name} starts with {first!r}; a JSON list, object or lines are expected")
        for entry in entries:
            yield _entry_row(entry, structure_column, path.name)


def _first_character(stream: IO[str]) -> str:
    while character := stream.read(1):
        if not character.isspace():
            return character
    return ""


def _iter_list(stream: IO[str], name: str) -> Iterator[Any]:
    """Entries of a JSON list whose opening bracket was read, one at a time."""
    decoder = json.JSONDecoder()
    buffer, place, grow = "", 0, _READ_CHARS
    while True:
        while place < len(buffer) and (buffer[place].isspace() or buffer[place] == ","):
            place += 1
        if place < len(buffer):
            if buffer[place] == "]":
                return
            try:
                entry, place = decoder.raw_decode(buffer, place)
                # a number may go on in the next piece; entries of tables are objects, so this costs nothing
                if place < len(buffer) or isinstance(entry, dict):
                    grow = _READ_CHARS
                    yield entry
                    continue
            except json.JSONDecodeError as error:
                problem: Exception = error
        else:
            problem = ValueError("the list is not closed")
        more = stream.read(grow)
        grow *= 2  # an entry larger than the piece is not decoded again and again from the start
        if not more:
            raise ValueError(f"{name} is not valid JSON or is cut off: {problem}") from problem
        buffer, place = buffer[place:] + more, 0


def _iter_object(stream: IO[str]) -> Iterator[Any]:
    """Entries of a file that starts with an object: JSON lines, or one object."""
    line = "{" + stream.readline()
    try:
        first = parse_json_text(line)
    except CrystalInputError:
        first = None
    rest = stream.readline()
    if first is not None and rest.strip():  # JSON lines
        yield first
        while rest:
            if rest.strip():
                try:
                    yield parse_json_text(rest)
                except CrystalInputError as error:  # the other lines are whole
                    yield error
            rest = stream.readline()
        return
    whole = first if first is not None else parse_json_text(line + rest + stream.read())
    if "columns" in whole and "data" in whole:  # pandas "split" orientation, used by matbench
        for index, values in zip(whole.get("index") or range(len(whole["data"])), whole["data"], strict=False):
            yield {"id": str(index), **dict(zip(whole["columns"], values, strict=False))}
    elif whole and all(isinstance(entry, dict) for entry in whole.values()) and not _is_crystal(whole):
        for key, entry in whole.items():
            yield {"id": key, **entry}
    else:
        yield whole


def _is_crystal(entry: dict[str, Any]) -> bool:
    return bool({"sites", "lattice", "cell", "lattice_mat"} & set(entry))


def _entry_row(entry: Any, structure_column: str | None, name: str) -> dict[str, Any]:
    if isinstance(entry, CrystalInputError):
        return {STRUCTURE_COLUMN: entry}
    if not isinstance(entry, dict):
        raise ValueError(f"{name} holds {str(entry)[:60]!r} where an object is expected")
    if structure_column is None and _is_crystal(entry):
        scalars = {key: value for key, value in entry.items() if isinstance(value, str | int | float)}
        return {**scalars, STRUCTURE_COLUMN: entry}
    column = find_structure_column(list(entry), structure_column, name)
    return {**{key: value for key, value in entry.items() if key != column}, STRUCTURE_COLUMN: entry[column]}
