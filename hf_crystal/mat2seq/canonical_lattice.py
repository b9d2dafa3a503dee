# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Reduced bases of a lattice that depend on the lattice only.

Selling reduction gives short vectors; from these all bases with the smallest rounded lengths, then angle class, then
rounded angles are kept. A symmetric lattice has several such bases, all of them are returned.

A basis on the grid goes first even where rounding has made another one shorter by a few steps: without this rule a
lattice that is decoded and encoded again could change its basis, and be rounded anew, many times over.
"""

import itertools

import numpy as np

from .canonical_crystal import quantize

__all__ = ["REDUCTION_SLACK", "lengths_and_angles", "on_grid", "reduced_bases", "smallest_row"]

REDUCTION_SLACK = 4  # length steps by which a basis on the grid may be longer than the shortest one
_ON_GRID = 1e-4  # of a step

_COMBINATIONS = np.array([v for v in itertools.product((-1, 0, 1), repeat=3) if v > (0, 0, 0)])
_SIGNED = np.concatenate([_COMBINATIONS, -_COMBINATIONS])
_PAIRS = tuple(itertools.combinations(range(4), 2))
# Which pairs of the signed combinations are independent, and the determinants of all triples.
_CROSSED = np.cross(_SIGNED[:, None], _SIGNED[None])
_INDEPENDENT = np.abs(_CROSSED).sum(axis=-1) > 0
_DETERMINANTS = _CROSSED @ _SIGNED.T


def lengths_and_angles(metric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths a b c (Å) and angles α β γ (degrees) of metric tensors of shape (..., 3, 3)."""
    lengths = np.sqrt(np.diagonal(metric, axis1=-2, axis2=-1))
    products = np.stack([metric[..., 1, 2], metric[..., 0, 2], metric[..., 0, 1]], axis=-1)
    neighbors = lengths[..., [1, 0, 0]] * lengths[..., [2, 2, 1]]
    return lengths, np.degrees(np.arccos(np.clip(products / neighbors, -1.0, 1.0)))


def on_grid(metric: np.ndarray, length_step: float, angle_step: float) -> np.ndarray:
    """Whether all lengths and angles of metric tensors (..., 3, 3) are multiples of the steps."""
    lengths, angles = lengths_and_angles(metric)
    return _on_grid(lengths, length_step) & _on_grid(angles, angle_step)


def _on_grid(values: np.ndarray, step: float) -> np.ndarray:
    steps = values / step
    return np.abs(steps - np.rint(steps)).max(axis=-1) < _ON_GRID


def reduced_bases(
    cell: np.ndarray, length_step: float, angle_step: float, *, prefer_grid: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """All right-handed reduced bases of the lattice that look the same after rounding.

    Args:
        cell: Basis vectors as rows, Å, right-handed.
        length_step: Rounding of lengths, Å.
        angle_step: Rounding of angles, degrees.
        prefer_grid: Whether nearly reduced bases on the grid go first.

    Returns:
        Integers of shape (bases, 3, 3), new basis = integers @ `cell`; and the six rounded parameters that all of
        them share, in steps.
    """
    superbase = _selling_superbase(cell)
    vectors = superbase @ cell
    order = np.argsort((vectors * vectors).sum(axis=1), kind="stable")[:3]
    short = _SIGNED @ superbase[order]
    vectors = short @ cell
    products = vectors @ vectors.T
    lengths = np.sqrt(products.diagonal())
    handedness = 1 if np.linalg.det(superbase[order]) > 0 else -1
    for slack in (REDUCTION_SLACK, 0) if prefer_grid else (0,):
        triples = _shortest_triples(lengths, length_step, slack, handedness)
        one, other = triples[:, [1, 0, 0]], triples[:, [2, 2, 1]]
        cosines = products[one, other] / (lengths[one] * lengths[other])
        opposite = np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0)))
        if slack:
            wanted = _on_grid(lengths[triples], length_step) & _on_grid(opposite, angle_step)
            triples, opposite = triples[wanted], opposite[wanted]
        if len(triples):
            break
    rounded = quantize(opposite, angle_step)
    right = quantize(90.0, angle_step)
    angle_class = np.where((rounded <= right).all(axis=1), 0, np.where((rounded >= right).all(axis=1), 1, 2))
    keys = np.concatenate([quantize(lengths, length_step)[triples], angle_class[:, None], rounded], axis=1)
    best, tied = smallest_row(keys)
    return short[triples[tied]], best[[0, 1, 2, 4, 5, 6]]


def smallest_row(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lexicographically smallest row of `keys`, and which rows are equal to it."""
    best = keys[np.lexsort(keys.T[::-1])[0]]
    return best, (keys == best).all(axis=1)


def _selling_superbase(cell: np.ndarray) -> np.ndarray:
    """Four integer rows that sum to 0 and whose vectors, in the basis `cell`, meet at 90° or more (Selling 1874)."""
    rows = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]]
    start = np.array(rows) @ cell
    products = (start @ start.T).tolist()
    for _ in range(1000):
        value, i, j = max((products[i][j], i, j) for i, j in _PAIRS)
        if value <= 1e-9 * max(products[n][n] for n in range(4)):
            break
        # v_i → −v_i and the two others + v_i: the sum stays 0 and the total squared length shrinks by 4 v_i·v_j.
        for k in range(4):
            if k not in (i, j):
                rows[k] = [x + y for x, y in zip(rows[k], rows[i], strict=True)]
                products[k] = [x + y for x, y in zip(products[k], products[i], strict=True)]
                for row in products:
                    row[k] += row[i]
        rows[i] = [-x for x in rows[i]]
        products[i] = [-x for x in products[i]]
        for row in products:
            row[i] = -row[i]
    return np.array(rows)


def _shortest_triples(lengths: np.ndarray, length_step: float, slack: int, handedness: int) -> np.ndarray:
    """Right-handed triples of `_SIGNED` with the successive minima as rounded lengths, or up to `slack` steps more.

    Returns:
        Places in `_SIGNED`, shape (triples, 3).
    """
    order = np.argsort(lengths, kind="stable")
    first = int(order[0])
    second = int(order[_INDEPENDENT[first, order].argmax()])
    third = int(order[(_DETERMINANTS[first, second, order] != 0).argmax()])
    rounded = quantize(lengths, length_step)
    a, b, c = ((np.abs(rounded - rounded[i]) <= slack).nonzero()[0] for i in (first, second, third))
    i, j, k = (_DETERMINANTS[a[:, None, None], b[:, None], c] == handedness).nonzero()
    return np.array([a[i], b[j], c[k]]).T
