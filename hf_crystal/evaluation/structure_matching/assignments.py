# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Which atom goes with which: the cheapest assignment, and what is left open where several are equally cheap."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from hf_crystal.evaluation.structure_matching.near_lattices import lll_mappings, pymatgen_lll_mapping
from hf_crystal.evaluation.structure_matching.reduced_crystals import SiteBlocks
from hf_crystal.evaluation.structure_matching.superpositions import Superpositions

# neighboring cells, one of each pair of opposite ones
_SHIFTS = np.array([s for s in itertools.product((-1, 0, 1), repeat=3) if s > (0, 0, 0)], dtype=float)
_FAR = 1e20  # cost of a pair outside the box
_EQUAL = 1e-7  # relative, and Å²: below it costs are equal
_STEPS = 10**6  # per Å: sums of vectors that agree to these are the same
_MOST = 256  # equally cheap choices that are looked at
_DIRECTIONS = np.array([s / np.linalg.norm(s) for s in (*_SHIFTS, *-_SHIFTS)])
_LEAST_COSINE = 0.886  # of the angle between any vector and the nearest of these directions: at worst 27.56 degrees


def partnered(laid: Superpositions, blocks: SiteBlocks, stol: float) -> np.ndarray:
    """Places of the superpositions in which every atom of the second crystal has a like one in its box."""
    delta = laid.first[:, blocks.first] - laid.second[:, blocks.second]
    inside = _inside(delta, laid.lattices, laid.scale, np.full(len(laid), stol))
    return np.flatnonzero(np.logical_or.reduceat(inside, blocks.starts, axis=1).all(axis=1))


def _inside(delta: np.ndarray, lattices: np.ndarray, scale: np.ndarray, stol: np.ndarray) -> np.ndarray:
    """Whether fractional differences (K, P, 3) lie in the box of tolerance (K,) along the axes of (K, 3, 3)."""
    half = 2 * (stol / scale)[:, None] * np.linalg.norm(np.linalg.inv(lattices), axis=-2)
    x, y, z = np.moveaxis(np.abs(delta - np.round(delta)) <= half[:, None], -1, 0)
    return x & y & z  # much faster than all(-1) over three


@dataclass(frozen=True, eq=False)
class TiedMatch:
    """A superposition with several equally cheap assignments or images.

    Attributes:
        owner: Number of the pair.
        lower_bound: Of the RMS distance, whichever pymatgen takes.
        blocks: Atoms of one element.
        vectors: (P, 3) from atoms of the second crystal to like ones of the first, Å.
        options: (P,) squared lengths, infinite for pairs of no cheapest assignment.
        shifts: (S, 3) lattice vectors to neighboring cells, Å.
        least: Sum of the squared lengths of a cheapest assignment, Å².
        scale: Inverse of (volume / atoms)^(1/3).
    """

    owner: int
    lower_bound: float
    least: float
    blocks: SiteBlocks
    vectors: np.ndarray
    options: np.ndarray
    shifts: np.ndarray
    scale: float

    def rms_range(self, below: float) -> tuple[float, float]:
        """Least and largest RMS distance that equally cheap choices give; infinite where there are too many to say.

        The sum of squares is the same for all, so what is left after the best small translation depends on the sum of
        the vectors only.

        Args:
            below: Larger values are not of interest.
        """
        images = self._images()
        at_least = max(self.lower_bound, float(self._rms_of(self._longest_sum(images))))
        if at_least >= below:
            return at_least, math.inf
        sums = np.zeros((1, 3))
        start = 0
        for block in self.blocks.slices:
            size = block.stop - block.start
            found = self._sums(size, start, images)
            if not len(found) or len(sums) * len(found) > _MOST:
                return at_least, math.inf
            sums = (sums[:, None] + found).reshape(-1, 3)
            start += size * size
        values = self._rms_of(np.linalg.norm(sums, axis=1))
        return float(values.min()), float(values.max())

    def _rms_of(self, summed: Any) -> Any:
        """RMS distances for lengths of the sum of vectors."""
        count = len(self.blocks.element)
        return np.sqrt(np.maximum(self.least / count - (summed / count) ** 2, 0.0)) * self.scale

    def _images(self) -> dict[int, np.ndarray]:
        """By place of a pair that may be chosen, its vector and those to other images that are as near, (I, 3)."""
        places = np.flatnonzero(np.isfinite(self.options))
        every = np.concatenate([np.zeros((1, 3)), self.shifts, -self.shifts])
        images = self.vectors[places][:, None] + every
        near = _squares(images) <= (self.options[places] * (1 + _EQUAL) + _EQUAL)[:, None]
        return {place: vectors[chosen] for place, vectors, chosen in zip(places.tolist(), images, near, strict=True)}

    def _longest_sum(self, images: dict[int, np.ndarray]) -> float:
        """No choice has a longer sum of vectors."""
        atoms = self.blocks.second[np.repeat(list(images), [len(vectors) for vectors in images.values()])]
        along = np.concatenate(list(images.values())) @ _DIRECTIONS.T
        farthest = np.maximum.reduceat(along, np.searchsorted(atoms, np.arange(len(self.blocks.element))), axis=0)
        return float(farthest.sum(axis=0).max() / _LEAST_COSINE)

    def _sums(self, size: int, start: int, images: dict[int, np.ndarray]) -> np.ndarray:
        """(C, 3) sums of the vectors of one element in its cheapest assignments; empty if there are too many.

        What has been chosen so far counts by the atoms taken and the sum only: symmetry makes many choices alike.
        """
        costs = self.options[start : start + size * size].reshape(size, size)
        least = costs.min(axis=1)
        rest = np.append(np.cumsum(least[::-1])[::-1], 0.0).tolist()
        limit = float(costs[linear_sum_assignment(np.where(np.isfinite(costs), costs, _FAR))].sum())
        limit = limit * (1 + _EQUAL) + _EQUAL
        partial: dict[tuple[int, ...], tuple[float, ...]] = {(0, 0, 0, 0): (0.0, 0.0, 0.0, 0.0)}
        for row in range(size):
            columns = [
                (1 << column, float(costs[row, column]), images[start + row * size + column].tolist())
                for column in np.flatnonzero(np.isfinite(costs[row])).tolist()
            ]
            further: dict[tuple[int, ...], tuple[float, ...]] = {}
            for (taken, *_), (cost, x, y, z) in partial.items():
                for bit, own, vectors in columns:
                    if taken & bit or cost + own + rest[row + 1] > limit:
                        continue
                    for a, b, c in vectors:
                        u, v, w = x + a, y + b, z + c
                        key = taken | bit, round(u * _STEPS), round(v * _STEPS), round(w * _STEPS)
                        if key not in further or further[key][0] > cost + own:
                            further[key] = cost + own, u, v, w
            partial = further
            if len(partial) > _MOST:
                return np.empty((0, 3))
        return np.array([total for _, *total in partial.values()])


