# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""The grid of canonical crystals: how numbers are rounded, and the canonical crystal itself.

A canonical crystal is exact: integers on a grid, a space-group type and Wyckoff letters. Everything else (cell,
positions, primitive cell) follows from these, see `expand_crystal`.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from ..crystals.elements import CHEMICAL_SYMBOLS, formula_sum, reduced_formula
from ..crystals.record import CrystalRecord, cell_from_parameters
from .space_groups import TRANSLATION_GRID, SpaceGroup, WyckoffPosition, space_group

__all__ = [
    "BOUNDARY",
    "CanonicalCrystal",
    "CanonicalSettings",
    "CanonicalSite",
    "PRESETS",
    "coordinate_strides",
    "expand_crystal",
    "free_cell_parameters",
    "orbit_points",
    "full_cell_parameters",
    "quantize",
    "rounding_displacements",
]

# Rounding boundaries sit 1.37 % of a step off the half: data sets print 6 decimals, so about 1 % of their numbers end
# exactly on a half and would flip on noise of 1e-16.
BOUNDARY = 0.5 - 0.0137
_CORNERS = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [1, -1, -1]])
_CIF_CELL = [
    f"_cell_{name}" for name in ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
]
_CIF_SITE = ("label", "type_symbol", "symmetry_multiplicity", "Wyckoff_symbol", "fract_x", "fract_y", "fract_z")
_CELL_PARAMETERS = ("a", "b", "c", "alpha", "beta", "gamma")
_FREE_PARAMETERS = {
    "triclinic": ("a", "b", "c", "alpha", "beta", "gamma"),
    "monoclinic": ("a", "b", "c", "beta"),
    "orthorhombic": ("a", "b", "c"),
    "tetragonal": ("a", "c"),
    "trigonal": ("a", "c"),
    "hexagonal": ("a", "c"),
    "cubic": ("a",),
}
PRESETS: dict[str, dict[str, Any]] = {  # changes of the defaults of `CanonicalSettings`
    "fine": {"fraction_steps": 10_000, "length_step": 0.001, "angle_step": 0.01, "coordinate_step": 0.0},
    "default": {},
    "mid": {"fraction_steps": 1_000, "length_step": 0.005, "angle_step": 0.05, "coordinate_step": 0.0},
}


