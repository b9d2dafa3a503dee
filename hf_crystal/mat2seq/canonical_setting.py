# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""The choice among equivalent settings by tables: what `canonical_sites.choose_setting_plainly` finds, faster.

Which Wyckoff position a position becomes in another setting, and how its free coordinates change, depends on the
space group alone: `parameters → linear @ parameters + shift`. The tables are made on first use and kept, so the work
per crystal is a few products of small matrices instead of images of every atom in every setting.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np

from ..crystals.record import cell_from_parameters
from .canonical_crystal import (
    BOUNDARY,
    CanonicalCrystal,
    CanonicalSettings,
    coordinate_strides,
    full_cell_parameters,
    orbit_points,
)
from .canonical_setting_reference import (
    CODE_BITS,
    ON_POSITION,
    choose_setting_plainly,
    decode_key,
    reduce_monoclinic,
    smallest_cells,
)
from .canonical_symmetry import SymmetricCrystal
from .space_groups import TRANSLATION_GRID, SpaceGroup, space_group

__all__ = ["choose_again", "choose_setting"]

_CHUNK = 200_000  # coordinates per temporary array, some MB


@dataclass(frozen=True, eq=False)
class _Positions:
    """Wyckoff positions of a group, stacked; P of them."""

    multiplicities: np.ndarray  # (P,)
    offsets: np.ndarray  # (P, 3)
    pivots: np.ndarray  # (P, 3, 3): parameters = pivots @ (point − offset), unused rows 0
    residuals: np.ndarray  # (3, 3P): point @ residuals − constants is what no parameters explain of point − offset
    constants: np.ndarray  # (3P,)


@dataclass(frozen=True, eq=False)
class _Maps:
    """How the settings of some families send a Wyckoff position, m ways altogether."""

    linear: np.ndarray  # (3, 3m): parameters @ linear + shifts are the new ones
    shifts: np.ndarray  # (3m,)
    targets: np.ndarray  # (m,): position in the new setting
    prefix: np.ndarray  # (m,): the target's part of a code
    settings: np.ndarray  # (m,): which setting, ascending
    starts: np.ndarray  # first way of each setting


@dataclass(frozen=True, eq=False)
class _Orbits:
    """Orbits of a crystal in one setting."""

    positions: np.ndarray  # (o,)
    elements: np.ndarray  # (o,)
    parameters: np.ndarray  # (o, 3), unused ones 0
    origins: np.ndarray | None  # (atoms, 3): where a free origin may lie; None where the origin is fixed


@functools.cache
def _stacked(number: int) -> _Positions:
    positions = space_group(number).positions
    pivots = np.zeros((len(positions), 3, 3))
    residuals = np.zeros((len(positions), 3, 3))
    for i, position in enumerate(positions):
        for parameter, (row, sign) in enumerate(position.pivots):
            pivots[i, parameter, row] = sign
        residuals[i] = np.eye(3) - position.matrix @ pivots[i, : position.num_parameters]
    offsets = np.array([position.offset for position in positions]) / TRANSLATION_GRID
    return _Positions(
        np.array([position.multiplicity for position in positions]),
        offsets,
        pivots,
        residuals.reshape(-1, 3).T.copy(),
        np.einsum("pij,pj->pi", residuals, offsets).ravel(),
    )


@functools.cache
def _maps(number: int, families: tuple[int, ...], index: int) -> _Maps:
    """Tables of a Wyckoff position for the settings of these families, family by family, origin by origin."""
    found = [_maps_of_family(number, family, index) for family in families]
    counts = [len(origin) for family in found for origin in family]
    rows = np.concatenate([origin for family in found for origin in family])
    return _Maps(
        linear=rows[:, 1:10].reshape(-1, 3).T.astype(float),
        shifts=rows[:, 10:].ravel() / TRANSLATION_GRID,
        targets=rows[:, 0],
        prefix=rows[:, 0] << (CODE_BITS + 7),
        settings=np.repeat(np.arange(len(counts)), counts),
        starts=np.cumsum([0, *counts[:-1]]),
    )


