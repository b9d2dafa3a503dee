# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Symmetry of a CIF block: which operations it means, and the atoms that they make of the listed sites.

A symbol that is not known is an error and never falls back to the standard setting of its number; a symbol that
names several settings gives all of them, and the caller decides by the rest of the file.
"""

import re
from functools import lru_cache
from typing import Any

import numpy as np

from .formats import one_line
from .record import CrystalInputError

__all__ = [
    "CifContent",
    "Operations",
    "UNSET",
    "cif_number",
    "cif_numbers",
    "expand_sites",
    "first_value",
    "load_gemmi",
    "symmetry_candidates",
]

_MAX_OPERATIONS, _MAX_OPERATION_LENGTH = 384, 120  # no setting in use has more; `x,y,z` takes 5 characters
# images of a site nearer than this (Å) are one atom on a special position whose coordinates were rounded
_SPECIAL_POSITION = 0.25
_SPLIT_POSITION = 0.05  # the same for partly occupied sites, which are often split around a special position
_CELL_MISMATCH = 0.05  # of a squared length: cells are relaxed or printed with few digits

# data names in lower case with `_` for `.`
_OPERATIONS = ("_space_group_symop_operation_xyz", "_symmetry_equiv_pos_as_xyz")
_MAGNETIC = ("_space_group_symop_magn_operation_xyz", "_space_group_symop_magn_centering_xyz")
_SYMBOLS = tuple(f"_space_group_name_h-m_{kind}" for kind in ("alt", "full", "ref"))
_SYMBOLS = ("_symmetry_space_group_name_h-m", *_SYMBOLS, "_space_group_name_h-m")
_HALL = ("_space_group_name_hall", "_symmetry_space_group_name_hall")
_NUMBER = ("_space_group_it_number", "_symmetry_int_tables_number")
UNSET = {"", ".", "?"}
_ICSD_SETTINGS = {"z": "2", "s": "1", "h": "H", "r": "R", "1": "1", "2": "2"}

CifContent = dict[str, list[str]]
# number, origin or axes, Hall symbol, and 1 for symbols that are looked up only if no setting of rank 0 fits the cell
_Setting = tuple[int, str, str, int]
Operations = tuple[np.ndarray, np.ndarray]  # (n, 3, 3) and (n, 3), on fractional coordinates


def load_gemmi() -> Any:
    """The module gemmi.

    Raises:
        ImportError: gemmi is not installed.
    """
    try:
        import gemmi
    except ImportError as error:
        raise ImportError("reading CIF needs gemmi: pip install gemmi (records need numpy only)") from error
    return gemmi


def first_value(content: CifContent, names: tuple[str, ...]) -> str:
    """First value given under any of the data names; empty text where there is none."""
    return next((content[name][0] for name in names if content.get(name, [""])[0] not in UNSET), "")


def cif_numbers(texts: list[str]) -> np.ndarray:
    """`cif_number` of each text, `(n,)`."""
    joined = "".join(texts)
    if joined.isascii() and "_" not in joined and "(" not in joined:
        try:
            return np.array(texts, dtype=np.float64)
        except ValueError:
            pass
    return np.array([cif_number(text) for text in texts], dtype=np.float64)


def cif_number(text: str) -> float:
    """Number of a CIF value, standard uncertainty in brackets dropped: `5.6402(2)`; NaN for anything else."""
    try:
        return float(re.sub(r"\([0-9.]*\)?$", "", text)) if text.isascii() and "_" not in text else np.nan
    except ValueError:
        return np.nan


def _arrays(operations: Any) -> Operations:
    operations = list(operations)
    rotations = np.array([operation.rot for operation in operations], dtype=np.float64) / 24
    return rotations, np.array([operation.tran for operation in operations], dtype=np.float64) / 24


@lru_cache(maxsize=256)
def _listed(triplets: tuple[str, ...]) -> tuple[Operations, int]:
    """Operations of a list and the number of their space group (0 if gemmi has no such setting)."""
    gemmi = load_gemmi()

    operations = []
    for text in triplets:
        try:
            if len(text) > _MAX_OPERATION_LENGTH:
                raise ValueError("too long")
            operation = gemmi.Op(text).wrap()
            if operation.is_hkl() or abs(operation.det_rot()) != 24**3:
                raise ValueError("no operation on coordinates")
        except (ValueError, RuntimeError) as error:
            raise CrystalInputError(f"CIF symmetry operation {one_line(text, 40)!r} is not understood") from error
        operations.append(operation)
    distinct = {operation.triplet(): operation for operation in operations}
    rotations, shifts = _arrays(distinct.values())
    products = np.einsum("aij,bjk->abik", rotations, rotations)
    moved = np.einsum("aij,bj->abi", rotations, shifts) + shifts[:, None]
    keys = np.concatenate([products.reshape(-1, 9), np.round(moved.reshape(-1, 3) * 24) % 24], axis=1)
    if len(np.unique(keys, axis=0)) != len(distinct) or "x,y,z" not in distinct:
        raise CrystalInputError(
            f"CIF lists {len(distinct)} symmetry operations that form no group; some are missing or wrong"
        )
    found = gemmi.find_spacegroup_by_ops(gemmi.GroupOps(list(distinct.values())))
    return (rotations, shifts), found.number if found else 0


def _plain(symbol: str) -> str:
    return re.sub(r"[\s_{}]", "", symbol).lower()


@lru_cache(maxsize=1)
def _settings() -> dict[str, list[_Setting]]:
    """Settings of each space-group symbol: gemmi's, then the full ones and other monoclinic axes from moyopy."""
    gemmi = load_gemmi()

    table: dict[str, list[_Setting]] = {}
    for group in gemmi.spacegroup_table():
        for name in {_plain(group.hm), _plain(group.short_name())}:
            table.setdefault(name, []).append((group.number, group.ext.strip("\0 "), group.hall, 0))
    try:
        from moyopy import HallSymbolEntry
    except ImportError:
        return table
    for hall_number in range(1, 531):
        entry = HallSymbolEntry(hall_number)
        setting = str(entry.setting) if entry.setting in ("1", "2", "H", "R") else ""
        for name in {_plain(entry.hm_short), _plain(entry.hm_full)}:
            table.setdefault(name, []).append((entry.number, setting, entry.hall_symbol.replace("=", '"'), 1))
    return table


