# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""The plain crystal record, its error and every check on it; needs numpy only.

Convention: `cell[i]` is lattice vector i (rows), Å; `positions = frac_coords @ cell`.
"""

import contextlib
import functools
import itertools
import math
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers.utils import logging

from .elements import CHEMICAL_SYMBOLS, cell_formula, mixture_formula, reduced_formula

__all__ = [
    "CHEMICAL_SYMBOLS",
    "COVALENT_RADII",
    "CRYSTAL_COLUMNS",
    "MAX_COORDINATE",
    "NUM_SPECIES",
    "SPECIES_COLUMN",
    "VACUUM",
    "CrystalInputError",
    "CrystalRecord",
    "ImpossibleCellError",
    "atomic_number_of",
    "candidate_pairs",
    "cell_from_parameters",
    "check_record",
    "close_pair",
    "formula_of",
    "hydrogen_isotope_warning",
    "isotopes_noted",
    "open_axes",
    "printable",
    "reach_of",
]

logger = logging.get_logger(__name__)

# Å for the cell, multiples of it for fractional coordinates; beyond, float64 no longer resolves distances
MAX_COORDINATE = 1e6
_FEW_ATOMS = 32
VACUUM = 50.0  # Å, between the atoms and their copies along an axis that is not periodic: no model looks farther
NUM_SPECIES = len(CHEMICAL_SYMBOLS) - 1  # columns of `CrystalRecord.occupancies`
# a crystal in a table: 9 floats, vectors in rows, Å; 3n floats; n integers
CRYSTAL_COLUMNS = ("lattice", "frac_coords", "atomic_numbers")
# of a disordered one, n texts: JSON of the occupancies of each site
SPECIES_COLUMN = "species"

_ATOMIC_NUMBERS = {symbol: number for number, symbol in enumerate(CHEMICAL_SYMBOLS) if number}
_HYDROGEN_ISOTOPES = {"D": 1, "T": 1}
_CHARGED_SYMBOL = re.compile(r"^([A-Za-z]{1,2})[0-9.]*[+-]?[0-9.]*$")  # Na, Na1+, O2-, Fe+3


def printable(text: str) -> str:
    """Text that every file and terminal takes: halves of signs, as in file names that are not UTF-8, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


