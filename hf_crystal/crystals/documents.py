# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Crystals as dictionaries: fields of records, of pymatgen's `as_dict`, of OPTIMADE; needs numpy only."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from .formats import number_array, shortened
from .occupancy import record_of_sites, site_species
from .record import (
    CHEMICAL_SYMBOLS,
    CrystalInputError,
    CrystalRecord,
    atomic_number_of,
    cell_from_parameters,
    open_axes,
)

__all__ = [
    "CARTESIAN_KEYS",
    "CELL_KEYS",
    "FRACTIONAL_KEYS",
    "NUMBER_KEYS",
    "SYMBOL_KEYS",
    "cell_of",
    "compare_twins",
    "first_key",
    "fractional_of",
    "keys_of",
    "numbers_of",
    "periodic_axes",
    "points_of",
    "record_from_optimade",
    "record_from_sites",
    "truth",
]

_SAME_PLACE = 0.01  # Å

CELL_KEYS = ("cell", "lattice", "lattice_mat", "lattice_matrix")
FRACTIONAL_KEYS = ("frac_coords", "fractional_coords", "scaled_positions")
CARTESIAN_KEYS = ("positions", "cart_coords", "cartesian_coords")
NUMBER_KEYS = ("atomic_numbers", "numbers")
SYMBOL_KEYS = ("elements", "species", "symbols")


