# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Partly occupied sites: every way of writing them → the one form of a record with `occupancies`; needs numpy only.

Ordered crystals in place of a disordered one: `ordered_records`, which needs pymatgen.
"""

import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from .formats import number_array, shortened
from .record import (
    CHEMICAL_SYMBOLS,
    COVALENT_RADII,
    NUM_SPECIES,
    CrystalInputError,
    CrystalRecord,
    atomic_number_of,
    candidate_pairs,
    reach_of,
)

__all__ = [
    "as_composition",
    "first_mixed_site",
    "mixed_sites",
    "ordered_records",
    "overfull_site",
    "record_of_sites",
    "record_of_species",
    "site_species",
    "species_texts",
    "with_occupancies",
]

# Å; partly occupied positions nearer than this are one site
_SPLIT_SITE = 0.1
_ROUNDED_OCCUPANCY, _LARGEST_OCCUPANCY = 1e-3, 1.02  # of a sum that is meant to be 1
_DRAWN = 24  # orderings drawn for each that is returned
_ROUNDING = 0.01  # of an occupancy
_CLOSE = 0.5  # of the sum of covalent radii: positions that exclude each other
_CROWDED = 0.78  # the same: halves of split sites, of which both are taken only if nothing else is left
_CROWDED_WEIGHT = 1e-3  # beside 1 of positions that exclude each other
_SYMMETRY = 0.01  # Å
_LARGEST_CHARGE = 0.3  # e per atom that common oxidation states may leave; more of it means a metal


def as_composition(numbers: np.ndarray, occupancies: np.ndarray | None) -> np.ndarray:
    """Occupancy of each element `(N, 118)` at sites that hold one atom `(N,)` each, or as it is given."""
    if occupancies is not None:
        return occupancies
    composition = np.zeros((len(numbers), NUM_SPECIES))
    composition[np.arange(len(numbers)), numbers - 1] = 1.0
    return composition


def overfull_site(numbers: np.ndarray, occupancies: np.ndarray, frac_coords: np.ndarray) -> str | None:
    """What is wrong with the first place where atoms are together more than one; None if there is none."""
    place = np.unique(np.round(frac_coords % 1, 4) % 1, axis=0, return_inverse=True)[1].ravel()
    totals = np.bincount(place, occupancies)
    if totals.max(initial=0.0) <= _LARGEST_OCCUPANCY:
        return None
    rows = np.flatnonzero(place == np.argmax(totals > _LARGEST_OCCUPANCY))
    atoms = " + ".join(f"{CHEMICAL_SYMBOLS[int(numbers[row])]} {occupancies[row]:g}" for row in rows)
    return f"disordered: atoms share a site, and together they are more than one: {atoms}; up to 1 is accepted"


def record_of_species(
    numbers: np.ndarray,
    occupancies: np.ndarray,
    frac_coords: np.ndarray,
    cell: np.ndarray,
    warnings: tuple[str, ...] = (),
) -> CrystalRecord:
    """Record of partly occupied positions, one row for each element at each; the one form of a disordered crystal.

    Rows nearer than 0.1 Å whose occupancies together are at most 1 become one site, in the mean of their places: two
    half-occupied copies of a site are the full site. Empty rows vanish. Where every site then holds one atom the
    record is that of an ordered crystal.

    Args:
        numbers (`np.ndarray` of shape `(R,)`): atomic numbers.
        occupancies (`np.ndarray` of shape `(R,)`): 0 to 1; sums up to 1.02 are taken for rounded ones.
        frac_coords (`np.ndarray` of shape `(R, 3)`): fractional coordinates.
        cell (`np.ndarray` of shape `(3, 3)`): lattice vectors in rows, Å.
        warnings: of the record.

    Returns:
        `CrystalRecord`, sites in the order of their first rows.

    Raises:
        CrystalInputError: an occupancy outside 0 to 1, only empty sites, an atomic number outside 1 to 118.
    """
    good = (occupancies >= 0) & (occupancies <= _LARGEST_OCCUPANCY) & (numbers >= 1) & (numbers <= NUM_SPECIES)
    if not good.all():
        row = int(np.argmin(good))
        raise CrystalInputError(
            f"occupancy {occupancies[row]:g} of atomic number {int(numbers[row])} in row {row}; accepted are 0 "
            f"(empty) to 1, and atomic numbers 1 to {NUM_SPECIES}"
        )
    filled = occupancies > 0
    if not filled.any():
        raise CrystalInputError("0 atoms: all sites are empty (occupancy 0); at least one atom is needed")
    numbers, occupancies, frac = numbers[filled], occupancies[filled], frac_coords[filled]
    if shared := overfull_site(numbers, occupancies, frac):
        raise CrystalInputError(shared)
    site, widest = _split_sites(occupancies, frac, cell)
    first, site = np.unique(site, return_index=True, return_inverse=True)[1:]
    composition = np.zeros((len(first), NUM_SPECIES))
    np.add.at(composition, (site, numbers - 1), occupancies)
    totals = composition.sum(axis=1)
    difference = frac - frac[first][site]
    difference -= np.rint(difference)
    places = frac[first]
    if widest > 0:  # a mean of equal places would be rounded
        shift = np.zeros_like(places)
        np.add.at(shift, site, difference * occupancies[:, None])
        places = places + shift / totals[:, None]
    if widest > 0.1 * _SPLIT_SITE:
        warnings = (*warnings, f"split positions up to {widest:.2f} Å apart were merged to one site each")
    if totals.max() > 1 + _ROUNDED_OCCUPANCY:
        warnings = (*warnings, f"occupancies of a site sum to {totals.max():.4g}; they were scaled to 1")
    rounded = totals > 1 - _ROUNDED_OCCUPANCY
    composition[rounded] /= totals[rounded, None]
    main = composition.argmax(axis=1) + 1
    is_ordered = bool((composition.max(axis=1) == 1.0).all())
    return CrystalRecord(main, places, cell, warnings=warnings, occupancies=None if is_ordered else composition)


def _split_sites(occupancies: np.ndarray, frac: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, float]:
    """First row of the site of each row, and the largest distance of merged rows, Å."""
    site, totals, widest = np.arange(len(frac)), occupancies.copy(), 0.0
    if len(frac) < 2 or not np.isfinite(frac).all() or not abs(np.linalg.det(cell)) > 1e-9:
        return site, widest
    reach = reach_of(cell, _SPLIT_SITE)
    axis = int(np.argmin(reach))
    found = []
    for i, j in candidate_pairs(frac, float(min(reach[axis], 0.5)), axis):
        difference = frac[j] - frac[i]
        distances = np.linalg.norm((difference - np.rint(difference)) @ cell, axis=1)
        near = distances < _SPLIT_SITE
        found += list(zip(distances[near].tolist(), i[near].tolist(), j[near].tolist(), strict=True))
    for distance, i, j in sorted(found):  # the nearest first: what is one place is merged before what is near it
        first, other = sorted((int(site[i]), int(site[j])))
        if first != other and totals[first] + totals[other] <= _LARGEST_OCCUPANCY:
            site[site == other] = first
            totals[first] += totals[other]
            widest = max(widest, distance)
    return site, widest


def _species_of(value: Any, field: str) -> dict[str, float] | None:
    """Occupancies of a site given as a mapping or its JSON text (`{"Na": 0.7, "K": 0.3}`); None for a symbol."""
    if isinstance(value, str) and value.lstrip()[:1] == "{":
        try:
            value = json.loads(value)
        except ValueError as error:
            raise CrystalInputError(f"{field} is {shortened(value)}, which is not readable as JSON") from error
    if not isinstance(value, Mapping):
        return None
    value = {symbol: amount for symbol, amount in value.items() if amount is not None}  # Arrow fills keys up
    if not value:
        raise CrystalInputError(f"{field} is empty; occupancies of one or more elements are expected")
    numbers = number_array(list(value.values()), f"occupancies of {field}").reshape(-1)
    return dict(zip(map(str, value), numbers.tolist(), strict=True))


def record_of_sites(points: np.ndarray, cell: np.ndarray, sites: list[dict[str, float]]) -> CrystalRecord:
    """Record of sites that hold the given elements and occupancies."""
    rows = [
        (place, atomic_number_of(symbol), amount)
        for place, site in enumerate(sites)
        for symbol, amount in site.items()
    ]
    places, numbers, amounts = (np.array(column) for column in zip(*rows, strict=True))
    if len(rows) == len(points) and (abs(amounts - 1.0) <= 1e-3).all():
        return CrystalRecord(numbers, points, cell)
    return record_of_species(numbers, amounts, points[places], cell)


def site_species(site: object, place: int) -> dict[str, float]:
    """Elements and occupancies of one site of pymatgen's `as_dict`; malformed sites give a reason."""
    species = site.get("species") if isinstance(site, Mapping) else None
    if not isinstance(species, list) or not species or not all(isinstance(specie, Mapping) for specie in species):
        raise CrystalInputError(f"sites[{place}] is {shortened(site)}; a dict with a list of species is expected")
    found: dict[str, float] = {}
    for specie in species:
        amount = number_array([specie.get("occu", 1)], f"sites[{place}].species.occu").reshape(-1)
        name = CHEMICAL_SYMBOLS[atomic_number_of(specie.get("element"))]
        found[name] = found.get(name, 0.0) + float(amount[0])
    return found