@dataclass(frozen=True, eq=False)
class _Assigned:
    """Cheapest assignments of K superpositions.

    Attributes:
        vectors: (K, P, 3) from atoms of the second crystal to like ones of the first, Å.
        squares: (K, P) of these; `_FAR` outside the box.
        places: (K, N) chosen ones of the P pairs.
        options: (K, P) pairs of which some cheapest assignment may consist.
    """

    vectors: np.ndarray
    squares: np.ndarray
    places: np.ndarray
    options: np.ndarray


def matches(laid: Superpositions, blocks: SiteBlocks, stol: float) -> tuple[np.ndarray, np.ndarray, list[TiedMatch]]:
    """What becomes of superpositions in which all atoms have partners.

    Returns:
        For those with one cheapest assignment the number of the pair (U,) and the distances (U, N) between paired
        atoms after the best small translation, in units of (volume / atoms)^(1/3); and the others, as far as their
        RMS distance may be below `stol`.
    """
    mappings, certain = lll_mappings(laid.lattices)
    found = _assign(laid, blocks, mappings, np.where(certain, stol, np.inf))
    # Outside of any box atoms are at least 2 stol apart. Only then it matters which of two reduced cells pymatgen has.
    farthest = np.sqrt(np.where(found.options, found.squares, 0.0).max(axis=1)) * laid.scale
    rows = np.flatnonzero(~certain & (farthest > 2 * stol * (1 - _EQUAL)))
    if len(rows):
        # equal up to rounding: symmetry brings the same cell many times
        rounded = np.round(laid.parameters[rows], 9).tolist()
        exact = np.stack([pymatgen_lll_mapping(tuple(parameters)) for parameters in rounded])
        mappings[rows] = exact
        again = _assign(laid.take(rows), blocks, exact, np.full(len(rows), stol))
        for name, array in vars(again).items():
            getattr(found, name)[rows] = array
    return _judged(laid, blocks, stol, found, _SHIFTS @ (mappings @ laid.lattices))


