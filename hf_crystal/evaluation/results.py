# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""What the figures for generated crystals share: how crystals are read, and how results become plain values."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any

from hf_crystal.crystals.reading import CHEMICAL_SYMBOLS, CrystalInputError, as_record
from hf_crystal.crystals.record import CrystalRecord
from hf_crystal.mat2seq.canonical_symmetry import find_dataset
from hf_crystal.typing import CrystalLike, Decoded

if TYPE_CHECKING:
    from pymatgen.core import Structure


class PlainResult:
    """Base of the result dataclasses: `to_dict` for JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN becomes None."""

        def plain(value: object) -> Any:
            """The value without NaN and tuples, at every depth."""
            if isinstance(value, dict):
                return {key: plain(entry) for key, entry in value.items()}
            if isinstance(value, list | tuple):
                return [plain(entry) for entry in value]
            return None if isinstance(value, float) and math.isnan(value) else value

        assert dataclasses.is_dataclass(self)
        return plain(dataclasses.asdict(self))


@dataclass(frozen=True, eq=False)
class ReadCrystal:
    """A crystal as the metrics see it.

    Attributes:
        record: Atoms and cell, or None.
        error: Why there is no crystal, or None.
        formula: Atomic numbers and their counts divided by the largest common divisor; () without a crystal.
    """

    record: CrystalRecord | None
    error: str | None = None
    formula: tuple[tuple[int, int], ...] = ()

    @cached_property
    def structure(self) -> Any:
        """The pymatgen `Structure` of plain elements, or None."""
        return None if self.record is None else plain_structure(self.record)


def reduced_formula(atomic_numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Atomic numbers with their counts over the largest common divisor: Na4Cl4 gives ((11, 1), (17, 1))."""
    counts = Counter(int(number) for number in atomic_numbers)
    divisor = reduce(math.gcd, counts.values(), 0)
    return tuple((number, counts[number] // divisor) for number in sorted(counts))


def read_crystal(obj: CrystalLike | Decoded, *, index: int | None = None) -> ReadCrystal:
    """Read one generated crystal; what cannot be read keeps its place, with the reason.

    Overlapping atoms and small cells are read: judging them is the task of the metrics.

    Args:
        obj: Any form that `as_record` takes, or an object with `structure` and `error` (`DecodedCrystal`).
        index: Place in the caller's list.
    """
    if obj is None:
        return ReadCrystal(None, "no crystal (None)")
    if isinstance(obj, Decoded):
        if obj.structure is None or obj.error is not None:
            return ReadCrystal(None, str(obj.error) if obj.error is not None else "no structure")
        return read_crystal(obj.structure, index=index)
    try:
        record = as_record(obj, index=index, check_distances=False, min_volume_per_atom=0.0)
    except CrystalInputError as error:
        return ReadCrystal(None, str(error))
    return ReadCrystal(record, None, reduced_formula(record.atomic_numbers.tolist()))


def read_crystals(crystals: Iterable[Any]) -> list[ReadCrystal]:
    """`read_crystal` of each."""
    return [read_crystal(crystal, index=index) for index, crystal in enumerate(crystals)]


def read_references(references: Iterable[Any]) -> list[ReadCrystal]:
    """Read true crystals, which all have to be readable.

    Raises:
        CrystalInputError: for the first that is not.
        ValueError: if there are none.
    """
    result = []
    for index, reference in enumerate(references):
        read = read_crystal(reference, index=index)
        if read.record is None:
            raise CrystalInputError(f"a reference crystal cannot be read: {read.error}", index=index)
        result.append(read)
    if not result:
        raise ValueError("references is empty: expected at least one crystal")
    return result


def plain_structure(record: CrystalRecord) -> Any:
    """The pymatgen `Structure` of plain elements."""
    from pymatgen.core import Lattice, Structure

    return Structure(Lattice(record.cell), [CHEMICAL_SYMBOLS[n] for n in record.atomic_numbers], record.frac_coords)


def find_space_group(structure: "Structure", symprec: float) -> int | None:
    """ITA number of the space group that moyopy finds, or None where it finds none.

    Args:
        structure: pymatgen `Structure`.
        symprec: Tolerance, Å.
    """
    numbers = [site.specie.Z for site in structure]
    dataset = find_dataset(structure.lattice.matrix.tolist(), structure.frac_coords.tolist(), numbers, symprec)
    return None if dataset is None else int(dataset.number)
