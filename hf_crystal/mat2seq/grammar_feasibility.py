# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Can these atoms still be placed? Exact answers about counts and about coincidences, for the generation grammar.

Counts: every element's atoms must be a sum of multiplicities of Wyckoff positions still available; positions without
free coordinates serve once, by one element. Coordinates: a value is forbidden if it moves an orbit onto a more special
position or onto an orbit that is there already. All arithmetic is in integers.
"""

import functools
from collections import Counter
from dataclasses import dataclass

import numpy as np

from .canonical_crystal import orbit_points, quantize
from .space_groups import TRANSLATION_GRID, space_group

__all__ = [
    "Counts",
    "can_finish",
    "collapsing_values",
    "equivalent_parameters",
    "primitive_multiplicities",
    "reachable",
    "values_with_smaller_spelling",
]

Counts = tuple[tuple[int, int], ...]  # (atomic number, atoms still to place), by atomic number, no zeros


@functools.cache
def primitive_multiplicities(number: int) -> tuple[tuple[int, bool], ...]:
    """Per Wyckoff position: atoms in the primitive cell, and whether coordinates are free."""
    group = space_group(number)
    return tuple((p.multiplicity // len(group.centering), p.num_parameters > 0) for p in group.positions)


@functools.cache
def reachable(coins: frozenset[int], limit: int) -> np.ndarray:
    """Which totals 0 … limit are sums of the coins, each used any number of times."""
    sums = np.zeros(limit + 1, dtype=bool)
    sums[0] = True
    for coin in sorted(coins):
        for start in range(coin, limit + 1):
            sums[start] |= sums[start - coin]
    return sums


@functools.lru_cache(maxsize=20_000)
def can_finish(
    number: int, remaining: Counts, last: tuple[int, int] | None, taken: frozenset[int] = frozenset()
) -> bool:
    """Whether the remaining atoms can be placed after the site `last`, sites being written in canonical order.

    Args:
        number: Space group.
        remaining: Atoms still to place.
        last: Position index and atomic number of the last site written; None before the first.
        taken: Positions kept for other sites; those without free coordinates are not available.
    """
    if not remaining:
        return True
    positions = primitive_multiplicities(number)
    begin = 0 if last is None else last[0] + 1
    fixed = Counter(
        multiplicity for i, (multiplicity, free) in enumerate(positions) if i >= begin and not free and i not in taken
    )
    coins = frozenset(multiplicity for multiplicity, free in positions[begin:] if free)
    own = coins
    if last is not None and positions[last[0]][1]:
        own = coins | {positions[last[0]][0]}  # the last position again, by the same or a heavier element
    jobs = [(count, own if last is not None and element >= last[1] else coins) for element, count in remaining]
    sizes = tuple(sorted(fixed))
    return _place(tuple(sorted(jobs, key=lambda job: (job[0], sorted(job[1])))), sizes, tuple(fixed[s] for s in sizes))


@functools.lru_cache(maxsize=20_000)
def _place(jobs: tuple[tuple[int, frozenset[int]], ...], sizes: tuple[int, ...], available: tuple[int, ...]) -> bool:
    """Place each (count, repeatable multiplicities), sharing `available` fixed positions of each size."""
    if not jobs:
        return True
    (count, coins), rest = jobs[0], jobs[1:]
    sums = reachable(coins, 1024)
    if count > 1024:
        return False

    def use(place: int, left: int, taken: tuple[int, ...]) -> bool:
        """Whether all jobs can be done with `left` atoms of this one still to be placed, on sizes from `place` on."""
        if place == len(sizes):
            return bool(sums[left]) and _place(
                rest, sizes, tuple(a - t for a, t in zip(available, taken, strict=True))
            )
        most = min(available[place], left // sizes[place])
        return any(use(place + 1, left - n * sizes[place], (*taken, n)) for n in range(most + 1))

    return use(0, count, ())


@dataclass(frozen=True, eq=False)
class _Relations:
    """An orbit collapses if `known` @ earlier + `slope` · t + `constant` ≡ 0 in all three rows of a relation."""

    known: np.ndarray
    slope: np.ndarray
    constant: np.ndarray


@functools.cache
def _relations(number: int, index: int, place: int) -> _Relations:
    """Relations that are decided by the parameter at `place`, whatever the later ones are."""
    group = space_group(number)
    position = group.positions[index]
    difference = group.all_rotations - np.eye(3, dtype=np.int64)
    linear = difference @ position.matrix
    constant = (difference @ position.offset + group.all_translations) % TRANSLATION_GRID
    decided = linear[:, :, place].any(axis=1) & ~linear[:, :, place + 1 :].any(axis=(1, 2))
    rows = np.concatenate([linear[decided].reshape(-1, 3 * position.num_parameters), constant[decided]], axis=1)
    rows = np.unique(rows, axis=0)
    linear = rows[:, :-3].reshape(-1, 3, position.num_parameters)
    return _Relations(linear[:, :, :place], linear[:, :, place], rows[:, -3:])


@functools.lru_cache(maxsize=4096)
def collapsing_values(number: int, index: int, earlier: tuple[int, ...], steps: int) -> np.ndarray:
    """Values of the next parameter that put the orbit on a more special position: bool of shape (`steps`,).

    Solves the first row of each relation that contains the parameter and tests the others at the solutions.
    """
    relations = _relations(number, index, len(earlier))
    unit = steps * TRANSLATION_GRID
    known = relations.known @ np.array(earlier, dtype=np.int64) if earlier else 0
    base = known * TRANSLATION_GRID + relations.constant * steps  # (relations, rows)
    alive = ~((relations.slope == 0) & (base % unit != 0)).any(axis=1)
    slope, base = relations.slope[alive], base[alive]
    found = np.zeros(steps, dtype=bool)
    if not len(slope):
        return found
    row = (slope != 0).argmax(axis=1)[:, None]
    first = np.take_along_axis(slope, row, axis=1)
    # slope · 24 t + base = k · unit has one integer solution t modulo `steps` at most for each k below |slope|
    wanted = np.arange(np.abs(first).max()) * unit - np.take_along_axis(base, row, axis=1)
    values, remainder = np.divmod(wanted, first * TRANSLATION_GRID)
    values %= steps  # (relations, k)
    reached = slope[:, :, None] * TRANSLATION_GRID * values[:, None] + base[:, :, None]
    met = (reached % unit == 0).all(axis=1) & (remainder == 0)
    found[values[met]] = True
    return found


@functools.cache
def _parameter_images(number: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """How operations that keep the first triplet change the parameters: u → linear @ u + constant / 24."""
    group = space_group(number)
    position = group.positions[index]
    moved = group.all_rotations @ position.matrix
    shift = group.all_rotations @ position.offset + group.all_translations - position.offset
    rows = [row for row, _ in position.pivots]
    signs = np.array([sign for _, sign in position.pivots])
    linear = moved[:, rows] * signs[:, None]
    constant = shift[:, rows] * signs
    keeps = ~(moved - position.matrix @ linear).any(axis=(1, 2))
    keeps &= ~((shift - constant @ position.matrix.T) % TRANSLATION_GRID).any(axis=1)
    return linear[keeps], constant[keeps] % TRANSLATION_GRID


@functools.cache
def _spellings(number: int, index: int, place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images that the parameters up to `place` decide, and which of them see the last of these in their last row only.

    Images that leave all these parameters as they are, are left out.
    """
    linear, constant = _parameter_images(number, index)
    head = slice(place + 1)
    decided = ~linear[:, head, place + 1 :].any(axis=(1, 2))
    rows = np.concatenate([linear[decided, head, head].reshape(-1, (place + 1) ** 2), constant[decided, head]], axis=1)
    rows = np.unique(rows, axis=0)
    linear, constant = rows[:, : (place + 1) ** 2].reshape(-1, place + 1, place + 1), rows[:, (place + 1) ** 2 :]
    same = ~(linear - np.eye(place + 1, dtype=linear.dtype)).any(axis=(1, 2)) & ~constant.any(axis=1)
    linear, constant = linear[~same], constant[~same]
    return linear, constant, ~linear[:, :place, place].any(axis=1)