def mixed_sites(listed: object, key: str) -> list[dict[str, float]]:
    """Occupancies of each site where a list of them stands in place of symbols; empty where it does not.

    Args:
        listed: one entry per site: a symbol, occupancies of symbols, or the JSON text of these; or the list as JSON
            text.
        key: name of the list, for messages.

    Raises:
        CrystalInputError: an entry that cannot be read.
    """
    is_text = isinstance(listed, str) and listed.lstrip()[:1] == "["
    if is_text:
        try:
            listed = json.loads(str(listed))
        except ValueError as error:
            raise CrystalInputError(f"{key} is {shortened(listed)}, which is not readable as JSON") from error
    if not isinstance(listed, list | tuple | np.ndarray) or not len(listed):
        return []
    sites = [_species_of(value, f"{key}[{place}]") for place, value in enumerate(listed)]
    if not is_text and all(site is None for site in sites):
        return []
    return [{str(symbol): 1.0} if site is None else site for site, symbol in zip(sites, listed, strict=True)]


def species_texts(occupancies: np.ndarray) -> list[str]:
    """JSON text of what each site holds, `{"Na": 0.7, "K": 0.3}`, as `mixed_sites` reads it.

    Args:
        occupancies (`np.ndarray` of shape `(N, 118)`): of element Z in column Z - 1.
    """
    return [
        json.dumps({CHEMICAL_SYMBOLS[place + 1]: float(site[place]) for place in np.flatnonzero(site)})
        for site in occupancies
    ]


