# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Choice among all equivalent standard settings: smallest cell first, then the smallest list of Wyckoff orbits."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .canonical_crystal import (
    CanonicalCrystal,
    CanonicalSettings,
    CanonicalSite,
    coordinate_strides,
    free_cell_parameters,
    quantize,
)
from .canonical_lattice import REDUCTION_SLACK, lengths_and_angles, on_grid, reduced_bases, smallest_row
from .canonical_symmetry import SymmetricCrystal
from .space_groups import TRANSLATION_GRID, SpaceGroup, WyckoffPosition, space_group

__all__ = [
    "CODE_BITS",
    "ON_POSITION",
    "choose_setting_plainly",
    "decode_key",
    "reduce_monoclinic",
    "smallest_cells",
]

ON_POSITION = 1e-5  # fraction of an edge; positions are exact to 1e-12, other sites are at least 1e-3 away
CODE_BITS = 40  # three parameters of at most 10,000 steps
_PARAMETER_ORDER = {"a": 0, "b": 1, "c": 2, "alpha": 3, "beta": 4, "gamma": 5}


@dataclass(frozen=True, eq=False)
class _Matcher:
    """Wyckoff positions of one multiplicity, ready to test points."""

    positions: tuple[WyckoffPosition, ...]
    pivots: np.ndarray  # (positions, 3, 3): parameters = pivots @ (point − offset), unused rows 0
    matrices: np.ndarray  # (positions, 3, 3): point = matrices @ parameters + offset
    offsets: np.ndarray  # (positions, 3)
    used: np.ndarray  # (positions, 3): which parameters exist


@functools.cache
def _matchers(number: int) -> dict[int, _Matcher]:
    by_multiplicity: dict[int, list[WyckoffPosition]] = {}
    for position in space_group(number).positions:
        by_multiplicity.setdefault(position.multiplicity, []).append(position)
    return {multiplicity: _matcher(tuple(found)) for multiplicity, found in by_multiplicity.items()}


def _matcher(positions: tuple[WyckoffPosition, ...]) -> _Matcher:
    pivots = np.zeros((len(positions), 3, 3))
    matrices = np.zeros((len(positions), 3, 3))
    used = np.zeros((len(positions), 3), dtype=bool)
    for i, position in enumerate(positions):
        matrices[i, :, : position.num_parameters] = position.matrix
        used[i, : position.num_parameters] = True
        for parameter, (row, sign) in enumerate(position.pivots):
            pivots[i, parameter, row] = sign
    offsets = np.array([position.offset for position in positions]) / TRANSLATION_GRID
    return _Matcher(positions, pivots, matrices, offsets, used)


def choose_setting_plainly(crystal: SymmetricCrystal, settings: CanonicalSettings) -> CanonicalCrystal:
    """The canonical crystal of an exactly symmetric one.

    Raises:
        ValueError: if an atom fits no Wyckoff position of its group (atoms closer than the grid can tell apart).
    """
    metric, frac = crystal.metric, crystal.frac
    if 3 <= crystal.group.number <= 15:
        metric, frac = reduce_monoclinic(crystal.group, metric, frac, settings)
    lattice, changes = _changes(crystal.group, metric, settings)
    linear, shifts = _candidates(crystal, frac, changes)
    strides = coordinate_strides(crystal.group.number, lattice, settings)
    keys = _site_keys(crystal, frac, linear, shifts, settings.fraction_steps, strides)
    keys = np.sort(keys, axis=1)
    alive = np.arange(len(keys))
    for column in range(keys.shape[1]):
        if len(alive) == 1:
            break
        values = keys[alive, column]
        alive = alive[values == values.min()]
    sites = tuple(decode_key(crystal.group, int(key), settings.fraction_steps) for key in keys[alive[0]])
    return CanonicalCrystal(crystal.group.number, lattice, sites, settings)


