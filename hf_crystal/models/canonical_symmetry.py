# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Symmetry judged by what it costs: the highest symmetry that moves no atom by more than the tolerance.

moyopy proposes groups at several tolerances; each proposal is made exact here (averaging the positions over the group
and the metric tensor over its rotations) and kept only if the largest displacement and the strain are small enough.
"""

import logging
from dataclasses import dataclass

import numpy as np

from .canonical_grid import CanonicalSettings
from .symmetry_crystal import SpaceGroup, space_group

__all__ = ["SymmetricCrystal", "find_symmetry"]

_TOLERANCE_FACTORS = (4.0, 2.0, 1.2, 0.8, 0.5)
_LAST_FACTORS = (0.3, 0.2, 0.1, 0.05, 0.02, 0.01)


@dataclass(frozen=True, eq=False)
class SymmetricCrystal:
    """A crystal made exactly symmetric, in a standard setting of its space group.

    Attributes:
        group: The space group.
        metric: Metric tensor of the conventional cell, Å².
        frac: Coordinates of the atoms of one primitive cell in the conventional basis, shape (N, 3).
        atomic_numbers: Shape (N,).
        orbit_of_atom: Number of the orbit of each atom, shape (N,).
        displacement: Largest displacement that symmetry cost, Å.
        order: Order of the point group times primitive translations found.
    """

    group: SpaceGroup
    metric: np.ndarray
    frac: np.ndarray
    atomic_numbers: np.ndarray
    orbit_of_atom: np.ndarray
    displacement: float
    order: int


def find_symmetry(
    metric: np.ndarray, frac: np.ndarray, numbers: np.ndarray, settings: CanonicalSettings
) -> SymmetricCrystal:
    """Highest symmetry within the tolerance; P1 always is.

    Args:
        metric: Metric tensor of a primitive cell, Å².
        frac: Coordinates in that cell, shape (N, 3).
        numbers: Atomic numbers, shape (N,).
        settings: Tolerances.
    """
    basis = np.linalg.cholesky(metric)
    cell = (basis.tolist(), frac.tolist(), numbers.tolist())
    seen: dict[tuple, SymmetricCrystal | None] = {}
    accepted: list[SymmetricCrystal] = []

    def propose(factor: float) -> tuple | None:
        proposal = _ask_moyopy(cell, factor * settings.symprec)
        if proposal is None:
            return None
        number, linear, origin = proposal
        key = (number, np.round(linear, 6).tobytes())
        if key not in seen:
            seen[key] = found = _make_exact(number, linear, origin, metric, frac, numbers, settings)
            if found is not None:
                accepted.append(found)
        return key

    # The same group at both ends of the range: nothing new in between.
    ends = propose(_TOLERANCE_FACTORS[0]), propose(_TOLERANCE_FACTORS[-1])
    if ends[0] is None or ends[0] != ends[1] or seen[ends[0]] is None:
        for factor in _TOLERANCE_FACTORS[1:-1]:
            propose(factor)
    if not accepted:
        for factor in _LAST_FACTORS:
            propose(factor)
            if accepted:
                break
    if not accepted:
        return _without_symmetry(metric, frac, numbers)
    return max(accepted, key=lambda found: (found.order, -round(found.displacement, 7)))


def _ask_moyopy(cell: tuple[list, list, list], symprec: float) -> tuple[int, np.ndarray, np.ndarray] | None:
    """Space-group number and the transformation to a standard setting, or None where moyopy finds nothing."""
    try:  # the Hub's import scan demands packages imported outside of try
        import moyopy
    except ImportError as error:
        raise ImportError("canonicalize needs moyopy: pip install moyopy") from error

    # moyopy warns that operations do not fit the input cell where it found a smaller one; they are not used here.
    log = logging.getLogger("moyo")
    before, log.disabled = log.disabled, True
    try:
        dataset = moyopy.MoyoDataset(moyopy.Cell(*cell), symprec=symprec, setting=moyopy.Setting.standard())
    except ValueError:  # "no symmetry found at this tolerance": another tolerance is tried
        return None
    except BaseException as error:
        # A Rust panic arrives as a BaseException; anything that is not one goes on its way.
        if type(error).__name__ != "PanicException":
            raise
        return None
    finally:
        log.disabled = before
    return dataset.number, np.array(dataset.std_linear), np.array(dataset.std_origin_shift)


def _without_symmetry(metric: np.ndarray, frac: np.ndarray, numbers: np.ndarray) -> SymmetricCrystal:
    return SymmetricCrystal(space_group(1), metric, frac, numbers, np.arange(len(numbers)), 0.0, 1)


def _make_exact(
    number: int,
    linear: np.ndarray,
    origin: np.ndarray,
    metric: np.ndarray,
    frac: np.ndarray,
    numbers: np.ndarray,
    settings: CanonicalSettings,
) -> SymmetricCrystal | None:
    """Average the crystal over the proposed group; None if that costs too much or the group does not fit."""
    group = space_group(number)
    # Entries are multiples of 1/24 at worst (centring, extra translations).
    linear = np.rint(linear * 72) / 72
    if np.linalg.det(linear) <= 0:
        return None
    conventional = linear.T @ metric @ linear
    averaged = np.mean(group.rotations.transpose(0, 2, 1) @ conventional @ group.rotations, axis=0)
    half = np.linalg.inv(np.linalg.cholesky(conventional))
    stretch = np.linalg.eigvalsh(half @ averaged @ half.T)
    if not (stretch.min() > 0 and np.abs(np.sqrt(stretch) - 1).max() <= settings.max_strain):
        return None
    primitive = group.primitive_basis
    # Coordinates in the primitive basis of the standard setting: lattice translations are integers there.
    points = (frac - origin) @ np.linalg.inv(primitive @ linear.T)
    small_metric = primitive @ averaged @ primitive.T
    merged = _merge_translations(points, numbers, small_metric, 6 * settings.symprec)
    if merged is None:
        return None
    owner, merged_points, merged_numbers = merged
    fitted = _average_positions(group, merged_points, merged_numbers)
    if fitted is None:
        return None
    exact, orbits = fitted
    moved = exact[owner] - points
    moved -= np.rint(moved)
    moved -= moved.mean(axis=0)  # a common shift costs nothing
    displacement = float(np.sqrt(np.einsum("ni,ij,nj->n", moved, small_metric, moved).max()))
    if displacement > settings.symprec:
        return None
    order = len(group.rotations) * (len(numbers) // len(merged_numbers))
    return SymmetricCrystal(group, averaged, exact @ primitive, merged_numbers, orbits, displacement, order)


def _merge_translations(
    points: np.ndarray, numbers: np.ndarray, metric: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Average atoms that the primitive lattice of the proposal makes equal; owner of each atom, points, numbers."""
    if len(points) == 1:
        return np.zeros(1, dtype=int), points, numbers
    delta = points[:, None] - points[None]
    delta -= np.rint(delta)
    near = np.einsum("abi,ij,abj->ab", delta, metric, delta) < tolerance**2
    near &= numbers[:, None] == numbers[None]
    if near.sum() == len(points):
        return np.arange(len(points)), points, numbers
    first = near.argmax(axis=1)
    kept, owner, counts = np.unique(first, return_inverse=True, return_counts=True)
    if len(set(counts.tolist())) != 1:
        return None
    shifts = np.zeros((len(kept), 3))
    np.add.at(shifts, owner, delta[np.arange(len(points)), first])
    return owner, points[kept] + shifts / counts[:, None], numbers[kept]


