# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Reader of CIF text, through gemmi, which is imported when it is needed; and of pymatgen's own objects.

gemmi splits the text, knows the space groups and parses operations. What it passes over in silence is checked here:
the rule is that every listed site yields atoms, and that what was read agrees with everything else the file gives.
"""

import re
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
from transformers.utils import logging

from .cif_symmetry import (
    UNSET,
    CifContent,
    cif_number,
    cif_numbers,
    expand_sites,
    first_value,
    load_gemmi,
    symmetry_candidates,
)
from .doubts import far_coordinates
from .formats import CIF_MARKS, one_line
from .occupancy import overfull_site, record_of_species
from .record import (
    CHEMICAL_SYMBOLS,
    MAX_COORDINATE,
    CrystalInputError,
    CrystalRecord,
    atomic_number_of,
    cell_from_parameters,
    hydrogen_isotope_warning,
    open_axes,
)

__all__ = ["MAX_EXPANDED_SITES", "cif_blocks", "parse_cif", "record_from_pymatgen"]

logger = logging.get_logger(__name__)

_DATA = re.compile(r"^[ \t]*data_", re.IGNORECASE | re.MULTILINE)
_SITES = "_atom_site_fract_x"
MAX_EXPANDED_SITES = 12_000  # sites in the file times symmetry operations
_VOLUME_MISMATCH = 0.01  # 178 real files are off by 0.002 at most
_MAX_LINE = 65_536  # CIF allows 2,048 characters
_MAX_VALUES = 2_000_000  # each takes a text in memory

_CELL_PARAMETERS = tuple(f"_cell_length_{axis}" for axis in "abc")
_CELL_PARAMETERS += tuple(f"_cell_angle_{angle}" for angle in ("alpha", "beta", "gamma"))
_MULTIPLICITIES = ("_atom_site_site_symmetry_multiplicity", "_atom_site_symmetry_multiplicity")


def parse_cif(text: str) -> CrystalRecord:
    """Read CIF text with gemmi; of several structures in one file the first is taken and a warning says so.

    Args:
        text: file content.

    Returns:
        `CrystalRecord` of the full cell as the file describes it, unchecked.

    Raises:
        CrystalInputError: nothing readable, unknown elements or occupancies, symmetry that cannot be understood,
            content that contradicts itself, or more than `MAX_EXPANDED_SITES` sites times operations.
        ImportError: gemmi is not installed.
    """
    blocks = [(block.name, _content(block)) for block in _read_blocks(text)]
    found = [(name, content) for name, content in blocks if _SITES in content]
    record = _record_of((found or blocks)[0][1])
    if len(found) > 1:
        names = one_line(", ".join(name for name, _ in found), 120)
        warning = f"CIF holds {len(found)} structures ({names}); the first one is read."
        logger.warning(warning)
        record = replace(record, warnings=(*record.warnings, warning))
    return record


def cif_blocks(text: str) -> list[tuple[str, str]]:
    """Name and text of each data block with sites; places from 0 in place of names that blocks share.

    Raises:
        CrystalInputError: text that cannot be split.
    """
    if len(_DATA.findall(text)) < 2:
        return []
    blocks = [(block.name, block.as_string()) for block in _read_blocks(text)]
    blocks = [block for block in blocks if _SITES in block[1].lower().replace("_atom_site.", "_atom_site_")]
    if len(dict(blocks)) == len(blocks):
        return blocks
    return [(str(place), text) for place, (_, text) in enumerate(blocks)]


def _read_blocks(text: str) -> list[Any]:
    """Data blocks of gemmi; a text too long in lines, or that is no CIF, is a `CrystalInputError`."""
    text = text.lstrip("\ufeff")
    if not text.strip():
        raise CrystalInputError("the text is empty")
    if _has_long_line(text):
        raise CrystalInputError(f"CIF has a line of more than {_MAX_LINE} characters; no longer ones are read")
    if not CIF_MARKS.search(text):
        raise CrystalInputError("not a CIF: it has no data_ block")
    if len(text) > 2 * _MAX_VALUES:
        # reflections in a text field are one value
        listed = re.sub(r"^;.*?^;", "", text, flags=re.MULTILINE | re.DOTALL)
        blank = np.frombuffer(listed.encode("ascii", "replace"), dtype=np.uint8) <= 32
        if np.count_nonzero(blank[:-1] & ~blank[1:]) > _MAX_VALUES:
            raise CrystalInputError(f"CIF holds more than {_MAX_VALUES} values; no more are read")
    cif = load_gemmi().cif
    try:
        # an escape is understood nowhere, so that no foreign sign turns into another value
        return list(cif.read_string(text.encode("ascii", "backslashreplace"), 0))
    except (ValueError, RuntimeError) as error:
        if not _DATA.search(text):
            raise CrystalInputError("CIF has no data_ block") from error
        raise CrystalInputError(f"CIF syntax cannot be read: {one_line(str(error), 120)}") from error


def _has_long_line(text: str) -> bool:
    place = 0
    while len(text) - place > _MAX_LINE:
        end = max(text.rfind(sign, place, place + _MAX_LINE + 1) for sign in "\n\r")
        if end < place:
            return True
        place = end + 1
    return False


def _content(block: Any) -> CifContent:
    """Values of each data name; CIF ignores the case of names, and dotted names are those of DDLm dictionaries."""
    cif = load_gemmi().cif
    content: CifContent = {}
    for item in block:
        if item.pair is not None:
            columns = {item.pair[0]: [item.pair[1]]}
        elif item.loop is not None:
            tags = item.loop.tags
            if item.loop.length() > MAX_EXPANDED_SITES:  # reflections and the like; sites are refused
                if any(tag.lower().startswith(("_atom_site_fract", "_atom_site.fract")) for tag in tags):
                    raise CrystalInputError(
                        f"CIF lists {item.loop.length()} sites; at most {MAX_EXPANDED_SITES} are read from a CIF"
                    )
                continue
            values = item.loop.values
            columns = {tag: values[place :: len(tags)] for place, tag in enumerate(tags)}
        else:
            continue
        for tag, column in columns.items():
            name = tag.lower().replace(".", "_", 1)
            # `.` and `?` mean the same unquoted only, but a quoted dot is no value that is read here either
            values = [cif.as_string(value).strip() or value.strip("'\"; \n") or value[:1] for value in column]
            if "mmcif" not in content and tag.lower().startswith("_atom_site.cartn"):
                content["mmcif"] = []
            if content.setdefault(name, values) != values and name.startswith(("_atom_site_", "_cell_", "_s")):
                raise CrystalInputError(f"CIF gives {tag} twice, with different values")
    return content


def _cell(content: CifContent) -> np.ndarray:
    parameters = []
    for name in (
        *(f"_cell_length_{axis}" for axis in "abc"),
        *(f"_cell_angle_{a}" for a in ("alpha", "beta", "gamma")),
    ):
        angle = "angle" in name
        value = content.get(name, [""])[0]
        if value in UNSET and angle:  # the default of the CIF dictionary
            value = "90"
        if not value:
            raise CrystalInputError(f"CIF has no cell ({name} is missing)")
        number = cif_number(value)
        if not 0 < number < (180 if angle else MAX_COORDINATE):
            accepted = (
                "an angle between 0 and 180 degrees" if angle else f"a positive length in Å below {MAX_COORDINATE:g}"
            )
            raise CrystalInputError(f"CIF {name} is {one_line(value, 40)!r}; accepted is {accepted}")
        parameters.append(number)
    return cell_from_parameters(*parameters)


def _site_columns(content: CifContent) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Labels, fractional coordinates `(n, 3)` and occupancies `(n,)` of the listed sites."""
    columns = [content.get(f"_atom_site_fract_{axis}", []) for axis in "xyz"]
    sites = len(columns[0])
    if not sites or all(value in UNSET for value in columns[0]):
        if "mmcif" in content:
            raise CrystalInputError("mmCIF (macromolecules) is not accepted; a small-molecule or inorganic CIF is")
        if "_atom_site_cartn_x" in content:
            raise CrystalInputError("CIF has Cartesian coordinates only; _atom_site_fract_x, y, z are needed")
        raise CrystalInputError("CIF has no atoms (no _atom_site_fract_x); 0 atoms are not accepted")
    labels = content.get("_atom_site_label") or content.get("_atom_site_type_symbol") or [""] * sites
    if any(len(column) != sites for column in (*columns, labels)):
        raise CrystalInputError("CIF columns of _atom_site_ differ in length")
    points = np.stack([cif_numbers(column) for column in columns], axis=1)
    for place, axis in np.argwhere(~np.isfinite(points)):
        raise CrystalInputError(
            f"CIF _atom_site_fract_{'xyz'[axis]} of site {one_line(labels[place], 20)} is "
            f"{one_line(columns[axis][place], 40)!r}, not a number"
        )
    for place, value in enumerate(content.get("_atom_site_calc_flag", [])[:sites]):
        if value.lower() == "dum":  # a center of a ring, for instance: no atom, by the CIF dictionary
            raise CrystalInputError(f"CIF site {one_line(labels[place], 20)} is a dummy (_atom_site_calc_flag dum)")
    occupancies = np.ones(sites)
    for place, value in enumerate(content.get("_atom_site_occupancy", [])[:sites]):
        if value == "1":
            continue
        label = one_line(labels[place], 20)
        if value == "?":
            raise CrystalInputError(f"CIF _atom_site_occupancy of site {label} is unknown ('?'); 0 to 1 is accepted")
        if value == ".":  # the default, 1
            continue
        occupancies[place] = cif_number(value)
        if not -1e-9 <= occupancies[place] <= 1.02:
            raise CrystalInputError(
                f"CIF _atom_site_occupancy of site {label} is {one_line(value, 20)}; 0 (empty) to 1 is accepted"
            )
    rounded = np.abs(occupancies - 1) <= 1e-3
    return labels, points, np.where(rounded, 1.0, occupancies.clip(0.0))