@dataclass(frozen=True)
class CanonicalSettings:
    """What defines a canonical crystal besides the crystal; part of the sequence's definition.

    Attributes:
        symprec: Largest displacement of an atom, Å, that symmetry may cost.
        fraction_steps: Steps per cell edge for free coordinates; at most 10,000.
        length_step: Step of cell lengths, Å.
        angle_step: Step of cell angles, degrees.
        max_strain: Largest strain of the cell that symmetry may cost.
        max_atoms: Largest number of atoms in the primitive cell.
        coordinate_step: Largest step, Å, of free coordinates. Where a step of 1/`fraction_steps` is shorter, only
            every second, fourth, fifth … is used (see `coordinate_strides`); 0 uses every step.
    """

    symprec: float = 0.01
    fraction_steps: int = 2_000
    length_step: float = 0.01
    angle_step: float = 0.1
    max_strain: float = 1e-3
    max_atoms: int = 512
    coordinate_step: float = 0.01

    def __post_init__(self) -> None:
        for field, value, low, high in (
            ("symprec", self.symprec, 1e-6, 0.5),
            ("fraction_steps", self.fraction_steps, 10, 10_000),
            ("length_step", self.length_step, 1e-4, 0.5),
            ("angle_step", self.angle_step, 1e-4, 5.0),
            ("max_strain", self.max_strain, 1e-9, 0.1),
            ("max_atoms", self.max_atoms, 1, 100_000),
            ("coordinate_step", self.coordinate_step, 0.0, 0.5),
        ):
            if not (isinstance(value, (int, float)) and low <= value <= high):
                raise ValueError(f"{field} is {value!r}; accepted: {low} to {high}")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "CanonicalSettings":
        """`fine`, `default` or `mid` grid.

        Raises:
            ValueError: for another name.
        """
        if name not in PRESETS:
            raise ValueError(f"preset is {name!r}; accepted: {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, order=True)
class CanonicalSite:
    """One orbit: Wyckoff position (0 for the letter a), atomic number, free coordinates in grid steps."""

    position: int
    atomic_number: int
    parameters: tuple[int, ...]


@dataclass(frozen=True)
class CanonicalCrystal:
    """A crystal without description: equal for rotated, shifted, reordered, re-celled input, different for others.

    Attributes:
        space_group: ITA number 1 to 230, mirror images kept apart.
        lattice: The free cell parameters of the standard setting (see `free_cell_parameters`), in grid steps.
        sites: Orbits, sorted.
        settings: The grid and the tolerance.
    """

    space_group: int
    lattice: tuple[int, ...]
    sites: tuple[CanonicalSite, ...]
    settings: CanonicalSettings
    to_text: ClassVar[Callable[["CanonicalCrystal"], str]]  # given by sequence_text, where sequences are written

    @property
    def sort_key(self) -> tuple:
        """Order among canonical crystals, used to choose within a cycle."""
        return (self.space_group, self.lattice, self.sites)

    @property
    def cell_parameters(self) -> dict[str, float]:
        """Free cell parameters by name; Å and degrees."""
        return _free_values(self.space_group, self.lattice, self.settings)

    @property
    def composition(self) -> dict[int, int]:
        """Atomic number → atoms in the primitive cell."""
        group = space_group(self.space_group)
        counts: Counter[int] = Counter()
        for site in self.sites:
            counts[site.atomic_number] += group.positions[site.position].multiplicity // len(group.centering)
        return dict(counts)

    def to_record(self, *, primitive: bool = True) -> CrystalRecord:
        """All atoms of the primitive (or conventional standard) cell; the arrays are the caller's own."""
        if not primitive:
            return expand_crystal(self, primitive=False)
        record = self._primitive_record
        return CrystalRecord(record.atomic_numbers.copy(), record.frac_coords.copy(), record.cell.copy())

    @functools.cached_property
    def _primitive_record(self) -> CrystalRecord:
        return expand_crystal(self)

    def to_structure(self, *, primitive: bool = True) -> Any:
        """The crystal as a pymatgen `Structure` of its primitive (or conventional standard) cell."""
        try:  # the Hub's import scan demands packages imported outside of try
            from pymatgen.core import Lattice, Structure
        except ImportError as error:
            raise ImportError("to_structure needs pymatgen: pip install pymatgen") from error

        record = self.to_record(primitive=primitive)
        return Structure(Lattice(record.cell), record.atomic_numbers.tolist(), record.frac_coords)

    def to_cif(self) -> str:
        """CIF text of the conventional standard cell: space group, symmetry operations, one row per orbit."""
        try:
            from pymatgen.io.cif import CifBlock
        except ImportError as error:
            raise ImportError("to_cif needs pymatgen: pip install pymatgen") from error

        group = space_group(self.space_group)
        fields: dict[str, Any] = {"_symmetry_space_group_name_H-M": group.symbol}
        fields["_symmetry_Int_Tables_number"] = self.space_group
        lengths_and_angles = zip(_CIF_CELL, full_cell_parameters(self.space_group, self.cell_parameters), strict=True)
        fields |= {name: f"{value:.6f}" for name, value in lengths_and_angles}
        fields["_symmetry_equiv_pos_as_xyz"] = list(_operations(self.space_group))
        columns: dict[str, list[str]] = {f"_atom_site_{name}": [] for name in (*_CIF_SITE, "occupancy")}
        for number, site in enumerate(self.sites, 1):
            position, symbol = group.positions[site.position], CHEMICAL_SYMBOLS[site.atomic_number]
            steps = np.array(site.parameters, dtype=np.int64)
            point = position.matrix @ steps / self.settings.fraction_steps + position.offset / TRANSLATION_GRID
            row = [f"{symbol}{number}", symbol, str(position.multiplicity), position.letter]
            for column, value in zip(columns.values(), [*row, *(f"{x:.8f}" for x in point % 1.0), "1"], strict=True):
                column.append(value)
        loops = [["_symmetry_equiv_pos_as_xyz"], list(columns)]
        numbers = [
            site.atomic_number for site in self.sites for _ in range(group.positions[site.position].multiplicity)
        ]
        counts = Counter(numbers)
        units = math.gcd(*counts.values())
        fields["_chemical_formula_sum"] = formula_sum(Counter({z: n // units for z, n in counts.items()}).elements())
        fields["_cell_formula_units_Z"] = units
        return f"{CifBlock({**fields, **columns}, loops, reduced_formula(numbers))}\n"


@functools.cache
def _operations(number: int) -> tuple[str, ...]:
    """Symmetry operations of the conventional cell, such as `-x,y+1/2,-z`."""
    try:
        from pymatgen.core.operations import SymmOp
    except ImportError as error:
        raise ImportError("to_cif needs pymatgen: pip install pymatgen") from error

    group = space_group(number)
    return tuple(
        SymmOp.from_rotation_and_translation(rotation, shift / TRANSLATION_GRID).as_xyz_str()
        for rotation, shift in zip(group.all_rotations, group.all_translations, strict=True)
    )


def quantize(values: np.ndarray | float, step: float) -> np.ndarray:
    """Nearest multiple of `step` as an integer; boundaries are moved off the half."""
    return np.floor(np.asarray(values) / step + BOUNDARY).astype(np.int64)


@functools.lru_cache(maxsize=1024)
def coordinate_strides(number: int, lattice: tuple[int, ...], settings: CanonicalSettings) -> np.ndarray:
    """Which multiples of 1/`fraction_steps` the free coordinates of canonical crystals take.

    A step of a coordinate moves an atom along a direction of the cell; the coarsest stride that moves it by no more
    than `coordinate_step` Å is taken, so that short and long cells are rounded alike.

    Args:
        number: Space group.
        lattice: Free cell parameters in grid steps.
        settings: The grid.

    Returns:
        Integers of shape (Wyckoff positions, 3): coordinate j of position i is a multiple of `strides[i, j]`; 1 for
        coordinates that are not free.

    Raises:
        ImpossibleCellError: if the cell cannot exist.
    """
    if not settings.coordinate_step:
        return np.ones((len(space_group(number).positions), 3), dtype=np.int64)
    moved = _moves(number, lattice, settings)
    lengths = np.sqrt((moved * moved).sum(axis=-1)) * settings.fraction_steps
    # 1e-9: a stride that fits exactly must not depend on the last bit
    limits = settings.coordinate_step * settings.fraction_steps * (1 + 1e-9) / _strides(settings.fraction_steps)
    fitting = (lengths[..., None] <= limits).sum(axis=-1)
    return _strides(settings.fraction_steps)[np.where(lengths > 0, np.maximum(fitting, 1), 1) - 1]


@functools.lru_cache(maxsize=1024)
def rounding_displacements(number: int, lattice: tuple[int, ...], settings: CanonicalSettings) -> np.ndarray:
    """How far rounding may move an atom on each Wyckoff position at most, Å, shape (positions,)."""
    strides = coordinate_strides(number, lattice, settings)
    moved = _moves(number, lattice, settings) * strides[..., None] * (1 - BOUNDARY)
    corners = np.einsum("sj,pjk->psk", _CORNERS, moved)
    return np.sqrt((corners * corners).sum(axis=-1).max(axis=-1))


def _moves(number: int, lattice: tuple[int, ...], settings: CanonicalSettings) -> np.ndarray:
    """How a step of 1/`fraction_steps` of each parameter moves an atom, Å, shape (positions, 3, 3)."""
    cell = cell_from_parameters(*full_cell_parameters(number, _free_values(number, lattice, settings)))
    return _directions(number) @ cell / settings.fraction_steps


@functools.cache
def _directions(number: int) -> np.ndarray:
    """Direction in which each parameter of each Wyckoff position moves the first point, (positions, 3, 3)."""
    positions = space_group(number).positions
    directions = np.zeros((len(positions), 3, 3))
    for position in positions:
        directions[position.index, : position.num_parameters] = position.matrix.T
    return directions


@functools.cache
def _strides(fraction_steps: int) -> np.ndarray:
    """Divisors that keep halves and quarters of the cell edge on the grid, smallest first; always 1."""
    return np.array([1, *(n for n in range(2, fraction_steps // 4 + 1) if fraction_steps % (4 * n) == 0)])


def _free_values(number: int, lattice: tuple[int, ...], settings: CanonicalSettings) -> dict[str, float]:
    """Free cell parameters by name, Å and degrees, from grid steps."""
    names = free_cell_parameters(number)
    steps = (settings.length_step if len(name) == 1 else settings.angle_step for name in names)
    return {name: value * step for name, value, step in zip(names, lattice, steps, strict=True)}


@functools.cache
def free_cell_parameters(number: int) -> tuple[str, ...]:
    """Names of the cell parameters that a space-group type leaves free."""
    return _FREE_PARAMETERS[space_group(number).crystal_system]


def full_cell_parameters(number: int, free: dict[str, float]) -> tuple[float, ...]:
    """a, b, c (Å), α, β, γ (degrees) from the free ones."""
    gamma = 120.0 if 143 <= number <= 194 else 90.0
    values = {"b": free["a"], "c": free["a"], "alpha": 90.0, "beta": 90.0, "gamma": gamma, **free}
    return tuple(values[name] for name in _CELL_PARAMETERS)


def orbit_points(group: SpaceGroup, position: WyckoffPosition, parameters: tuple[int, ...], steps: int) -> np.ndarray:
    """Distinct points of an orbit as exact integers, modulo the conventional cell.

    Args:
        group: The space group.
        position: The Wyckoff position.
        parameters: Free coordinates in units of 1/`steps`.
        steps: Grid of the parameters.

    Returns:
        Integers of shape (points, 3) in units of 1/(`steps` · 24); fewer points than the multiplicity if the
        parameters lie on a more special position.
    """
    unit = steps * TRANSLATION_GRID
    point = position.matrix @ np.array(parameters, dtype=np.int64) * TRANSLATION_GRID + position.offset * steps
    images = (group.all_rotations @ point + group.all_translations * steps) % unit
    return images[np.unique(_packed(images, unit), return_index=True)[1]]


def _packed(points: np.ndarray, unit: int) -> np.ndarray:
    """One integer per point of integers below `unit`; comparing these is much faster than comparing rows."""
    return (points[:, 0] * unit + points[:, 1]) * unit + points[:, 2]


def expand_crystal(crystal: CanonicalCrystal, *, primitive: bool = True) -> CrystalRecord:
    """All atoms of a canonical crystal.

    Returns:
        `CrystalRecord` with `frac_coords` in [0, 1).

    Raises:
        ValueError: if the cell cannot exist or atoms coincide.
    """
    group = space_group(crystal.space_group)
    cell = cell_from_parameters(*full_cell_parameters(crystal.space_group, crystal.cell_parameters))
    steps = crystal.settings.fraction_steps
    unit = steps * TRANSLATION_GRID
    points, sizes = [], []
    for site in crystal.sites:
        linear, shift = _orbit_images(crystal.space_group, site.position, primitive)
        parameters = np.array(site.parameters, dtype=np.int64)
        points.append(linear @ parameters * TRANSLATION_GRID + shift * steps)
        sizes.append(len(shift))
    stacked = np.concatenate(points) % unit
    if len(set(_packed(stacked, unit).tolist())) != len(stacked):
        _refuse_coinciding(crystal)
    if primitive:
        cell = group.primitive_basis @ cell
    atomic_numbers = np.repeat(np.array([site.atomic_number for site in crystal.sites], dtype=np.int64), sizes)
    return CrystalRecord(atomic_numbers, stacked / unit, cell)


@functools.cache
def _orbit_images(number: int, index: int, primitive: bool) -> tuple[np.ndarray, np.ndarray]:
    """The distinct images of a Wyckoff position in the primitive or the conventional cell.

    Returns:
        Integers (n, 3, parameters) and (n, 3): point = linear @ parameters + shift / 24, modulo the cell.
    """
    group = space_group(number)
    position = group.positions[index]
    linear = group.all_rotations @ position.matrix
    shift = group.all_rotations @ position.offset + group.all_translations
    if primitive:  # the inverse of a primitive basis is a matrix of integers
        reduce = np.rint(np.linalg.inv(group.primitive_basis)).astype(np.int64).T
        linear, shift = reduce @ linear, shift @ reduce.T
    shift = shift % TRANSLATION_GRID
    rows = np.concatenate([linear.reshape(len(linear), -1), shift], axis=1)
    first = np.sort(np.unique(rows, axis=0, return_index=True)[1])
    return linear[first], shift[first]


def _refuse_coinciding(crystal: CanonicalCrystal) -> None:
    """Say which atoms coincide."""
    group = space_group(crystal.space_group)
    for site in crystal.sites:
        position = group.positions[site.position]
        orbit = orbit_points(group, position, site.parameters, crystal.settings.fraction_steps)
        if len(orbit) != position.multiplicity:
            raise ValueError(f"the coordinates of {position.multiplicity}{position.letter} make atoms coincide")
    raise ValueError("two sites put atoms on the same point")
