# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Space groups as exact integers: operations, Wyckoff positions and equivalent settings of the 230 types.

Translations are integers in units of 1/`TRANSLATION_GRID`; every translation of an ITA standard setting (unique axis
b, hexagonal axes for R lattices, origin choice 2) is one. Everything is built on first use and kept.
"""

import functools
import itertools
import re
from dataclasses import dataclass

import numpy as np

from .space_group_tables import SPACE_GROUP_LINES

__all__ = [
    "CRYSTAL_SYSTEMS",
    "TRANSLATION_GRID",
    "SettingFamily",
    "SpaceGroup",
    "WyckoffPosition",
    "space_group",
    "space_group_number",
    "space_group_symbols",
]

TRANSLATION_GRID = 24
CRYSTAL_SYSTEMS = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
_LAST_NUMBER = (2, 15, 74, 142, 167, 194, 230)
# Rows: primitive basis vectors in the conventional basis, in halves and thirds as the centering demands.
_PRIMITIVE_BASES = {
    "P": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "A": ((1, 0, 0), (0, 1 / 2, -1 / 2), (0, 1 / 2, 1 / 2)),
    "C": ((1 / 2, 1 / 2, 0), (-1 / 2, 1 / 2, 0), (0, 0, 1)),
    "I": ((-1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (1 / 2, 1 / 2, -1 / 2)),
    "F": ((0, 1 / 2, 1 / 2), (1 / 2, 0, 1 / 2), (1 / 2, 1 / 2, 0)),
    "R": ((2 / 3, 1 / 3, 1 / 3), (-1 / 3, 1 / 3, 1 / 3), (-1 / 3, -2 / 3, 1 / 3)),
}
_CENTERINGS = {
    "P": ((0, 0, 0),),
    "A": ((0, 0, 0), (0, 12, 12)),
    "C": ((0, 0, 0), (12, 12, 0)),
    "I": ((0, 0, 0), (12, 12, 12)),
    "F": ((0, 0, 0), (0, 12, 12), (12, 0, 12), (12, 12, 0)),
    "R": ((0, 0, 0), (16, 8, 8), (8, 16, 16)),
}
_Operation = tuple[tuple[int, ...], tuple[int, ...]]
_IDENTITY: tuple[int, ...] = (1, 0, 0, 0, 1, 0, 0, 0, 1)
_TERM = re.compile(r"([+-]?)(\d*)(?:/(\d+))?([xyz]?)")


@dataclass(frozen=True, eq=False)
class WyckoffPosition:
    """A Wyckoff position by its first coordinate triplet: point = `matrix` @ parameters + `offset` / 24.

    Attributes:
        letter: Letter in the International Tables (`A` follows `z` in space group 47).
        index: Place in the list of the group, 0 for the letter a.
        multiplicity: Points in the conventional cell.
        matrix: Integers of shape (3, number of free parameters).
        offset: Integers of shape (3,), in 1/24.
        pivots: Row of the triplet from which each parameter is read, and the sign it carries there.
    """

    letter: str
    index: int
    multiplicity: int
    matrix: np.ndarray
    offset: np.ndarray
    pivots: tuple[tuple[int, int], ...]

    @property
    def num_parameters(self) -> int:
        """How many coordinates are free, 0 to 3."""
        return self.matrix.shape[1]


@dataclass(frozen=True, eq=False)
class SettingFamily:
    """Equivalent settings with one basis change: x_new = basis_change⁻¹ (x_old − p / 24), p in `origins`."""

    basis_change: np.ndarray
    inverse: np.ndarray
    origins: np.ndarray


@dataclass(frozen=True, eq=False)
class SpaceGroup:
    """One space-group type in its standard setting.

    Attributes:
        number: ITA number.
        symbol: Short Hermann-Mauguin symbol without spaces.
        centering: Integers of shape (1 to 4, 3): lattice points of the conventional cell, in 1/24.
        primitive_basis: Rows are primitive basis vectors in the conventional basis.
        rotations: Integers of shape (order of the point group, 3, 3).
        translations: Integers of shape (order of the point group, 3), in 1/24.
        polar_axes: Axes along which the origin is free.
        positions: Wyckoff positions, letter a first.
    """

    number: int
    symbol: str
    centering: np.ndarray
    primitive_basis: np.ndarray
    rotations: np.ndarray
    translations: np.ndarray
    polar_axes: tuple[int, ...]
    positions: tuple[WyckoffPosition, ...]
    normalizer_generators: tuple[_Operation, ...] | None

    @property
    def crystal_system(self) -> str:
        """One of `CRYSTAL_SYSTEMS`."""
        return CRYSTAL_SYSTEMS[int(np.searchsorted(_LAST_NUMBER, self.number))]

    @functools.cached_property
    def all_rotations(self) -> np.ndarray:
        """Rotations of every operation of the conventional cell, shape (order, 3, 3)."""
        return np.tile(self.rotations, (len(self.centering), 1, 1))

    @functools.cached_property
    def all_translations(self) -> np.ndarray:
        """Translations of every operation of the conventional cell, in 1/24, shape (order, 3)."""
        return np.concatenate([self.translations + shift for shift in self.centering]) % TRANSLATION_GRID

    @functools.cached_property
    def primitive_rotations(self) -> np.ndarray:
        """Rotations in the primitive basis (for column vectors of coordinates), shape (point-group order, 3, 3)."""
        basis = self.primitive_basis.T
        return np.rint(np.linalg.inv(basis) @ self.rotations @ basis)

    @functools.cached_property
    def primitive_translations(self) -> np.ndarray:
        """Translations in the primitive basis, as fractions."""
        return (self.translations / TRANSLATION_GRID) @ np.linalg.inv(self.primitive_basis)

    @functools.cached_property
    def settings(self) -> tuple[SettingFamily, ...]:
        """Coset representatives of the orientation-preserving affine normalizer modulo the group.

        For monoclinic groups the infinite normalizer is cut to basis changes with entries of at most 2; for P1 and
        P-1 only origins are listed, the basis is a matter of lattice reduction. Translations along polar axes are 0.
        """
        if self.number <= 2:
            steps = (0,) if self.number == 1 else (0, 12)
            grid: list[tuple[int, ...]] = list(itertools.product(steps, repeat=3))
            return (_family(_IDENTITY, grid),)
        if self.number <= 15:
            return _monoclinic_settings(self)
        return _finite_settings(self)

    @functools.cached_property
    def letters(self) -> dict[str, WyckoffPosition]:
        """Wyckoff positions by letter."""
        return {position.letter: position for position in self.positions}


def space_group_number(symbol: str | int) -> int:
    """ITA number of a short symbol such as `P4_2/mnm`, or of a number.

    Raises:
        ValueError: for anything that is not one of the 230 types.
    """
    if isinstance(symbol, (int, np.integer)) and not isinstance(symbol, bool):
        if 1 <= symbol <= 230:
            return int(symbol)
    elif isinstance(symbol, str):
        name = symbol.replace(" ", "")
        if name in space_group_symbols():
            return space_group_symbols().index(name) + 1
    raise ValueError(f"space_group is {symbol!r}; accepted: a number 1 to 230 or a short symbol such as 'P4_2/mnm'")


@functools.cache
def space_group_symbols() -> tuple[str, ...]:
    """Short Hermann-Mauguin symbols of types 1 to 230."""
    return tuple(line.split(";")[1] for line in SPACE_GROUP_LINES.splitlines())


@functools.cache
def space_group(number: int) -> SpaceGroup:
    """The space-group type with this ITA number."""
    text_number, symbol, letter, generators, extra, positions = SPACE_GROUP_LINES.splitlines()[number - 1].split(";")
    assert int(text_number) == number
    base: set[_Operation] = {(_IDENTITY, shift) for shift in _CENTERINGS[letter]}
    group = _closure(_operations(generators), base)
    chosen: dict[tuple[int, ...], tuple[int, ...]] = {}
    for rotation, translation in sorted(group):
        chosen.setdefault(rotation, translation)
    # The identity goes first, so that images[0] of a point is the point itself.
    keys = sorted(chosen, key=lambda rotation: (rotation != _IDENTITY, rotation))
    rotations = np.array(keys).reshape(-1, 3, 3)
    mean = rotations.mean(axis=0)
    return SpaceGroup(
        number=number,
        symbol=symbol,
        centering=np.array(_CENTERINGS[letter]),
        primitive_basis=np.array(_PRIMITIVE_BASES[letter], dtype=float),
        rotations=rotations,
        translations=np.array([chosen[key] for key in keys]),
        polar_axes=tuple(i for i in range(3) if abs(mean[i, i] - 1) < 1e-9),
        positions=tuple(_wyckoff_position(i, text) for i, text in enumerate(positions.split(" "))),
        normalizer_generators=None if extra == "*" else tuple(_operations(extra)),
    )


def _parse_row(text: str) -> tuple[list[int], int]:
    """Coefficients of x, y, z and the constant in 1/24 of one coordinate such as `-2x+1/4`."""
    coefficients, constant = [0, 0, 0], 0
    for sign, number, divisor, variable in _TERM.findall(text):
        if not (number or variable):
            continue
        value = (-1 if sign == "-" else 1) * int(number or 1)
        if variable:
            coefficients["xyz".index(variable)] += value
        else:
            constant += value * TRANSLATION_GRID // int(divisor or 1)
    return coefficients, constant


def _parse_triplet(text: str) -> tuple[np.ndarray, np.ndarray]:
    rows = [_parse_row(part) for part in text.split(",")]
    return np.array([row for row, _ in rows]), np.array([constant for _, constant in rows])


def _operations(text: str) -> list[_Operation]:
    result = []
    for part in text.split(" "):
        if part != "-":
            matrix, shift = _parse_triplet(part)
            result.append((tuple(matrix.ravel().tolist()), tuple((shift % TRANSLATION_GRID).tolist())))
    return result


def _wyckoff_position(index: int, text: str) -> WyckoffPosition:
    name, triplet = text.split(":")
    matrix, offset = _parse_triplet(triplet)
    used = [column for column in range(3) if matrix[:, column].any()]
    matrix = matrix[:, used]
    pivots = []
    for column in range(len(used)):
        row = next(r for r in range(3) if abs(matrix[r, column]) == 1 and np.abs(matrix[r]).sum() == 1)
        pivots.append((row, int(matrix[row, column])))
    return WyckoffPosition(name[0], index, int(name[1:]), matrix, offset, tuple(pivots))


def _multiply(first: _Operation, second: _Operation) -> _Operation:
    """First ∘ second, translations modulo the cell; plain integers are faster than 3×3 arrays here."""
    a, s = first
    b, t = second
    rotation = tuple(
        a[3 * i] * b[j] + a[3 * i + 1] * b[3 + j] + a[3 * i + 2] * b[6 + j] for i in range(3) for j in range(3)
    )
    translation = tuple(
        (a[3 * i] * t[0] + a[3 * i + 1] * t[1] + a[3 * i + 2] * t[2] + s[i]) % TRANSLATION_GRID for i in range(3)
    )
    return rotation, translation


def _closure(generators: list[_Operation], start: set[_Operation]) -> set[_Operation]:
    known, border = set(start), list(start)
    while border:
        operation = border.pop()
        for generator in generators:
            product = _multiply(generator, operation)
            if product not in known:
                known.add(product)
                border.append(product)
    return known


def _proper_part(group: SpaceGroup) -> set[_Operation]:
    """Rotations and screws of the conventional cell, translations along polar axes set to 0."""
    determinants = np.rint(np.linalg.det(group.all_rotations))
    translations = group.all_translations.copy()
    translations[:, list(group.polar_axes)] = 0
    return {
        (tuple(r.ravel().tolist()), tuple(t.tolist()))
        for r, t, sign in zip(group.all_rotations, translations, determinants, strict=True)
        if sign > 0
    }


def _family(rotation: tuple[int, ...], origins: list[tuple[int, ...]]) -> SettingFamily:
    basis_change = np.array(rotation, dtype=float).reshape(3, 3)
    return SettingFamily(basis_change, np.rint(np.linalg.inv(basis_change)), np.array(sorted(origins)))


def _representatives(elements: list[_Operation], proper: set[_Operation]) -> list[_Operation]:
    """One element of each coset n ∘ G⁺, earlier elements preferred."""
    seen: set[_Operation] = set()
    result = []
    for element in elements:
        if element not in seen:
            result.append(element)
            seen.update(_multiply(element, member) for member in proper)
    return result


def _group_families(representatives: list[_Operation]) -> tuple[SettingFamily, ...]:
    families: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for rotation, translation in representatives:
        families.setdefault(rotation, []).append(translation)
    return tuple(_family(rotation, origins) for rotation, origins in families.items())


def _finite_settings(group: SpaceGroup) -> tuple[SettingFamily, ...]:
    proper = _proper_part(group)
    assert group.normalizer_generators is not None
    elements = sorted(
        _closure([*group.normalizer_generators, *proper], proper), key=lambda e: (e[0] != _IDENTITY, e[0], e[1])
    )
    return _group_families(_representatives(elements, proper))


def _monoclinic_settings(group: SpaceGroup) -> tuple[SettingFamily, ...]:
    """Basis changes that keep axis b, entries at most 2, with all origins on a grid of 1/4 that keep the group."""
    steps = [(0,) if axis in group.polar_axes else (0, 6, 12, 18) for axis in range(3)]
    grid = list(itertools.product(*steps))
    members: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for rotation, translation in zip(group.all_rotations, group.all_translations, strict=True):
        members.setdefault(tuple(rotation.ravel().tolist()), set()).add(tuple(translation.tolist()))
    elements: list[_Operation] = []
    for p, q, r, s in itertools.product(range(-2, 3), repeat=4):
        if abs(p * s - q * r) != 1:
            continue
        change = np.array([[p, 0, q], [0, p * s - q * r, 0], [r, 0, s]])
        inverse = np.rint(np.linalg.inv(change)).astype(int)
        for origin in grid:
            if _keeps_group(change, inverse, np.array(origin), members):
                elements.append((tuple(change.ravel().tolist()), origin))
    elements.sort(key=lambda e: (e[0] != _IDENTITY, e[0], e[1]))
    return _group_families(_representatives(elements, _proper_part(group)))


def _keeps_group(
    change: np.ndarray, inverse: np.ndarray, origin: np.ndarray, members: dict[tuple[int, ...], set[tuple[int, ...]]]
) -> bool:
    for rotation, translations in members.items():
        matrix = np.reshape(rotation, (3, 3))
        image = members.get(tuple((inverse @ matrix @ change).ravel().tolist()))
        if image is None:
            return False
        for translation in translations:
            moved = inverse @ (matrix @ origin + np.asarray(translation) - origin) % TRANSLATION_GRID
            if tuple(moved.tolist()) not in image:
                return False
    return True