@functools.cache
def _fixed_codes(number: int, families: tuple[int, ...]) -> np.ndarray:
    """Code of the position that each position without parameters becomes, 0 for all others: (settings, P)."""
    group = space_group(number)
    codes = np.zeros((sum(len(group.settings[i].origins) for i in families), len(group.positions)), dtype=np.int64)
    for position in group.positions:
        if not position.num_parameters:
            maps = _maps(number, families, position.index)
            codes[:, position.index] = maps.prefix[maps.starts]  # targets ascend within a setting
    return codes


@functools.cache
def _maps_of_family(number: int, family_index: int, index: int) -> list[np.ndarray]:
    """For each origin of a family the distinct ways: target, linear part (9), shift (3) in 1/24, as integer rows."""
    group = space_group(number)
    family = group.settings[family_index]
    position = group.positions[index]
    inverse = family.inverse.astype(np.int64)
    linear = np.zeros((len(group.all_rotations), 3, 3), dtype=np.int64)
    linear[:, :, : position.num_parameters] = group.all_rotations @ inverse @ position.matrix
    ways = []
    for origin in family.origins:
        constant = group.all_rotations @ (inverse @ (position.offset - origin)) + group.all_translations
        rows = []
        for target in group.positions:
            if target.multiplicity != position.multiplicity:
                continue
            pivot = np.zeros((3, 3), dtype=np.int64)
            for parameter, (row, sign) in enumerate(target.pivots):
                pivot[parameter, row] = sign
            matrix = np.zeros((3, 3), dtype=np.int64)
            matrix[:, : target.num_parameters] = target.matrix
            relative = constant - target.offset
            new_linear, shift = pivot @ linear, relative @ pivot.T
            fits = (matrix @ new_linear == linear).all(axis=(1, 2))
            fits &= ((relative - shift @ matrix.T) % TRANSLATION_GRID == 0).all(axis=1)
            count = int(fits.sum())
            rows.append(
                np.concatenate(
                    [
                        np.full((count, 1), target.index),
                        new_linear[fits].reshape(-1, 9),
                        shift[fits] % TRANSLATION_GRID,
                    ],
                    axis=1,
                )
            )
        ways.append(np.unique(np.concatenate(rows), axis=0))
    return ways


def choose_setting(crystal: SymmetricCrystal, settings: CanonicalSettings) -> CanonicalCrystal:
    """The canonical crystal of an exactly symmetric one; equal to `choose_setting_plainly`.

    Raises:
        ValueError: if an atom fits no Wyckoff position of its group (atoms closer than the grid can tell apart).
    """
    group, metric, frac = crystal.group, crystal.metric, crystal.frac
    if group.number <= 2:  # their settings are a matter of lattice reduction, which no table holds
        return choose_setting_plainly(crystal, settings)
    if group.number <= 15:
        metric, frac = reduce_monoclinic(group, metric, frac, settings)
    lattice, families = _cells(group, metric, settings)
    return _choose(group, lattice, families, _locate(crystal, frac), settings)


