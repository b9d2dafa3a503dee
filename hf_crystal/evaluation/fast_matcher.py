# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""The verdicts of pymatgen's `StructureMatcher`, with the work of a pair done in arrays.

`StructureMatcher` reduces both crystals, then tries every lattice of the first that is near the cell of the second,
and every translation that puts an atom on its like. Here a crystal is reduced once, however many pairs it is part of,
and all lattices and translations of a pair are tried together. Nothing is rejected that `StructureMatcher` accepts:
the tolerances, the box of periodic images (in the LLL-reduced average cell) and the assignment are its own. Where
symmetry makes several assignments equally cheap, they may leave different displacements, and pymatgen takes one by
rounding: if the verdict can hang on it, pymatgen is asked. `pymatgen_rms` and `pymatgen_fit` are the plain reference.

Source of the criterion: `StructureMatcher` of pymatgen (S. P. Ong et al., Comput. Mater. Sci. 68 (2013) 314).
"""

import functools
import itertools
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from hf_crystal.models.records_crystal import CHEMICAL_SYMBOLS

_REDUCIBLE_WITHIN = 1.5 * (1 + 1e-6)  # Å: see `_may_be_reducible`
_BLOCK_ENTRIES = 1_000_000  # numbers held at a time
_IMAGES = np.array(list(itertools.product((-1, 0, 1), repeat=3)), dtype=float)
_DIRECTIONS = np.array([image / np.linalg.norm(image) for image in _IMAGES if image.any()])
_LEAST_COSINE = 0.886  # of the angle between any vector and the nearest of these directions: at worst 27.56 degrees
_FAR = 1e20  # cost of a pair outside the box
_EQUAL = 1e-7  # relative, and Å²: below it costs are equal


@dataclass(frozen=True)
class MatcherSettings:
    """Arguments of pymatgen's `StructureMatcher`; other ones keep its defaults.

    Attributes:
        ltol: Fractional tolerance of lengths.
        stol: Tolerance of sites, in units of (volume / atoms)^(1/3).
        angle_tol: Tolerance of angles, degrees.
    """

    ltol: float
    stol: float
    angle_tol: float

    def __str__(self) -> str:
        return f"StructureMatcher(ltol={self.ltol}, stol={self.stol}, angle_tol={self.angle_tol})"


@functools.lru_cache(maxsize=8)
def structure_matcher(settings: MatcherSettings) -> Any:
    """The pymatgen `StructureMatcher` of these settings, one per process."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(ltol=settings.ltol, stol=settings.stol, angle_tol=settings.angle_tol)


def pymatgen_rms(settings: MatcherSettings, pair: tuple[Any, Any]) -> float | None:
    """`StructureMatcher.get_rms_dist` of two structures: the plain reference of `rms_distance`."""
    found = structure_matcher(settings).get_rms_dist(*pair)
    return None if found is None else float(found[0])


def pymatgen_fit(settings: MatcherSettings, pair: tuple[Any, Any]) -> bool:
    """`StructureMatcher.fit` of two structures: the plain reference of `fits`."""
    return bool(structure_matcher(settings).fit(*pair))


