# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Other descriptions of the same crystal: what must not change a canonical sequence, for tests and reports."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_crystal.mat2seq.canonical_start import primitive_cell
from hf_crystal.mat2seq.canonical_symmetry import find_dataset, load_moyopy

__all__ = ["alternative_setting", "random_description"]


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


def alternative_setting(
    record: Mapping[str, Any], generator: np.random.Generator, *, symprec: float = 0.01
) -> dict[str, np.ndarray]:
    """Describe a crystal in the conventional cell of a random setting of its space group, among those moyopy reaches.

    The atoms stay where they are: only the cell and the origin change, nothing is made symmetric.

    Args:
        record: `cell (3, 3)` Å, `frac_coords (N, 3)`, `atomic_numbers (N,)`.
        generator: Source of randomness.
        symprec: Tolerance of the symmetry search, Å.

    Returns:
        A record of the same crystal; its primitive cell where moyopy finds no or too much symmetry.
    """
    cell = np.asarray(record["cell"], dtype=float).reshape(3, 3)
    frac = np.asarray(record["frac_coords"], dtype=float).reshape(-1, 3)
    numbers = np.asarray(record["atomic_numbers"])
    if np.linalg.det(cell) < 0:
        cell, frac = cell[[1, 0, 2]], frac[:, [1, 0, 2]]
    cell, frac, numbers = primitive_cell(cell, frac, numbers)
    plain = (cell.tolist(), frac.tolist(), numbers.tolist(), symprec)
    found = find_dataset(*plain)
    settings = generator.permutation(_hall_numbers()[1 if found is None else found.number])
    # moyopy does not reach every setting
    datasets = (find_dataset(*plain, load_moyopy().Setting.hall_number(int(hall))) for hall in settings)
    dataset = next((dataset for dataset in datasets if dataset is not None), None)
    if dataset is None:
        return {"cell": cell, "frac_coords": frac, "atomic_numbers": numbers}
    linear = np.array(dataset.std_linear).T  # rows: new axes in the primitive cell
    change = np.rint(linear).astype(np.int64)
    if np.abs(linear - change).max() > 1e-6:  # moyopy found a smaller cell within its tolerance
        return {"cell": cell, "frac_coords": frac, "atomic_numbers": numbers}
    inside = _translations_inside(change)
    moved = frac - np.array(dataset.std_origin_shift)
    points = (moved[None] + inside[:, None]).reshape(-1, 3) @ np.linalg.inv(change)
    return {"cell": change @ cell, "frac_coords": points, "atomic_numbers": np.tile(numbers, len(inside))}


@functools.cache
def _hall_numbers() -> dict[int, tuple[int, ...]]:
    """Space-group number → numbers of its Hall symbols."""
    moyopy = load_moyopy()
    found: dict[int, list[int]] = {}
    for hall in range(1, 531):
        found.setdefault(moyopy.HallSymbolEntry(hall).number, []).append(hall)
    return {number: tuple(halls) for number, halls in found.items()}


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
