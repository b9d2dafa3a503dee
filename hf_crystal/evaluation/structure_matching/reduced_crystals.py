# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Crystals as `fast_matcher` wants them: arrays of a primitive cell, made once per crystal."""

import functools
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from hf_crystal.crystals.record import CrystalRecord
from hf_crystal.evaluation.results import plain_structure
from hf_crystal.evaluation.structure_matching.near_lattices import lengths_and_angles

_REDUCIBLE_WITHIN = 1.5 * (1 + 1e-6)  # Å: see `_may_be_reducible`


@dataclass(frozen=True, eq=False)
class SiteBlocks:
    """Which places of a list of atoms, sorted by element, hold the same element.

    Attributes:
        slices: Places of each element.
        second: (P,) places of the second atom of all ordered pairs of like atoms, sorted.
        first: (P,) places of the first atom of these pairs.
        starts: (N,) where the pairs of each second atom begin.
        element: (N,) number of the block of each atom.
    """

    slices: tuple[slice, ...]
    second: np.ndarray
    first: np.ndarray
    starts: np.ndarray
    element: np.ndarray


@functools.lru_cache(maxsize=4096)
def site_blocks(sizes: tuple[int, ...]) -> SiteBlocks:
    """Blocks of atoms of one element, from how many there are of each."""
    element = np.repeat(np.arange(len(sizes)), sizes)
    ends = np.cumsum(sizes).tolist()
    second, first = np.nonzero(element[:, None] == element)
    slices = tuple(slice(end - size, end) for end, size in zip(ends, sizes, strict=True))
    return SiteBlocks(slices, second, first, np.searchsorted(second, np.arange(len(element))), element)


@dataclass(frozen=True, eq=False)
class ReducedCrystal:
    """A primitive cell with atoms sorted by element.

    Attributes:
        lattice: (3, 3) Å, rows.
        frac_coords: (N, 3).
        numbers: (N,) atomic numbers, ascending.
        sizes: Number of atoms of each element, in that order.
        anchor: Which of these is the rarest element; of several the one that pymatgen lists first.
        given: The crystal before the reduction.
        is_final: Whether pymatgen reduced it; otherwise it is as given, and `reduced` is needed for a last word.
    """

    lattice: np.ndarray
    frac_coords: np.ndarray
    numbers: np.ndarray
    sizes: tuple[int, ...]
    anchor: int
    given: CrystalRecord
    is_final: bool

    @functools.cached_property
    def content(self) -> bytes:
        """Equal for crystals of equal atoms."""
        return self.numbers.tobytes()

    @functools.cached_property
    def reduced(self) -> "ReducedCrystal":
        """The crystal in the primitive cell that pymatgen finds; itself where it cannot find a smaller one."""
        if self.is_final or not _may_be_reducible(self):
            return self
        found = reduce_crystal(self.given, niggli=True)
        return found if len(found.numbers) < len(self.numbers) else self

    @functools.cached_property
    def volume(self) -> float:
        """Å³."""
        return abs(float(np.linalg.det(self.lattice)))

    @functools.cached_property
    def parameters(self) -> np.ndarray:
        """(6,) a b c in Å, alpha beta gamma in degrees."""
        return lengths_and_angles(self.lattice)

    @functools.cached_property
    def reciprocal_lengths(self) -> np.ndarray:
        """(3,) 1/Å."""
        return np.linalg.norm(np.linalg.inv(self.lattice), axis=0)


def reduce_crystal(crystal: CrystalRecord, *, niggli: bool) -> ReducedCrystal:
    """Primitive cell as `StructureMatcher` takes it (pymatgen's, tolerance 0.25 Å).

    Args:
        crystal: What `as_record` gives.
        niggli: Whether the cell has to be Niggli-reduced, as that of the second crystal of a pair. That of the first
            need not be, since all its lattice vectors are tried; then the work is put off until it is needed.
    """
    lattice, frac_coords, numbers = crystal.cell, crystal.frac_coords, crystal.atomic_numbers
    if niggli:
        structure = plain_structure(crystal)
        structure = structure.get_reduced_structure(reduction_algo="niggli").get_primitive_structure()
        lattice, frac_coords = structure.lattice.matrix, structure.frac_coords
        numbers = np.array([site.specie.Z for site in structure])
    order = numbers.argsort(kind="stable")
    listed = Counter(numbers.tolist())
    elements = sorted(listed)
    return ReducedCrystal(
        lattice,
        frac_coords[order],
        numbers[order],
        tuple(listed[element] for element in elements),
        elements.index(min(listed, key=listed.__getitem__)),
        crystal,
        niggli,
    )


def _may_be_reducible(crystal: ReducedCrystal) -> bool:
    """Whether pymatgen could find a smaller cell.

    It needs counts with a common divisor, and a translation between two atoms of the rarest element that takes every
    atom near a like one: within twice 0.25 Å along each axis of the reduced cell, hence within 1.5 Å.
    """
    if math.gcd(*crystal.sizes) == 1:
        return False
    from pymatgen.core import Lattice

    blocks = site_blocks(crystal.sizes)
    frac = crystal.frac_coords
    rarest = frac[blocks.slices[int(np.argmin(crystal.sizes))]]
    shifts = rarest[1:] - rarest[0]
    delta = frac[blocks.first] - frac[blocks.second] - shifts[:, None]
    # lattice planes are never farther apart than atoms on them, and quicker to look at
    near = (np.abs(delta - np.round(delta)) <= _REDUCIBLE_WITHIN * crystal.reciprocal_lengths).all(axis=-1)
    near = np.logical_or.reduceat(near, blocks.starts, axis=1).all(axis=1)
    distances = Lattice(crystal.lattice).get_all_distances
    return any(
        all(
            distances(frac[block] + shift, frac[block]).min(axis=1).max() <= _REDUCIBLE_WITHIN
            for block in blocks.slices
        )
        for shift in shifts[near]
    )