def choose_again(crystal: CanonicalCrystal) -> CanonicalCrystal | None:
    """What `choose_setting` makes of a canonical crystal, decoded; None where another cell has become the best."""
    group, settings = space_group(crystal.space_group), crystal.settings
    if group.number > 15 and not any(site.parameters for site in crystal.sites):
        return crystal  # nothing in the choice depends on a number
    steps = settings.fraction_steps
    if group.number <= 15:
        cell = cell_from_parameters(*full_cell_parameters(group.number, crystal.cell_parameters))
        metric = cell @ cell.T
    if group.number <= 2:
        points = [orbit_points(group, group.positions[s.position], s.parameters, steps) for s in crystal.sites]
        sizes = [len(p) for p in points]
        frac = np.concatenate(points) / (steps * TRANSLATION_GRID)
        numbers = np.repeat([s.atomic_number for s in crystal.sites], sizes)
        exact = SymmetricCrystal(group, metric, frac, numbers, np.repeat(np.arange(len(sizes)), sizes), 0.0, 1)
        return choose_setting_plainly(exact, settings)
    if group.number <= 15 and reduce_monoclinic(group, metric, np.zeros((1, 3)), settings)[0] is not metric:
        return None
    origins = None
    if group.polar_axes:
        counts = crystal.composition
        rarest = min(counts, key=lambda element: (counts[element], element))
        origins = np.concatenate(
            [
                orbit_points(group, group.positions[s.position], s.parameters, steps) / (steps * TRANSLATION_GRID)
                for s in crystal.sites
                if s.atomic_number == rarest
            ]
        )
    orbits = _Orbits(
        np.array([s.position for s in crystal.sites]),
        np.array([s.atomic_number for s in crystal.sites]),
        np.array([s.parameters + (0,) * (3 - len(s.parameters)) for s in crystal.sites]) / steps,
        origins,
    )
    if group.number <= 15:
        lattice, families = smallest_cells(group, metric, settings)
    else:
        lattice, families = _ordered_axes(group.number, crystal.lattice)
    return _choose(group, lattice, families, orbits, settings)


