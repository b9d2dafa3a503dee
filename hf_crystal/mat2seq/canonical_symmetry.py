# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Symmetry judged by what it costs: the highest symmetry that moves no atom by more than the tolerance.

moyopy proposes groups at several tolerances; each proposal is made exact here (averaging the positions over the group
and the metric tensor over its rotations) and kept only if the largest displacement and the strain are small enough.
"""

import functools
import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .canonical_crystal import CanonicalSettings
from .space_groups import SpaceGroup, space_group

__all__ = ["SymmetricCrystal", "find_dataset", "find_symmetry", "load_moyopy"]

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
        loosest: Whether the loosest tolerance proposed it: nothing higher is to be found up to there.
    """

    group: SpaceGroup
    metric: np.ndarray
    frac: np.ndarray
    atomic_numbers: np.ndarray
    orbit_of_atom: np.ndarray
    displacement: float
    order: int
    loosest: bool = False


def find_symmetry(
    metric: np.ndarray, frac: np.ndarray, numbers: np.ndarray, settings: CanonicalSettings, *, exhaustive: bool = False
) -> SymmetricCrystal:
    """Highest symmetry within the tolerance; P1 always is.

    Args:
        metric: Metric tensor of a primitive cell, Å².
        frac: Coordinates in that cell, shape (N, 3).
        numbers: Atomic numbers, shape (N,).
        settings: Tolerances.
        exhaustive: Whether tighter tolerances are tried even where the loosest is accepted.
    """
    basis = np.linalg.cholesky(metric)
    cell = (basis.tolist(), frac.tolist(), numbers.tolist())
    seen: set[tuple] = set()
    accepted: list[SymmetricCrystal] = []

    def propose(factor: float) -> tuple | None:
        """What moyopy finds at this multiple of the tolerance, kept if it is new and can be made exact; its key."""
        dataset = find_dataset(*cell, factor * settings.symprec, load_moyopy().Setting.standard())
        if dataset is None:
            return None
        number, linear, origin = dataset.number, np.array(dataset.std_linear), np.array(dataset.std_origin_shift)
        key = (number, np.round(linear, 6).tobytes())
        if key not in seen:
            seen.add(key)
            found = _make_exact(number, linear, origin, metric, frac, numbers, settings)
            if found is not None:
                accepted.append(SymmetricCrystal(*found, loosest=factor == _TOLERANCE_FACTORS[0]))
        return key

    loosest = propose(_TOLERANCE_FACTORS[0])
    # moyopy finds no less symmetry at a looser tolerance, except that it may give up and answer P1.
    if accepted and accepted[0].group.number > 1 and not exhaustive:
        return accepted[0]
    # The same group at both ends of the range: nothing new in between.
    if propose(_TOLERANCE_FACTORS[-1]) != loosest or not accepted:
        for factor in _TOLERANCE_FACTORS[1:-1]:
            propose(factor)
    for factor in _LAST_FACTORS:
        if accepted:
            break
        propose(factor)
    if not accepted:
        return _without_symmetry(metric, frac, numbers)
    return max(accepted, key=lambda found: (found.order, -round(found.displacement, 7)))


def load_moyopy() -> Any:
    """Import moyopy with its warnings silenced.

    It warns of operations that do not fit the input cell where it found a smaller one; they are never used here.

    Raises:
        ImportError: if it is not installed.
    """
    try:  # the Hub's import scan demands packages imported outside of try
        import moyopy
    except ImportError as error:
        raise ImportError("space groups need moyopy: pip install moyopy") from error

    log = logging.getLogger("moyo")  # of which its modules' loggers are children
    if log.level == logging.NOTSET:  # else the user has chosen
        log.setLevel(logging.ERROR)
    return moyopy


