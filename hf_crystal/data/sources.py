# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Row readers: structure files and folders of them, tables, databases, one row at a time; `load`, the door to all."""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Literal

from transformers.utils import logging

from hf_crystal.crystals.formats import (
    COMPRESSION_ERRORS,
    open_unpacked,
    parse_json_text,
    plain_name,
    split_frames,
)
from hf_crystal.crystals.reading import as_record, crystals_in
from hf_crystal.crystals.record import CRYSTAL_COLUMNS, SPECIES_COLUMN, CrystalInputError, CrystalRecord, printable
from hf_crystal.data.columns import CONTENT_COLUMNS, FILE_COLUMNS, name_columns
from hf_crystal.typing import CrystalLike

__all__ = [
    "STRUCTURE_COLUMN",
    "STRUCTURE_SUFFIXES",
    "TABLE_SUFFIXES",
    "count_crystals",
    "delimiter_of",
    "folder_files",
    "form_of",
    "iter_blocks",
    "iter_crystals",
    "iter_csv",
    "iter_frames",
    "iter_json",
    "iter_parquet",
    "iter_rows",
    "load",
    "open_parquet",
    "open_text",
    "structure_files",
    "take_crystal",
]

logger = logging.get_logger(__name__)

# every reader puts the crystal here, in a form that `as_record` accepts
STRUCTURE_COLUMN = "__structure__"

Form = Literal["structure", "csv", "json", "parquet", "ase"]
STRUCTURE_SUFFIXES = (".cif", ".mcif", ".vasp", ".poscar", ".contcar", ".xyz", ".extxyz", ".json")
_FORMS: dict[str, Form] = {
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".json", ".jsonl"), "json"),
    ".parquet": "parquet",
    **dict.fromkeys((".db", ".traj"), "ase"),
}
TABLE_SUFFIXES = (".jsonl", ".parquet", ".db", ".traj")  # a CSV in a folder may hold labels only
_CSV_SUFFIXES = (".csv", ".tsv")
_SHOWN = 5  # files of a folder that are named as passed over
_MAGIC: tuple[tuple[bytes, Form], ...] = ((b"PAR1", "parquet"), (b"SQLite format 3", "ase"), (b"- of Ulm", "ase"))
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+(?:[eE][+-]?\d+)?\s*")
_READ_CHARS = 1 << 20
_HEAD_CHARS = 1 << 12
_COMMENT_WORD = re.compile(r"([\w-]+)=([^\s\"'{\[]+)(?:\s|$)")  # plain words only: quoted ones are arrays
_NO_LABEL = {"lattice", "properties", "pbc", "id"}
# a CIF of a big cell in a CSV field exceeds the default of 128 KiB
_CSV_FIELD_LIMIT = 1 << 26


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a text file, unpacking compressed ones on the fly.

    Raises:
        ValueError: a fault of the file that comes out while it is read, with the name of the file.
    """
    try:
        with ExitStack() as files:
            stream: Any = files.enter_context(open_unpacked(files.enter_context(open(path, "rb"))))
            stream = io.BufferedReader(stream)
            wide = stream.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # "Unicode text" of Excel
            # signs beyond UTF-8 are in names and comments, where a mark is enough
            yield io.TextIOWrapper(stream, "utf-16" if wide else "utf-8-sig", errors="replace", newline="")
    except CrystalInputError as error:
        raise ValueError(f"{path.name}: {error.reason}") from error
    except (ValueError, csv.Error, *COMPRESSION_ERRORS) as error:
        known = str(error).startswith(path.name)
        raise ValueError(str(error) if known else f"{path.name} cannot be read: {error}") from error


def form_of(path: Path) -> Form:
    """What kind of file this is, by its name, else by how it begins; pipes are structures, as they are read once."""
    name = plain_name(path.name)
    if (form := _FORMS.get(Path(name).suffix)) is not None:
        return form
    if name.endswith(STRUCTURE_SUFFIXES) or not path.is_file():
        return "structure"
    with path.open("rb") as stream:
        start = stream.read(16)
    if (form := next((form for magic, form in _MAGIC if start.startswith(magic)), None)) is not None:
        return form
    try:
        with open_text(path) as text:
            head = text.read(_HEAD_CHARS)
    except ValueError:
        return "structure"  # its reader gives the reason
    if head.lstrip()[:1] in ("{", "["):
        return "json"
    header = head.partition("\n")[0]
    if header.strip() == "CRYSTAL":  # of XSF, not a column of that name
        return "structure"
    return "csv" if _crystal_columns(next(csv.reader([header], delimiter=delimiter_of(header)), [])) else "structure"


# ---------------------------------------------------------------------------------------------------------- folder


def structure_files(folder: Path, *others: str) -> list[Path]:
    """Structure files of a folder and its sub-folders, and files with `others` as endings, sorted by path."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not path.name.startswith(".")
        and (
            plain_name(path.name).endswith((*STRUCTURE_SUFFIXES, *others))
            or any(word in path.name.upper() for word in ("POSCAR", "CONTCAR"))
        )
    )


