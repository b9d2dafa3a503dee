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


__all__ = ["CanonicalCrystal", "CanonicalSettings", "CanonicalSite", "canonicalize", "canonicalize_record"]

_MIN_DISTANCE = 0.1  # Å
_MAX_ROUNDS = 20


def canonicalize(
    structure: Any, *, symprec: float | None = None, settings: CanonicalSettings | None = None
) -> CanonicalCrystal:
    """The canonical crystal of a structure; equal for all its descriptions.

    Args:
        structure: pymatgen `Structure` or a record (dict with `atomic_numbers`, `frac_coords`, `cell` or `lattice`).
        symprec: Largest displacement of an atom, Å, that symmetry may cost; replaces the one of `settings`.
        settings: Grid and tolerances.

    Returns:
        The canonical crystal.

    Raises:
        ValueError: for disordered, empty, flat, overlapping or too large structures, and for NaN.
    """
    settings = settings or CanonicalSettings()
    if symprec is not None:
        settings = CanonicalSettings(**{**settings.to_dict(), "symprec": symprec})
    return canonicalize_record(*_plain_arrays(structure), settings)


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


def _plain_arrays(structure: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrays of a structure or record, checked before any native code sees them."""
    if isinstance(structure, dict):
        cell = np.asarray(structure["cell"] if "cell" in structure else structure["lattice"], dtype=float)
        cell = cell.reshape(3, 3)
        frac = np.asarray(structure["frac_coords"], dtype=float).reshape(-1, 3)
        numbers = np.asarray(structure["atomic_numbers"], dtype=np.int64)
    else:
        if not structure.is_ordered:
            raise ValueError("the structure is disordered or partially occupied; accepted: ordered structures")
        cell = np.array(structure.lattice.matrix, dtype=float)
        frac = np.array(structure.frac_coords, dtype=float).reshape(-1, 3)
        numbers = np.array([site.specie.Z for site in structure], dtype=np.int64)
    return _check_arrays(cell, frac, numbers)


def _check_arrays(
    cell: np.ndarray, frac: np.ndarray, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not len(numbers) or len(numbers) != len(frac):
        raise ValueError(f"{len(numbers)} atomic numbers and {len(frac)} positions; accepted: equal counts, at least 1")
    if not (np.isfinite(cell).all() and np.isfinite(frac).all()):
        raise ValueError("cell or positions hold NaN or infinity; accepted: finite numbers")
    if numbers.min() < 1 or numbers.max() > 118:
        raise ValueError(f"atomic numbers {numbers.min()} to {numbers.max()}; accepted: 1 to 118")
    lengths = np.linalg.norm(cell, axis=1)
    if lengths.min() < 0.1 or lengths.max() > 1e4 or abs(np.linalg.det(cell)) < 1e-3 * lengths.prod() * 1e-3:
        raise ValueError(f"cell with lengths {lengths.round(3).tolist()} Å is flat or out of range")
    return cell, frac - np.floor(frac), numbers