def _formula(content: CifContent) -> dict[int, float]:
    """Atoms of each atomic number in `_chemical_formula_sum`; empty where it is not given or not a plain sum."""
    text = re.sub(r"\(([^()]*)\)(?!\d)", r" \1 ", first_value(content, ("_chemical_formula_sum",))[:2000]).replace(
        ",", " "
    )
    counts: dict[int, float] = defaultdict(float)
    for word in text.split():
        for symbol, count in re.findall(r"([A-Z][a-z]?)(\d*\.?\d*)", word):
            number = 1 if symbol in ("D", "T") else _NUMBERS.get(symbol, 0)
            counts[number] += float(count) if count not in ("", ".") else 1.0
        if not re.fullmatch(r"([A-Z][a-z]?\d*\.?\d*)+", word):
            return {}
    return {} if 0 in counts else {number: count for number, count in counts.items() if count}


_NUMBERS = {symbol: number for number, symbol in enumerate(CHEMICAL_SYMBOLS) if number}


def _element_of(label: str, symbol: str, formula: dict[int, float]) -> int:
    """Atomic number of a site: of its type symbol, or of its label where only one reading is possible."""
    if symbol not in UNSET:
        if symbol in ("Ow", "Hw"):  # oxygen and hydrogen of water in older CIFs
            return 8 if symbol == "Ow" else 1
        letters = re.sub(r"(?<=[A-Za-z])[0-9.]*[+-]?[0-9.]*$", "", symbol)
        if re.fullmatch("[HNCBO][HFS]|HO|NO|CO", letters) and _NUMBERS.get(letters.capitalize()) not in formula:
            raise CrystalInputError(f"unknown element {one_line(symbol, 20)!r}; the symbol of one element is accepted")
        return atomic_number_of(letters)
    letters = re.match(r"[A-Za-z]*", label)[0]  # type: ignore[index]  # matches always
    if re.match(r"va", label, re.IGNORECASE):
        raise CrystalInputError(f"unknown element in the label {label!r}: vacancies are not accepted")
    if letters in _NUMBERS or letters == "D":
        return atomic_number_of(letters)
    readings = {_NUMBERS.get(letters[:size].capitalize(), 0) for size in (1, 2)} | (
        {1} if letters[:1] == "D" else set()
    )
    if formula:
        readings &= set(formula)
    elif not re.fullmatch(
        "[A-Z][a-z]?[A-GI-Z]", letters
    ):  # OW and SiA, but not Wat, and not OH, which counts two atoms
        readings = set()
    readings -= {0}
    if len(readings) != 1:
        raise CrystalInputError(
            f"the element of site {one_line(label, 20)!r} is not clear and _atom_site_type_symbol is not given"
        )
    return readings.pop()