class CrystalInputError(ValueError):
    """A crystal that cannot be used, with the reason in words.

    Attributes:
        reason (`str`): what is wrong: the field, the value received, what is accepted.
        index (`int`, *optional*): place of the crystal in the list that was given.
        name (`str`, *optional*): file name, id or formula, where one is known.
    """

    def __init__(self, reason: str, *, index: int | None = None, name: str | None = None):
        self.reason = reason = printable(reason)
        self.index = index
        self.name = name = name and printable(name)
        which = "crystal" if index is None else f"crystal {index}"
        super().__init__(f"{which} ({name}): {reason}" if name else f"{which}: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        # the default would put the finished message in place of the reason when a worker process sends it back
        return _rebuild_error, (self.reason, self.index, self.name)

    def located(self, index: int | None, name: str | None) -> "CrystalInputError":
        """The same error with the place filled in where it was not known yet."""
        return CrystalInputError(
            self.reason,
            index=self.index if index is None else index,
            name=self.name if self.name is not None else name,
        )


def _rebuild_error(reason: str, index: int | None, name: str | None) -> CrystalInputError:
    return CrystalInputError(reason, index=index, name=name)


class ImpossibleCellError(CrystalInputError):
    """Cell parameters that form no cell."""


@dataclass(frozen=True, eq=False)
class CrystalRecord:
    """One crystal as plain arrays; fields can also be read as `record["cell"]`, and `dict(record)` works.

    Attributes:
        atomic_numbers (`np.ndarray` of shape `(N,)`, int64): 1 to 118, in the order given.
        frac_coords (`np.ndarray` of shape `(N, 3)`, float64): fractional coordinates as given (not wrapped).
        cell (`np.ndarray` of shape `(3, 3)`, float64): lattice vectors in rows, Å.
        name (`str`, *optional*): file name or id, for messages only.
        warnings (`tuple[str, ...]`): what was doubtful in the text or object that was read.
        occupancies (`np.ndarray` of shape `(N, 118)`, *optional*): of a disordered crystal, how much of each element
            (column Z - 1) a site holds; a row sums to at most 1, the rest is vacancy. `atomic_numbers` then names the
            element that a site holds most of. None: each site is filled with the atom of its number.
        pbc (`tuple[bool, bool, bool]`): axes along which the structure repeats. The other vectors of `cell` are of no
            meaning: they are at right angles to the rest and longer than any model looks (`open_axes`).
    """

    atomic_numbers: np.ndarray
    frac_coords: np.ndarray
    cell: np.ndarray
    name: str | None = None
    warnings: tuple[str, ...] = ()
    occupancies: np.ndarray | None = None
    pbc: tuple[bool, bool, bool] = (True, True, True)

    @property
    def positions(self) -> np.ndarray:
        """Cartesian coordinates of shape `(N, 3)`, Å, float64."""
        return self.frac_coords @ self.cell

    @property
    def num_atoms(self) -> int:
        """Atoms in the cell."""
        return len(self.atomic_numbers)

    @property
    def formula(self) -> str:
        """Reduced formula, `SrTiO3`; of a disordered crystal that of the cell, `K1.2Na2.8Cl4`."""
        return formula_of(self.atomic_numbers) if self.occupancies is None else mixture_formula(self.occupancies)

    @property
    def volume(self) -> float:
        """Cell volume, Å³, positive for left-handed cells too."""
        return float(abs(np.linalg.det(self.cell)))

    def keys(self) -> tuple[str, ...]:
        """Names of the array fields, so that `dict(record)` gives a record dict."""
        mixed = () if self.occupancies is None else ("occupancies",)
        return ("atomic_numbers", "frac_coords", "cell", *mixed, *(() if all(self.pbc) else ("pbc",)))

    def __getitem__(self, key: str) -> Any:
        if key in (*self.keys(), "positions"):
            return getattr(self, key)
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return self.num_atoms


def formula_of(atomic_numbers: np.ndarray) -> str:
    """`reduced_formula`, also for numbers that were not checked yet: the cell's atoms, and `"?"` for unknown ones."""
    known = [number for number in atomic_numbers.tolist() if 1 <= number < len(CHEMICAL_SYMBOLS)]
    return reduced_formula(known) if len(known) == len(atomic_numbers) else f"{cell_formula(known)}?"


# isotopes of hydrogen in the crystal that is being read; None where no one asks
_ISOTOPES: ContextVar[set[str] | None] = ContextVar("isotopes of hydrogen", default=None)


@contextlib.contextmanager
def isotopes_noted() -> Iterator[set[str]]:
    """A set that holds the isotopes of hydrogen (D, T) which are read within this context."""
    noted: set[str] = set()
    token = _ISOTOPES.set(noted)
    try:
        yield noted
    finally:
        _ISOTOPES.reset(token)


def hydrogen_isotope_warning(symbol: str) -> None:
    """Note an isotope of hydrogen, which is read as hydrogen; say so once per process."""
    logger.warning_once(f"Hydrogen isotope {symbol} found: deuterium and tritium are read as hydrogen (Z = 1).")
    if (noted := _ISOTOPES.get()) is not None:
        noted.add(symbol)


def atomic_number_of(symbol: object) -> int:
    """Atomic number of a chemical symbol; a charge (`Na1+`) is ignored, D and T are hydrogen.

    Args:
        symbol: chemical symbol.

    Returns:
        `int` between 1 and 118.

    Raises:
        CrystalInputError: dummy or unknown symbol.
    """
    text = str(symbol).strip()
    number = _ATOMIC_NUMBERS.get(text)
    if number is not None:
        return number
    match = _CHARGED_SYMBOL.match(text)
    letters = match.group(1) if match else text
    for candidate in (letters, letters.capitalize()):
        if candidate in _ATOMIC_NUMBERS:
            return _ATOMIC_NUMBERS[candidate]
        if candidate in _HYDROGEN_ISOTOPES:
            hydrogen_isotope_warning(candidate)
            return _HYDROGEN_ISOTOPES[candidate]
    raise CrystalInputError(
        f"unknown element {text!r}; accepted are the symbols H to Og, with D and T read as hydrogen "
        "(no dummy atoms, no vacancies)"
    )


def cell_from_parameters(a: float, b: float, c: float, alpha: float, beta: float, gamma: float) -> np.ndarray:
    """Lattice vectors in rows from lengths (Å) and angles (degrees), a along x and b in the xy-plane.

    Returns:
        `np.ndarray` of shape `(3, 3)`, Å.

    Raises:
        ImpossibleCellError: lengths that are not positive, or angles that no cell can have.
    """
    if a > 0 and b > 0 and c > 0 and all(0 < angle < 180 for angle in (alpha, beta, gamma)):
        # cos 90° and cos 120° come out exact, so that symmetric cells are symmetric to the last bit
        cos_alpha, cos_beta, cos_gamma = (
            {90.0: 0.0, 120.0: -0.5, 60.0: 0.5}.get(angle, math.cos(math.radians(angle)))
            for angle in (alpha, beta, gamma)
        )
        sin_gamma = math.sqrt(max(0.0, 1.0 - cos_gamma * cos_gamma))
        c_y = (cos_alpha - cos_beta * cos_gamma) / sin_gamma if sin_gamma > 0 else 0.0
        c_z_squared = 1.0 - cos_beta * cos_beta - c_y * c_y
        if sin_gamma >= 1e-3 and c_z_squared >= 1e-6:
            along_c = [c * cos_beta, c * c_y, c * math.sqrt(c_z_squared)]
            return np.array([[a, 0.0, 0.0], [b * cos_gamma, b * sin_gamma, 0.0], along_c])
    raise ImpossibleCellError(
        f"a cell with a, b, c = {a:g}, {b:g}, {c:g} Å and alpha, beta, gamma = {alpha:g}, {beta:g}, {gamma:g}° cannot "
        "exist; accepted are positive lengths, and angles of 0 to 180° that span a volume"
    )


def reach_of(cell: np.ndarray, distance: float) -> np.ndarray:
    """Largest fractional difference, per lattice direction, of two points nearer than `distance`; shape `(3,)`."""
    return distance * np.linalg.norm(np.linalg.inv(cell), axis=0)


def _pairwise_reduced(cell: np.ndarray) -> np.ndarray:
    """Same lattice with each vector made as short as whole multiples of another allow (Lagrange steps)."""
    cell = cell.copy()
    for _ in range(1000):  # lengths fall at every step; the bound only guards against rounding cycles
        gram = cell @ cell.T
        steps = np.round(gram / np.diag(gram)[None, :])
        np.fill_diagonal(steps, 0.0)
        if not steps.any():
            break
        i, j = np.unravel_index(int(np.argmax(np.abs(steps))), steps.shape)
        cell[i] -= steps[i, j] * cell[j]
    return cell


@functools.cache
def _all_pairs(num_atoms: int) -> tuple[np.ndarray, np.ndarray]:
    return np.triu_indices(num_atoms, 1)


def candidate_pairs(frac: np.ndarray, width: float, axis: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (i, j), i before j in sorted order, whose fractional coordinate on `axis` differs by at most `width`.

    Sorting along one axis keeps the work near-linear for big cells, where all pairs would not fit in memory; of few
    atoms all pairs are given, which is faster.
    """
    num_atoms = len(frac)
    if num_atoms <= _FEW_ATOMS:
        yield _all_pairs(num_atoms)
        return
    wrapped = frac[:, axis] - np.floor(frac[:, axis])
    order = np.argsort(wrapped, kind="stable")
    sorted_values = wrapped[order]
    # atoms just above 0 are repeated just above 1, so that pairs across the face are met
    repeated = np.concatenate([sorted_values, sorted_values + 1.0])
    ends = np.minimum(np.searchsorted(repeated, sorted_values + width, side="right"), np.arange(num_atoms) + num_atoms)
    counts = np.maximum(ends - np.arange(1, num_atoms + 1), 0)
    bounds = np.concatenate([[0], np.cumsum(counts)])
    start = 0
    while start < num_atoms:  # blocks of about a million pairs
        stop = max(int(np.searchsorted(bounds, bounds[start] + 1_000_000, side="right")) - 1, start + 1)
        first = np.repeat(np.arange(start, stop), counts[start:stop])
        offset = np.arange(len(first)) - np.repeat(bounds[start:stop] - bounds[start], counts[start:stop])
        second = (first + 1 + offset) % num_atoms
        yield order[first], order[second]
        start = stop


def close_pair(
    frac_coords: np.ndarray, cell: np.ndarray, min_distance: float | np.ndarray
) -> tuple[int, int, float] | None:
    """The pair of atoms that is too close by most, periodic images and self-images included.

    Exact for any cell: an image nearer than r differs by at most r / h along each lattice direction, where h is
    the spacing of the lattice planes, so only those images are tried.

    Args:
        frac_coords (`np.ndarray` of shape `(N, 3)`): fractional coordinates.
        cell (`np.ndarray` of shape `(3, 3)`): lattice vectors in rows, Å, not singular.
        min_distance (`float` or `np.ndarray` of shape `(N,)`): Å; nearer atoms are too close; an array: nearer than
            the sum of the values of both.

    Returns:
        `(i, j, distance in Å)`, with `i == j` for an atom and its own image; None where there is no such pair.
    """
    radii = None if np.ndim(min_distance) == 0 else np.asarray(min_distance)
    widest = 0 if radii is None else int(np.argmax(radii))
    largest = float(min_distance) if radii is None else 2.0 * float(radii[widest])
    reach = reach_of(cell, largest)
    if reach.max() >= 0.5:  # rare: a very skewed description of an ordinary lattice
        reduced = _pairwise_reduced(cell)
        frac_coords, cell = frac_coords @ cell @ np.linalg.inv(reduced), reduced
        reach = reach_of(cell, largest)
    extent = np.floor(reach + 0.5).astype(int).tolist()
    images = np.array(list(itertools.product(*(range(-n, n + 1) for n in extent))))
    best, excess = None, 0.0  # distance less what is accepted
    if len(images) > 1:  # planes closer than 2 min_distance
        self_images = images[np.any(images != 0, axis=1)]
        shortest = float(np.linalg.norm(self_images @ cell, axis=1).min())
        if shortest < largest:
            best, excess = (widest, widest, shortest), shortest - largest
    if len(frac_coords) < 2:
        return best
    axis = int(np.argmin(reach))
    for first, second in candidate_pairs(frac_coords, float(reach[axis]), axis):
        if not len(first):
            continue
        difference = frac_coords[second] - frac_coords[first]
        difference -= np.rint(difference)
        limit = largest if radii is None else radii[first] + radii[second]
        for image in images:
            distance = np.sqrt((((difference + image) @ cell) ** 2).sum(axis=1))
            beyond = distance - limit
            place = int(np.argmin(beyond))
            if beyond[place] < excess:
                best, excess = (int(first[place]), int(second[place]), float(distance[place])), float(beyond[place])
    return best


def open_axes(record: CrystalRecord, pbc: tuple[bool, bool, bool], cell: np.ndarray) -> CrystalRecord:
    """Record that repeats along some axes only, the same for every amount of vacuum that it was given with.

    Args:
        record: the atoms; its positions count, not its cell.
        pbc: whether the structure repeats along each vector of `cell`.
        cell (`np.ndarray` of shape `(3, 3)`): Å, rows; those of other axes are ignored and may be zero.

    Returns:
        `CrystalRecord` at the same positions whose other cell vectors are at right angles to the periodic ones, and so
        long that copies along them are at least `VACUUM` away.

    Raises:
        CrystalInputError: a cell vector of a periodic axis that is zero.
    """
    periodic = np.array(pbc)
    if not np.linalg.norm(cell[periodic], axis=1).all():
        raise CrystalInputError(f"pbc is {pbc}, but a cell vector of a periodic axis is zero: {cell.tolist()}")
    if not np.isfinite(cell[periodic]).all():
        raise CrystalInputError(f"cell holds NaN or infinity: {cell.tolist()}; finite lengths in Å are accepted")
    basis = np.linalg.qr(np.concatenate([cell[periodic], np.eye(3)]).T)[0].T  # rows: the periodic plane, then the rest
    others = np.eye(3) if not any(pbc) else basis[int(periodic.sum()) :]
    positions = record.positions
    extent = np.ptp(np.nan_to_num(positions) @ others.T, axis=0) if len(positions) else np.zeros(len(others))
    opened = cell.copy()
    opened[~periodic] = others * (2 * extent + 2 * VACUUM)[:, None]
    if abs(np.linalg.det(opened)) > 1e-12:  # flat ones are reported by `check_record`
        positions = np.linalg.solve(opened.T, positions.T).T
    return replace(record, frac_coords=positions, cell=opened, pbc=pbc)


def _check_shapes(record: CrystalRecord) -> None:
    numbers, frac, cell = record.atomic_numbers, record.frac_coords, record.cell
    if numbers.ndim != 1 or frac.ndim != 2 or frac.shape != (len(numbers), 3):
        raise CrystalInputError(
            f"atomic_numbers has shape {numbers.shape} and the coordinates {frac.shape}; accepted are (N,) and (N, 3)"
        )
    if record.occupancies is not None and record.occupancies.shape != (len(numbers), NUM_SPECIES):
        raise CrystalInputError(
            f"occupancies have shape {record.occupancies.shape}; accepted is {(len(numbers), NUM_SPECIES)}"
        )
    if cell.shape != (3, 3):
        raise CrystalInputError(f"cell has shape {cell.shape}; accepted is (3, 3) with lattice vectors in rows, Å")
    if not len(numbers):
        raise CrystalInputError("0 atoms; at least one is needed")


def _check_numbers(frac: np.ndarray, cell: np.ndarray) -> None:
    if np.abs(cell).max() <= MAX_COORDINATE and np.abs(frac).max() <= MAX_COORDINATE:  # neither holds for NaN
        return
    if not np.isfinite(cell).all():
        raise CrystalInputError(f"cell holds NaN or infinity: {cell.tolist()}; finite lengths in Å are accepted")
    bad_rows = ~np.isfinite(frac).all(axis=1)
    if bad_rows.any():
        site = int(np.argmax(bad_rows))
        raise CrystalInputError(f"coordinates of atom {site} hold NaN or infinity: {frac[site].tolist()}")
    raise CrystalInputError(
        f"cell reaches {np.abs(cell).max():.3g} Å and fractional coordinates {np.abs(frac).max():.3g}; "
        f"at most {MAX_COORDINATE:.0e} is accepted"
    )


def check_record(
    record: CrystalRecord,
    *,
    max_atomic_number: int = 118,
    min_distance: float = 0.1,
    min_volume_per_atom: float = 0.5,
    max_atoms: int | None = None,
    check_distances: bool = True,
) -> CrystalRecord:
    """Return the record if it is a crystal a model can read.

    Args:
        record: arrays to check.
        max_atomic_number: largest atomic number accepted.
        min_distance: atoms nearer than this (Å), periodic images included, are an error.
        min_volume_per_atom: smaller cells (Å³ per atom) are an error; solids at ambient pressure keep above 5 Å³.
        max_atoms: largest cell accepted, None for no limit.
        check_distances: whether to look for overlapping atoms.

    Returns:
        The same record.

    Raises:
        CrystalInputError: wrong shapes, no atoms, not finite, unknown atomic number, flat cell, overlapping atoms.
    """
    _check_shapes(record)
    numbers, frac, cell = record.atomic_numbers, record.frac_coords, record.cell
    if max_atoms is not None and len(numbers) > max_atoms:
        raise CrystalInputError(f"{len(numbers)} atoms in the cell; max_atoms = {max_atoms} are accepted")
    _check_numbers(frac, cell)
    if record.occupancies is not None and max_atomic_number < NUM_SPECIES:
        heaviest = np.flatnonzero(record.occupancies.any(axis=0)).max() + 1
        numbers = np.where(record.occupancies[:, heaviest - 1] > 0, heaviest, numbers)  # rarely the main element
    out_of_range = (numbers < 1) | (numbers > max_atomic_number)
    if out_of_range.any():
        site = int(np.argmax(out_of_range))
        raise CrystalInputError(
            f"atomic number {int(numbers[site])} at atom {site}; accepted are 1 to {max_atomic_number}"
        )
    if record.occupancies is not None:
        amounts = record.occupancies
        wrong = ~((amounts >= 0).all(axis=1) & (amounts.sum(axis=1) <= 1 + 1e-6))  # NaN fails, too
        if wrong.any():
            site = int(np.argmax(wrong))
            raise CrystalInputError(
                f"occupancies of site {site} sum to {amounts[site].sum():.4g}, the lowest is "
                f"{amounts[site].min():.4g}; accepted are 0 to 1, and sums up to 1"
            )
    lengths = np.linalg.norm(cell, axis=1)
    volume = float(abs(np.linalg.det(cell)))
    if lengths.min() < 1e-8 or volume < min_volume_per_atom * len(numbers) or volume < 1e-9 * lengths.prod():
        raise CrystalInputError(
            f"flat, singular or too small cell: volume {volume:.4g} Å³ for {len(numbers)} atoms "
            f"(lattice vector lengths {', '.join(f'{length:.4g}' for length in lengths)} Å); "
            f"at least {min_volume_per_atom} Å³ per atom is accepted"
        )
    if check_distances:
        pair = close_pair(frac, cell, min_distance)
        if pair is not None:
            first, second, distance = pair
            symbols = [CHEMICAL_SYMBOLS[int(numbers[site])] for site in (first, second)]
            raise CrystalInputError(
                f"overlapping atoms: {symbols[0]} (atom {first}) and {symbols[1]} (atom {second}) are "
                f"{distance:.4f} Å apart, periodic images included; at least {min_distance} Å is accepted"
            )
    return record


# Å, index = atomic number; Cordero et al., Dalton Trans. 2008, 2832; 2.0 from Bk on, which has none
COVALENT_RADII = np.array([
    0.00, 0.31, 0.28, 1.28, 0.96, 0.84, 0.76, 0.71, 0.66, 0.57, 0.58, 1.66, 1.41, 1.21, 1.11, 1.07, 1.05, 1.02, 1.06,
    2.03, 1.76, 1.70, 1.60, 1.53, 1.39, 1.39, 1.32, 1.26, 1.24, 1.32, 1.22, 1.22, 1.20, 1.19, 1.20, 1.20, 1.16,
    2.20, 1.95, 1.90, 1.75, 1.64, 1.54, 1.47, 1.46, 1.42, 1.39, 1.45, 1.44, 1.42, 1.39, 1.39, 1.38, 1.39, 1.40,
    2.44, 2.15, 2.07, 2.04, 2.03, 2.01, 1.99, 1.98, 1.98, 1.96, 1.94, 1.92, 1.92, 1.89, 1.90, 1.87, 1.87,
    1.75, 1.70, 1.62, 1.51, 1.44, 1.41, 1.36, 1.36, 1.32, 1.45, 1.46, 1.48, 1.40, 1.50, 1.50,
    2.60, 2.21, 2.15, 2.06, 2.00, 1.96, 1.90, 1.87, 1.80, 1.69, *[2.0] * 22,
])  # fmt: skip
