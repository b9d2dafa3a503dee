# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Lattices in arrays: bases that are near a wanted cell, and reduced bases."""

import functools
import itertools

import numpy as np

_BLOCK_POINTS = 200_000  # lattice points held at a time
_DOUBT = 1e-6  # a step of the reduction that rounding could turn


def lengths_and_angles(lattices: np.ndarray) -> np.ndarray:
    """(..., 6) a b c in Å, alpha beta gamma in degrees, of (..., 3, 3)."""
    lengths = np.sqrt(np.einsum("...i,...i->...", lattices, lattices))
    products = np.einsum("...xi,...yi->...xy", lattices, lattices)
    cosines = [products[..., i, j] / (lengths[..., i] * lengths[..., j]) for i, j in ((1, 2), (0, 2), (0, 1))]
    return np.concatenate([lengths, np.degrees(np.arccos(np.clip(np.stack(cosines, -1), -1, 1)))], axis=-1)


def lattices_of(parameters: np.ndarray) -> np.ndarray:
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


def adjugates(matrices: np.ndarray) -> np.ndarray:
    """(M, 3, 3) inverses times determinants."""
    x, y, z = matrices[:, 0], matrices[:, 1], matrices[:, 2]
    return np.stack([np.cross(y, z), np.cross(z, x), np.cross(x, y)], axis=-1)


def determinants(matrices: np.ndarray) -> np.ndarray:
    """(M,) of (M, 3, 3)."""
    return np.einsum("mi,mi->m", matrices[:, 0], np.cross(matrices[:, 1], matrices[:, 2]))


@functools.lru_cache(maxsize=1024)
def _grid(reach: tuple[int, ...]) -> np.ndarray:
    """(G, 3) whole numbers from -n to n."""
    return np.array(list(itertools.product(*(range(-n, n + 1) for n in reach))), dtype=float)


def near_lattices(
    lattices: np.ndarray, wanted: np.ndarray, ltol: float, angle_tol: float
) -> tuple[np.ndarray, np.ndarray]:
    """Bases of each lattice whose lengths and angles are near wanted ones, as `Lattice.find_all_mappings` judges.

    Args:
        lattices: (B, 3, 3) Å.
        wanted: (B, 6) lengths in Å and angles in degrees.
        ltol: Fractional tolerance of lengths.
        angle_tol: Tolerance of angles, degrees.

    Returns:
        (M,) which lattice, and (M, 3, 3) the basis as whole multiples of its vectors, with a determinant of 1 or -1.
    """
    radii = wanted[:, :3].max(axis=1) * (1 + ltol) + 1e-8
    reach = (radii[:, None] * np.linalg.norm(np.linalg.inv(lattices), axis=1)).astype(int)
    grid_size = int(np.prod(2 * reach.max(axis=0, initial=0) + 1))
    if len(lattices) > 1 and len(lattices) * grid_size > _BLOCK_POINTS:
        order = np.argsort(reach.prod(axis=1), kind="stable")
        halves = np.array_split(order, 2)
        found = [near_lattices(lattices[half], wanted[half], ltol, angle_tol) for half in halves]
        owners = np.concatenate([half[owner] for half, (owner, _) in zip(halves, found, strict=True)])
        return owners, np.concatenate([bases for _, bases in found])
    grid = _grid(tuple(reach.max(axis=0, initial=0).tolist()))
    points = grid @ lattices  # (B, G, 3)
    lengths = np.sqrt(np.einsum("bgi,bgi->bg", points, points))
    relative = lengths[:, None] / wanted[:, :3, None]
    near = (relative < 1 + ltol) & (relative > 1 / (1 + ltol))  # (B, 3, G)
    possible = np.flatnonzero(near.any(axis=2).all(axis=1))
    near = near[possible]
    points, lengths = points[possible], lengths[possible]
    listed, units = zip(*(_side_by_side(near[:, axis], points, lengths) for axis in range(3)), strict=True)
    angles = wanted[possible, 3:]
    most, least = (np.cos(np.radians(np.clip(angles + sign * angle_tol, 0, 180))) + sign * -1e-12 for sign in (-1, 1))
    fitting = []
    for angle, (i, j) in enumerate(((1, 2), (0, 2), (0, 1))):
        cosines = units[i] @ units[j].transpose(0, 2, 1)
        fitting.append((cosines <= most[:, angle, None, None]) & (cosines >= least[:, angle, None, None]))
    alpha, beta, gamma = fitting
    owner, first, second = np.nonzero(gamma)
    pair, third = np.nonzero(beta[owner, first] & alpha[owner, second])
    owner = owner[pair]
    chosen = [listed[axis][owner, place] for axis, place in enumerate((first[pair], second[pair], third))]
    bases = grid[np.stack(chosen, axis=1)]
    primitive = np.abs(np.abs(determinants(bases)) - 1) < 0.5
    return possible[owner[primitive]], bases[primitive]


