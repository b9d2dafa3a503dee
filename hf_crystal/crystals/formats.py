# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Readers of POSCAR, extended XYZ and JSON text, and what tells one format from another; needs numpy only.

Each reader takes text and returns a `CrystalRecord` that has not been checked for overlaps and the like; each fault
of the text is a `CrystalInputError`. CIF has a file of its own, `cif`.
"""

import bz2
import codecs
import gzip
import json
import lzma
import re
import shlex
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import IO, Any

import numpy as np
from transformers.utils import logging

from .doubts import far_coordinates
from .record import CrystalInputError, CrystalRecord, atomic_number_of, open_axes

__all__ = [
    "CIF_MARKS",
    "COMPRESSION_ERRORS",
    "MAX_LISTED_ATOMS",
    "check_units",
    "decode_text",
    "detect_format",
    "number_array",
    "one_line",
    "open_unpacked",
    "parse_extxyz",
    "parse_json_text",
    "parse_poscar",
    "plain_name",
    "shortened",
    "split_frames",
]

logger = logging.get_logger(__name__)

CIF_MARKS = re.compile(r"^[ \t]*(data_|_cell_length_a|loop_[ \t\r]*$|_atom_site_)", re.IGNORECASE | re.MULTILINE)


_OTHER_LENGTHS = {"bohr", "bohrs", "a0", "au", "a.u.", "atomic", "nm", "nanometer", "pm", "picometer", "m", "meter"}
_MAX_WIDTH = 10_000  # columns of an XYZ line
_HEAD = 65_536  # characters that tell the format
MAX_LISTED_ATOMS = 200_000  # of a text; models read far smaller cells
_NUMBER = re.compile(r"[+-]?(\d{1,40}\.?\d{0,40}|\.\d{1,40})([eEdD][+-]?\d{1,4})?")


def one_line(message: str, limit: int = 200) -> str:
    """Text without line breaks, cut at `limit` characters."""
    message = " ".join(message.split())
    return message if len(message) <= limit else message[: limit - 1] + "…"


def decode_text(data: bytes) -> str:
    """Text of a file: UTF-8 with or without mark, UTF-16 and UTF-32 with mark, else Latin-1."""
    for mark in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        if data.startswith(mark):
            return data.decode("utf-32" if len(mark) == 4 else "utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


# what reading a damaged compressed file may raise
COMPRESSION_ERRORS = (EOFError, OSError, RuntimeError, lzma.LZMAError, zipfile.BadZipFile, zlib.error)
_UNPACKERS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open))


def plain_name(name: str) -> str:
    """File name in lower case, without the ending of a compression."""
    return re.sub(r"\.(gz|bz2|xz|zip)$", "", name.lower())


def _of_macos(name: str) -> bool:
    """Whether a file of an archive is what macOS adds to each."""
    return name.startswith("__MACOSX/") or name.endswith(".DS_Store")


def open_unpacked(stream: IO[bytes]) -> IO[bytes]:
    """Content of a file, unpacked where its first bytes are those of gzip, bzip2, xz or a zip archive of one file.

    Raises:
        ValueError: an archive of several files.
    """
    start = stream.read(6)
    stream.seek(0)
    if start.startswith(b"PK\3\4"):
        archive = zipfile.ZipFile(stream)
        members = [name for name in archive.namelist() if not name.endswith("/") and not _of_macos(name)]
        if len(members) != 1:
            raise ValueError(f"a zip archive of {len(members)} files: unpack it and give the folder")
        return archive.open(members[0])
    unpack: Any = next((opener for magic, opener in _UNPACKERS if start.startswith(magic)), None)
    return stream if unpack is None else unpack(stream)


def _floats(words: list[str]) -> list[float] | None:
    """Numbers as C and Fortran write them (`0.5d0`); None if a word is none (`1_0`, `nan`)."""
    if not all(word.isascii() and _NUMBER.fullmatch(word) for word in words):
        return None
    return [float(word.lower().replace("d", "e")) for word in words]


def _counts(words: list[str]) -> list[int] | None:
    """Whole numbers of up to 9 digits; None if a word is none (`int` takes superscripts amiss, `1_0` as 10)."""
    return [int(word) for word in words] if all(re.fullmatch("[0-9]{1,9}", word) for word in words) else None


def _looks_like_poscar(lines: list[str]) -> bool:
    if len(lines) < 7 or not lines[1].split():
        return False
    rows = [_floats(line.split()[:3]) for line in lines[2:5]]
    return _floats(lines[1].split()[:1]) is not None and all(row is not None and len(row) == 3 for row in rows)


def detect_format(text: str) -> str | None:
    """`"json"`, `"cif"`, `"poscar"`, `"extxyz"` or None, from the text itself."""
    stripped = text.lstrip("\ufeff \t\r\n")
    if stripped[:1] in ("{", "["):
        return "json"
    lines = stripped[:_HEAD].splitlines()
    if _looks_like_poscar(text[:_HEAD].splitlines()) or _looks_like_poscar(lines):
        return "poscar"
    if len(lines) > 2 and _counts([lines[0].strip()]) and len(lines[2].split()) >= 4:
        return "extxyz"
    if CIF_MARKS.search(text):
        return "cif"
    return None


# ---------------------------------------------------------------------------------------------------------- POSCAR


def _poscar_cell(lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Cell of shape (3, 3) in Å and the scale(s) that also apply to Cartesian coordinates."""
    words = lines[1].split("!")[0].split("#")[0].split()
    scales = _floats(words[:3]) or _floats(words[:1])
    rows = [_floats(line.split()[:3]) for line in lines[2:5]]
    if scales is None or not scales:
        raise CrystalInputError(f"POSCAR line 2 is {one_line(lines[1], 60)!r}; a scale factor is expected")
    if len(scales) == 3 and min(scales) <= 0 or not all(scales):
        raise CrystalInputError(
            f"POSCAR scale factors are {one_line(lines[1], 60)!r}; three positive ones are accepted"
        )
    if any(row is None or len(row) != 3 for row in rows):
        raise CrystalInputError(
            f"POSCAR lines 3 to 5 are {one_line(str(lines[2:5]))}; three lattice vectors are expected"
        )
    cell = np.array(rows, dtype=np.float64)
    if len(scales) == 3:
        return cell * np.array(scales), np.array(scales)
    scale = scales[0]
    if scale < 0:  # VASP: a negative scale is minus the wanted volume
        volume = abs(np.linalg.det(cell))
        if volume == 0:
            raise CrystalInputError("POSCAR cell is flat or singular (volume 0)")
        scale = float((-scale / volume) ** (1.0 / 3.0))
    return cell * scale, np.full(3, scale)