def _average_positions(
    group: SpaceGroup, points: np.ndarray, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Positions averaged over the group, and the orbit of each atom; None if an image has no partner."""
    count = len(points)
    images = points @ group.primitive_rotations.transpose(0, 2, 1) + group.primitive_translations[:, None]
    partner = np.empty((len(images), count), dtype=np.int64)
    offset = np.empty((len(images), count, 3))
    other = numbers[:, None] != numbers[None]
    step = max(1, 2_000_000 // (count * count))
    for begin in range(0, len(images), step):
        delta = images[begin : begin + step, :, None] - points[None, None]
        delta -= np.rint(delta)
        distance = np.square(delta).sum(axis=-1)
        distance[:, other] = np.inf
        nearest = distance.argmin(axis=-1)
        partner[begin : begin + step] = nearest
        offset[begin : begin + step] = np.take_along_axis(delta, nearest[..., None, None], axis=2)[..., 0, :]
    if (np.sort(partner, axis=1) != np.arange(count)).any():
        return None
    mean = np.zeros((count, 3))
    np.add.at(mean, partner.ravel(), offset.reshape(-1, 3))
    exact = points + mean / len(images)
    # The average is invariant if the permutations form the group; a proposal near its threshold may not.
    again = exact @ group.primitive_rotations.transpose(0, 2, 1) + group.primitive_translations[:, None]
    again -= exact[partner]
    if np.abs(again - np.rint(again)).max() > 1e-7:
        return None
    return exact, _orbits(partner)


def _orbits(partner: np.ndarray) -> np.ndarray:
    """Number the orbits of the atoms, given where each operation sends each atom."""
    _, labels = np.unique(partner.min(axis=0), return_inverse=True)
    return labels
