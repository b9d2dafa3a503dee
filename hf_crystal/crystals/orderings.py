# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Ordered crystals of about the composition of a disordered one; needs pymatgen."""

import itertools
from typing import Any

import numpy as np

from .reading import CrystalLike, as_record, record_to_structure
from .record import CHEMICAL_SYMBOLS, COVALENT_RADII, CrystalInputError, CrystalRecord

__all__ = ["orderings"]

_DRAWN = 24  # orderings drawn for each that is returned
_ROUNDING = 0.01  # of an occupancy
_CLOSE = 0.5  # of the sum of covalent radii: positions that exclude each other
_SYMMETRY = 0.01  # Å
_LARGEST_CHARGE = 0.3  # e per atom that common oxidation states may leave; more of it means a metal


def orderings(structure: CrystalLike, n: int = 8, *, max_atoms: int = 160, seed: int = 0) -> list[Any]:
    """Ordered approximants of a disordered crystal.

    Atoms are drawn at random on the partly occupied sites of the smallest supercell whose whole numbers of atoms are
    the occupancies to 0.01, or of the nearest one up to `max_atoms`; sites that exclude each other are not both
    filled where that is possible. Of many draws those of lowest electrostatic energy are kept (pymatgen's
    `EwaldSummation`, common oxidation states), or the first ones where the charges do not cancel, as in alloys.
    Orderings that symmetry makes equal count once. They are no sample of a thermal ensemble: the spread over them says
    how much the order matters.

    Args:
        structure: any accepted form of a crystal; an ordered one is its own only ordering.
        n: orderings to return; fewer where there are no more.
        max_atoms: largest supercell tried; a cell that is larger already is taken as it is.
        seed: of the draws.

    Returns:
        pymatgen `Structure` objects, lowest energy first.

    Raises:
        CrystalInputError: a crystal that cannot be read, or whose occupancies round to no atom at all.
        ImportError: pymatgen is not installed.
    """
    if n < 1 or max_atoms < 1:
        raise ValueError(f"n is {n} and max_atoms {max_atoms}; both must be positive")
    record = as_record(structure, disorder="mix")
    if record.occupancies is None:
        return [record_to_structure(record)]
    repeats = _supercell(record, max_atoms)
    grid = np.array(list(itertools.product(*map(range, repeats))))
    frac = ((record.frac_coords[None] + grid[:, None]) / repeats).reshape(-1, 3)
    cell = record.cell * np.array(repeats)[:, None]
    kinds, kind = np.unique(np.round(record.occupancies, 6), axis=0, return_inverse=True)
    kind = np.tile(kind.reshape(-1), len(grid))
    counts = np.array(
        [_whole_numbers(kinds[k] * np.sum(kind == k), int(np.sum(kind == k))) for k in range(len(kinds))]
    )
    if not counts.any():
        raise CrystalInputError(f"{record.formula}: all occupancies round to 0 in a cell of at most {max_atoms} atoms")
    near = _excluding(frac, cell, np.tile(record.atomic_numbers, len(grid)))
    rng = np.random.default_rng(seed)
    draws = np.stack([_draw(kind, counts, near, rng) for _ in range(_DRAWN * n)])
    found = draws[_distinct(draws, _permutations(kind, frac, cell))]
    energies = _energies(found, frac, cell)
    ranked = [found[place] for place in np.argsort(energies, kind="stable")[:n]]
    return [_structure(assignment, frac, cell) for assignment in ranked]


def _structure(assignment: np.ndarray, frac: np.ndarray, cell: np.ndarray) -> Any:
    """The pymatgen `Structure` of the filled sites."""
    filled = assignment > 0
    return record_to_structure(CrystalRecord(assignment[filled], frac[filled], cell))


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


def _whole_numbers(amounts: np.ndarray, sites: int) -> np.ndarray:
    """Whole numbers nearest to the amounts, their sum as near as can be: largest remainders first."""
    counts = np.floor(amounts + 1e-6).astype(int)
    left = min(int(np.round(amounts.sum())), sites) - int(counts.sum())
    order = np.argsort(counts - amounts, kind="stable")
    counts[order[: max(left, 0)]] += 1
    return counts


def _excluding(frac: np.ndarray, cell: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Which two sites are too near for two atoms, `(S, S)`."""
    difference = frac[:, None] - frac[None]
    difference -= np.rint(difference)
    distances = np.linalg.norm(difference @ cell, axis=2)
    near = distances < _CLOSE * (COVALENT_RADII[numbers][:, None] + COVALENT_RADII[numbers])
    np.fill_diagonal(near, False)
    return near


def _draw(kind: np.ndarray, counts: np.ndarray, near: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Atomic number at each site, 0 = empty, of one random ordering."""
    assignment = np.zeros(len(kind), dtype=np.int64)
    blocked = np.zeros(len(kind), dtype=int)
    for k in np.argsort([-(counts[k].sum() / max(np.sum(kind == k), 1)) for k in range(len(counts))], kind="stable"):
        numbers = np.repeat(np.arange(1, counts.shape[1] + 1), counts[k])
        for number in rng.permutation(numbers):
            free = np.flatnonzero((kind == k) & (assignment == 0))
            open_ = free[blocked[free] == blocked[free].min()]
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
