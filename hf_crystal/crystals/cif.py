# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Reader of CIF text, through pymatgen, which is imported when it is needed; and of pymatgen's own objects.

`parse_cif` returns a `CrystalRecord` that has not been checked for overlaps and the like; each fault of the text is a
`CrystalInputError`.
"""

import re
import warnings
from typing import Any

import numpy as np
from transformers.utils import logging

from .formats import CIF_MARKS, one_line
from .record import CrystalInputError, CrystalRecord, atomic_number_of, hydrogen_isotope_warning

__all__ = ["MAX_EXPANDED_SITES", "PARSER_ERRORS", "parse_cif", "record_from_pymatgen"]

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
_EXTRA_COLUMNS = ("_atom_type_oxidation_number", "_atom_site_attached_hydrogens")
_UNSET = {"", ".", "?"}
_WATER_SYMBOLS = {"Ow", "Hw"}  # oxygen and hydrogen of water in older CIFs; pymatgen knows them


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
        if not CIF_MARKS.search(text):
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


def _cif_reason(error: Exception, notes: list[str]) -> str:
    """What pymatgen said, in the user's terms where they are known."""
    message = one_line(str(error)) or type(error).__name__
    crowded = re.search(r"Occupancy ([0-9.]+) exceeded tolerance", message)
    if crowded:
        return (
            f"disordered: atoms share a site (occupancies add up to {crowded.group(1)}); ordered crystals are accepted"
        )
    useful = [one_line(note) for note in notes if "deprecated" not in note][-2:]
    return "; ".join([f"CIF cannot be read: {message}", *useful])


def _parse_cif_with_pymatgen(text: str) -> Any:
    try:
        from pymatgen.io.cif import CifFile, CifParser
    except ImportError as error:
        raise ImportError("reading CIF needs pymatgen: pip install pymatgen (records need numpy only)") from error
    try:
        blocks = dict(CifFile.from_str(text).data)
    except PARSER_ERRORS as error:
        raise CrystalInputError(f"CIF syntax cannot be read: {one_line(str(error))}") from error
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