@dataclass(frozen=True, eq=False)
class ReducedCrystal:
    """A primitive cell with atoms sorted by element.

    Attributes:
        lattice: (3, 3) Å, rows.
        frac_coords: (N, 3).
        numbers: (N,) atomic numbers, ascending.
        anchor: Rarest element; of several the one that pymatgen lists first.
        given: Lattice, fractional coordinates and atomic numbers before the reduction.
        is_final: Whether pymatgen reduced it; otherwise it is as given, and `reduced` is needed for a last word.
    """

    lattice: np.ndarray
    frac_coords: np.ndarray
    numbers: np.ndarray
    anchor: int
    given: tuple[np.ndarray, np.ndarray, np.ndarray]
    is_final: bool

    @functools.cached_property
    def blocks(self) -> list[slice]:
        """Atoms of each element."""
        _, starts, counts = np.unique(self.numbers, return_index=True, return_counts=True)
        return [slice(int(start), int(start + count)) for start, count in zip(starts, counts, strict=True)]

    @functools.cached_property
    def like_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Places (P,) and (P,) of all ordered pairs of atoms of one element, sorted."""
        second, first = np.nonzero(self.numbers[:, None] == self.numbers)
        return second, first

    @functools.cached_property
    def reduced(self) -> "ReducedCrystal":
        """The crystal in the primitive cell that pymatgen finds; itself where it cannot find one."""
        if self.is_final or not _may_be_reducible(self):
            return self
        return reduce_crystal(_given_structure(self), niggli=True)

    @functools.cached_property
    def volume(self) -> float:
        """Å³."""
        return abs(float(np.linalg.det(self.lattice)))

    @functools.cached_property
    def parameters(self) -> np.ndarray:
        """(6,) a b c in Å, alpha beta gamma in degrees."""
        return _lengths_and_angles(self.lattice)

    @functools.cached_property
    def reciprocal_lengths(self) -> np.ndarray:
        """(3,) 1/Å."""
        return np.linalg.norm(np.linalg.inv(self.lattice), axis=0)


def reduce_crystal(structure: Any, *, niggli: bool) -> ReducedCrystal:
    """Primitive cell as `StructureMatcher` takes it (pymatgen's, tolerance 0.25 Å).

    Args:
        structure: pymatgen `Structure`.
        niggli: Whether the cell has to be Niggli-reduced, as that of the second crystal of a pair. That of the first
            need not be, since all its lattice vectors are tried; then the work is put off until it is needed.
    """
    given = (structure.lattice.matrix, structure.frac_coords, _numbers(structure))
    lattice, frac_coords, numbers = given
    if niggli:
        structure = structure.get_reduced_structure(reduction_algo="niggli").get_primitive_structure()
        lattice, frac_coords, numbers = structure.lattice.matrix, structure.frac_coords, _numbers(structure)
    order = numbers.argsort(kind="stable")
    counts = Counter(numbers.tolist())
    anchor = min(counts, key=counts.__getitem__)
    return ReducedCrystal(lattice, frac_coords[order], numbers[order], anchor, given, niggli)


def _numbers(structure: Any) -> np.ndarray:
    return np.array([site.specie.Z for site in structure])


def _given_structure(crystal: ReducedCrystal) -> Any:
    """The pymatgen `Structure` that was reduced."""
    from pymatgen.core import Lattice, Structure

    lattice, frac_coords, numbers = crystal.given
    return Structure(Lattice(lattice), [CHEMICAL_SYMBOLS[number] for number in numbers], frac_coords)


def _may_be_reducible(crystal: ReducedCrystal) -> bool:
    """Whether pymatgen could find a smaller cell.

    It needs counts with a common divisor, and a translation between two atoms of the rarest element that takes every
    atom near a like one: within twice 0.25 Å along each axis of the reduced cell, hence within 1.5 Å.
    """
    from pymatgen.core import Lattice

    sizes = [block.stop - block.start for block in crystal.blocks]
    if math.gcd(*sizes) == 1:
        return False
    lattice, frac = Lattice(crystal.lattice), crystal.frac_coords
    rarest = frac[crystal.blocks[int(np.argmin(sizes))]]
    return any(
        all(
            lattice.get_all_distances(frac[block] + shift, frac[block]).min(axis=1).max() <= _REDUCIBLE_WITHIN
            for block in crystal.blocks
        )
        for shift in rarest[1:] - rarest[0]
    )


def _lengths_and_angles(lattices: np.ndarray) -> np.ndarray:
    """(..., 6) a b c in Å, alpha beta gamma in degrees, of (..., 3, 3)."""
    lengths = np.linalg.norm(lattices, axis=-1)
    cosines = [
        (lattices[..., i, :] * lattices[..., j, :]).sum(-1) / (lengths[..., i] * lengths[..., j])
        for i, j in ((1, 2), (0, 2), (0, 1))
    ]
    return np.concatenate([lengths, np.degrees(np.arccos(np.clip(np.stack(cosines, -1), -1, 1)))], axis=-1)


def _lattices_of(parameters: np.ndarray) -> np.ndarray:
    """(M, 3, 3) of (M, 6), in pymatgen's orientation."""
    a, b, c, alpha, beta, gamma = parameters.T
    cos_alpha, cos_beta, cos_gamma = (np.cos(np.radians(angle)) for angle in (alpha, beta, gamma))
    sin_alpha, sin_beta = np.sin(np.radians(alpha)), np.sin(np.radians(beta))
    cos_gamma_star = np.clip((cos_alpha * cos_beta - cos_gamma) / (sin_alpha * sin_beta), -1, 1)
    sin_gamma_star = np.sqrt(1 - cos_gamma_star**2)
    lattices = np.zeros((len(parameters), 3, 3))
    lattices[:, 0, 0], lattices[:, 0, 2] = a * sin_beta, a * cos_beta
    lattices[:, 1, 0], lattices[:, 1, 1] = -b * sin_alpha * cos_gamma_star, b * sin_alpha * sin_gamma_star
    lattices[:, 1, 2], lattices[:, 2, 2] = b * cos_alpha, c
    return lattices


@functools.lru_cache(maxsize=1024)
def _grid(reach: tuple[int, int, int]) -> np.ndarray:
    """(G, 3) whole numbers from -n to n."""
    return np.array(list(itertools.product(*(range(-n, n + 1) for n in reach))), dtype=float)


def _near_lattices(first: ReducedCrystal, second: ReducedCrystal, settings: MatcherSettings) -> np.ndarray:
    """(M, 3, 3): bases of the first lattice with lengths and angles near those of the second, at equal volumes."""
    ratio = (second.volume / first.volume) ** (1 / 6)
    wanted, angles = second.parameters[:3] / ratio, second.parameters[3:]
    radius = wanted.max() * (1 + settings.ltol) + 1e-8
    grid = _grid(tuple((radius * first.reciprocal_lengths / ratio).astype(int).tolist()))
    points = grid @ (first.lattice * ratio)
    lengths = np.sqrt((points * points).sum(1))
    relative = lengths[:, None] / wanted
    near = (relative < 1 + settings.ltol) & (relative > 1 / (1 + settings.ltol))
    if not near.any(0).all():
        return np.empty((0, 3, 3))
    used = np.flatnonzero(near.any(1))
    near, points, units = near[used], points[used], points[used] / lengths[used, None]
    places = [np.flatnonzero(near[:, axis]) for axis in range(3)]
    most, least = (
        np.cos(np.radians(np.clip(angles + sign * settings.angle_tol, 0, 180))) + sign * -1e-12 for sign in (-1, 1)
    )
    fitting = []
    for axis, (i, j) in enumerate(((1, 2), (0, 2), (0, 1))):
        cosines = units[places[i]] @ units[places[j]].T
        fits_here = (cosines <= most[axis]) & (cosines >= least[axis])
        if not fits_here.any():
            return np.empty((0, 3, 3))
        fitting.append(fits_here)
    alpha, beta, gamma = fitting
    chosen = np.nonzero(gamma[:, :, None] & beta[:, None, :] & alpha[None, :, :])
    rows = np.stack([places[axis][chosen[axis]] for axis in range(3)], axis=1)
    determinants = np.abs(np.linalg.det(grid[used][rows]))
    return points[rows[np.abs(determinants - 1) < 0.5]]


@functools.lru_cache(maxsize=65536)
def _lll_mapping(parameters: tuple[float, ...]) -> np.ndarray:
    """Integer matrix that takes a cell to pymatgen's LLL-reduced one."""
    from pymatgen.core import Lattice

    return np.round(Lattice.from_parameters(*parameters).lll_mapping)


def _lll_mappings(parameters: np.ndarray, lattices: np.ndarray) -> np.ndarray:
    """(M, 3, 3) `_lll_mapping` of each; cells that are reduced beyond doubt are not asked for."""
    first = lattices[:, 0]
    square = (first**2).sum(-1)
    mu_10 = (lattices[:, 1] * first).sum(-1) / square
    second = lattices[:, 1] - mu_10[:, None] * first
    square_2 = (second**2).sum(-1)
    mu_20, mu_21 = (lattices[:, 2] * first).sum(-1) / square, (lattices[:, 2] * second).sum(-1) / square_2
    third = lattices[:, 2] - mu_20[:, None] * first - mu_21[:, None] * second
    small = np.maximum(np.abs(mu_10), np.maximum(np.abs(mu_20), np.abs(mu_21))) < 0.5 - 1e-6
    ordered = (square_2 > (0.75 - mu_10**2) * square * (1 + 1e-6)) & (
        (third**2).sum(-1) > (0.75 - mu_21**2) * square_2 * (1 + 1e-6)
    )
    mappings = np.tile(np.eye(3), (len(lattices), 1, 1))
    for row in np.flatnonzero(~(small & ordered)):
        # equal up to rounding: symmetry brings the same cell many times
        mappings[row] = _lll_mapping(tuple(np.round(parameters[row], 9).tolist()))
    return mappings


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Ways of laying one crystal on another: K of them.

    Attributes:
        lattices: (K, 3, 3) average cells.
        parameters: (K, 6) of these.
        first: (K, N, 3) fractional coordinates of the first crystal.
        second: (K, N, 3) those of the second, moved.
        scale: (K,) inverse of (volume / atoms)^(1/3).
    """

    lattices: np.ndarray
    parameters: np.ndarray
    first: np.ndarray
    second: np.ndarray
    scale: np.ndarray

    def take(self, rows: np.ndarray) -> "_Candidates":
        return _Candidates(
            self.lattices[rows], self.parameters[rows], self.first[rows], self.second[rows], self.scale[rows]
        )

    def __len__(self) -> int:
        return len(self.scale)


def _candidates(first: ReducedCrystal, second: ReducedCrystal, lattices: np.ndarray) -> _Candidates:
    """All lattices of `_near_lattices` with all translations, before the atoms are looked at."""
    ratio = (second.volume / first.volume) ** (1 / 6)
    coordinates = (first.frac_coords @ (first.lattice * ratio)) @ np.linalg.inv(lattices)  # (M, N, 3)
    coordinates -= np.floor(coordinates)
    parameters = (_lengths_and_angles(lattices) + _lengths_and_angles(second.lattice / ratio)) / 2
    average = _lattices_of(parameters)
    scale = (len(first.numbers) / np.abs(np.linalg.det(average))) ** (1 / 3)
    anchors = np.flatnonzero(second.numbers == second.anchor)  # the first of them is laid on each like atom
    shifts = (coordinates[:, anchors] - second.frac_coords[anchors[0]]).reshape(-1, 3)
    rows = np.repeat(np.arange(len(lattices)), len(anchors))
    return _Candidates(
        average[rows], parameters[rows], coordinates[rows], second.frac_coords + shifts[:, None, :], scale[rows]
    )


def _squares(vectors: np.ndarray) -> np.ndarray:
    return np.einsum("...i,...i->...", vectors, vectors)


def _inside(delta: np.ndarray, lattices: np.ndarray, scale: np.ndarray, stol: float) -> np.ndarray:
    """Whether fractional differences (K, P, 3) lie in the box of tolerance along the axes of (K, 3, 3)."""
    half = 2 * stol * np.linalg.norm(np.linalg.inv(lattices), axis=-2) / scale[:, None]
    x, y, z = np.moveaxis(np.abs(delta - np.round(delta)) <= half[:, None], -1, 0)
    return x & y & z  # much faster than all(-1) over three


def _with_partners(candidates: _Candidates, crystal: ReducedCrystal, stol: float) -> np.ndarray:
    """Places of the candidates in which every atom of the second crystal has a like one in its box."""
    of_second, of_first = crystal.like_pairs
    delta = candidates.first[:, of_first] - candidates.second[:, of_second]
    inside = _inside(delta, candidates.lattices, candidates.scale, stol)
    starts = np.searchsorted(of_second, np.arange(len(crystal.numbers)))
    return np.flatnonzero(np.logical_or.reduceat(inside, starts, axis=1).all(1))


def _shortest_vectors(candidates: _Candidates, crystal: ReducedCrystal, stol: float) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (K, P, 3) from atoms of the second crystal to like ones of the first, and their squares (K, P)."""
    of_second, of_first = crystal.like_pairs
    mappings = _lll_mappings(candidates.parameters, candidates.lattices)
    reduced = mappings @ candidates.lattices
    delta = (candidates.first[:, of_first] - candidates.second[:, of_second]) @ np.linalg.inv(mappings)
    delta -= np.round(delta)
    inside = _inside(delta, reduced, candidates.scale, stol)
    vectors = delta @ reduced
    shifts = _IMAGES @ reduced  # (K, 27, 3)
    # |v + s|² - |v|² = 2 v·s + |s|²: the vectors of all images are never held
    gains = 2 * vectors @ shifts.transpose(0, 2, 1) + _squares(shifts)[:, None]
    vectors += shifts[np.arange(len(candidates))[:, None], gains.argmin(-1)]
    return vectors, np.where(inside, _squares(vectors), _FAR)


def _assigned(squares: np.ndarray) -> np.ndarray:
    """Columns (K, n) of the cheapest assignment of (K, n, n) costs."""
    nearest = squares.argmin(-1)
    # where the nearest atoms are all different they are the cheapest assignment
    distinct = (np.sort(nearest, axis=-1) == np.arange(squares.shape[-1])).all(-1)
    for row in np.flatnonzero(~distinct):
        nearest[row] = linear_sum_assignment(squares[row])[1]
    return nearest


@dataclass(frozen=True, eq=False)
class _Matches:
    """What became of K candidates in which all atoms have partners.

    Attributes:
        distances: (K, N) between paired atoms after the best small translation, in units of (volume / atoms)^(1/3).
        lower_bounds: (K,) of the RMS distance, for whichever of several equally cheap assignments pymatgen takes.
        unique: (K,) whether there is one cheapest assignment only.
    """

    distances: np.ndarray
    lower_bounds: np.ndarray
    unique: np.ndarray


def _matches(candidates: _Candidates, crystal: ReducedCrystal, stol: float) -> _Matches:
    vectors, squares = _shortest_vectors(candidates, crystal, stol)
    count = len(crystal.numbers)
    rows = np.arange(len(candidates))[:, None]
    starts = np.searchsorted(crystal.like_pairs[0], np.arange(count))
    nearest = np.minimum.reduceat(squares, starts, axis=1)  # (K, N)
    chosen, slack, start = [], [], 0
    for block in crystal.blocks:
        size = block.stop - block.start
        end = start + size * size
        places = start + size * np.arange(size) + _assigned(squares[:, start:end].reshape(-1, size, size))
        chosen.append(places)
        excess = squares[rows, places].sum(1) - nearest[:, block].sum(1)
        slack.append(np.repeat(excess[:, None], size, axis=1))
        start = end
    places = np.concatenate(chosen, axis=1)
    feasible = (squares[rows, places] < _FAR).all(1)
    # no assignment that costs as little has a pair above this
    limits = nearest + np.concatenate(slack, axis=1)
    options = squares <= limits[:, crystal.like_pairs[0]] * (1 + _EQUAL) + _EQUAL
    unique = options.sum(1) == count
    bounds = np.zeros(len(candidates))
    doubtful = np.flatnonzero(feasible & ~unique)
    if len(doubtful):
        # the mean displacement is what the small translation removes: no choice of options makes it longer than this
        along = np.where(options[doubtful, :, None], vectors[doubtful] @ _DIRECTIONS.T, -np.inf)
        longest = np.maximum.reduceat(along, starts, axis=1).sum(1).max(1) / (count * _LEAST_COSINE)
        squared = squares[doubtful[:, None], places[doubtful]].mean(1) - longest**2
        bounds[doubtful] = np.sqrt(np.maximum(squared, 0)) * candidates.scale[doubtful]
    moved = vectors[rows, places]
    moved -= moved.mean(axis=1, keepdims=True)
    distances = np.sqrt(_squares(moved)) * candidates.scale[:, None]
    return _Matches(distances[feasible], bounds[feasible], unique[feasible])


def _all_matches(first: ReducedCrystal, second: ReducedCrystal, settings: MatcherSettings) -> _Matches:
    """All ways of laying the first crystal on the second."""
    parts = [_Matches(np.empty((0, len(first.numbers))), np.empty(0), np.empty(0, dtype=bool))]
    same = np.array_equal(first.numbers, second.numbers)
    if same and len(lattices := _near_lattices(first, second, settings)):
        candidates = _candidates(first, second, lattices)
        step = max(1, _BLOCK_ENTRIES // (27 * len(first.like_pairs[0])))
        for start in range(0, len(candidates), step):
            part = candidates.take(np.arange(start, min(start + step, len(candidates))))
            part = part.take(_with_partners(part, second, settings.stol))
            if len(part):
                parts.append(_matches(part, second, settings.stol))
    if len(parts) == 1:
        return parts[0]
    return _Matches(*(np.concatenate(arrays) for arrays in zip(*(vars(part).values() for part in parts), strict=True)))


def _rms(settings: MatcherSettings, first: ReducedCrystal, second: ReducedCrystal) -> float | None:
    found = _all_matches(first, second, settings)
    rms = np.sqrt((found.distances**2).mean(axis=1))
    best = rms[found.unique].min(initial=settings.stol)
    if (found.lower_bounds[~found.unique] < best).any():
        return pymatgen_rms(settings, (_given_structure(first), _given_structure(second)))
    return float(best) if best < settings.stol else None


def _fit(settings: MatcherSettings, first: ReducedCrystal, second: ReducedCrystal) -> bool:
    found = _all_matches(first, second, settings)
    if (found.distances[found.unique].max(axis=1, initial=0.0) < settings.stol).any():
        return True
    if (found.lower_bounds[~found.unique] < settings.stol).any():
        return pymatgen_fit(settings, (_given_structure(first), _given_structure(second)))
    return False


def rms_distance(settings: MatcherSettings, pair: tuple[ReducedCrystal, ReducedCrystal]) -> float | None:
    """RMS displacement over (volume / atoms)^(1/3), or None where the crystals do not match.

    Args:
        settings: Tolerances.
        pair: Crystals of `reduce_crystal`; the second with `niggli=True`.
    """
    first, second = pair
    if len(first.numbers) == len(second.numbers):
        rms = _rms(settings, first, second)
        # in a smaller cell the first crystal would have too few atoms, so only a match has to be looked at again
        if rms is None or first.reduced is first:
            return rms
    return _rms(settings, first.reduced, second)


def fits(settings: MatcherSettings, pair: tuple[ReducedCrystal, ReducedCrystal]) -> bool:
    """Whether the crystals match: no paired atoms farther apart than the tolerance.

    Args:
        settings: Tolerances.
        pair: As in `rms_distance`.
    """
    first, second = pair
    if len(first.numbers) == len(second.numbers):
        same = _fit(settings, first, second)
        if not same or first.reduced is first:
            return same
    return _fit(settings, first.reduced, second)
