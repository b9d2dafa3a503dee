# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Readers of crystal text: CIF (through pymatgen, imported when needed), POSCAR, extended XYZ, JSON (numpy only).

Each reader takes text and returns a `CrystalRecord` that has not been checked for overlaps and the like; each fault
of the text is a `CrystalInputError`.
"""

import json
import re
import shlex
import warnings
from typing import Any

import numpy as np
from transformers.utils import logging

from .records_crystal import CrystalInputError, CrystalRecord, atomic_number_of, hydrogen_isotope_warning

__all__ = [
    "MAX_EXPANDED_SITES",
    "PARSER_ERRORS",
    "decode_text",
    "detect_format",
    "parse_cif",
    "parse_extxyz",
    "parse_json_text",
    "parse_poscar",
    "record_from_pymatgen",
]

logger = logging.get_logger(__name__)

# Sites in the file times symmetry operations. pymatgen's time grows with its square: 3,648 atoms take a second,
# 20,000 tens of seconds; this bound keeps any file under about ten.
MAX_EXPANDED_SITES = 12_000

# What third-party parsers raise on text they do not understand. They promise nothing, so this is every ordinary
# error; keyboard interrupts, memory errors and missing packages pass through.
PARSER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
)

_SYMMETRY_OPERATION_KEYS = ("_symmetry_equiv_pos_as_xyz", "_space_group_symop_operation_xyz")
_SPACE_GROUP_KEYS = (
    "_symmetry_space_group_name_H-M",
    "_space_group_name_H-M_alt",
    "_symmetry_space_group_name_Hall",
    "_space_group_name_Hall",
    "_symmetry_Int_Tables_number",
    "_space_group_IT_number",
)
_CELL_PARAMETER_KEYS = tuple(f"_cell_length_{axis}" for axis in "abc") + tuple(
    f"_cell_angle_{angle}" for angle in ("alpha", "beta", "gamma")
)
_CIF_MARKS = re.compile(r"^\s*(data_|_cell_length_a|loop_\s*$|_atom_site_)", re.IGNORECASE | re.MULTILINE)
_EXTRA_COLUMNS = ("_atom_type_oxidation_number", "_atom_site_attached_hydrogens")
_UNSET = {"", ".", "?"}
_WATER_SYMBOLS = {"Ow", "Hw"}  # oxygen and hydrogen of water in older CIFs; pymatgen knows them


def decode_text(data: bytes) -> str:
    """Text of a file: UTF-8 with or without mark, UTF-16 with mark, else Latin-1."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _floats(words: list[str]) -> list[float] | None:
    try:
        return [float(word) for word in words]
    except ValueError:
        return None


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
    lines = stripped.splitlines()
    if _looks_like_poscar(text.splitlines()):
        return "poscar"
    if len(lines) > 2 and lines[0].strip().isdigit() and len(lines[2].split()) >= 4:
        return "extxyz"
    if _CIF_MARKS.search(text):
        return "cif"
    return None


# ---------------------------------------------------------------------------------------------------------- POSCAR