def _side_by_side(near: np.ndarray, points: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places (B, W) and directions (B, W, 3) of the chosen points (B, G); NaN where a lattice has fewer than W."""
    owner, point = np.nonzero(near)
    counts = near.sum(axis=1)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    listed = np.zeros((len(near), counts.max(initial=0)), dtype=int)
    listed[owner, place] = point
    units = np.full((*listed.shape, 3), np.nan)
    units[owner, place] = points[owner, point] / lengths[owner, point][:, None]
    return listed, units


def lll_mappings(lattices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """LLL reduction of many lattices (Lenstra, Lenstra, Lovász 1982; delta 0.75).

    Args:
        lattices: (M, 3, 3).

    Returns:
        (M, 3, 3) whole matrices that take each lattice to its reduced one, and (M,) whether no step was decided by
        rounding. pymatgen takes the same steps, except for those.
    """
    mappings = np.tile(np.eye(3), (len(lattices), 1, 1))
    certain = np.ones(len(lattices), dtype=bool)
    stage = np.ones(len(lattices), dtype=int)
    active = np.arange(len(lattices))
    while len(active):
        basis, k = mappings[active] @ lattices[active], stage[active]
        rows = np.arange(len(active))
        squares, mu_10, mu_20, mu_21 = _gram_schmidt(basis)
        last = k == 2
        nearer = np.where(last, mu_21, mu_10)
        q = np.round(nearer)
        farther = np.where(last, mu_20 - q * mu_10, 0.0)
        q_far = np.round(farther)
        for value, whole in ((nearer, q), (farther, q_far)):
            certain[active] &= np.abs(np.abs(value - whole) - 0.5) > _DOUBT
        current = mappings[active]
        row = current[rows, k] - q[:, None] * current[rows, k - 1] - (q_far * last)[:, None] * current[:, 0]
        bound = (0.75 - (nearer - q) ** 2) * squares[rows, k - 1]
        size = squares[rows, k]
        certain[active] &= np.abs(size - bound) > _DOUBT * squares[rows, k - 1]
        holds = size >= bound
        before = current[rows, k - 1]
        current[rows, k] = np.where(holds[:, None], row, before)
        current[rows, k - 1] = np.where(holds[:, None], before, row)
        mappings[active] = current
        stage[active] = np.where(holds, k + 1, np.maximum(k - 1, 1))
        active = active[stage[active] < 3]
    return mappings, certain


def _gram_schmidt(basis: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Squared lengths (M, 3) of the orthogonal vectors, and the coefficients 10, 20 and 21."""
    first, second, third = basis[:, 0], basis[:, 1], basis[:, 2]
    square_1 = np.einsum("mi,mi->m", first, first)
    mu_10 = np.einsum("mi,mi->m", second, first) / square_1
    second = second - mu_10[:, None] * first
    square_2 = np.einsum("mi,mi->m", second, second)
    mu_20 = np.einsum("mi,mi->m", third, first) / square_1
    mu_21 = np.einsum("mi,mi->m", third, second) / square_2
    third = third - mu_20[:, None] * first - mu_21[:, None] * second
    return np.stack([square_1, square_2, np.einsum("mi,mi->m", third, third)], axis=1), mu_10, mu_20, mu_21


@functools.lru_cache(maxsize=65536)
def pymatgen_lll_mapping(parameters: tuple[float, ...]) -> np.ndarray:
    """Whole matrix that takes a cell of these lengths and angles to pymatgen's LLL-reduced one."""
    from pymatgen.core import Lattice

    return np.round(Lattice.from_parameters(*parameters).lll_mapping)
