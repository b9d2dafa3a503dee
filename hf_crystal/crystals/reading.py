# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""`as_record`: any accepted form of a crystal to one plain numpy record, or a reason why not.

Dictionaries, JSON, POSCAR and extended XYZ need numpy only; gemmi is imported for CIF text, pymatgen for its
own objects.
"""

import io
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, Union

import numpy as np
from transformers.utils import logging

from .cif import cif_blocks, parse_cif, record_from_pymatgen
from .documents import (
    CARTESIAN_KEYS,
    CELL_KEYS,
    FRACTIONAL_KEYS,
    NUMBER_KEYS,
    SYMBOL_KEYS,
    cell_of,
    compare_twins,
    first_key,
    fractional_of,
    keys_of,
    numbers_of,
    periodic_axes,
    points_of,
    record_from_optimade,
    record_from_sites,
    truth,
)
from .formats import (
    COMPRESSION_ERRORS,
    MAX_LISTED_ATOMS,
    check_units,
    decode_text,
    detect_format,
    one_line,
    open_unpacked,
    parse_extxyz,
    parse_json_text,
    parse_poscar,
    plain_name,
    shortened,
    split_frames,
)
from .occupancy import first_mixed_site, mixed_sites, record_of_sites, species_texts, with_occupancies
from .record import (
    CHEMICAL_SYMBOLS,
    SPECIES_COLUMN,
    CrystalInputError,
    CrystalRecord,
    check_record,
    isotopes_noted,
    open_axes,
)

__all__ = [
    "ACCEPTED_FORMS",
    "CHEMICAL_SYMBOLS",
    "CrystalInputError",
    "CrystalLike",
    "CrystalRecord",
    "as_record",
    "crystals_in",
    "parse_structure",
    "record_to_structure",
    "as_columns",
]

logger = logging.get_logger(__name__)

MAX_FILE_BYTES = 64 * 1024 * 1024
_FILE_ENDINGS = (".cif", ".mcif", ".vasp", ".poscar", ".contcar", ".xyz", ".extxyz", ".json")
_MAX_DEPTH = 4  # a row that holds JSON text that holds a crystal

ACCEPTED_FORMS = (
    "pymatgen Structure, ASE Atoms, a path to a CIF, POSCAR/CONTCAR/.vasp, extended XYZ or JSON file (pymatgen, "
    "JARVIS, OPTIMADE), the text of one, or a record dict with cell (or lattice), frac_coords (or positions) and "
    "atomic_numbers (or species)"
)


class _PymatgenStructure(Protocol):
    """What is read of a pymatgen `Structure`; the package need not be installed where this file travels."""

    @property
    def lattice(self) -> Any: ...
    @property
    def frac_coords(self) -> Any: ...
    @property
    def site_properties(self) -> Any: ...


class _AseAtoms(Protocol):
    """What is read of ASE `Atoms`."""

    @property
    def cell(self) -> Any: ...
    @property
    def positions(self) -> Any: ...
    @property
    def numbers(self) -> Any: ...
    @property
    def pbc(self) -> Any: ...


# type of `ACCEPTED_FORMS`
CrystalLike = Union[
    CrystalRecord, Mapping[str, Any], str, bytes, bytearray, "os.PathLike[str]", _PymatgenStructure, _AseAtoms
]

# a row of a table, or an entry of a database, that holds a crystal
_NESTED_KEYS = ("atoms", "structure", "cif", "poscar", "crystal", "attributes", "data")
_NAME_KEYS = ("material_id", "jid", "id", "name", "file")


# ----------------------------------------------------------------------------------------------------------- dicts


def _record_from_dict(data: Mapping[str, Any], depth: int = 0) -> CrystalRecord:
    lattice = data.get("lattice")
    flags = lattice.get("pbc") if isinstance(lattice, Mapping) else data.get("pbc")
    pbc = (True, True, True) if flags is None else periodic_axes(flags, "pbc")
    if "sites" in data and "lattice" in data:
        record = record_from_sites(data)
        return record if all(pbc) else open_axes(record, pbc, record.cell)
    if data.get("lattice_vectors") is not None:
        return record_from_optimade(data)
    cell_key = first_key(data, CELL_KEYS)
    if not all(pbc) and (cell_key is not None or not any(pbc)):
        cell = np.eye(3) if cell_key is None else cell_of(data[cell_key], cell_key)
        is_jarvis = first_key(data, (*FRACTIONAL_KEYS, *CARTESIAN_KEYS)) is None
        fractional = not truth(data.get("cartesian", False)) if is_jarvis else first_key(data, FRACTIONAL_KEYS)
        rest = {key: value for key, value in data.items() if key not in ("pbc", *CELL_KEYS)}
        rest["cell"] = cell if fractional else np.eye(3)  # positions need no whole cell
        return open_axes(_record_from_dict(rest, depth), pbc, cell)
    if cell_key is None:
        nested = first_key(data, _NESTED_KEYS)
        if nested is not None:
            return _parse_nested(data[nested], depth)
        raise CrystalInputError(f"no cell; {keys_of(data)}; accepted: {ACCEPTED_FORMS}")
    check_units(data)
    cell = cell_of(data[cell_key], cell_key)
    # beside numbers, as tables hold the main elements, only `species` is looked at
    key = SPECIES_COLUMN if first_key(data, NUMBER_KEYS) else first_key(data, SYMBOL_KEYS)
    sites = mixed_sites(data.get(key), key) if key else []
    numbers = np.zeros(len(sites), dtype=np.int64) if sites else numbers_of(data)
    key = first_key(data, FRACTIONAL_KEYS)
    cartesian = False
    if key is None:
        key = first_key(data, CARTESIAN_KEYS)
        cartesian = key is not None
    if key is None and data.get("coords") is not None:  # JARVIS
        key, cartesian = "coords", truth(data.get("cartesian", False))
    if key is None:
        raise CrystalInputError(f"no frac_coords and no positions; {keys_of(data)}")
    points = points_of(data[key], key)
    if len(points) != len(numbers):
        raise CrystalInputError(f"{key} holds {len(points)} atoms but {len(numbers)} atomic numbers were given")
    compare_twins(data, key, points, numbers, cell)
    if cartesian:
        points = fractional_of(points, cell)
    if sites:
        return record_of_sites(points, cell, sites)
    if data.get("occupancies") is not None:
        return with_occupancies(CrystalRecord(numbers, points, cell), data["occupancies"])
    return CrystalRecord(numbers, points, cell)


# ------------------------------------------------------------------------------------------------- text and files


def _parse_nested(value: Any, depth: int) -> CrystalRecord:
    """Read what a document holds inside; text in a document is never the name of a file."""
    if depth >= _MAX_DEPTH:
        raise CrystalInputError(f"crystal nested more than {_MAX_DEPTH} deep in dicts, lists or JSON text")
    if isinstance(value, Mapping | list):
        return _record_from_json(value, depth + 1)
    if isinstance(value, str | bytes | bytearray):
        return _record_from_text(value if isinstance(value, str) else decode_text(bytes(value)), depth=depth + 1)
    if isinstance(value, os.PathLike):
        raise CrystalInputError("a path inside a document is not opened; give the path itself")
    return parse_structure(value)


def _record_from_text(text: str, hint: str | None = None, depth: int = 0) -> CrystalRecord:
    """Read text; `hint` is the format that a file name promises."""
    if not text.strip("\ufeff \t\r\n\x00"):
        raise CrystalInputError("the file or text is empty")
    found = detect_format(text)
    chosen = found if found in ("json", "extxyz") or hint is None else hint
    if chosen == "json":
        if text.count("[") + text.count("{") > 5 * MAX_LISTED_ATOMS or text.count(",") > 10 * MAX_LISTED_ATOMS:
            raise CrystalInputError(
                f"JSON holds more values than a crystal of {MAX_LISTED_ATOMS} atoms; no more are read"
            )
        return _record_from_json(parse_json_text(text), depth)
    if chosen == "poscar":
        return parse_poscar(text)
    if chosen == "extxyz":
        return parse_extxyz(text)
    if chosen == "cif":
        return parse_cif(text)
    if "\n" not in text and text.strip().lower().endswith(_FILE_ENDINGS):
        raise CrystalInputError(
            "the name of a file in place of a crystal; a CSV names files beside or below itself, by relative names "
            "without '..', other tables and documents hold the text of the file"
        )
    # the text itself is not quoted: it may come from a file that the reader of the message must not see
    hint = "; of VASP's output CONTCAR has the crystal" if re.search(r"\bvasp\.|<modeling>", text[:300]) else ""
    raise CrystalInputError(
        f"not a crystal structure: {len(text.strip())} characters of no known format; accepted: {ACCEPTED_FORMS}{hint}"
    )


def _record_from_json(data: Any, depth: int = 0) -> CrystalRecord:
    if isinstance(data, list):
        if len(data) == 1:
            return _parse_nested(data[0], depth)
        raise CrystalInputError(
            f"JSON holds a list of {len(data)} entries; one crystal is expected (load_crystal_dataset reads lists)"
        )
    if not isinstance(data, Mapping):
        raise CrystalInputError(f"JSON holds a {type(data).__name__}; an object describing one crystal is expected")
    return _record_from_dict(data, depth)


def _format_of_name(path: Path) -> str | None:
    name = plain_name(path.name)
    suffix = Path(name).suffix
    if suffix in (".cif", ".mcif"):
        return "cif"
    if suffix in (".vasp", ".poscar", ".contcar") or name.startswith(("poscar", "contcar")):
        return "poscar"
    if suffix in (".xyz", ".extxyz"):
        return "extxyz"
    return "json" if suffix == ".json" else None


def _read_file(path: Path) -> str:
    if "\0" in str(path):
        raise CrystalInputError(f"not a file name: {shortened(str(path))}")
    try:
        if not path.exists():
            reason = f"no such file: {path}"
            if _format_of_name(path) is None:  # of a table's column, for instance
                reason += ", and this is no text of a known format"
            raise CrystalInputError(reason, name=path.name)
        if path.is_dir():
            raise CrystalInputError(f"{path} is a folder, which hf_crystal.load reads", name=path.name)
        if not (path.is_file() or path.is_fifo()):  # `<(zcat …)` of a shell is a pipe; devices never end
            raise CrystalInputError(f"{path} is neither a regular file nor a pipe", name=path.name)
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise CrystalInputError(f"the file has {size} bytes; at most {MAX_FILE_BYTES} are read", name=path.name)
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)  # a file may grow meanwhile, a pipe has no size
        if len(data) > MAX_FILE_BYTES:
            raise CrystalInputError(f"more than {MAX_FILE_BYTES} bytes; no more are read", name=path.name)
    except OSError as error:
        raise CrystalInputError(f"the file cannot be read: {error}", name=path.name) from error
    return decode_text(_unpack(data, path.name))


def _unpack(data: bytes, name: str) -> bytes:
    """Content of a file, which has to be whole where it is compressed."""
    try:
        with open_unpacked(io.BytesIO(data)) as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except EOFError as error:
        raise CrystalInputError("the compressed file ends too early: it is truncated", name=name) from error
    except (*COMPRESSION_ERRORS, ValueError) as error:
        raise CrystalInputError(f"the compressed file cannot be read: {one_line(str(error))}", name=name) from error
    if content.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")):
        raise CrystalInputError("compressed twice; unpack it once", name=name)
    if content[257:262] == b"ustar":
        raise CrystalInputError("a tar archive; unpack it, and give its folder", name=name)
    if len(content) > MAX_FILE_BYTES:
        raise CrystalInputError(f"unpacks to more than {MAX_FILE_BYTES} bytes", name=name)
    return content


def _record_from_path(path: Path) -> CrystalRecord:
    text = _read_file(path)
    hint = _format_of_name(path)
    if hint == "cif" and detect_format(text) == "json":
        raise CrystalInputError("named .cif but holds JSON", name=path.name)
    try:
        record = _record_from_text(text, hint)
    except CrystalInputError as error:
        raise error.located(None, path.name) from error.__cause__
    cut = () if text.rstrip(" \t")[-1:] in "\n\r}]" else ("the file ends without a line break and may be cut off",)
    return replace(record, name=path.name, warnings=(*record.warnings, *cut))


def crystals_in(path: Path) -> Iterator[tuple[str, CrystalLike]]:
    """Crystals of a file, each with a name inside the file: data blocks of a CIF, frames of extended XYZ.

    Args:
        path: file of any accepted format, read here only where it is a regular CIF or XYZ file.

    Yields:
        `("", path)` where the file holds one crystal or cannot be read, so that its reader gives the reason; else the
        block's name (its place from 0 for frames, and where blocks share a name) and its text.
    """
    parts: list[tuple[str, str]] = []
    kind = _format_of_name(path)
    if kind in ("cif", "extxyz") and path.is_file():  # what is read from a pipe is gone
        try:
            text = _read_file(path)
            if kind == "cif":
                parts = cif_blocks(text)
            else:
                parts = [(str(place), frame) for place, frame in enumerate(split_frames(text.splitlines(True)))]
        except CrystalInputError:
            parts = []
    yield from parts if len(parts) > 1 else [("", path)]


# --------------------------------------------------------------------------------------------------------- objects


def _record_from_ase(atoms: Any) -> CrystalRecord:
    cell = np.array(atoms.cell[:], dtype=np.float64).reshape(3, 3)
    pbc = periodic_axes(atoms.pbc, "pbc of ASE Atoms")
    if all(pbc) and not np.abs(cell).sum() > 0:
        raise CrystalInputError("ASE Atoms without a cell but with pbc; a molecule without a cell has pbc=False")
    positions = np.array(atoms.positions, dtype=np.float64).reshape(-1, 3)
    # a cell that makes positions and coordinates the same numbers, where the given one may be incomplete
    frame = cell if all(pbc) else np.eye(3)
    points = fractional_of(positions, frame)
    # ASE reads the main element of each site of a CIF, and keeps the others aside
    occupied, kinds = getattr(atoms, "info", {}).get("occupancy"), getattr(atoms, "arrays", {}).get("spacegroup_kinds")
    if isinstance(occupied, Mapping) and kinds is not None:
        record = record_of_sites(points, frame, [dict(occupied[str(kind)]) for kind in kinds.tolist()])
    else:
        record = CrystalRecord(np.array(atoms.numbers, dtype=np.int64), points, frame)
    return record if all(pbc) else open_axes(record, pbc, cell)


def _looks_like_text(value: str) -> bool:
    return "\n" in value or "\r" in value or value.lstrip()[:1] in ("{", "[") or len(value) > 4096


def parse_structure(obj: CrystalLike) -> CrystalRecord:
    """Read any accepted form without judging the crystal; `as_record` is this plus the checks.

    Args:
        obj: any of `ACCEPTED_FORMS`.

    Returns:
        `CrystalRecord`; atom order and coordinates as given.

    Raises:
        CrystalInputError: the form is not accepted or cannot be read.
    """
    if isinstance(obj, CrystalRecord):
        return obj
    if isinstance(obj, CrystalInputError):  # in place of a crystal that its source could not give
        raise obj
    if isinstance(obj, Mapping):
        return _record_from_dict(obj)
    if isinstance(obj, bytes | bytearray):
        return _record_from_text(decode_text(bytes(obj)))
    if isinstance(obj, str):
        if not obj.strip():
            raise CrystalInputError("empty text")
        return _record_from_text(obj) if _looks_like_text(obj) else _record_from_path(Path(obj))
    if isinstance(obj, os.PathLike):
        return _record_from_path(Path(obj))
    # duck typing, so that neither package is imported to recognize its objects
    if hasattr(obj, "lattice") and hasattr(obj, "frac_coords") and hasattr(obj, "site_properties"):
        return record_from_pymatgen(obj)
    if hasattr(obj, "cell") and hasattr(obj, "positions") and hasattr(obj, "pbc"):
        return _record_from_ase(obj)
    if hasattr(obj, "structure"):  # entries and documents of the Materials Project
        return parse_structure(obj.structure)
    raise CrystalInputError(f"received {type(obj).__name__}; accepted: {ACCEPTED_FORMS}")


def _name_of(obj: CrystalLike) -> str | None:
    if isinstance(obj, Mapping):
        return next((obj[key] for key in _NAME_KEYS if isinstance(obj.get(key), str)), None)
    return None


def as_record(
    obj: CrystalLike,
    *,
    index: int | None = None,
    name: str | None = None,
    max_atomic_number: int = 118,
    min_distance: float = 0.1,
    min_volume_per_atom: float = 0.5,
    max_atoms: int | None = None,
    check_distances: bool = True,
    nested: bool = False,
    disorder: Literal["refuse", "mix"] = "refuse",
    partly_periodic: bool = False,
) -> CrystalRecord:
    """Turn any accepted form of a crystal into a checked plain record.

    Args:
        obj: any of `ACCEPTED_FORMS`.
        index: place in the caller's list, for the error message.
        name: name of the crystal for the error message; the file name, id or formula otherwise.
        max_atomic_number: largest atomic number accepted.
        min_distance: atoms nearer than this (Å), periodic images included, are an error.
        min_volume_per_atom: cells with less (Å³ per atom) are an error.
        max_atoms: largest cell accepted; None for no limit.
        check_distances: whether to look for overlapping atoms.
        nested: whether the crystal comes out of a document (a table's cell, a request), where text is content and
            never the name of a file.
        disorder: `"mix"` accepts partly occupied sites, for callers that read `occupancies`.
        partly_periodic: whether slabs, wires and molecules are accepted, for callers that read `pbc`.

    Returns:
        `CrystalRecord` with `atomic_numbers (N,)`, `frac_coords (N, 3)`, `cell (3, 3)`; order as given.

    Raises:
        CrystalInputError: with `reason`, `index` and `name`.
    """
    record: CrystalRecord | None = None
    try:
        # absurd numbers overflow on the way to the check that names them
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"), isotopes_noted() as isotopes:
            record = _parse_nested(obj, 0) if nested and isinstance(obj, str | bytes) else parse_structure(obj)
            if isotopes:
                note = f"{' and '.join(sorted(isotopes))} read as H: the isotopes of hydrogen are not told apart"
                record = replace(record, warnings=(*record.warnings, note))
            if disorder == "refuse" and record.occupancies is not None:
                raise CrystalInputError(f"disordered: {first_mixed_site(record)}")
            if not partly_periodic and not all(record.pbc):
                raise CrystalInputError(
                    f"pbc is {record.pbc}; slabs, wires, and a molecule without a cell are no crystals, and only what "
                    "repeats along all three axes is accepted here. Set pbc where it is a crystal"
                )
            return check_record(
                record,
                max_atomic_number=max_atomic_number,
                min_distance=min_distance,
                min_volume_per_atom=min_volume_per_atom,
                max_atoms=max_atoms,
                check_distances=check_distances,
            )
    except CrystalInputError as error:
        known = name or _name_of(obj)
        if record is not None:
            known = known or record.name or record.formula or None
        raise error.located(index, known) from error.__cause__
    except ImportError:
        raise
    except Exception as error:
        # a fault of one crystal never ends the run of many; the type says where to look
        logger.info("crystal %s cannot be read", index, exc_info=True)
        reason = f"cannot be read ({type(error).__name__})"
        raise CrystalInputError(reason, index=index, name=name) from error


# ------------------------------------------------------------------------------------------------------- and back


def as_columns(
    structure: CrystalLike, *, nested: bool = False, disorder: Literal["refuse", "mix"] = "refuse"
) -> dict[str, Any]:
    """Plain-column form of a crystal, ready for Arrow: `lattice` 9 floats, `frac_coords` 3n floats, `atomic_numbers`.

    Args:
        structure: any of `ACCEPTED_FORMS`.
        nested: see `as_record`.
        disorder: see `as_record`.

    Returns:
        dict of lists and `num_atoms`; of a disordered crystal also `species`, JSON text for each site.

    Raises:
        CrystalInputError: see `as_record`.
    """
    record = as_record(structure, nested=nested, disorder=disorder)
    return {
        "lattice": record.cell.reshape(-1).tolist(),
        "frac_coords": record.frac_coords.reshape(-1).tolist(),
        "atomic_numbers": record.atomic_numbers.tolist(),
        "num_atoms": record.num_atoms,
        **({} if record.occupancies is None else {SPECIES_COLUMN: species_texts(record.occupancies)}),
    }


def record_to_structure(record: CrystalLike) -> Any:
    """Build the pymatgen `Structure` of a crystal, ordered or not; order as given, coordinates not wrapped.

    Args:
        record: any of `ACCEPTED_FORMS`, a `CrystalRecord` or a record dict in particular.

    Returns:
        `pymatgen.core.Structure`.

    Raises:
        CrystalInputError: see `as_record`.
        ImportError: pymatgen is not installed.
    """
    try:
        from pymatgen.core import Lattice, Structure
    except ImportError as error:
        raise ImportError("record_to_structure needs pymatgen: pip install pymatgen") from error
    checked = as_record(record, disorder="mix", partly_periodic=True)
    symbols: list[Any] = [CHEMICAL_SYMBOLS[number] for number in checked.atomic_numbers]
    if checked.occupancies is not None:
        symbols = [{CHEMICAL_SYMBOLS[z + 1]: site[z] for z in np.flatnonzero(site)} for site in checked.occupancies]
    return Structure(Lattice(checked.cell, pbc=checked.pbc), symbols, checked.frac_coords)