@lru_cache(maxsize=256)
def _operations_of_hall(hall: str) -> tuple[Operations, int]:
    gemmi = load_gemmi()

    try:
        operations = gemmi.symops_from_hall(hall)
    except (ValueError, RuntimeError) as error:
        raise CrystalInputError(f"CIF Hall symbol {one_line(hall, 40)!r} is not known") from error
    found = gemmi.find_spacegroup_by_ops(operations)
    return _arrays(operations), found.number if found else 0


def _named(symbol: str, setting: str) -> list[_Setting]:
    """Settings that a Hermann-Mauguin symbol may mean, its own suffix (`:2`, ` Z`) or the given one respected."""
    table = _settings()
    match = re.fullmatch(r"(.+?)(?:\s*:\s*|\s*\(?origin\s*|\s+)([12zshr])\)?", symbol.strip().lower())
    if match and (":" in symbol or "origin" in symbol.lower() or _plain(symbol) not in table):
        symbol, setting = match[1], _ICSD_SETTINGS[match[2]]
    plain = _plain(symbol)
    # until 1983 cubic groups with a center were written without the bar: F m 3 m
    found = table.get(plain) or table.get(re.sub(r"^([pfi][mnad])(3[mncd]?)$", r"\1-\2", plain), [])
    return [entry for entry in found if not setting or entry[1] == setting or not entry[1]]


def symmetry_candidates(content: CifContent, cell: np.ndarray) -> list[tuple[Operations, str]]:
    """Operations that the file may mean, and a doubt about them that the number of atoms has to settle.

    Args:
        content: values of each data name.
        cell: `(3, 3)`, vectors in rows, Å; operations that change its lengths or angles are not what is meant.

    Raises:
        CrystalInputError: unknown symbols, symbols that contradict each other, operations that are not understood, or
            none that keeps the cell.
    """
    candidates = [candidate for candidate in _candidates(content, cell) if _fits(candidate[0], cell)]
    if not candidates:
        raise CrystalInputError("CIF symmetry contradicts the cell: the operations change its lengths or angles")
    return candidates


def _candidates(content: CifContent, cell: np.ndarray) -> list[tuple[Operations, str]]:
    number_text = first_value(content, _NUMBER)
    number = int(number_text) if re.fullmatch("[0-9]{1,3}", number_text) else 0
    symbol, hall = first_value(content, _SYMBOLS), first_value(content, _HALL)
    triplets = next((content[name] for name in (*_OPERATIONS, _MAGNETIC[0]) if content.get(name)), [])
    triplets = [triplet for triplet in triplets if triplet not in UNSET]
    if _MAGNETIC[0] in content and not any(content.get(name) for name in _OPERATIONS):
        return [_magnetic(content)]
    if len(triplets) > _MAX_OPERATIONS:
        raise CrystalInputError(f"CIF lists {len(triplets)} symmetry operations; at most {_MAX_OPERATIONS} are read")
    setting = _ICSD_SETTINGS.get(first_value(content, ("_space_group_it_coordinate_system_code",)).lower(), "")
    named = _named(symbol, setting) if symbol else []
    if triplets:
        operations, found = _listed(tuple(triplets))
        declared = number or (named[0][0] if named else 0)
        trusted = not declared or not found or found == declared
        return [(operations, "" if trusted else f"{len(operations[0])} listed operations (space group {found}) beside "
                 f"space group {one_line(symbol, 30) or number}")]  # fmt: skip
    if hall:
        operations, found = _operations_of_hall(hall)
        numbers = {entry[0] for entry in named} or ({number} if number else set())
        if found and numbers and found not in numbers or number and found and found != number:
            raise CrystalInputError(
                f"CIF names space group {one_line(symbol, 30)!r} ({number or 'no number'}), but the Hall symbol "
                f"{one_line(hall, 30)!r} is of space group {found}"
            )
        return [(operations, "")]
    if symbol and not named:
        raise CrystalInputError(
            f"CIF names space group {one_line(symbol, 40)!r}, which is not known, and lists no symmetry operations; "
            "reading it as P1 would lose atoms"
        )
    if number_text and not symbol:
        if not 1 <= number <= 230:
            raise CrystalInputError(f"CIF gives space-group number {one_line(number_text, 20)}; accepted are 1 to 230")
        group = load_gemmi().find_spacegroup_by_number(number)
        named = _named(group.hm, setting)
    if number and named:
        agreeing = [entry for entry in named if entry[0] == number]
        if not agreeing:
            raise CrystalInputError(
                f"CIF names space group {one_line(symbol, 40)!r} (number {named[0][0]}), but gives number {number}"
            )
        named = agreeing
    for rank in (0, 1):  # `P 21/c` has the unique axis b, unless the cell says otherwise
        halls = dict.fromkeys(entry[2] for entry in named if entry[3] == rank)
        fitting = [operations for hall in halls if _fits(operations := _operations_of_hall(hall)[0], cell)]
        if fitting:
            return [(operations, "") for operations in fitting]
    return [(_operations_of_hall(named[0][2] if named else "P 1")[0], "")]