def _assign(laid: Superpositions, blocks: SiteBlocks, mappings: np.ndarray, stol: np.ndarray) -> _Assigned:
    """Cheapest assignments in the reduced cells (K, 3, 3) that `mappings` lead to, with boxes of `stol` (K,)."""
    reduced = mappings @ laid.lattices
    first, second = (part @ np.linalg.inv(mappings) for part in (laid.first, laid.second))
    delta = first[:, blocks.first] - second[:, blocks.second]
    delta -= np.round(delta)
    inside = _inside(delta, reduced, laid.scale, stol)
    vectors = delta @ reduced
    _to_nearest_image(vectors, _SHIFTS @ reduced)
    squares = np.where(inside, _squares(vectors), _FAR)
    nearest = np.minimum.reduceat(squares, blocks.starts, axis=1)  # (K, N)
    rows = np.arange(len(laid))[:, None]
    places = np.empty(nearest.shape, dtype=int)
    limits = np.empty(nearest.shape)
    start = 0
    for block in blocks.slices:
        size = block.stop - block.start
        end = start + size * size
        columns = _cheapest(squares[:, start:end].reshape(-1, size, size))
        places[:, block] = start + size * np.arange(size) + columns
        # no assignment that costs as little has a pair above this
        excess = squares[rows, places[:, block]].sum(axis=1) - nearest[:, block].sum(axis=1)
        limits[:, block] = nearest[:, block] + excess[:, None]
        start = end
    options = squares <= limits[:, blocks.second] * (1 + _EQUAL) + _EQUAL
    return _Assigned(vectors, squares, places, options)


def _to_nearest_image(vectors: np.ndarray, shifts: np.ndarray) -> None:
    """Replace vectors (K, P, 3) by their shortest images among those shifted by ± (K, S, 3)."""
    products = vectors @ shifts.transpose(0, 2, 1)
    # |v ± s|² - |v|² = |s|² ± 2 v·s: the vectors of all images are never held
    gains = 2 * np.abs(products) - _squares(shifts)[:, None]
    best = gains.argmax(axis=-1)
    rows, columns = np.nonzero(np.take_along_axis(gains, best[..., None], axis=-1)[..., 0] > 0)
    chosen = best[rows, columns]
    vectors[rows, columns] -= np.sign(products[rows, columns, chosen])[:, None] * shifts[rows, chosen]


def _cheapest(squares: np.ndarray) -> np.ndarray:
    """Columns (K, n) of the cheapest assignment of (K, n, n) costs."""
    nearest = squares.argmin(axis=-1)
    # where the nearest atoms are all different they are the cheapest assignment
    distinct = (np.sort(nearest, axis=-1) == np.arange(squares.shape[-1])).all(axis=-1)
    for row in np.flatnonzero(~distinct):
        nearest[row] = linear_sum_assignment(squares[row])[1]
    return nearest


def _judged(
    laid: Superpositions, blocks: SiteBlocks, stol: float, found: _Assigned, shifts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[TiedMatch]]:
    rows = np.arange(len(laid))[:, None]
    chosen, squares = found.vectors[rows, found.places], found.squares[rows, found.places]
    feasible = (squares < _FAR).all(axis=1)
    farther = _squares(shifts)[:, None] - 2 * np.abs(chosen @ shifts.transpose(0, 2, 1))  # (K, N, S)
    several = (farther.min(axis=-1) <= squares * _EQUAL + _EQUAL) | (
        np.add.reduceat(found.options, blocks.starts, axis=1) > 1
    )
    unique = ~several.any(axis=1)
    settled = np.flatnonzero(feasible & unique)
    moved = chosen[settled] - chosen[settled].mean(axis=1, keepdims=True)
    distances = np.sqrt(_squares(moved)) * laid.scale[settled, None]
    # The mean displacement is what the small translation removes. Of the atoms that have a choice it is known only
    # how long their vectors are together.
    known = np.linalg.norm(np.where(several[..., None], 0.0, chosen).sum(axis=1), axis=1)
    open_ = np.sqrt(several.sum(axis=1) * np.where(several, squares, 0.0).sum(axis=1))
    left = squares.mean(axis=1) - ((known + open_) / len(blocks.element)) ** 2
    bounds = np.sqrt(np.maximum(left - _EQUAL, 0.0)) * laid.scale
    tied = [
        TiedMatch(
            int(laid.owner[row]),
            float(bounds[row]),
            float(squares[row].sum()),
            blocks,
            found.vectors[row],
            np.where(found.options[row], found.squares[row], np.inf),
            shifts[row],
            float(laid.scale[row]),
        )
        for row in np.flatnonzero(feasible & ~unique & (bounds < stol))
    ]
    return laid.owner[settled], distances, tied


def _squares(vectors: np.ndarray) -> np.ndarray:
    return np.einsum("...i,...i->...", vectors, vectors)