def find_dataset(
    lattice: list[list[float]], frac_coords: list[list[float]], numbers: list[int], symprec: float, setting: Any = None
) -> Any | None:
    """The `MoyoDataset` of a crystal, or None where moyopy finds no symmetry or panics.

    Args:
        lattice: Lattice vectors in rows, Å.
        frac_coords: Fractional coordinates, one row per atom.
        numbers: Atomic numbers.
        symprec: Tolerance, Å.
        setting: `moyopy.Setting`; None for its default.

    Raises:
        ImportError: if moyopy is not installed.
    """
    moyopy = load_moyopy()
    try:
        return moyopy.MoyoDataset(moyopy.Cell(lattice, frac_coords, numbers), symprec=symprec, setting=setting)
    except ValueError:  # "no symmetry found at this tolerance", or a setting out of reach
        return None
    except BaseException as error:
        # a Rust panic arrives as a BaseException; anything else passes through
        if type(error).__name__ != "PanicException":
            raise
        return None


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
) -> tuple[SpaceGroup, np.ndarray, np.ndarray, np.ndarray, np.ndarray, float, int] | None:
    """The crystal averaged over the proposed group: all fields of `SymmetricCrystal` but the last.

    None if that costs too much or the group does not fit.
    """
    group = space_group(number)
    # Entries are multiples of 1/24 at worst (centering, extra translations).
    linear = np.rint(linear * 72) / 72
    primitive = group.primitive_basis
    change = primitive @ linear.T
    volume = float(np.linalg.det(change))
    if volume <= 0:
        return None
    conventional = linear.T @ metric @ linear
    averaged = (_metric_average(number) @ conventional.ravel()).reshape(3, 3)
    if not _strain_is_small(conventional, averaged, settings.max_strain):
        return None
    # Coordinates in the primitive basis of the standard setting: lattice translations are integers there.
    points = (frac - origin) @ np.linalg.inv(change)
    small_metric = primitive @ averaged @ primitive.T
    if abs(volume - 1) < 1e-6:  # no further translations: atoms are apart
        owner, merged_points, merged_numbers = np.arange(len(points)), points, numbers
    else:
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
    displacement = math.sqrt(((moved @ small_metric) * moved).sum(axis=1).max())
    if displacement > settings.symprec:
        return None
    order = len(group.rotations) * (len(numbers) // len(merged_numbers))
    return group, averaged, exact @ primitive, merged_numbers, orbits, displacement, order


def _strain_is_small(metric: np.ndarray, averaged: np.ndarray, limit: float) -> bool:
    """Whether no length changes by more than this share between two metric tensors."""
    # A norm first: no eigenvalue of metric⁻¹ averaged is further from 1, and no root of one either.
    if np.abs(np.linalg.solve(metric, averaged - metric)).sum(axis=1).max() <= limit:
        return True
    half = np.linalg.inv(np.linalg.cholesky(metric))
    stretch = np.linalg.eigvalsh(half @ averaged @ half.T)
    return bool(stretch[0] > 0 and np.abs(np.sqrt(stretch) - 1).max() <= limit)


@functools.cache
def _metric_average(number: int) -> np.ndarray:
    """The average of a metric tensor over the rotations of a group, as a matrix on its nine components."""
    rotations = space_group(number).rotations
    return np.einsum("nki,nlj->ijkl", rotations, rotations).reshape(9, 9) / len(rotations)


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
    rotations, translations = group.primitive_rotations, group.primitive_translations
    # (operations, atoms, 3) by one product
    images = (points @ rotations.reshape(-1, 3).T).reshape(count, -1, 3).transpose(1, 0, 2) + translations[:, None]
    partner = _partners(group.number, images, points, numbers)
    if partner is None:
        return None
    offset = images - points.take(partner, axis=0)
    offset -= np.rint(offset)
    targets = partner.ravel()
    mean = np.stack([np.bincount(targets, offset[..., i].ravel(), count) for i in range(3)], axis=1)
    exact = points + mean / len(images)
    # The average is invariant if the permutations form the group; a proposal near its threshold may not. What the
    # generators leave as it is, their products do too.
    generators, _ = _generation(group.number)
    again = exact @ rotations[generators].transpose(0, 2, 1) + translations[generators, None]
    again -= exact[partner[generators]]
    if np.abs(again - np.rint(again)).max(initial=0.0) > 1e-7:  # P1 has no generators
        return None
    return exact, _orbits(partner)


def _partners(number: int, images: np.ndarray, points: np.ndarray, numbers: np.ndarray) -> np.ndarray | None:
    """Which atom each operation sends each atom to: found for generators, composed for all others."""
    count = len(points)
    generators, levels = _generation(number)
    partner = np.empty((len(images), count), dtype=np.int64)
    partner[0] = np.arange(count)
    other = numbers[:, None] != numbers[None]
    delta = images[generators][:, :, None] - points
    delta -= np.rint(delta)
    distance = (delta * delta).sum(axis=-1)
    distance[:, other] = np.inf
    partner[generators] = distance.argmin(axis=-1)
    if (np.sort(partner[generators], axis=1) != partner[0]).any():  # two atoms sent to one
        return None
    for targets, lefts, rights in levels:
        partner[targets] = partner[lefts[:, None], partner[rights]]
    return partner


@functools.cache
def _generation(number: int) -> tuple[np.ndarray, tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]]:
    """Generators of the point group by their index, and how all other rotations are products of earlier ones.

    Returns:
        Indices of the generators; levels of (products, left factors, right factors).
    """
    rotations = space_group(number).rotations
    index = {rotation.tobytes(): i for i, rotation in enumerate(rotations)}
    generators: list[int] = []
    known = {0}
    while len(known) < len(rotations):
        sizes = {
            i: len(_products(rotations, index, [*generators, i])) for i in range(len(rotations)) if i not in known
        }
        generators.append(max(sizes, key=sizes.__getitem__))
        known = _products(rotations, index, generators)
    known = {0, *generators}
    border, levels = list(generators), []
    while border:
        level: dict[int, tuple[int, int]] = {}
        for right in border:
            for left in sorted(known):
                product = index[(rotations[left] @ rotations[right]).tobytes()]
                if product not in known:
                    level.setdefault(product, (left, right))
        known |= set(level)
        border = list(level)
        if level:
            lefts, rights = zip(*level.values(), strict=True)
            levels.append((np.array(border), np.array(lefts), np.array(rights)))
    return np.array(generators, dtype=np.int64), tuple(levels)


def _products(rotations: np.ndarray, index: dict[bytes, int], generators: list[int]) -> set[int]:
    """Indices of all products of generators."""
    known, border = {0}, [0]
    while border:
        right = border.pop()
        for left in generators:
            product = index[(rotations[left] @ rotations[right]).tobytes()]
            if product not in known:
                known.add(product)
                border.append(product)
    return known


def _orbits(partner: np.ndarray) -> np.ndarray:
    """Number the orbits of the atoms, given where each operation sends each atom."""
    first = partner.min(axis=0)
    return (np.cumsum(first == partner[0]) - 1)[first]