def _magnetic(content: CifContent) -> tuple[Operations, str]:
    """Operations of a magnetic group, their time reversal (`,+1`) dropped; centerings are listed apart."""
    lists = []
    for name in _MAGNETIC:
        triplets = [re.sub(r",\s*[+-]1\s*$", "", text) for text in content.get(name, [])] or ["x,y,z"]
        if len(triplets) > _MAX_OPERATIONS:
            raise CrystalInputError(f"CIF lists {len(triplets)} magnetic operations; too many")
        gemmi = load_gemmi()

        try:
            lists.append([gemmi.Op(text[:_MAX_OPERATION_LENGTH]) for text in triplets])
        except (ValueError, RuntimeError) as error:
            raise CrystalInputError("CIF magnetic symmetry operations are not understood") from error
    if len(lists[0]) * len(lists[1]) > _MAX_OPERATIONS:
        raise CrystalInputError("CIF lists too many magnetic operations")
    return _listed(tuple(dict.fromkeys((b * a).wrap().triplet() for b in lists[1] for a in lists[0])))[0], ""


def _fits(operations: Operations, cell: np.ndarray) -> bool:
    """Whether the operations keep lengths and angles of the cell."""
    metric = cell @ cell.T
    moved = np.einsum("aji,jk,akl->ail", operations[0], metric, operations[0])
    lengths = np.sqrt(np.diag(metric))
    return bool((abs(moved - metric) <= _CELL_MISMATCH * np.outer(lengths, lengths)).all())


def expand_sites(
    points: np.ndarray, operations: Operations, cell: np.ndarray, is_partial: np.ndarray
) -> list[np.ndarray]:
    """Distinct images `(m, 3)` of each site; a site near a special position is put on it first."""
    rotations, shifts = operations
    if len(rotations) == 1:  # the identity, most written CIFs
        return list(points[:, None] + shifts)
    # all sites at once: the loop below runs over sites on special positions only
    images = np.einsum("aij,nj->nai", rotations, points) + shifts
    away = images - points[:, None]
    away -= np.round(away)
    tolerances = np.where(is_partial, _SPLIT_POSITION, _SPECIAL_POSITION)
    same = ((away @ cell) ** 2).sum(axis=-1) < tolerances[:, None] ** 2
    orbits = []
    for place, stays in enumerate(same):
        site = images[place]
        if stays.sum() == 1:
            orbits.append(site)
            continue
        moved = away[place][stays].mean(axis=0)
        if np.abs(moved).max() > 1e-12:
            site = np.einsum("aij,j->ai", rotations, points[place] + moved) + shifts
        # cosets of the site's own symmetry: the images of the special position are equal or well apart
        keys = np.round((site % 1.0) * 1e6).astype(np.int64) % 1_000_000
        near = np.round(keys / 50).astype(np.int64) % 20_000
        first: dict[tuple[int, ...], int] = {}
        for number, key in enumerate(map(tuple, near.tolist())):
            first.setdefault(key, number)
        chosen = np.fromiter(first.values(), dtype=np.int64)
        orbits.append(site[chosen if len(chosen) * stays.sum() == len(rotations) else _apart(site, cell)])
    return orbits


def _apart(images: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Places of the images that are no repetition of an earlier one."""
    kept: list[int] = []
    for place, image in enumerate(images):
        away = images[kept] - image
        away -= np.round(away)
        if not kept or ((away @ cell) ** 2).sum(axis=1).min() > (0.1 * _SPECIAL_POSITION) ** 2:
            kept.append(place)
    return np.array(kept)