def with_occupancies(record: CrystalRecord, value: object) -> CrystalRecord:
    """Record with occupancies `(N,)` of its atoms, or `(N, 118)` of all elements at its sites."""
    amounts = number_array(value, "occupancies")
    numbers = record.atomic_numbers
    if amounts.shape == (len(numbers), len(CHEMICAL_SYMBOLS) - 1):
        places, columns = np.nonzero(amounts)
        numbers, amounts = columns + 1, amounts[places, columns]
    elif amounts.shape == numbers.shape:
        places = np.arange(len(numbers))
    else:
        raise CrystalInputError(
            f"occupancies have shape {amounts.shape}; accepted are {numbers.shape} and {(len(numbers), 118)}"
        )
    return record_of_species(numbers, amounts, record.frac_coords[places], record.cell)


def first_mixed_site(record: CrystalRecord) -> str:
    """What the first partly occupied site holds, and what to do about it."""
    composition = record.occupancies
    assert composition is not None
    place = int(np.argmin(composition.max(axis=1) == 1.0))
    held = ", ".join(
        f"{CHEMICAL_SYMBOLS[z + 1]}: {composition[place, z]:g}" for z in np.flatnonzero(composition[place])
    )
    return (
        f"site {place} has partial occupancy ({held}); only ordered crystals are accepted here. "
        "hf_crystal.disorder.orderings(structure, n) gives ordered ones of about this composition"
    )