def _lattice_keys(number: int, metrics: np.ndarray, settings: CanonicalSettings) -> tuple[np.ndarray, np.ndarray]:
    """What is compared (shape (n, k), smaller is better) and the free parameters in steps, of metrics (n, 3, 3)."""
    lengths, angles = lengths_and_angles(metrics)
    values = np.concatenate([quantize(lengths, settings.length_step), quantize(angles, settings.angle_step)], axis=1)
    columns = [_PARAMETER_ORDER[name] for name in free_cell_parameters(number)]
    parameters = values[:, columns]
    if 3 <= number <= 15:
        beta = values[:, 4]
        right = int(quantize(90.0, settings.angle_step))
        total = quantize(lengths[:, 0] + lengths[:, 2], settings.length_step)
        # smallest a + c; β obtuse, as crystallographers write it; then close to 90°
        keys = np.stack([total, beta < right, np.abs(beta - right), values[:, 0], values[:, 2]], axis=1)
        return keys.astype(np.int64), parameters
    return parameters, parameters


@functools.cache
def _basis_changes(number: int) -> np.ndarray:
    return np.array([family.basis_change for family in space_group(number).settings])


def reduce_monoclinic(
    group: SpaceGroup, metric: np.ndarray, frac: np.ndarray, settings: CanonicalSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Apply the best basis change until none is better: the table holds entries up to 2 only."""
    changes = _basis_changes(group.number)
    for _ in range(100):
        metrics = changes.transpose(0, 2, 1) @ metric @ changes
        keys, _parameters = _lattice_keys(group.number, metrics, settings)
        best = np.lexsort(keys.T[::-1])[0]
        if tuple(keys[best]) >= tuple(keys[0]):  # the identity is the first setting
            break
        family = group.settings[best]
        metric = metrics[best]
        frac = (frac - family.origins[0] / TRANSLATION_GRID) @ family.inverse.T
    return metric, frac


def smallest_cells(
    group: SpaceGroup, metric: np.ndarray, settings: CanonicalSettings
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Free cell parameters of the smallest cell, and which families of settings have it; not for triclinic groups."""
    changes = _basis_changes(group.number)
    metrics = changes.transpose(0, 2, 1) @ metric @ changes
    keys, parameters = _lattice_keys(group.number, metrics, settings)
    candidates = np.arange(len(keys))
    if group.number <= 15:
        # A cell on the grid was rounded before; see `reduced_bases`.
        near = np.flatnonzero(keys[:, 0] <= keys[:, 0].min() + REDUCTION_SLACK)
        near = near[on_grid(metrics[near], settings.length_step, settings.angle_step)]
        if len(near):
            candidates, keys = near, keys[near]
    tied = candidates[smallest_row(keys)[1]]
    return tuple(parameters[tied[0]].tolist()), tuple(tied.tolist())


def _changes(
    group: SpaceGroup, metric: np.ndarray, settings: CanonicalSettings
) -> tuple[tuple[int, ...], list[tuple[np.ndarray, np.ndarray]]]:
    """Free cell parameters of the smallest cell, and (basis change, origins) of all settings that have it."""
    if group.number <= 2:
        cell = np.linalg.cholesky(metric)
        bases, parameters = reduced_bases(cell, settings.length_step, settings.angle_step, prefer_grid=True)
        origins = group.settings[0].origins
        return tuple(parameters.tolist()), [(basis.T.astype(float), origins) for basis in bases]
    lattice, tied = smallest_cells(group, metric, settings)
    return lattice, [(group.settings[i].basis_change, group.settings[i].origins) for i in tied]


def _candidates(
    crystal: SymmetricCrystal, frac: np.ndarray, changes: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Maps x → linear @ x + shift to every setting with every choice of origin."""
    polar = list(crystal.group.polar_axes)
    if polar:
        elements, counts = np.unique(crystal.atomic_numbers, return_counts=True)
        points = frac[crystal.atomic_numbers == elements[counts.argmin()]]
        # With all images by centering: half an edge along a polar axis is half an edge across: no free choice.
        points = (points[:, None] + crystal.group.centering / TRANSLATION_GRID).reshape(-1, 3)
        points -= np.floor(points + 1e-9)
        points = points[np.unique(np.round(points[:, polar], 9), axis=0, return_index=True)[1]]
    linear, shifts = [], []
    for change, origins in changes:
        inverse = np.linalg.inv(change)
        fixed = -(origins / TRANSLATION_GRID) @ inverse.T
        if polar:
            moved = points @ inverse.T
            free = np.zeros_like(moved)
            free[:, polar] = -moved[:, polar]
            fixed = (fixed[:, None] + free[None]).reshape(-1, 3)
        linear.append(np.broadcast_to(inverse, (len(fixed), 3, 3)))
        shifts.append(fixed)
    return np.concatenate(linear), np.concatenate(shifts)


def _site_keys(
    crystal: SymmetricCrystal,
    frac: np.ndarray,
    linear: np.ndarray,
    shifts: np.ndarray,
    steps: int,
    strides: np.ndarray,
) -> np.ndarray:
    """One integer per candidate setting and orbit: Wyckoff position, element, smallest rounded parameters."""
    group = crystal.group
    _, first, sizes = np.unique(crystal.orbit_of_atom, return_index=True, return_counts=True)
    numbers = crystal.atomic_numbers[first]
    multiplicities = sizes * len(group.centering)
    rotations, translations = group.all_rotations.astype(float), group.all_translations / TRANSLATION_GRID
    images = np.einsum("kij,oj->oki", rotations, frac[first]) + translations
    keys = np.empty((len(linear), len(first)), dtype=np.int64)
    for multiplicity, members in _by_multiplicity(multiplicities):
        matcher = _matchers(group.number).get(multiplicity)
        if matcher is None:
            raise ValueError(f"an orbit of {multiplicity} atoms fits no Wyckoff position of {group.symbol}")
        for part in _chunks(len(linear), len(members) * images.shape[1] * len(matcher.positions)):
            points = np.einsum("cij,okj->coki", linear[part], images[members]) + shifts[part][:, None, None]
            codes = _best_codes(matcher, points, steps, strides)
            keys[part, members] = codes + (numbers[members] << CODE_BITS)
    return keys


def _by_multiplicity(multiplicities: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for multiplicity in sorted(set(multiplicities.tolist())):
        yield multiplicity, np.flatnonzero(multiplicities == multiplicity)


def _chunks(count: int, cost: int) -> Iterator[slice]:
    """Slices of the candidates that keep the temporary arrays below some 50 MB."""
    size = max(1, 1_000_000 // max(cost, 1))
    for begin in range(0, count, size):
        yield slice(begin, min(begin + size, count))


def _best_codes(matcher: _Matcher, points: np.ndarray, steps: int, strides: np.ndarray) -> np.ndarray:
    """Position index and smallest parameters of the orbits with these images: shape (c, o, k, 3) → (c, o)."""
    best = np.full(points.shape[:2], np.iinfo(np.int64).max)
    for i, position in enumerate(matcher.positions):
        relative = points - matcher.offsets[i]
        parameters = relative @ matcher.pivots[i].T
        prefix = position.index << (CODE_BITS + 7)
        if position.num_parameters < 3:
            residual = relative - parameters @ matcher.matrices[i].T
            residual -= np.rint(residual)
            fits = np.abs(residual).max(axis=-1) < ON_POSITION
            if not fits.any():
                continue
        stride = strides[position.index]
        rounded = quantize(parameters, stride / steps) * stride % steps
        code = (rounded[..., 0] * steps + rounded[..., 1]) * steps + rounded[..., 2] + prefix
        if position.num_parameters < 3:
            code = np.where(fits, code, np.iinfo(np.int64).max)
        best = np.minimum(best, code.min(axis=-1))
    if (best == np.iinfo(np.int64).max).any():
        raise ValueError("an orbit fits no Wyckoff position of its multiplicity: atoms are too close to tell apart")
    return best


def decode_key(group: SpaceGroup, key: int, steps: int) -> CanonicalSite:
    """The orbit that a key stands for."""
    code = key & ((1 << CODE_BITS) - 1)
    atomic_number = (key >> CODE_BITS) & 127
    position = group.positions[key >> (CODE_BITS + 7)]
    values = (code // (steps * steps), code // steps % steps, code % steps)
    return CanonicalSite(position.index, atomic_number, values[: position.num_parameters])