def _poscar_species(lines: list[str], start: int) -> tuple[list[str] | None, list[int], int]:
    """Symbols (None where the file does not say), counts, and the index of the line after the counts."""
    words = lines[start].split("!")[0].split("#")[0].split() if start < len(lines) else []
    symbols: list[str] | None = None
    if words and not _counts(words[:1]):
        symbols = [word.split("/")[0].split("_")[0] for word in words]  # VASP 6 writes "Sr/hash", POTCARs "Sr_sv"
        start += 1
        words = lines[start].split("!")[0].split("#")[0].split() if start < len(lines) else []
    counts = _counts(words)
    if not counts or not sum(counts):
        raise CrystalInputError(
            f"POSCAR atom counts are {one_line(' '.join(words), 60)!r}; whole numbers are expected"
        )
    if sum(counts) > MAX_LISTED_ATOMS:
        raise CrystalInputError(f"POSCAR counts {sum(counts)} atoms; at most {MAX_LISTED_ATOMS} are read from a text")
    if symbols is not None and len(symbols) != len(counts):
        raise CrystalInputError(f"POSCAR names {len(symbols)} elements {symbols} but {len(counts)} counts {counts}")
    return symbols, counts, start + 1


def _site_symbols(lines: list[str], counts: list[int], title: str) -> list[str]:
    """Symbols of a VASP 4 file, which has no line for them: after each coordinate, or in the title."""
    trailing = [re.match(r"[A-Za-z]+", word) for line in lines for word in line.replace("#", " ").split()[3:][-1:]]
    if len(trailing) == sum(counts) and all(trailing):
        symbols = [match.group() for match in trailing if match]
        if not all(symbol in ("T", "F") for symbol in symbols):  # selective dynamics flags, not symbols
            return symbols
    words = title.split()
    if len(words) == len(counts) and all(re.fullmatch(r"[A-Z][a-z]?", word) for word in words):
        return [word for word, count in zip(words, counts, strict=True) for _ in range(count)]
    raise CrystalInputError(
        "POSCAR names no elements (VASP 4 form): add a line with the element symbols before the atom counts"
    )