def ordered_records(record: CrystalRecord, n: int, *, max_atoms: int = 160, seed: int = 0) -> list[CrystalRecord]:
    """Ordered crystals of about the composition of a disordered one; see `hf_crystal.disorder.orderings`."""
    if n < 1 or max_atoms < 1:
        raise ValueError(f"n is {n} and max_atoms {max_atoms}; both must be positive")
    if record.occupancies is None:
        return [record]
    repeats = _supercell(record, max_atoms)
    grid = np.array(list(itertools.product(*map(range, repeats))))
    frac = ((record.frac_coords[None] + grid[:, None]) / repeats).reshape(-1, 3)
    cell = record.cell * np.array(repeats)[:, None]
    kinds, kind = np.unique(np.round(record.occupancies, 6), axis=0, return_inverse=True)
    kind = np.tile(kind.reshape(-1), len(grid))
    counts = _whole_numbers(kinds, np.bincount(kind, minlength=len(kinds)))
    if not counts.any():
        raise CrystalInputError(f"{record.formula}: all occupancies round to 0 in a cell of at most {max_atoms} atoms")
    near = _excluding(frac, cell, np.tile(record.atomic_numbers, len(grid)))
    rng = np.random.default_rng(seed)
    draws = np.stack([_draw(kind, counts, near, rng) for _ in range(_DRAWN * n)])
    found = draws[_distinct(draws, _permutations(kind, frac, cell))]
    taken = (found > 0).astype(float)
    crowding = np.round(np.einsum("di,ij,dj->d", taken, near, taken), 6)
    ranked = found[np.lexsort((_energies(found, frac, cell), crowding))[:n]]
    return [CrystalRecord(sites[sites > 0], frac[sites > 0], cell) for sites in ranked]