def _numbers(content: CifContent, labels: list[str], formula: dict[int, float]) -> np.ndarray:
    symbols = content.get("_atom_site_type_symbol") or [""] * len(labels)
    numbers = [_element_of(label, symbol, formula) for label, symbol in zip(labels, symbols, strict=True)]
    attached = sum(value for value in map(cif_number, content.get("_atom_site_attached_hydrogens", [])) if value > 0)
    if attached and 1 not in numbers:
        raise CrystalInputError(
            f"CIF counts {attached:g} attached hydrogens (_atom_site_attached_hydrogens) without positions; "
            "every atom needs a site"
        )
    return np.array(numbers, dtype=np.int64)


# --------------------------------------------------------------------------------------------------- what agrees


def _contradiction(
    content: CifContent,
    formula: dict[int, float],
    numbers: np.ndarray,
    occupancies: np.ndarray,
    orbits: list[np.ndarray],
    order: int,
) -> tuple[str, bool, str]:
    """What in the file contradicts the atoms, whether anything confirmed their number, and a small disagreement."""
    sizes = np.array([len(orbit) for orbit in orbits])
    confirmed = False
    given = np.array([cif_number(value) for value in next((content[n] for n in _MULTIPLICITIES if n in content), [])])
    if len(given) == len(sizes) and np.isfinite(given).all():
        # SHELXL-97 wrote the order of the site symmetry under this name
        if not (given == sizes).all() and not (given * sizes == order).all():
            place = int(np.flatnonzero(given != sizes)[0])
            message = f"site {place} has multiplicity {given[place]:g} in the file, but {sizes[place]} were read"
            return message, False, ""
        confirmed = bool((given == sizes).all() and given.max() > 1)
    if not formula:
        foreign = "\\" in first_value(content, ("_chemical_formula_sum",))  # escaped on reading
        return "", confirmed, "CIF _chemical_formula_sum has foreign signs and was not compared" if foreign else ""
    counts: dict[int, float] = defaultdict(float)
    for number, size in zip(numbers.tolist(), (sizes * occupancies).tolist(), strict=True):
        counts[number] += size
    units = cif_number(first_value(content, ("_cell_formula_units_z",)))
    # of one formula unit or, as pymatgen writes it, of the whole cell; without Z only the ratio is known
    scales = (units, 1.0) if units > 0 else (sum(counts.values()) / sum(formula.values()),)
    # rounded numbers of atoms are 2 % off, or half of their last digit; whole ones not at all
    off = [max(max(abs(formula.get(n, 0) - counts.get(n, 0) / scale) - _half_digit(formula.get(n, 0)), 0.0)
               * scale / counts.get(n, 1e-9) for n in {*counts, *formula}) for scale in scales]  # fmt: skip
    rounded = any(count % 1 for count in formula.values())
    factor = f", Z = {units:g}" if units > 0 else ""
    message = f"_chemical_formula_sum is {_words(formula)}{factor}, but {_words(counts)} was read"
    if min(off) > 0.02:
        return message, False, ""
    return "", confirmed or units > 0, "" if rounded or min(off) < 1e-6 else f"CIF {message}"