def parse_poscar(text: str) -> CrystalRecord:
    """Read POSCAR / CONTCAR text of VASP 4 (symbols in the title or beside the coordinates), 5 or 6.

    Args:
        text: file content; selective dynamics, Cartesian or direct coordinates, negative scale (volume).

    Returns:
        `CrystalRecord`, unchecked.

    Raises:
        CrystalInputError: malformed text, missing symbols or too few coordinates.
    """
    lines = text.lstrip("\ufeff").splitlines()
    if len(lines) > 7 and not lines[0].strip() and not _looks_like_poscar(lines) and _looks_like_poscar(lines[1:]):
        lines = lines[1:]  # text between Python's triple quotes starts with an empty line
    if len(lines) < 7:
        raise CrystalInputError(f"POSCAR has {len(lines)} lines; a title, scale, cell, counts and atoms are expected")
    cell, scale = _poscar_cell(lines)
    symbols, counts, start = _poscar_species(lines, 5)
    if start < len(lines) and lines[start].strip()[:1].lower() == "s":  # selective dynamics
        start += 1
    if start >= len(lines):
        raise CrystalInputError("POSCAR ends before the coordinates")
    cartesian = lines[start].strip()[:1].lower() in ("c", "k")
    total = sum(counts)
    site_lines = lines[start + 1 : start + 1 + total]
    coordinates = [_floats(line.split()[:3]) for line in site_lines]
    good = [row for row in coordinates if row is not None and len(row) == 3]
    if len(good) != total:
        wrong = next((line for line, row in zip(site_lines, coordinates, strict=True) if not row or len(row) != 3), "")
        raise CrystalInputError(
            f"POSCAR counts {total} atoms {one_line(str(counts), 60)} but {len(good)} coordinate lines were read"
            + (f"; {one_line(wrong, 60)!r} is not three numbers" if wrong else "")
        )
    if any(line.lower().startswith("direct configuration") for line in lines[start + 1 + total :]):
        raise CrystalInputError("XDATCAR with more than one configuration; give one at a time")
    if symbols is None:
        site_symbols = _site_symbols(site_lines, counts, lines[0])
    else:
        site_symbols = [symbol for symbol, count in zip(symbols, counts, strict=True) for _ in range(count)]
    points = np.array(good, dtype=np.float64).reshape(-1, 3)
    frac = _to_fractional(points * scale, cell) if cartesian else points
    doubts = [] if cartesian else far_coordinates(points)
    further = "".join(lines[start + 1 + total : start + 2 + total]).split()[:3]
    if len(further) == 3 and _floats(further):  # velocities come after an empty line
        doubts.append(f"POSCAR counts {total} atoms, but the line after them holds coordinates, too")
    numbers = np.array([atomic_number_of(symbol) for symbol in site_symbols], dtype=np.int64)
    return CrystalRecord(numbers, frac, cell, warnings=tuple(doubts))


