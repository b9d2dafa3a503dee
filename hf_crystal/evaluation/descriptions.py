# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Other descriptions of the same crystal: what must not change a canonical sequence, for tests and reports."""

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["random_description"]


def random_description(
    record: Mapping[str, Any], generator: np.random.Generator, *, noise: float = 0.0, max_atoms: int = 180
) -> dict[str, np.ndarray]:
    """Describe a crystal anew: other cell, sometimes a supercell or left-handed axes, rotation, origin, order.

    Args:
        record: `cell (3, 3)` Å, `frac_coords (N, 3)`, `atomic_numbers (N,)`.
        generator: Source of randomness.
        noise: Standard deviation of Gaussian noise, Å, on every position and every lattice vector component.
        max_atoms: Largest supercell.

    Returns:
        A record of the same crystal (up to the noise).
    """
    cell = np.asarray(record["cell"], dtype=float).reshape(3, 3)
    numbers = np.asarray(record["atomic_numbers"])
    positions = np.asarray(record["frac_coords"], dtype=float).reshape(-1, 3) @ cell
    change = _random_unimodular(generator)
    if generator.random() < 0.5:
        multiple = int(generator.integers(2, 4))
        if multiple * len(numbers) <= max_atoms:
            axis = int(generator.integers(3))
            stretch = np.eye(3, dtype=np.int64)
            stretch[axis, axis] = multiple
            stretch[axis, (axis + 1) % 3] = generator.integers(0, 2)
            change = stretch @ change
    if generator.random() < 0.3:
        change = change[[1, 0, 2]]  # left-handed axes
    translations = _translations_inside(change) @ cell
    positions = (positions[None] + translations[:, None]).reshape(-1, 3)
    numbers = np.tile(numbers, len(translations))
    described = change @ cell
    positions = positions + 5.0 * generator.normal(size=3)
    if noise:
        positions = positions + noise * generator.normal(size=positions.shape)
        described = described + noise * generator.normal(size=(3, 3))
    rotation = _random_rotation(generator)
    order = generator.permutation(len(numbers))
    frac = (positions @ np.linalg.inv(described))[order] + generator.integers(-2, 3, size=(len(numbers), 3))
    return {"cell": described @ rotation, "frac_coords": frac, "atomic_numbers": numbers[order]}


def _random_unimodular(generator: np.random.Generator) -> np.ndarray:
    """Integer matrix of determinant 1: four random additions of one axis to another."""
    change = np.eye(3, dtype=np.int64)
    for _ in range(4):
        i, j = generator.choice(3, size=2, replace=False)
        change[i] += generator.choice([-1, 1]) * change[j]
    return change


def _translations_inside(change: np.ndarray) -> np.ndarray:
    """Lattice translations of the old cell that lie in the new one: one per old cell."""
    count = abs(round(float(np.linalg.det(change))))
    reach = int(np.abs(change).sum())
    grid = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    if count == 1:
        return np.zeros((1, 3))
    frac = grid @ np.linalg.inv(change)
    inside = grid[((frac > -1e-9) & (frac < 1 - 1e-9)).all(axis=1)]
    assert len(inside) == count
    return inside


def _random_rotation(generator: np.random.Generator) -> np.ndarray:
    rotation, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    if np.linalg.det(rotation) < 0:
        rotation[:, 0] *= -1
    return rotation