def folder_files(folder: Path) -> tuple[list[Path], str]:
    """Files of a folder, at any depth, that hold crystals, and in words what else is there and is passed over.

    A CSV is one of them where a column holds crystals and none names files, which are read by themselves.
    """
    found, left = structure_files(folder, *TABLE_SUFFIXES, *_CSV_SUFFIXES), []
    seen = set(found)
    for path in [path for path in found if plain_name(path.name).endswith(_CSV_SUFFIXES)]:
        if reason := _no_crystals(path):
            found.remove(path)
            left.append(f"{path.relative_to(folder)} ({reason})")
    others = (path for path in sorted(folder.rglob("*")) if path not in seen and not path.is_dir())
    left += [str(path.relative_to(folder)) for path in others if not path.name.startswith(".")]
    hidden = len(left) - _SHOWN
    more = f" and {hidden} more file{'s' * (hidden > 1)}" if hidden > 0 else ""
    return found, printable(f"{folder}: passed over {', '.join(left[:_SHOWN])}{more}") if left else ""


def _no_crystals(path: Path) -> str:
    """Why a CSV in a folder of crystals is no table of crystals; empty where it is one, or cannot be read."""
    try:
        with open_text(path) as stream:
            header = stream.readline()
    except ValueError:
        return ""  # its reader gives the reason
    names = next(csv.reader([header], delimiter=delimiter_of(header)), [])
    if any(name.strip().lower() in FILE_COLUMNS for name in names):
        return "it lists files, which are read by themselves"
    return "" if _crystal_columns(names) else "no column holds crystals"


def iter_frames(path: Path) -> Iterator[dict[str, Any]]:
    """Frames of an extended XYZ file; `key=value` words of the comment line become columns."""
    with open_text(path) as stream:
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


def _crystal_columns(columns: Iterable[str], structure_column: str | None = None) -> list[str]:
    """The column with crystals, or the columns of the package's own tables; empty where there are none."""
    names = list(columns)
    if structure_column is not None:
        return [structure_column] if structure_column in names else []
    own = [name for name in (*CRYSTAL_COLUMNS, SPECIES_COLUMN) if name in names]
    if set(own) >= set(CRYSTAL_COLUMNS[:2]) and len(own) > 2:  # species may take the place of atomic_numbers
        return own
    by_word = {name.strip().lower(): name for name in reversed(names)}
    return [by_word[word] for word in CONTENT_COLUMNS if word in by_word][:1]


def _find_crystal_columns(columns: Iterable[str], structure_column: str | None, source: str) -> list[str]:
    """As `_crystal_columns`; `ValueError` where there are none."""
    columns = list(columns)
    found = _crystal_columns(columns, structure_column)
    if structure_column is not None and not found:
        raise ValueError(f"{source} has no column {structure_column!r}; it has {', '.join(columns)}")
    if not found:
        raise ValueError(
            f"{source} has columns {', '.join(columns[:12])}; crystals are expected in one named "
            f"{', '.join(CONTENT_COLUMNS)} (or pass structure_column=), or in {', '.join(CRYSTAL_COLUMNS)}"
        )
    return found


def take_crystal(row: dict[str, Any], structure_column: str | None, source: str) -> Any:
    """The crystal of a row, whose columns are taken out; `ValueError` where there is none."""
    return _take(row, _find_crystal_columns(row, structure_column, source))


def _take(row: dict[str, Any], columns: list[str]) -> Any:
    taken = {name: row.pop(name) for name in columns}
    return taken if len(columns) > 1 else taken[columns[0]]


def delimiter_of(header: str) -> str:
    """Delimiter of a table by its first line; Excel writes semicolons or tabs where the comma is the decimal sign."""
    return max(",;\t|", key=header.count)