def _poscar_cell(lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Cell of shape (3, 3) in Å and the scale(s) that also apply to Cartesian coordinates."""
    scales = _floats(lines[1].split()[:3]) or _floats(lines[1].split()[:1])
    rows = [_floats(line.split()[:3]) for line in lines[2:5]]
    if scales is None or not scales:
        raise CrystalInputError(f"POSCAR line 2 is {lines[1]!r}; a scale factor is expected")
    if any(row is None or len(row) != 3 for row in rows):
        raise CrystalInputError(f"POSCAR lines 3 to 5 are {lines[2:5]}; three lattice vectors are expected")
    cell = np.array(rows, dtype=np.float64)
    if len(scales) == 3 and min(scales) > 0:
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
    if words and not words[0].isdigit():
        symbols = [word.split("/")[0].split("_")[0] for word in words]  # VASP 6 writes "Sr/hash", POTCARs "Sr_sv"
        start += 1
        words = lines[start].split("!")[0].split("#")[0].split() if start < len(lines) else []
    if not words or not all(word.isdigit() for word in words):
        raise CrystalInputError(f"POSCAR atom counts are {' '.join(words)!r}; whole numbers are expected")
    counts = [int(word) for word in words]
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
        raise CrystalInputError(f"POSCAR counts {total} atoms {counts} but {len(good)} coordinate lines were read")
    if symbols is None:
        site_symbols = _site_symbols(site_lines, counts, lines[0])
    else:
        site_symbols = [symbol for symbol, count in zip(symbols, counts, strict=True) for _ in range(count)]
    points = np.array(good, dtype=np.float64).reshape(-1, 3)
    frac = _to_fractional(points * scale, cell) if cartesian else points
    return CrystalRecord(np.array([atomic_number_of(symbol) for symbol in site_symbols], dtype=np.int64), frac, cell)


def _to_fractional(positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Fractional coordinates of Cartesian positions (Å), with a plain reason for a singular cell."""
    try:
        return np.linalg.solve(cell.T, positions.T).T
    except np.linalg.LinAlgError as error:
        raise CrystalInputError(f"flat or singular cell {cell.tolist()}: its volume is 0") from error


# ------------------------------------------------------------------------------------------------------------ XYZ


def parse_extxyz(text: str) -> CrystalRecord:
    """Read one frame of extended XYZ: `Lattice="..."` and `Properties=species:S:1:pos:R:3...` on the second line.

    Returns:
        `CrystalRecord`, unchecked.

    Raises:
        CrystalInputError: no lattice, wrong counts, or more than one frame.
    """
    lines = text.lstrip("\ufeff").strip().splitlines()
    if len(lines) < 3 or not lines[0].strip().isdigit():
        raise CrystalInputError("XYZ text starts with neither an atom count nor a comment line")
    total = int(lines[0])
    try:
        words = shlex.split(lines[1])
    except ValueError as error:
        raise CrystalInputError(f"XYZ comment line {_one_line(lines[1])!r} cannot be read: {error}") from error
    fields = {key.lower(): value for key, _, value in (word.partition("=") for word in words)}
    lattice = _floats(fields.get("lattice", "").split())
    if lattice is None or len(lattice) != 9:
        raise CrystalInputError('XYZ has no Lattice="9 numbers"; a molecule without a cell is not a crystal')
    if len(lines) > 2 + total and lines[2 + total].strip():
        raise CrystalInputError(
            f"XYZ holds more than one frame (first frame: {total} atoms); give one frame at a time"
        )
    columns = fields.get("properties", "species:S:1:pos:R:3").split(":")
    starts: dict[str, int] = {}
    place = 0
    for name, _, width in zip(columns[0::3], columns[1::3], columns[2::3], strict=False):
        starts[name.lower()] = place
        place += int(width) if width.isdigit() else 1
    if "pos" not in starts or "species" not in starts:
        raise CrystalInputError(f"XYZ Properties are {fields.get('properties')!r}; species and pos are needed")
    rows = [line.split() for line in lines[2 : 2 + total]]
    points = [_floats(row[starts["pos"] : starts["pos"] + 3]) for row in rows]
    good = [row for row in points if row is not None and len(row) == 3]
    if len(good) != total:
        raise CrystalInputError(f"XYZ counts {total} atoms but {len(good)} coordinate lines were read")
    cell = np.array(lattice, dtype=np.float64).reshape(3, 3)
    numbers = np.array([atomic_number_of(row[starts["species"]]) for row in rows], dtype=np.int64)
    return CrystalRecord(numbers, _to_fractional(np.array(good, dtype=np.float64), cell), cell)


# ------------------------------------------------------------------------------------------------------------ JSON


def parse_json_text(text: str) -> Any:
    """Decode JSON text; a fault is a `CrystalInputError` with its place."""
    try:
        return json.loads(text.lstrip("\ufeff"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise CrystalInputError(f"not readable as JSON: {error}") from error


# ------------------------------------------------------------------------------------------------------------- CIF


def _column(block: Any, key: str) -> list[str]:
    value = block.data.get(key)
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _check_cif_symbols(block: Any) -> None:
    """Refuse dummy and unknown elements; pymatgen would read `Va` (a vacancy) as vanadium."""
    for symbol in _column(block, "_atom_site_type_symbol"):
        match = re.match(r"[A-Za-z]+", symbol.strip("'\" "))
        letters = match.group() if match else symbol
        if letters not in _WATER_SYMBOLS:
            atomic_number_of(letters)
    if not _column(block, "_atom_site_type_symbol"):
        # labels continue freely after the element (Na1, OW2, C1A); pymatgen reads them, all but vacancies
        for label in _column(block, "_atom_site_label"):
            if re.match(r"va", label, re.IGNORECASE):
                raise CrystalInputError(f"unknown element in the label {label!r}: vacancies are not accepted")


def _check_expansion(block: Any, parser: Any) -> None:
    """Bound the work of the expansion before it starts."""
    sites = len(_column(block, "_atom_site_fract_x"))
    operations = max(len(_column(block, key)) for key in _SYMMETRY_OPERATION_KEYS)
    if not operations and sites * 192 > MAX_EXPANDED_SITES:  # no space group has more than 192 operations
        operations = len(parser.get_symops(block))
    if sites * operations > MAX_EXPANDED_SITES:
        raise CrystalInputError(
            f"CIF would expand to as many as {sites * operations} sites ({sites} listed x {operations} symmetry "
            f"operations); at most {MAX_EXPANDED_SITES} are read from a CIF. Give a pymatgen Structure, an ASE Atoms "
            "or a record instead"
        )


def _cif_number(text: str) -> float | None:
    """Number of a CIF value, standard uncertainty in brackets dropped: `5.6402(2)`; None for anything else."""
    try:
        return float(re.sub(r"\([0-9.]*\)?$", "", text.strip("'\" ")))
    except ValueError:
        return None


def _check_cif_cell(block: Any) -> None:
    """Lengths and angles that are given must be positive numbers; symmetry may supply missing ones."""
    if not _column(block, "_cell_length_a"):
        raise CrystalInputError("CIF has no cell (_cell_length_a is missing)")
    for key in _CELL_PARAMETER_KEYS:
        for value in _column(block, key):
            number = _cif_number(value)
            if number is None or not number > 0 or ("angle" in key and not number < 180):
                accepted = "an angle between 0 and 180 degrees" if "angle" in key else "a positive length in Å"
                raise CrystalInputError(f"CIF {key} is {value!r}; accepted is {accepted}")


def _check_cif_sites(block: Any) -> None:
    """Each listed site needs numeric coordinates and a known occupancy."""
    columns = [_column(block, f"_atom_site_fract_{axis}") for axis in "xyz"]
    sites = len(columns[0])
    if not sites or all(value in _UNSET for value in columns[0]):
        if any(key.startswith("_atom_site.") for key in block.data):
            raise CrystalInputError("mmCIF (macromolecules) is not accepted; a small-molecule or inorganic CIF is")
        if _column(block, "_atom_site_Cartn_x") or _column(block, "_atom_site_cartn_x"):
            raise CrystalInputError("CIF has Cartesian coordinates only; _atom_site_fract_x, y, z are needed")
        raise CrystalInputError("CIF has no atoms (no _atom_site_fract_x); 0 atoms are not accepted")
    labels = _column(block, "_atom_site_label") or [str(place) for place in range(sites)]
    for axis, column in zip("xyz", columns, strict=True):
        for label, value in zip(labels, column, strict=False):
            if _cif_number(value) is None:
                raise CrystalInputError(f"CIF _atom_site_fract_{axis} of site {label} is {value!r}, not a number")
    for label, value in zip(labels, _column(block, "_atom_site_occupancy"), strict=False):
        if value == "?":
            raise CrystalInputError(f"CIF _atom_site_occupancy of site {label} is unknown ('?'); it must be 1")


def _check_cif_hydrogens(block: Any) -> None:
    """Refuse hydrogens that are counted beside another atom but have no site of their own."""
    attached = [_cif_number(value) or 0.0 for value in _column(block, "_atom_site_attached_hydrogens")]
    symbols = _column(block, "_atom_site_type_symbol") or _column(block, "_atom_site_label")
    if sum(attached) > 0 and not any(re.match(r"[HDT](?![a-z])", symbol) for symbol in symbols):
        raise CrystalInputError(
            f"CIF counts {sum(attached):g} attached hydrogens (_atom_site_attached_hydrogens) without positions; "
            "every atom needs a site"
        )


def _check_cif_block(block: Any) -> None:
    """Reasons that pymatgen would not give."""
    _check_cif_sites(block)
    _check_cif_cell(block)
    _check_cif_symbols(block)
    _check_cif_hydrogens(block)


def _named_group(block: Any) -> list[str]:
    """Space groups other than P1 that the file names."""
    names = [value.strip("'\" ") for key in _SPACE_GROUP_KEYS for value in _column(block, key)]
    return [name for name in names if name not in _UNSET and name.replace(" ", "").upper() not in ("P1", "1")]


def parse_cif(text: str) -> CrystalRecord:
    """Read CIF text with pymatgen; its warnings stay inside, its exceptions become reasons.

    Of several structures in one file the first is taken and a warning says so.

    Args:
        text: file content.

    Returns:
        `CrystalRecord` of the full cell as the file describes it, unchecked.

    Raises:
        CrystalInputError: nothing readable, disorder, unknown elements, symmetry that cannot be understood, or more
            than `MAX_EXPANDED_SITES` sites times operations.
        ImportError: pymatgen is not installed.
    """
    text = text.lstrip("\ufeff")
    if not text.strip():
        raise CrystalInputError("the text is empty")
    if not re.search(r"^\s*data_", text, re.IGNORECASE | re.MULTILINE):
        if not _CIF_MARKS.search(text):
            raise CrystalInputError(f"not a CIF: it starts with {text.strip()[:40]!r} and has no data_ block")
        raise CrystalInputError("CIF has no data_ block")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            structure = _parse_cif_with_pymatgen(text)
        except CrystalInputError:
            raise
        except PARSER_ERRORS as error:
            raise CrystalInputError(_cif_reason(error, [str(warning.message) for warning in caught])) from error
    return record_from_pymatgen(structure)


def _drop_unknown_extras(block: Any) -> bool:
    """Take optional columns with unknown values ('?') out of a block: they stop pymatgen, and no model reads them."""
    unknown = {key for key in _EXTRA_COLUMNS if any(_cif_number(value) is None for value in _column(block, key))}
    for key in unknown:
        del block.data[key]
        block.loops = [[name for name in loop if name != key] for loop in block.loops]
    return bool(unknown)


def _one_line(message: str, limit: int = 200) -> str:
    message = " ".join(message.split())
    return message if len(message) <= limit else message[: limit - 1] + "…"


def _cif_reason(error: Exception, notes: list[str]) -> str:
    """What pymatgen said, in the user's terms where they are known."""
    message = _one_line(str(error)) or type(error).__name__
    crowded = re.search(r"Occupancy ([0-9.]+) exceeded tolerance", message)
    if crowded:
        return (
            f"disordered: atoms share a site (occupancies add up to {crowded.group(1)}); ordered crystals are accepted"
        )
    useful = [_one_line(note) for note in notes if "deprecated" not in note][-2:]
    return "; ".join([f"CIF cannot be read: {message}", *useful])


def _parse_cif_with_pymatgen(text: str) -> Any:
    try:
        from pymatgen.io.cif import CifFile, CifParser
    except ImportError as error:
        raise ImportError("reading CIF needs pymatgen: pip install pymatgen (records need numpy only)") from error
    try:
        blocks = dict(CifFile.from_str(text).data)
    except PARSER_ERRORS as error:
        raise CrystalInputError(f"CIF syntax cannot be read: {_one_line(str(error))}") from error
    with_sites = [block for block in blocks.values() if _column(block, "_atom_site_fract_x")]
    first = with_sites[0] if with_sites else next(iter(blocks.values()), None)
    if first is None:
        raise CrystalInputError("CIF has no data_ block with content")
    _check_cif_block(first)
    if len(with_sites) > 1:
        logger.warning(f"CIF holds {len(with_sites)} structures; the first one ({first.header}) is read.")
    # of several blocks only the chosen one goes on: the rest may be broken in ways that do not concern it
    chosen = str(first) if _drop_unknown_extras(first) or len(blocks) > 1 else text
    parser = CifParser.from_str(chosen, occupancy_tolerance=1.0, check_cif=False)
    _check_expansion(first, parser)
    structures = parser.parse_structures(primitive=False, on_error="raise")
    notes = getattr(parser, "warnings", [])  # set by the parser, but not declared on the class
    if any("Defaulting to P1" in note for note in notes) and _named_group(first):
        raise CrystalInputError(
            f"CIF names space group {_named_group(first)[0]!r}, which is not known, and lists no symmetry operations; "
            "reading it as P1 would lose atoms"
        )
    return structures[0]


def record_from_pymatgen(structure: Any) -> CrystalRecord:
    """Record of a pymatgen `Structure` or `IStructure`, with a reason for disorder and dummy species.

    Raises:
        CrystalInputError: partial occupancy, several species on a site, dummy species, hydrogens without positions.
    """
    if "implicit_hydrogens" in structure.site_properties:
        raise CrystalInputError("hydrogens are given only as counts (implicit hydrogens); every atom needs a position")
    numbers = np.empty(len(structure), dtype=np.int64)
    for place, site in enumerate(structure):
        species = list(site.species.items())
        if len(species) != 1 or abs(species[0][1] - 1.0) > 1e-3:
            described = ", ".join(f"{specie}: {occupancy:g}" for specie, occupancy in species) or "empty"
            raise CrystalInputError(
                f"disordered: site {place} has partial occupancy ({described}); only ordered crystals are accepted. "
                "Choose one ordering first (for example with pymatgen's OrderDisorderedStructureTransformation)"
            )
        symbol = getattr(species[0][0], "symbol", None)
        element = getattr(species[0][0], "element", species[0][0])
        name = str(getattr(element, "symbol", symbol))
        if name in ("D", "T"):
            hydrogen_isotope_warning(name)
            numbers[place] = 1
        else:
            numbers[place] = atomic_number_of(name)
    return CrystalRecord(
        numbers,
        np.array(structure.frac_coords, dtype=np.float64).reshape(-1, 3),
        np.array(structure.lattice.matrix, dtype=np.float64),
    )
