# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""All ways of laying one crystal on another that `StructureMatcher` tries, for many pairs at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_crystal.evaluation.structure_matching.near_lattices import (
    adjugates,
    determinants,
    lattices_of,
    lengths_and_angles,
    near_lattices,
)
from hf_crystal.evaluation.structure_matching.pymatgen_matcher import MatcherSettings
from hf_crystal.evaluation.structure_matching.reduced_crystals import ReducedCrystal, SiteBlocks

_COORDINATE_STEPS = 10**8  # coordinates and
_LENGTH_STEPS = 10**7  # lengths (per Å, and angles per degree) that agree to these are the same
_FACTORS = np.array(
    [
        0x9E3779B97F4A7C15,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x27D4EB2F165667C5,
        0x94D049BB133111EB,
        0xD6E8FEB86659FD93,
    ],
    dtype=np.uint64,
)  # odd and otherwise arbitrary


@dataclass(frozen=True, eq=False)
class Superpositions:
    """Ways of laying first crystals on second ones: K of them.

    Attributes:
        owner: (K,) number of the pair.
        lattices: (K, 3, 3) average cells.
        parameters: (K, 6) of these.
        first: (K, N, 3) fractional coordinates of the first crystal, moved onto the second.
        second: (K, N, 3) those of the second.
        scale: (K,) inverse of (volume / atoms)^(1/3).
    """

    owner: np.ndarray
    lattices: np.ndarray
    parameters: np.ndarray
    first: np.ndarray
    second: np.ndarray
    scale: np.ndarray

    def take(self, rows: np.ndarray) -> "Superpositions":
        """Some of them."""
        return Superpositions(*(array[rows] for array in vars(self).values()))

    def __len__(self) -> int:
        return len(self.owner)


def superpositions(
    pairs: Sequence[tuple[ReducedCrystal, ReducedCrystal]], blocks: SiteBlocks, settings: MatcherSettings
) -> Superpositions:
    """All near lattices with all translations that put a rarest atom on its like; equal ones once.

    Args:
        pairs: First and second crystal of each pair; all have the same blocks and anchor.
        blocks: Atoms of one element.
        settings: Tolerances.
    """
    # both cells are brought to the geometric mean of their volumes
    ratios = np.array([(second.volume / first.volume) ** (1 / 6) for first, second in pairs])
    scaled = np.stack([first.lattice for first, _ in pairs]) * ratios[:, None, None]
    wanted = np.stack([second.parameters for _, second in pairs])
    wanted[:, :3] /= ratios[:, None]
    owner, bases = near_lattices(scaled, wanted, settings.ltol, settings.angle_tol)
    # whole numbers with a determinant of 1 or -1: so is the inverse
    inverses = np.round(adjugates(bases) / determinants(bases)[:, None, None])
    coordinates = np.stack([first.frac_coords for first, _ in pairs])[owner] @ inverses  # (M, N, 3)
    parameters = lengths_and_angles(bases @ scaled[owner])
    rarest = blocks.slices[pairs[0][1].anchor]
    from_anchor = coordinates[:, None] - coordinates[:, rarest, None]  # (M, anchors, N, 3)
    keys = _mixed(parameters * _LENGTH_STEPS) + owner.astype(np.uint64) * _FACTORS[0]
    keys = _scrambled(keys)[:, None] + _contents(from_anchor, blocks.element)
    _, chosen = np.unique(keys, return_index=True)
    row, anchor = np.divmod(chosen, keys.shape[1])
    owner, count = owner[row], len(blocks.element)
    parameters = (parameters[row] + wanted[owner]) / 2
    lattices = lattices_of(parameters)
    second = np.stack([crystal.frac_coords for _, crystal in pairs])[owner]
    first = from_anchor[row, anchor] + second[:, rarest.start, None]
    scale = (count / np.abs(determinants(lattices))) ** (1 / 3)
    return Superpositions(owner, lattices, parameters, first, second, scale)


def _mixed(values: np.ndarray) -> np.ndarray:
    """One number (...) for whole numbers (..., n), n up to 6."""
    whole = np.round(values).astype(np.int64).astype(np.uint64)
    return (whole * _FACTORS[: values.shape[-1]]).sum(axis=-1)


def _scrambled(keys: np.ndarray) -> np.ndarray:
    """Keys whose sums say which they were (finaliser of SplitMix64: Steele et al., OOPSLA 2014)."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def _contents(coordinates: np.ndarray, element: np.ndarray) -> np.ndarray:
    """Keys (...) of sets of atoms (..., N, 3): equal sets have equal keys, others differ but for one in 10^19."""
    inside = np.round(coordinates * _COORDINATE_STEPS) % _COORDINATE_STEPS
    return _scrambled(_mixed(inside) + element.astype(np.uint64) * _FACTORS[3]).sum(axis=-1)