def _with_point(value: Any) -> Any:
    """A cell that is a number with a decimal comma, with a point."""
    return value.replace(",", ".") if isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value) else value


def _listed(text: str) -> list[str]:
    """Entries of a list as text: numbers, symbols, or JSON objects."""
    words = re.findall(r"\{[^{}]*\}|[^\s\[\],{}]+", text.replace('\\"', '"'))
    return [word for word in (word.strip("\"'") for word in words) if word]


def iter_csv(path: Path, structure_column: str | None) -> Iterator[dict[str, Any]]:
    """Rows of a CSV with a column of CIF text, POSCAR text or file names (relative to the CSV), or plain columns."""
    csv.field_size_limit(_CSV_FIELD_LIMIT)
    with open_text(path) as stream:
        header = stream.readline()
        reader = csv.DictReader(chain([header], stream), delimiter=delimiter_of(header))
        if not header.strip():
            raise ValueError(f"{path.name} is empty; a header and a row for each crystal are expected")
        names = list(reader.fieldnames or [])
        columns = _find_crystal_columns(names, structure_column, path.name)
        if twice := [name for name in columns if names.count(name) > 1]:
            raise ValueError(f"{path.name} has column {twice[0]!r} {names.count(twice[0])} times; rename the others")
        for row in reader:
            if reader.reader.dialect.delimiter != ",":
                row = {name: _with_point(value) for name, value in row.items()}
            crystal: Any = _take(row, columns)
            row.pop(None, None)  # cells beyond the header
            if isinstance(crystal, dict):  # lists as text, in the spelling of JSON or of numpy
                crystal = {name: _listed(text or "") for name, text in crystal.items()}
            elif crystal and "\n" not in crystal and crystal.count("\\n") > 2:  # line breaks as a database writes them
                crystal = crystal.replace("\\r", "").replace("\\n", "\n")
            elif crystal and "\n" not in crystal and len(crystal) < 1024 and crystal.lstrip()[:1] not in "{[":
                name = Path(crystal.strip())
                # a table names files beside or below itself and no others
                crystal = crystal if name.is_absolute() or ".." in name.parts else path.parent / name
                if columns[0].strip().lower() in FILE_COLUMNS:
                    row[columns[0]] = str(name)  # the row's own name
            yield {**row, STRUCTURE_COLUMN: crystal or ""}


def iter_json(path: Path, structure_column: str | None) -> Iterator[dict[str, Any]]:
    """Rows of a JSON list, JSON lines, an object of entries by id, or a column table (`columns`, `data`).

    A top-level list is decoded entry by entry, so a file of any size needs memory for one entry.
    """
    with open_text(path) as stream:
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
    lines = (line for line in stream if line.strip())
    line, rest = "{" + next(lines, ""), next(lines, "")
    try:
        first: Any = parse_json_text(line)
    except CrystalInputError as error:  # one object of several lines, or a damaged line
        first = error
    if not rest and not isinstance(first, CrystalInputError):
        yield from document_entries(first)
        return
    if isinstance(first, CrystalInputError) and not _is_json(rest):
        yield from document_entries(parse_json_text(line + rest + "".join(lines)))
        return
    yield first
    for line in chain([rest], lines):
        try:
            yield parse_json_text(line)
        except CrystalInputError as error:  # the other lines are whole
            yield error


def _is_json(line: str) -> bool:
    """Whether a line is an object by itself."""
    try:
        return isinstance(parse_json_text(line), dict)
    except CrystalInputError:
        return False


def document_entries(whole: Mapping[str, Any]) -> Iterator[Any]:
    """Entries of a JSON object: a column table, the response of a web service, entries by id, or the object itself."""
    if "columns" in whole and "data" in whole:  # pandas "split" orientation, used by matbench
        for index, values in zip(whole.get("index") or range(len(whole["data"])), whole["data"], strict=False):
            yield {"id": str(index), **dict(zip(whole["columns"], values, strict=False))}
    elif isinstance(whole.get("data"), list):  # OPTIMADE, Materials Project
        yield from whole["data"]
    elif whole and all(isinstance(entry, dict) for entry in whole.values()) and not _is_crystal(whole):
        for key, entry in whole.items():
            yield {"id": key, **entry}
    else:
        yield whole


def _is_crystal(entry: Mapping[str, Any]) -> bool:
    return bool({"sites", "lattice", "cell", "lattice_mat", "lattice_vectors"} & set(entry))


