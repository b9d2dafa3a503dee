# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Disordered crystals: ordered ones in their place."""

from typing import Any

from .crystals.occupancy import ordered_records
from .crystals.reading import CrystalLike, as_record, record_to_structure

__all__ = ["orderings"]


def orderings(structure: CrystalLike, n: int = 8, *, max_atoms: int = 160, seed: int = 0) -> list[Any]:
    """Ordered approximants of a disordered crystal.

    Atoms are drawn at random on the partly occupied sites of the smallest supercell whose whole numbers of atoms are
    the occupancies to 0.01, or of the nearest one up to `max_atoms`; sites that exclude each other are not both
    filled where that is possible. Of many draws those of lowest electrostatic energy are kept (pymatgen's
    `EwaldSummation`, common oxidation states), or the first ones where the charges do not cancel, as in alloys.
    Orderings that symmetry makes equal count once. They are no sample of a thermal ensemble: the spread over them says
    how much the order matters.

    Args:
        structure: any accepted form of a crystal; an ordered one is its own only ordering.
        n: orderings to return; fewer where there are no more.
        max_atoms: largest supercell tried; a cell that is larger already is taken as it is.
        seed: of the draws.

    Returns:
        pymatgen `Structure` objects, lowest energy first.

    Raises:
        CrystalInputError: a crystal that cannot be read, or whose occupancies round to no atom at all.
        ImportError: pymatgen is not installed.
    """
    found = ordered_records(as_record(structure, disorder="mix"), n, max_atoms=max_atoms, seed=seed)
    return [record_to_structure(record) for record in found]