def _permutations(kind: np.ndarray, frac: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """What each symmetry operation of the disordered supercell makes of its sites, `(operations, S)`."""
    try:
        import spglib
        from scipy.spatial import cKDTree
    except ImportError as error:
        raise ImportError("ordered approximants need pymatgen: pip install pymatgen") from error
    crystal: Any = (cell, frac, kind + 1)
    found = spglib.get_symmetry(crystal, symprec=_SYMMETRY)
    if found is None:
        return np.arange(len(frac))[None]
    moved = np.einsum("oij,sj->osi", found["rotations"], frac) + found["translations"][:, None]
    return cKDTree(frac % 1 % 1, boxsize=1).query(moved % 1 % 1)[1]


def _distinct(draws: np.ndarray, permutations: np.ndarray) -> np.ndarray:
    """Places of the draws `(D, S)` that no symmetry operation makes equal to an earlier one."""
    # whole numbers that floats hold exactly; the least of their sums over all equal descriptions names an ordering
    weights = np.random.default_rng(0).integers(2**52 // (len(CHEMICAL_SYMBOLS) * draws.shape[1]), size=draws.shape[1])
    sums = draws.astype(float) @ weights.astype(float)[permutations].T
    return np.sort(np.unique(sums.min(axis=1), return_index=True)[1])


def _supercell(record: CrystalRecord, max_atoms: int) -> tuple[int, int, int]:
    """Repeats along the axes: the smallest that represents the occupancies, as cubic as can be."""
    composition = record.occupancies
    assert composition is not None
    kinds, sizes = np.unique(np.round(composition, 6), axis=0, return_counts=True)
    most = max(1, int(max_atoms // max(composition.sum(), 1.0)))
    best, lowest = 1, np.inf
    for multiple in range(1, most + 1):
        exact = kinds * sizes[:, None] * multiple
        error = float(np.abs(np.round(exact) - exact).max(axis=1).dot(1.0 / (sizes * multiple)))
        if error < lowest - 1e-9:
            best, lowest = multiple, error
        if lowest <= _ROUNDING:
            break
    lengths = np.linalg.norm(record.cell, axis=1)
    shapes = [(a, b, best // (a * b)) for a in range(1, best + 1) for b in range(1, best + 1) if best % (a * b) == 0]
    return min(shapes, key=lambda shape: float((lengths * shape).max() / (lengths * shape).min()))


def _whole_numbers(kinds: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Atoms of each element on the sites of each kind, `(K, E)`; what rounding leaves goes on to the next kind.

    So the total of each element, too, is as near to the occupancies as can be, and charges cancel where they did.
    """
    counts, left = np.zeros(kinds.shape, dtype=int), np.zeros(kinds.shape[1])
    for k, (kind, size) in enumerate(zip(kinds, sizes.tolist(), strict=True)):
        exact = kind * size
        wanted = np.where(kind > 0, np.clip(exact + left, 0, size), 0.0)
        is_full = kind.sum() > 1 - 1e-6
        total = size if is_full else min(int(np.round(wanted.sum())), size)
        counts[k] = np.floor(wanted + 1e-6)
        while counts[k].sum() > total:
            counts[k, np.argmax(np.where(counts[k] > 0, counts[k] - wanted, -np.inf))] -= 1
        while counts[k].sum() < total:  # largest remainders first
            counts[k, np.argmax(np.where(kind > 0, wanted - counts[k], -np.inf))] += 1
        left += exact - counts[k]
    return counts


def _excluding(frac: np.ndarray, cell: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """How much two sites are too near for two atoms, `(S, S)`: 1 or `_CROWDED_WEIGHT`, 0 for most."""
    difference = frac[:, None] - frac[None]
    difference -= np.rint(difference)
    distances = np.linalg.norm(difference @ cell, axis=2)
    ratios = distances / (COVALENT_RADII[numbers][:, None] + COVALENT_RADII[numbers])
    near = np.where(ratios < _CLOSE, 1.0, np.where(ratios < _CROWDED, _CROWDED_WEIGHT, 0.0))
    np.fill_diagonal(near, 0.0)
    return near


def _draw(kind: np.ndarray, counts: np.ndarray, near: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Atomic number at each site, 0 = empty, of one random ordering."""
    assignment = np.zeros(len(kind), dtype=np.int64)
    blocked = np.zeros(len(kind))
    for k in np.argsort([-(counts[k].sum() / max(np.sum(kind == k), 1)) for k in range(len(counts))], kind="stable"):
        numbers = np.repeat(np.arange(1, counts.shape[1] + 1), counts[k])
        for number in rng.permutation(numbers):
            free = np.flatnonzero((kind == k) & (assignment == 0))
            open_ = free[blocked[free] < blocked[free].min() + 1e-9]
            site = int(rng.choice(open_))
            assignment[site] = number
            blocked += near[site]
    return assignment


def _energies(found: np.ndarray, frac: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Electrostatic energy of each ordering, eV; zeros where common oxidation states do not cancel."""
    try:
        from pymatgen.analysis.ewald import EwaldSummation
        from pymatgen.core import Element, Lattice, Structure
    except ImportError as error:
        raise ImportError("ordered approximants need pymatgen: pip install pymatgen") from error
    elements, amounts = np.unique(found[0][found[0] > 0], return_counts=True)
    choices = [Element(CHEMICAL_SYMBOLS[number]).common_oxidation_states or (0,) for number in elements]
    states = min(itertools.product(*choices), key=lambda states: (abs(np.dot(states, amounts)), *np.abs(states)))
    if abs(np.dot(states, amounts)) > _LARGEST_CHARGE * amounts.sum() or not any(states):
        return np.zeros(len(found))
    charges = np.zeros(len(CHEMICAL_SYMBOLS))
    charges[elements] = states
    unit = Structure(Lattice(cell), ["H+"] * len(frac), frac)
    matrix = EwaldSummation(unit, compute_forces=False).total_energy_matrix
    charged = charges[found]
    return np.einsum("ai,ij,aj->a", charged, matrix, charged)