def first_key(data: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    """The first of the keys under which there is a value."""
    return next((key for key in keys if data.get(key) is not None), None)


def keys_of(data: Mapping[str, Any]) -> str:
    """In words, which keys a record has, and which of them are empty."""
    empty = sorted(str(key) for key, value in data.items() if value is None)
    return f"keys received: {shortened(sorted(map(str, data)))}" + f", empty: {', '.join(empty)}" * bool(empty)


def cell_of(value: Any, field: str) -> np.ndarray:
    """Cell from a 3x3 matrix, 9 numbers, or a pymatgen lattice dict."""
    if isinstance(value, Mapping):
        if value.get("matrix") is not None and not isinstance(value["matrix"], Mapping):
            return cell_of(value["matrix"], f"{field}.matrix")
        try:
            return cell_from_parameters(*(float(value[k]) for k in ("a", "b", "c", "alpha", "beta", "gamma")))
        except CrystalInputError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise CrystalInputError(
                f"{field} is {shortened(dict(value))}; a matrix or a, b, c, alpha, beta, gamma are accepted"
            ) from error
    matrix = getattr(value, "matrix", None)
    array = number_array(value if matrix is None else matrix, field)
    if array.size != 9 or array.shape not in ((9,), (3, 3)):
        raise CrystalInputError(
            f"{field} has shape {array.shape}; accepted are (3, 3) with vectors in rows and (9,), Å"
        )
    return array.reshape(3, 3)


def points_of(value: Any, field: str) -> np.ndarray:
    """Coordinates of shape (N, 3) from (N, 3) or a flat list of 3N numbers."""
    array = number_array(value, field)
    if array.ndim == 1 and array.size % 3 == 0:
        return array.reshape(-1, 3)
    if array.ndim != 2 or array.shape[1] != 3:
        raise CrystalInputError(f"{field} has shape {array.shape}; accepted are (N, 3) and a flat list of 3N numbers")
    return array


def truth(value: Any) -> bool:
    """JARVIS writes `cartesian` as a boolean, a number or a string."""
    if isinstance(value, str):
        return value.strip().lower() in ("true", "t", "1", "yes")
    if isinstance(value, bool | int | float | np.bool_ | np.number):
        return bool(value)
    raise CrystalInputError(f"cartesian is {shortened(value)}; true or false is accepted")


def numbers_of(data: Mapping[str, Any]) -> np.ndarray:
    """Atomic numbers of a record, from numbers or symbols."""
    key = first_key(data, NUMBER_KEYS)
    if key is not None:
        return number_array(data[key], key, np.int64).reshape(-1)
    key = first_key(data, SYMBOL_KEYS)
    if key is None:
        raise CrystalInputError(f"no atomic_numbers; {keys_of(data)}")
    if not isinstance(data[key], list | tuple | np.ndarray) or getattr(data[key], "ndim", 1) != 1:
        raise CrystalInputError(f"{key} is {shortened(data[key])}; a list of symbols is expected")
    return np.array([atomic_number_of(symbol) for symbol in data[key]], dtype=np.int64)


def record_from_sites(data: Mapping[str, Any]) -> CrystalRecord:
    """Read the form of pymatgen's `as_dict`, without pymatgen."""
    if not isinstance(data["sites"], list | tuple):
        raise CrystalInputError(f"sites is {shortened(data['sites'])}; a list is expected")
    cell = cell_of(data["lattice"], "lattice")
    species, points = [], []
    for place, site in enumerate(data["sites"]):
        species.append(site_species(site, place))
        field = "abc" if site.get("abc") is not None else "xyz"
        point = points_of(site.get(field), f"sites[{place}].{field}")
        if point.shape != (1, 3):
            raise CrystalInputError(f"sites[{place}].{field} is {shortened(site.get(field))}; 3 numbers are expected")
        points.append(point[0] if field == "abc" else fractional_of(point, cell)[0])
    if not species:
        raise CrystalInputError("0 atoms; at least one is needed")
    return record_of_sites(np.array(points, dtype=np.float64), cell, species)


def record_from_optimade(data: Mapping[str, Any]) -> CrystalRecord:
    """Read the attributes of an OPTIMADE `structures` entry."""
    kinds: dict[Any, dict[str, float]] = {}
    for kind in data.get("species") or ():
        shares = zip(kind.get("chemical_symbols", ()), kind.get("concentration", ()), strict=False)
        kinds[kind.get("name")] = {symbol: float(share) for symbol, share in shares if symbol != "vacancy"}
        if kind.get("attached"):
            raise CrystalInputError(
                f"species {shortened(kind.get('name'), 20)} has {shortened(kind['attached'], 40)} attached, without "
                "positions; every atom needs a site"
            )
    if "implicit_atoms" in (data.get("structure_features") or ()):
        raise CrystalInputError("structure_features has implicit_atoms: atoms without sites; every atom needs one")
    pbc = periodic_axes(data.get("dimension_types") or (1, 1, 1), "dimension_types")
    vectors = data["lattice_vectors"]
    if not all(pbc) and isinstance(vectors, list):  # those of axes that do not repeat may be null
        vectors = [vector if repeats else [0.0] * 3 for vector, repeats in zip(vectors, pbc, strict=False)]
    cell = cell_of(vectors, "lattice_vectors")
    names = data.get("species_at_sites") or ()
    points = points_of(data.get("cartesian_site_positions"), "cartesian_site_positions")
    sites = data.get("nsites") or len(names)
    if not len(points) == len(names) == sites or not len(names):
        raise CrystalInputError(
            f"cartesian_site_positions holds {len(points)} atoms, species_at_sites {len(names)}, nsites is "
            f"{shortened(sites, 20)}"
        )
    frame = cell if all(pbc) else np.eye(3)
    record = record_of_sites(fractional_of(points, frame), frame, [kinds.get(name, {name: 1.0}) for name in names])
    _compare_formula(record, data.get("chemical_formula_reduced"))
    return record if all(pbc) else open_axes(record, pbc, cell)


def _compare_formula(record: CrystalRecord, given: object) -> None:
    """Refuse an ordered crystal whose document gives another reduced formula."""
    if not isinstance(given, str) or record.occupancies is not None or len(given) > 1000:
        return
    parts = re.findall(r"([A-Z][a-z]?)(\d{0,9})", given)
    counts = Counter({symbol: int(count or 1) for symbol, count in parts})
    found = Counter(CHEMICAL_SYMBOLS[number] for number in record.atomic_numbers.tolist() if 0 < number < 119)
    scale = found.total() / max(counts.total(), 1)
    if counts.keys() != found.keys() or any(found[symbol] != scale * counts[symbol] for symbol in found):
        raise CrystalInputError(f"chemical_formula_reduced is {shortened(given, 40)}, but {record.formula} was read")


def compare_twins(
    data: Mapping[str, Any], key: str, points: np.ndarray, numbers: np.ndarray, cell: np.ndarray
) -> None:
    """Refuse a record that gives coordinates or elements twice, and differently."""
    other = first_key(data, CARTESIAN_KEYS)
    if key in FRACTIONAL_KEYS and other is not None and abs(np.linalg.det(cell)) > 1e-12:
        away = points_of(data[other], other)
        away = points - fractional_of(away, cell) if away.shape == points.shape else np.full(3, np.nan)
        if not np.abs((away - np.round(away)) @ cell).max(initial=0.0) < _SAME_PLACE:
            raise CrystalInputError(f"{key} and {other} are different places; give one of them")
    for name in SYMBOL_KEYS[1:]:  # `elements` may name each element once
        listed = data.get(name)
        if numbers.all() and isinstance(listed, list | tuple | np.ndarray) and all(isinstance(s, str) for s in listed):
            symbols = [symbol for symbol in listed if symbol.lstrip()[:1] != "{"]
            if len(symbols) == len(numbers) and [*map(atomic_number_of, symbols)] != numbers.tolist():
                raise CrystalInputError(
                    f"atomic_numbers are {shortened(numbers.tolist(), 40)}, but {name} {shortened(listed, 40)}"
                )


def fractional_of(positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Fractional coordinates of positions (Å); zeros where the cell is singular."""
    # a singular cell is reported by check_record, which says more than the solver can
    if not np.isfinite(cell).all() or abs(np.linalg.det(cell)) < 1e-12:
        return np.zeros_like(positions)
    return np.linalg.solve(cell.T, positions.T).T


def periodic_axes(value: Any, field: str) -> tuple[bool, bool, bool]:
    """Three truth values from one or three of them."""
    flags = np.asarray(value)
    if flags.dtype.kind not in "biu" or flags.shape not in ((), (3,)) or not np.isin(flags, (0, 1)).all():
        raise CrystalInputError(f"{field} is {shortened(value)}; true or false for each axis is accepted")
    a, b, c = np.broadcast_to(flags.astype(bool), 3).tolist()
    return a, b, c