def _entry_row(entry: Any, structure_column: str | None, name: str) -> dict[str, Any]:
    if isinstance(entry, CrystalInputError):
        return {STRUCTURE_COLUMN: entry}
    if not isinstance(entry, dict):
        raise ValueError(f"{name} holds {str(entry)[:60]!r} where an object is expected")
    if structure_column is None and _is_crystal(entry):
        scalars = {key: value for key, value in entry.items() if isinstance(value, str | int | float)}
        return {**scalars, STRUCTURE_COLUMN: entry}
    row = dict(entry)
    crystal = take_crystal(row, structure_column, name)
    return {**row, STRUCTURE_COLUMN: crystal}


# ---------------------------------------------------------------------------------------------------- parquet, ASE


def open_parquet(path: Path, structure_column: str | None = None) -> tuple[Any, list[str]]:
    """A parquet file and its columns that hold crystals; `ValueError` where there are none."""
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        table = ParquetFile(path)
    except ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error
    return table, _find_crystal_columns(table.schema_arrow.names, structure_column, str(path))


def iter_parquet(
    path: Path,
    structure_column: str | None = None,
    others: Callable[[tuple[str, ...]], Collection[str]] | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of a parquet file; of a damaged part the reason in place of each crystal.

    Args:
        path: the file.
        structure_column: column with the crystal, where its name is not one of the usual.
        others: chooses the further columns to read among all; without it they are all read.
    """
    table, columns = open_parquet(path, structure_column)
    with table:
        names = table.schema_arrow.names
        further = names if others is None else others(tuple(names))
        wanted = [name for name in names if name in columns or name in further]
        number = end = 0
        for group in range(table.num_row_groups):
            end += table.metadata.row_group(group).num_rows
            reason = "the file holds fewer rows than it counts"
            try:
                for batch in table.iter_batches(batch_size=1024, row_groups=[group], columns=wanted):
                    for row in batch.to_pylist():
                        number += 1
                        crystal = _take(row, columns)
                        yield {**row, STRUCTURE_COLUMN: crystal}
            except (ValueError, OSError) as error:
                reason = f"this part of the parquet file cannot be read: {error}"
            while number < end:
                number += 1
                yield {STRUCTURE_COLUMN: CrystalInputError(reason)}


def iter_ase(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a database of ASE with their key-value pairs, or frames of a trajectory.

    Raises:
        ImportError: ASE is not installed.
        ValueError: the file is neither.
    """
    import sqlite3

    try:
        import ase.db
        from ase.io import iread
        from ase.io.formats import UnknownFileTypeError
    except ImportError as error:
        raise ImportError(f"{path.name} is a file of ASE, which is not installed: pip install ase") from error
    with path.open("rb") as stream:
        is_database = stream.read(16).startswith(b"SQLite")
    try:
        if is_database:
            with ase.db.connect(str(path), type="db") as database:
                for row in database.select():
                    yield {"id": f"{path.name}:{row.id}", **row.key_value_pairs, STRUCTURE_COLUMN: row.toatoms()}
        else:
            for place, atoms in enumerate(iread(str(path), ":", format="traj")):
                yield {"id": f"{path.name}:{place}", STRUCTURE_COLUMN: atoms}
    except (UnknownFileTypeError, sqlite3.Error, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path.name} cannot be read as a file of ASE: {error}") from error


# -------------------------------------------------------------------------------------------------- all of them


def iter_rows(path: Path, structure_column: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a file of any form, with all their columns; the crystal is under `STRUCTURE_COLUMN`.

    Raises:
        ValueError: a fault of the file as a whole.
    """
    form = form_of(path)
    if form == "csv":
        return iter_csv(path, structure_column)
    if form == "json":
        return iter_json(path, structure_column)
    if form == "parquet":
        return iter_parquet(path, structure_column)
    if form == "ase":
        return iter_ase(path)
    return iter_frames(path) if plain_name(path.name).endswith("xyz") else iter_blocks(path)


def count_crystals(path: Path) -> int:
    """How many crystals a file of any form holds.

    Raises:
        ValueError: a table that cannot be read.
    """
    form = form_of(path)
    if form == "parquet":
        return int(open_parquet(path)[0].metadata.num_rows)
    return sum(1 for _ in (crystals_in(path) if form == "structure" else iter_rows(path)))


def iter_crystals(path: Path, source: str | None = None) -> Iterator[tuple[str, CrystalLike | CrystalInputError]]:
    """Crystals of a file of any form, each with a name; of a damaged table the reason in place of the rest.

    Args:
        path: the file.
        source: the file's name in names of crystals, by default its path.

    Yields:
        Name and crystal: `source` of a file of one crystal; with the name of the block or the place of the frame of
        several; the id of a row, or file and number.
    """
    form = form_of(path)
    source = str(path) if source is None else source
    if form == "structure":
        for part, crystal in crystals_in(path):
            yield printable(f"{source}:{part}" if part else source), crystal
        return
    try:
        rows = iter_parquet(path, others=name_columns) if form == "parquet" else iter_rows(path)
        first = list(islice(rows, 2))
        alone = form == "json" and len(first) < 2
        for number, row in enumerate(chain(first, rows)):
            crystal = row[STRUCTURE_COLUMN]
            name = _name_in(row)
            if name is None:
                name = source if alone else f"{source}:{number}"
                name = str(crystal) if isinstance(crystal, Path) else name
            # text in a cell is never the name of a file
            yield printable(name), {"crystal": crystal} if isinstance(crystal, str) else crystal
    except (ValueError, OSError) as error:
        yield printable(source), CrystalInputError(str(error))


def load(source: object, *, on_error: Literal["raise", "return"] = "raise") -> Any:
    """Read one crystal or many.

    Files, text ones also as .gz, .bz2, .xz or .zip: CIF, POSCAR, extended XYZ, JSON (pymatgen, JARVIS, responses of
    OPTIMADE and of the Materials Project), tables (CSV, JSON lines, parquet), databases and trajectories of ASE;
    folders of such files at any depth. Objects: `Structure` and `IStructure` of pymatgen, `ComputedStructureEntry` and
    other objects with a `structure`, `Atoms` of ASE, records, dictionaries, text of a structure file; lists and
    iterators of any of these.

    Args:
        source: a file, folder or object.
        on_error: `"raise"`, or `"return"` to have the error in place of each crystal that cannot be read; pipelines
            take it as it is.

    Returns:
        A `CrystalRecord` where the file or object is one crystal; a list of them for a file of several, a table, a
        database, a folder, a list. `record_to_structure` makes a pymatgen `Structure` of a record. Partly occupied
        sites are in `occupancies`, axes that do not repeat in `pbc`.

    Raises:
        CrystalInputError: a crystal that cannot be read, with its reason and place.
        ValueError: there is no such file, or one, or a folder, without crystals.
    """
    if on_error not in ("raise", "return"):
        raise ValueError(f"on_error is {on_error!r}; accepted are 'raise' and 'return'")
    named, many = _named_crystals(source)
    found: list[Any] = []
    for place, (name, crystal) in enumerate(named):
        try:
            index = place if many else None
            record = as_record(crystal, index=index, name=name, disorder="mix", partly_periodic=True)
            found.append(record if record.name or not name else replace(record, name=name))
        except CrystalInputError as error:
            if on_error == "raise":
                raise
            found.append(error)
    if not found and isinstance(source, str | Path):
        raise ValueError(f"no crystals in {source}")
    return found if many or len(found) != 1 else found[0]


def _named_crystals(source: Any) -> tuple[Iterator[tuple[str | None, Any]], bool]:
    """Names and crystals of what `load` takes, and whether they are many whatever their number."""
    if isinstance(source, str) and ("\n" in source or source.lstrip()[:1] in ("{", "[")):
        source = parse_json_text(source) if source.lstrip()[:1] in ("{", "[") else source.encode()
    if isinstance(source, Mapping) and not isinstance(source, CrystalRecord):
        entries = list(document_entries(source))
        source = entries if entries != [source] else source
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            files, others = folder_files(path)
            if not files:
                raise ValueError(f"no crystal files in folder {path}")
            if others:
                logger.warning(others)
            return chain.from_iterable(map(iter_crystals, files)), True
        return iter_crystals(path), form_of(path) not in ("structure", "json")
    if isinstance(source, list | tuple | Iterator):
        return ((_name_in(crystal), crystal) for crystal in source), True
    return iter([(_name_in(source), source)]), False


def _name_in(entry: Any) -> str | None:
    """Name of a row or document."""
    if not isinstance(entry, Mapping) or isinstance(entry, CrystalRecord):
        return None
    names = name_columns(tuple(key for key in entry if isinstance(key, str)))
    return next((str(entry[name]) for name in names if entry[name] not in (None, "")), None)