def _half_digit(count: float) -> float:
    """Half of the last digit of a number that is not whole: 0.005 of 0.07."""
    return 0.5000001 * 10.0 ** -len(f"{count:g}".partition(".")[2]) if count % 1 else 0.0


def _words(counts: dict[int, float]) -> str:
    return " ".join(f"{CHEMICAL_SYMBOLS[number]}{counts[number]:g}" for number in sorted(counts))


def _places(frac: np.ndarray) -> set[tuple[float, ...]]:
    """Distinct rounded positions within the cell; `np.unique` takes longer than the rest of the reader."""
    return set(map(tuple, (np.round(frac % 1, 4) % 1).tolist()))


def _doubts(content: CifContent, cell: np.ndarray, points: np.ndarray) -> list[str]:
    """What is odd about a CIF whose atoms agree with it."""
    found = far_coordinates(points)
    volume, given = float(np.linalg.det(cell)), cif_number(first_value(content, ("_cell_volume",)))
    if abs(given - volume) > _VOLUME_MISMATCH * volume:
        found.append(f"CIF _cell_volume is {given:g} Å³, but lengths and angles give {volume:.6g} Å³")
    if any(name.startswith("_atom_site_moment") for name in content):
        found.append("magnetic moments are not read: the models take none")
    return found


