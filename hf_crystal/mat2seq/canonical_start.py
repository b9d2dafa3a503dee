# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""A starting description that depends on the crystal only: primitive cell, reduced basis, atom at the origin.

Symmetry finders answer differently for two descriptions of one crystal when an atom sits near their threshold. They
are therefore only ever shown this description.
"""

import math
from collections import Counter

import numpy as np

from .canonical_crystal import CanonicalSettings
from .canonical_lattice import reduced_bases

__all__ = ["canonical_start", "primitive_cell"]

_TRANSLATION_TOLERANCE = 2e-3  # Å; how exactly a translation must map the crystal on itself
_START_GRID = 10_000  # steps per edge when descriptions are compared; three fit into 40 bits
_CODE_BITS = 40
_ONE_BLOCK = 20_000  # pairs times atoms; more are narrowed down element by element
_DIGITS = 1e9  # the start is rounded to 1e-9, so that equal crystals are equal to the last bit


def primitive_cell(
    cell: np.ndarray, frac: np.ndarray, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Smallest cell that repeats the crystal; atoms that fall together are averaged.

    Args:
        cell: Rows are lattice vectors, Å.
        frac: Fractional coordinates, shape (N, 3).
        numbers: Atomic numbers, shape (N,).

    Returns:
        Cell, coordinates and atomic numbers of the primitive cell.
    """
    translations = _pure_translations(cell, frac, numbers)
    if not len(translations):
        return cell, frac, numbers
    lattice = _lattice_basis(cell, translations)
    if abs(np.linalg.det(lattice) * (len(translations) + 1) - 1) > 1e-6:
        return cell, frac, numbers  # near the tolerance the translations need not close into a lattice
    change = np.linalg.inv(lattice)
    reduced = frac @ change
    kept: list[int] = []
    sums: list[np.ndarray] = []
    counts: list[int] = []
    basis = lattice @ cell
    for index, point in enumerate(reduced):
        if kept:
            delta = point - reduced[kept]
            delta -= np.rint(delta)
            distances = np.linalg.norm(delta @ basis, axis=1)
            distances[numbers[kept] != numbers[index]] = np.inf
            nearest = int(distances.argmin())
            if distances[nearest] < 5 * _TRANSLATION_TOLERANCE:
                sums[nearest] += delta[nearest]
                counts[nearest] += 1
                continue
        kept.append(index)
        sums.append(np.zeros(3))
        counts.append(1)
    if len(kept) * (len(translations) + 1) != len(frac) or len(set(counts)) != 1:
        return cell, frac, numbers
    averaged = reduced[kept] + np.array(sums) / np.array(counts)[:, None]
    return basis, averaged, numbers[kept]


def _rarest(numbers: np.ndarray) -> int:
    """The element with the fewest atoms, the lightest of equals."""
    counts = Counter(numbers.tolist())
    return min(counts, key=lambda element: (counts[element], element))


