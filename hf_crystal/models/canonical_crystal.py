# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""`canonicalize`: one crystal, one description.

Rotation, translation, choice of cell, order of the atoms and handedness of the axes do not change the result; mirror
images stay different. Encoding what was decoded gives the same result.
"""

from typing import Any

import numpy as np

from .canonical_grid import CanonicalCrystal, CanonicalSettings, CanonicalSite, expand_crystal
from .canonical_sites import choose_setting
from .canonical_start import canonical_start, primitive_cell
from .canonical_symmetry import find_symmetry
from .structures_crystal import as_structure

__all__ = ["CanonicalCrystal", "CanonicalSettings", "CanonicalSite", "canonicalize", "canonicalize_record"]

_MAX_ROUNDS = 20


def canonicalize(
    structure: Any, *, symprec: float | None = None, settings: CanonicalSettings | None = None
) -> CanonicalCrystal:
    """The canonical crystal of a structure; equal for all its descriptions.

    Args:
        structure: pymatgen `Structure`, ASE `Atoms`, path or text of a CIF or POSCAR, or record (see `as_structure`).
        symprec: Largest displacement of an atom, Å, that symmetry may cost; replaces the one of `settings`.
        settings: Grid and tolerances.

    Returns:
        The canonical crystal.

    Raises:
        CrystalInputError: (a `ValueError`) for disordered, empty, flat, overlapping structures, for NaN.
        ValueError: if the primitive cell has more atoms than `settings.max_atoms`.
    """
    settings = settings or CanonicalSettings()
    if symprec is not None:
        settings = CanonicalSettings(**{**settings.to_dict(), "symprec": symprec})
    record = as_structure(structure)
    return canonicalize_record(record.cell, record.frac_coords, record.atomic_numbers, settings)


def canonicalize_record(
    cell: np.ndarray, frac: np.ndarray, numbers: np.ndarray, settings: CanonicalSettings
) -> CanonicalCrystal:
    """`canonicalize` for checked arrays: cell (3, 3) Å, coordinates (N, 3), atomic numbers (N,)."""
    history = [_one_round(cell, frac, numbers, settings)]
    while len(history) <= _MAX_ROUNDS:
        record = expand_crystal(history[-1])
        following = _one_round(record["cell"], record["frac_coords"], record["atomic_numbers"], settings)
        if following in history:
            # A fixed point, or a cycle of which every member leads here: its smallest member stands for it.
            return min(history[history.index(following) :], key=lambda crystal: crystal.sort_key)
        history.append(following)
    return history[-1]


def _one_round(
    cell: np.ndarray, frac: np.ndarray, numbers: np.ndarray, settings: CanonicalSettings
) -> CanonicalCrystal:
    if np.linalg.det(cell) < 0:  # left-handed axes: two axes change places, the crystal stays
        cell, frac = cell[[1, 0, 2]], frac[:, [1, 0, 2]]
    cell, frac, numbers = primitive_cell(cell, frac, numbers)
    if len(numbers) > settings.max_atoms:
        raise ValueError(f"the primitive cell has {len(numbers)} atoms; accepted: up to {settings.max_atoms}")
    metric, frac, numbers = canonical_start(cell, frac, numbers, settings)
    return choose_setting(find_symmetry(metric, frac, numbers, settings), settings)
