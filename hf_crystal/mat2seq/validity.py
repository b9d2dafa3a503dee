# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Rules by which generated crystals may be left out: distances between atoms, and charge neutrality (SMACT)."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..crystals.record import COVALENT_RADII, close_pair

if TYPE_CHECKING:
    from .tokenization_mat2seq import DecodedCrystal

__all__ = [
    "SMACT_STATES",
    "atoms_are_apart",
    "atoms_collide",
    "check_min_distance",
    "load_smact",
    "smact_accepts",
]

SMACT_STATES = "smact14"  # the oxidation states of the literature; no longer SMACT's default
_LAST_SMACT_ELEMENT = 103
_LARGEST_DISTANCE = 6.0  # Å; the largest nearest distance in MP-20 is 5.47, of cesium
_NEAREST = 0.5  # of the sum of covalent radii


def check_min_distance(min_distance: float | None) -> None:
    """Refuse a distance that no crystal keeps, before any is looked for.

    Raises:
        ValueError: the distance is out of range.
    """
    if min_distance is not None and not 0 < min_distance <= _LARGEST_DISTANCE:
        raise ValueError(
            f"min_distance is {min_distance}; accepted: above 0 up to {_LARGEST_DISTANCE:g} Å, as no crystal's atoms "
            "are all farther apart"
        )


def atoms_are_apart(structure: Any, min_distance: float) -> bool:
    """Whether no two atoms, periodic images included, are nearer than `min_distance` (Å).

    Args:
        structure: pymatgen `Structure`.
        min_distance: Smallest allowed distance, Å.
    """
    distances = structure.get_neighbor_list(float(min_distance))[3]
    return not bool((distances < min_distance).any())


def atoms_collide(item: "DecodedCrystal") -> bool:
    """Whether two atoms, periodic images included, are closer than half the sum of their covalent radii."""
    record = item.canonical.to_record()  # type: ignore[union-attr]
    return close_pair(record.frac_coords, record.cell, _NEAREST * COVALENT_RADII[record.atomic_numbers]) is not None


def load_smact() -> Callable[..., bool]:
    """The function `smact.screening.smact_validity`.

    Raises:
        ImportError: if smact is not installed.
    """
    try:
        from smact.screening import smact_validity
    except ImportError as error:
        raise ImportError(
            "charge neutrality needs smact: pip install smact, or leave it out (--smact; in Python smact=False, "
            "composition=None for validity, validity_filter='none' or 'structure' elsewhere)"
        ) from error
    return smact_validity


@functools.lru_cache(maxsize=65536)
def smact_accepts(formula: tuple[tuple[int, int], ...]) -> bool:
    """Whether SMACT finds a charge-neutral assignment of oxidation states (Pauling test; alloys and elements pass).

    Source: CDVAE (Xie et al., ICLR 2022), `scripts/eval_utils.py`.

    Args:
        formula: Atomic numbers and counts.

    Raises:
        ImportError: if smact is not installed.
    """
    smact_validity = load_smact()
    if not formula or any(number > _LAST_SMACT_ELEMENT for number, _ in formula):
        return False
    try:
        from pymatgen.core import Composition, Element
    except ImportError as error:
        raise ImportError("charge neutrality needs pymatgen: pip install pymatgen") from error

    composition = Composition({Element.from_Z(number): count for number, count in formula})
    return bool(
        smact_validity(composition, use_pauling_test=True, include_alloys=True, oxidation_states_set=SMACT_STATES)
    )