@functools.lru_cache(maxsize=4096)
def values_with_smaller_spelling(number: int, index: int, earlier: tuple[int, ...], steps: int) -> np.ndarray:
    """Values of the next parameter for which another spelling of the orbit comes first: bool of shape (`steps`,).

    Canonical crystals use the smallest spelling. Before the last parameter only images that the parameters so far
    decide are compared.
    """
    place = len(earlier)
    linear, constant, apart = _spellings(number, index, place)
    if place and apart.any():
        # Most images change the earlier parameters, whatever the next one is: they are settled by these alone.
        known = np.array(earlier, dtype=np.int64)
        fine = (linear[:, :place, :place] @ known) * TRANSLATION_GRID + constant[:, :place] * steps
        image = quantize(fine % (steps * TRANSLATION_GRID), TRANSLATION_GRID) % steps
        differs = image != known
        first = differs.argmax(axis=1)[:, None]
        less = np.take_along_axis(image < known, first, axis=1)[:, 0] & apart
        if less.any():
            return np.ones(steps, dtype=bool)
        undecided = ~apart | ~differs.any(axis=1)
        linear, constant = linear[undecided], constant[undecided]
    if not len(linear):
        return np.zeros(steps, dtype=bool)
    return _smaller_images(linear, constant, earlier, steps)


def _smaller_images(linear: np.ndarray, constant: np.ndarray, earlier: tuple[int, ...], steps: int) -> np.ndarray:
    """For which values of the next parameter one of the images comes before (earlier, value)."""
    place = len(earlier)
    values = np.empty((place + 1, steps), dtype=np.int64)
    values[:place] = np.array(earlier, dtype=np.int64)[:, None]
    values[place] = np.arange(steps)
    smaller: np.ndarray = np.zeros((len(linear), steps), dtype=bool)
    equal = np.ones((len(linear), steps), dtype=bool)
    for row in range(place + 1):
        fine = linear[:, row] @ values * TRANSLATION_GRID + constant[:, row, None] * steps
        image = quantize(fine % (steps * TRANSLATION_GRID), TRANSLATION_GRID) % steps
        smaller |= equal & (image < values[row])
        equal &= image == values[row]
    return np.asarray(smaller.any(axis=0))


@functools.lru_cache(maxsize=4096)
def equivalent_parameters(number: int, index: int, parameters: tuple[int, ...], steps: int) -> set[tuple[int, ...]]:
    """Every set of parameters on the first triplet that gives the same orbit."""
    group = space_group(number)
    position = group.positions[index]
    unit = steps * TRANSLATION_GRID
    points = orbit_points(group, position, parameters, steps) - position.offset * steps
    values = np.stack([sign * points[:, row] for row, sign in position.pivots], axis=1) % unit
    again = (values @ position.matrix.T - points) % unit
    on_triplet = ~again.any(axis=1) & ~(values % TRANSLATION_GRID).any(axis=1)
    return {tuple(v) for v in (values[on_triplet] // TRANSLATION_GRID).tolist()}