def _cells(
    group: SpaceGroup, metric: np.ndarray, settings: CanonicalSettings
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Free cell parameters of the smallest cell, and the families of settings that have it."""
    if group.number <= 15:
        return smallest_cells(group, metric, settings)
    a, b, c = (math.floor(math.sqrt(metric[i, i]) / settings.length_step + BOUNDARY) for i in range(3))
    return _ordered_axes(group.number, (a,) if group.number >= 195 else (a, c) if group.number >= 75 else (a, b, c))


def _ordered_axes(number: int, lattice: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What `_cells` gives for free cell parameters in grid steps, orthorhombic to cubic."""
    if number >= 75:
        return lattice, _all_families(number)
    cells = [tuple(lattice[axis] for axis in order) for order in _axis_orders(number)]
    best = min(cells)
    return best, tuple(i for i, cell in enumerate(cells) if cell == best)


@functools.cache
def _all_families(number: int) -> tuple[int, ...]:
    return tuple(range(len(space_group(number).settings)))


@functools.cache
def _axis_orders(number: int) -> tuple[tuple[int, ...], ...]:
    """Which old axis each new axis of an orthorhombic family runs along."""
    return tuple(tuple(np.abs(f.basis_change).argmax(axis=0).tolist()) for f in space_group(number).settings)


def _locate(crystal: SymmetricCrystal, frac: np.ndarray) -> _Orbits:
    """Wyckoff position and parameters of every orbit, as the atoms lie."""
    group, orbit = crystal.group, crystal.orbit_of_atom
    stacked = _stacked(group.number)
    centering = group.centering / TRANSLATION_GRID
    points = frac if len(centering) == 1 else (frac[:, None] + centering).reshape(-1, 3)
    orbit_of_point = orbit if len(centering) == 1 else np.repeat(orbit, len(centering))
    sizes = np.bincount(orbit) * len(centering)
    residual = points @ stacked.residuals - stacked.constants
    residual -= np.rint(residual)
    fits = (np.abs(residual) < ON_POSITION).reshape(len(points), -1, 3).all(axis=-1)
    fits &= sizes[orbit_of_point][:, None] == stacked.multiplicities
    rows, columns = fits.nonzero()
    first = np.full(len(sizes), -1)
    first[orbit_of_point[rows[::-1]]] = np.arange(len(rows))[::-1]  # of equal indices the last one stays
    if first.min() < 0:
        raise ValueError(f"an orbit fits no Wyckoff position of {group.symbol}: atoms are too close to tell apart")
    rows, columns = rows[first], columns[first]
    parameters = (stacked.pivots[columns] @ (points[rows] - stacked.offsets[columns])[..., None])[..., 0]
    elements = np.empty(len(sizes), dtype=np.int64)
    elements[orbit] = crystal.atomic_numbers
    origins = None
    if group.polar_axes:
        kinds, counts = np.unique(crystal.atomic_numbers, return_counts=True)
        origins = points[np.repeat(crystal.atomic_numbers == kinds[counts.argmin()], len(centering))]
    return _Orbits(columns, elements, parameters, origins)


def _choose(
    group: SpaceGroup,
    lattice: tuple[int, ...],
    families: tuple[int, ...],
    orbits: _Orbits,
    settings: CanonicalSettings,
) -> CanonicalCrystal:
    strides = coordinate_strides(group.number, lattice, settings)
    free = None if orbits.origins is None else _free_shifts(group, families, orbits.origins)
    keys = _fixed_codes(group.number, families)[:, orbits.positions] + (orbits.elements << CODE_BITS)
    if free is not None:
        keys = np.tile(keys, (len(free), 1))
    for index in set(orbits.positions.tolist()):
        if group.positions[index].num_parameters:
            members = (orbits.positions == index).nonzero()[0]
            maps = _maps(group.number, families, index)
            keys[:, members] += _codes(group, maps, orbits.parameters[members], free, strides, settings.fraction_steps)
    keys.sort(axis=1)
    best = min(keys.tolist())
    sites = tuple(decode_key(group, key, settings.fraction_steps) for key in best)
    return CanonicalCrystal(group.number, lattice, sites, settings)


def _free_shifts(group: SpaceGroup, families: tuple[int, ...], origins: np.ndarray) -> np.ndarray:
    """Shifts along the polar axes that put each of the atoms at 0, shape (atoms, settings, polar axes)."""
    polar = list(group.polar_axes)
    shifts = []
    for index in families:
        family = group.settings[index]
        moved = -(origins @ family.inverse.T)[:, polar]
        shifts.append(np.broadcast_to(moved[:, None], (len(moved), len(family.origins), len(polar))))
    free = np.concatenate(shifts, axis=1)
    free -= np.floor(free + 1e-9)
    # Atoms at one height make the same settings.
    _, first = np.unique(np.round(free.reshape(len(free), -1), 9), axis=0, return_index=True)
    return free[np.sort(first)]


def _codes(
    group: SpaceGroup,
    maps: _Maps,
    parameters: np.ndarray,
    free: np.ndarray | None,
    strides: np.ndarray,
    steps: int,
) -> np.ndarray:
    """Smallest code of orbits on one position in every setting (and with every free origin): shape (n, orbits)."""
    count = len(maps.starts)
    stride = strides[maps.targets]
    values = (parameters @ maps.linear + maps.shifts).reshape(len(parameters), 1, -1, 3)
    if free is None:
        packed = _packed(values, stride, steps) + maps.prefix
        return np.minimum.reduceat(packed, maps.starts, axis=-1)[:, 0].T
    pivots = _stacked(group.number).pivots[maps.targets][:, :, list(group.polar_axes)]
    moved = np.einsum("mij,amj->ami", pivots, free[:, maps.settings])
    codes = np.empty((len(parameters), len(free), count), dtype=np.int64)
    size = max(1, _CHUNK // values.size)
    for begin in range(0, len(free), size):
        packed = _packed(values + moved[begin : begin + size], stride, steps) + maps.prefix
        codes[:, begin : begin + size] = np.minimum.reduceat(packed, maps.starts, axis=-1)
    return codes.reshape(len(parameters), -1).T


def _packed(values: np.ndarray, stride: np.ndarray, steps: int) -> np.ndarray:
    """Rounded parameters (..., 3) as one integer each."""
    rounded = np.floor(values / (stride / steps) + BOUNDARY).astype(np.int64) * stride % steps
    return rounded @ np.array([steps * steps, steps, 1])