def _to_fractional(positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Fractional coordinates of Cartesian positions (Å), with a plain reason for a singular cell."""
    try:
        return np.linalg.solve(cell.T, positions.T).T
    except np.linalg.LinAlgError as error:
        raise CrystalInputError(f"flat or singular cell {cell.tolist()}: its volume is 0") from error


# ------------------------------------------------------------------------------------------------------------ XYZ


def parse_extxyz(text: str) -> CrystalRecord:
    """Read one frame of extended XYZ: `Lattice="..."` and `Properties=species:S:1:pos:R:3...` on the second line.

    Axes that `pbc` calls F do not repeat; without a lattice (plain XYZ) there is a molecule.

    Returns:
        `CrystalRecord`, unchecked.

    Raises:
        CrystalInputError: no lattice, wrong counts, or more than one frame.
    """
    lines = text.lstrip("\ufeff").strip().splitlines()
    if lines[0].strip() == "0":
        raise CrystalInputError("0 atoms; at least one is needed")
    total = (_counts([lines[0].strip()]) or [0])[0] if len(lines) > 2 else 0
    if not total:
        raise CrystalInputError("XYZ text does not start with the number of its atom lines and a comment line")
    if total > MAX_LISTED_ATOMS:
        raise CrystalInputError(f"XYZ counts {total} atoms; at most {MAX_LISTED_ATOMS} are read from a text")
    if len(lines[1]) > 10_000:
        raise CrystalInputError(f"XYZ comment line has {len(lines[1])} characters; at most 10000 are read")
    try:
        words = shlex.split(lines[1])
    except ValueError as error:
        raise CrystalInputError(f"XYZ comment line {one_line(lines[1])!r} cannot be read: {error}") from error
    fields = {key.lower(): value for key, _, value in (word.partition("=") for word in words)}
    check_units(fields)
    lattice = _floats(fields.get("lattice", "").split())
    default = "T T T" if "lattice" in fields else "F F F"
    flags = [word.strip('[]"').lower() in ("t", "true", "1") for word in fields.get("pbc", default).split()]
    if len(flags) not in (1, 3):
        raise CrystalInputError(
            f"XYZ pbc is {one_line(fields['pbc'], 40)!r}; T or F for each of three axes is accepted"
        )
    pbc = (flags[0], flags[-2] if len(flags) == 3 else flags[0], flags[-1])
    if lattice is None or len(lattice) != 9:
        if "lattice" in fields or any(pbc):
            raise CrystalInputError(
                'XYZ has no Lattice="9 numbers"; a molecule without a cell has pbc="F F F" or none'
            )
        lattice = [0.0] * 9
    if any(line.strip() for line in lines[2 + total :]):
        raise CrystalInputError(
            f"XYZ holds more than one frame (first frame: {total} atoms); give one frame at a time"
        )
    columns = fields.get("properties", "species:S:1:pos:R:3").split(":")
    starts: dict[str, int] = {}
    place = 0
    for name, _, width in zip(columns[0::3], columns[1::3], columns[2::3], strict=False):
        starts[name.lower()] = place
        place += (_counts([width]) or [_MAX_WIDTH])[0]
    starts.setdefault("species", starts.get("z", -1))
    if "pos" not in starts or starts["species"] < 0 or place >= _MAX_WIDTH:
        raise CrystalInputError(
            f"XYZ Properties are {one_line(str(fields.get('properties')), 60)!r}; species and pos are needed"
        )
    rows = [line.split() for line in lines[2 : 2 + total]]
    points = [_floats(row[starts["pos"] : starts["pos"] + 3]) for row in rows]
    good = [row for row in points if row is not None and len(row) == 3]
    if any(len(row) <= starts["species"] for row in rows):
        raise CrystalInputError(f"XYZ species are in column {starts['species'] + 1}, which some lines do not have")
    if len(good) != total:
        raise CrystalInputError(f"XYZ counts {total} atoms but {len(good)} coordinate lines were read")
    cell = np.array(lattice, dtype=np.float64).reshape(3, 3)
    numbers = np.array([_number_or_symbol(row[starts["species"]]) for row in rows], dtype=np.int64)
    positions = np.array(good, dtype=np.float64)
    if not all(pbc):
        return open_axes(CrystalRecord(numbers, positions, np.eye(3)), pbc, cell)
    return CrystalRecord(numbers, _to_fractional(positions, cell), cell)


def _number_or_symbol(word: str) -> int:
    """Atomic number of a column `species` or `Z`."""
    return atomic_number_of(word) if (counts := _counts([word])) is None else counts[0]


def check_units(fields: Mapping[str, Any]) -> None:
    """Refuse lengths that a document says are in another unit than Å.

    Raises:
        CrystalInputError: `units` or `unit` names another one.
    """
    for name in ("units", "unit", "length_unit"):
        unit = fields.get(name)
        if isinstance(unit, Mapping):  # a unit for each quantity
            unit = unit.get("length")
        if isinstance(unit, str) and unit.strip().lower() in _OTHER_LENGTHS:
            raise CrystalInputError(f"{name} is {shortened(unit, 40)}; lengths in Å (angstrom) are accepted")


def split_frames(lines: Iterable[str]) -> Iterator[str]:
    """Text of each frame of the lines of an XYZ file, in order; empty lines between frames are skipped.

    Raises:
        CrystalInputError: a frame begins with something that is no atom count.
    """
    stream, place = iter(lines), 0
    for first in stream:
        if first.strip():
            count = _counts([first.strip()])
            if not count:
                raise CrystalInputError(f"XYZ frame {place} starts with no atom count; an atom count is expected")
            yield "".join(chain([first], islice(stream, count[0] + 1)))
            place += 1


# ------------------------------------------------------------------------------------------------------------ JSON


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Object of JSON; `ValueError` where a key has two values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] != value:
                raise ValueError(f"{one_line(key, 40)!r} is given twice, with different values")
    return found


def parse_json_text(text: str) -> Any:
    """Decode JSON text; a fault is a `CrystalInputError` with its place."""
    try:
        return json.loads(text.lstrip("\ufeff"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise CrystalInputError(f"not readable as JSON: {one_line(str(error))}") from error


# --------------------------------------------------------------------------------------------------------- values


def number_array(value: object, field: str, dtype: type = np.float64) -> np.ndarray:
    """Array of a field; ragged or non-numeric values give a reason that names the field."""
    try:
        array = np.asarray(value)
        if array.dtype == bool:
            raise TypeError("true and false are no numbers")
        array = array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise CrystalInputError(f"{field} is not an array of numbers: {shortened(value)}") from error
    if dtype is np.int64:
        # beyond 2^31 the conversion to integers itself overflows
        if not (np.abs(array) < 2**31).all() or (array != np.round(array)).any():
            raise CrystalInputError(f"{field} holds values that are not whole numbers: {shortened(value)}")
        return array.astype(np.int64)
    return array


def shortened(value: object, limit: int = 80) -> str:
    """`repr` of a value for a message, cut at `limit` characters."""
    # a huge array is never turned into text as a whole
    text = f"array of shape {value.shape}" if isinstance(value, np.ndarray) and value.size > 9 else repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