def _record_of(content: CifContent) -> CrystalRecord:
    labels, points, occupancies = _site_columns(content)
    cell = _cell(content)
    modulated = cif_number(first_value(content, ("_cell_modulation_dimension",))) > 0
    if modulated or any("_ssg_" in name or name.startswith("_cell_wave_vector") for name in content):
        raise CrystalInputError("CIF describes a modulated structure (superspace); periodic crystals are accepted")
    formula = _formula(content)
    numbers = _numbers(content, labels, formula)
    results: list[tuple[list[np.ndarray], str]] = []
    reason = ""
    for operations, doubt in symmetry_candidates(content, cell):
        order = len(operations[0])
        if len(points) * order > MAX_EXPANDED_SITES:
            raise CrystalInputError(
                f"CIF would expand to as many as {len(points) * order} sites ({len(points)} listed x {order} symmetry "
                f"operations); at most {MAX_EXPANDED_SITES} are read from a CIF. Give a pymatgen Structure, an ASE "
                "Atoms or a record instead"
            )
        orbits = expand_sites(points, operations, cell, occupancies < 1)
        contradiction, confirmed, note = _contradiction(
            content, formula, numbers, occupancies.clip(max=1.0), orbits, order
        )
        if doubt and not confirmed:
            contradiction = contradiction or f"{doubt}, and nothing in the file says which is meant"
        reason = reason or contradiction
        if not contradiction:
            results.append((orbits, note))
    if not results:
        raise CrystalInputError(f"CIF contradicts itself: {reason}")
    ways = {frozenset(_places(np.concatenate(orbits))) for orbits, _ in results if len(results) > 1}
    if len(ways) > 1:
        raise CrystalInputError(
            f"CIF names a space group of {len(results)} settings (origin, axes) and does not say which; give it in "
            "the symbol (':1', ':2', ':H', ':R'), as a Hall symbol, or list the operations"
        )
    orbits, note = results[0]
    repeats = [len(orbit) for orbit in orbits]
    notes = tuple(filter(None, (note, *_doubts(content, cell, points))))
    record = CrystalRecord(np.repeat(numbers, repeats), np.concatenate(orbits), cell, warnings=notes)
    if (occupancies != 1).any():
        # disorder groups exclude each other in part; what they share is in the occupancies, so that all are kept
        occupied = np.repeat(occupancies, repeats)
        record = record_of_species(record.atomic_numbers, occupied, record.frac_coords, cell, record.warnings)
    frac = record.frac_coords
    if len(_places(frac)) != len(frac):
        full = overfull_site(record.atomic_numbers, np.ones(len(frac)), frac) if record.occupancies is None else None
        raise CrystalInputError(full or "disordered: atoms share a site, and together they are more than one")
    return record


def record_from_pymatgen(structure: Any) -> CrystalRecord:
    """Record of a pymatgen `Structure` or `IStructure`; partial occupancies are read, dummy species are named.

    Raises:
        CrystalInputError: occupancies above 1, dummy species, hydrogens without positions.
    """
    if "implicit_hydrogens" in structure.site_properties:
        raise CrystalInputError("hydrogens are given only as counts (implicit hydrogens); every atom needs a position")
    numbers, occupancies, rows = [], [], []
    for place, site in enumerate(structure):
        for specie, occupancy in site.species.items():
            element = getattr(specie, "element", specie)
            name = str(getattr(element, "symbol", getattr(specie, "symbol", None)))
            if name == "H" and element.name in ("D", "T"):  # isotopes have the symbol H
                hydrogen_isotope_warning(element.name)
            numbers.append(atomic_number_of(name))
            occupancies.append(occupancy)
            rows.append(place)
    frac = np.array(structure.frac_coords, dtype=np.float64).reshape(-1, 3)
    cell = np.array(structure.lattice.matrix, dtype=np.float64)
    if rows == list(range(len(structure))) and all(abs(occupancy - 1.0) <= 1e-3 for occupancy in occupancies):
        record = CrystalRecord(np.array(numbers, dtype=np.int64), frac, cell)
    else:
        record = record_of_species(np.array(numbers), np.array(occupancies, dtype=np.float64), frac[rows], cell)
    a, b, c = map(bool, structure.lattice.pbc)
    return record if a and b and c else open_axes(record, (a, b, c), cell)