def _pure_translations(cell: np.ndarray, frac: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Non-zero fractional translations in [0, 1) that map every atom on one of its kind."""
    elements = Counter(numbers.tolist())
    if math.gcd(*elements.values()) == 1:  # the number of translations divides every count
        return np.zeros((0, 3))
    blocks = sorted((frac[numbers == e] for e in elements), key=len)
    found = []
    for candidate in blocks[0][1:] - blocks[0][0]:
        if all(_maps_block(block, candidate, cell) for block in blocks):
            found.append(candidate - np.floor(candidate))
    return np.array(found).reshape(-1, 3)


def _maps_block(block: np.ndarray, shift: np.ndarray, cell: np.ndarray) -> bool:
    # One atom first: most candidates fail on it, and the full test is quadratic.
    for rows in (block[:1], block):
        delta = rows[:, None, :] + shift - block[None, :, :]
        delta -= np.rint(delta)
        distances = np.square(delta @ cell).sum(axis=-1).min(axis=1)
        if distances.max() > _TRANSLATION_TOLERANCE**2:
            return False
    return True


def _lattice_basis(cell: np.ndarray, translations: np.ndarray) -> np.ndarray:
    """Basis (rows, in units of the cell) of the lattice spanned by the cell and extra translations."""
    order = len(translations) + 1
    # Every translation is a multiple of 1/order: integer row reduction is exact.
    rows = np.concatenate([np.rint(translations * order), np.eye(3) * order]).astype(np.int64)
    basis = []
    for column in range(3):
        while True:
            active = np.flatnonzero(rows[:, column])
            if len(active) <= 1:
                break
            pivot = active[np.abs(rows[active, column]).argmin()]
            for index in active:
                if index != pivot:
                    rows[index] -= (rows[index, column] // rows[pivot, column]) * rows[pivot]
        pivot = int(np.flatnonzero(rows[:, column])[0])
        basis.append(rows[pivot])
        rows = np.delete(rows, pivot, axis=0)
    lattice = np.array(basis) / order
    if np.linalg.det(lattice @ cell) < 0:
        lattice[0] = -lattice[0]
    return lattice


def canonical_start(
    cell: np.ndarray, frac: np.ndarray, numbers: np.ndarray, settings: CanonicalSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The primitive crystal in the reduced basis, origin and atom order that give the smallest rounded list.

    Returns:
        Metric tensor (Å²) of the reduced basis, fractional coordinates, atomic numbers; equal to the last bit for
        all descriptions of a crystal, up to noise that crosses a rounding boundary.
    """
    bases, _ = reduced_bases(cell, settings.length_step, settings.angle_step)
    rarest = _rarest(numbers)
    inverse = np.linalg.inv(bases.astype(float))
    origins = frac[numbers == rarest]
    # All pairs of a basis and an origin; atoms in blocks of one element each, the rarest first.
    base = np.repeat(np.arange(len(bases)), len(origins))
    origin = np.tile(np.arange(len(origins)), len(bases))
    elements = sorted(set(numbers.tolist()), key=lambda e: (e != rarest, e))
    ranks = np.zeros(max(elements) + 1, dtype=np.int64)
    ranks[elements] = np.arange(len(elements))
    blocks = [[e] for e in elements] if len(base) * len(frac) > _ONE_BLOCK else [elements]
    for block in blocks:
        if len(base) == 1:
            break
        members = np.isin(numbers, block) if len(blocks) > 1 else slice(None)
        moved = (frac[members][None] - origins[origin][:, None]) @ inverse[base]
        codes = _codes(moved) + (ranks[numbers[members]] << _CODE_BITS)
        codes.sort(axis=1)
        smallest = _smallest_rows(codes)
        base, origin = base[smallest], origin[smallest]
    moved = (frac - origins[origin[0]]) @ inverse[base[0]]
    order = np.lexsort((_codes(moved), numbers))
    realized = bases[base[0]] @ cell
    digits = np.rint(moved[order] * _DIGITS) % _DIGITS  # before the division: equal to the last bit, as promised
    return np.rint(realized @ realized.T * _DIGITS) / _DIGITS, digits / _DIGITS, numbers[order]


def _codes(points: np.ndarray) -> np.ndarray:
    """Rounded coordinates packed into one integer per point, shape (..., 3) → (...)."""
    steps = np.floor(points * _START_GRID + 0.4863).astype(np.int64) % _START_GRID
    return (steps[..., 0] * _START_GRID + steps[..., 1]) * _START_GRID + steps[..., 2]


def _smallest_rows(rows: np.ndarray) -> np.ndarray:
    """Indices of the lexicographically smallest rows."""
    alive = np.arange(len(rows))
    for column in range(rows.shape[1]):
        values = rows[alive, column]
        alive = alive[values == values.min()]
        if (rows[alive] == rows[alive[0]]).all():  # one is left, or only those that symmetry makes equal
            break
    return alive
