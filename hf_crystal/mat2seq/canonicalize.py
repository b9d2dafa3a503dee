# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""`canonicalize`: one crystal, one description.

Rotation, translation, choice of cell, order of the atoms and handedness of the axes do not change the result; mirror
images stay different. Encoding what was decoded gives the same result.
"""

import numpy as np

from ..crystals.reading import CrystalLike, as_record
from .canonical_crystal import (
    CanonicalCrystal,
    CanonicalSettings,
    CanonicalSite,
    rounding_displacements,
)
from .canonical_setting import choose_again, choose_setting
from .canonical_setting_reference import choose_setting_plainly
from .canonical_start import canonical_start, primitive_cell
from .canonical_symmetry import SymmetricCrystal, find_symmetry
from .sequence_text import write_tokens  # noqa: F401 - gives CanonicalCrystal its `to_text`

__all__ = [
    "CanonicalCrystal",
    "CanonicalSettings",
    "CanonicalSite",
    "canonicalize",
    "canonicalize_plainly",
    "canonicalize_record",
]

_MAX_ROUNDS = 20
_LARGEST_MOVE = 0.02  # Å; atoms are at least 0.1 Å apart, so none coincide after less than this


def canonicalize(
    structure: CrystalLike, *, symprec: float | None = None, settings: CanonicalSettings | None = None
) -> CanonicalCrystal:
    """The canonical crystal of a structure; equal for all its descriptions.

    Args:
        structure: pymatgen `Structure`, ASE `Atoms`, path or text of a CIF or POSCAR, or record (see `as_record`).
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
    record = as_record(structure)
    return canonicalize_record(record.cell, record.frac_coords, record.atomic_numbers, settings)


def canonicalize_record(
    cell: np.ndarray, frac: np.ndarray, numbers: np.ndarray, settings: CanonicalSettings
) -> CanonicalCrystal:
    """`canonicalize` for checked arrays: cell (3, 3) Å, coordinates (N, 3), atomic numbers (N,)."""
    found = find_symmetry(*_start(cell, frac, numbers, settings), settings)
    crystal = choose_setting(found, settings)
    if _keeps_symmetry(found, crystal) and choose_again(crystal) == crystal:
        return crystal
    return _settle(crystal, settings)


def canonicalize_plainly(
    cell: np.ndarray, frac: np.ndarray, numbers: np.ndarray, settings: CanonicalSettings
) -> CanonicalCrystal:
    """`canonicalize_record` without tables and short cuts: the reference that it is tested against."""
    return _settle(_one_round(cell, frac, numbers, settings), settings)


def _start(
    cell: np.ndarray, frac: np.ndarray, numbers: np.ndarray, settings: CanonicalSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if np.linalg.det(cell) < 0:  # left-handed axes: two axes change places, the crystal stays
        cell, frac = cell[[1, 0, 2]], frac[:, [1, 0, 2]]
    cell, frac, numbers = primitive_cell(cell, frac, numbers)
    if len(numbers) > settings.max_atoms:
        raise ValueError(f"the primitive cell has {len(numbers)} atoms; accepted: up to {settings.max_atoms}")
    return canonical_start(cell, frac, numbers, settings)


def _one_round(
    cell: np.ndarray, frac: np.ndarray, numbers: np.ndarray, settings: CanonicalSettings
) -> CanonicalCrystal:
    start = _start(cell, frac, numbers, settings)
    return choose_setting_plainly(find_symmetry(*start, settings, exhaustive=True), settings)


def _settle(crystal: CanonicalCrystal, settings: CanonicalSettings) -> CanonicalCrystal:
    """Decode and encode until nothing changes."""
    history = [crystal]
    while len(history) <= _MAX_ROUNDS:
        record = history[-1].to_record()
        following = _one_round(record.cell, record.frac_coords, record.atomic_numbers, settings)
        if following in history:
            # A fixed point, or a cycle of which every member leads here: its smallest member stands for it.
            return min(history[history.index(following) :], key=lambda crystal: crystal.sort_key)
        history.append(following)
    return history[-1]


def _keeps_symmetry(found: SymmetricCrystal, crystal: CanonicalCrystal) -> bool:
    """Whether the decoded crystal certainly has the symmetry that was found, and no higher one.

    A higher symmetry that the decoded crystal has within `symprec` is one that the original has within `symprec` and
    what making it symmetric and rounding moved. Images then lie within twice that, so the loosest tolerance
    (4 `symprec`) would have found it if the sum is at most 2 `symprec`. P1 is no such answer: moyopy also gives it
    where it gave up.
    """
    if not found.loosest or found.group.number == 1:
        return False
    moved = rounding_displacements(crystal.space_group, crystal.lattice, crystal.settings)
    rounding = max(moved[site.position] for site in crystal.sites)
    return found.displacement + rounding <= min(crystal.settings.symprec, _LARGEST_MOVE)
