# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Structural and compositional validity of generated crystals, as CDVAE and DiffCSP judge them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hf_crystal.evaluation.results import PlainResult, ReadCrystal, read_crystals
from hf_crystal.mat2seq.validity import SMACT_STATES, load_smact, smact_accepts

if TYPE_CHECKING:
    from pymatgen.core import Structure

MIN_DISTANCE = 0.5  # Å
MIN_VOLUME = 0.1  # Å³, of the cell

ValidityFilter = Literal["none", "structure", "structure+smact14"]
VALIDITY_FILTERS: tuple[ValidityFilter, ...] = ("none", "structure", "structure+smact14")

STRUCTURE_RULE = f"distances >= {MIN_DISTANCE} Å, cell volume >= {MIN_VOLUME} Å³"
COMPOSITION_RULE = f"SMACT charge neutrality and Pauling test, {SMACT_STATES} states, alloys and single elements pass"


@dataclass(frozen=True)
class CrystalValidity:
    """Judgment of one crystal.

    Attributes:
        valid: Passes everything that was asked for.
        structure_valid: Distances and volume; False for a crystal that cannot be read.
        composition_valid: SMACT; None where it was not asked for; False for a crystal that cannot be read.
        error: Why the crystal cannot be read, or None.
    """

    valid: bool
    structure_valid: bool
    composition_valid: bool | None
    error: str | None


@dataclass(frozen=True)
class ValidityResult(PlainResult):
    """Fractions of valid crystals; all fractions are of `num_crystals`, unreadable ones included.

    Attributes:
        protocol: Name and rules.
        min_distance: Å.
        min_volume: Å³.
        oxidation_states: Set of oxidation states, or None where compositions were not judged.
        valid: Fraction that passes everything that was asked for.
        structure_valid: Fraction with valid structure.
        composition_valid: Fraction with valid composition; None where not judged.
        num_crystals: Crystals given.
        num_unreadable: Crystals that could not be read; they count as not valid.
        num_valid: Crystals that pass everything.
        num_structure_valid: Crystals with valid structure.
        num_composition_valid: Crystals with valid composition; None where not judged.
        crystals: Judgment of each, in order.
    """

    protocol: str
    min_distance: float
    min_volume: float
    oxidation_states: str | None
    valid: float
    structure_valid: float
    composition_valid: float | None
    num_crystals: int
    num_unreadable: int
    num_valid: int
    num_structure_valid: int
    num_composition_valid: int | None
    crystals: tuple[CrystalValidity, ...]


def structure_is_valid(structure: "Structure") -> bool:
    """Whether no two atoms are nearer than 0.5 Å and the cell has at least 0.1 Å³.

    As in the protocol, an atom and its own periodic images are not compared.

    Args:
        structure: pymatgen `Structure`.
    """
    if structure.volume < MIN_VOLUME:
        return False
    distances = structure.distance_matrix
    pairs = distances[np.triu_indices(len(distances), k=1)]
    return not pairs.size or bool(pairs.min() >= MIN_DISTANCE)


def judge(crystal: ReadCrystal, *, composition: bool) -> CrystalValidity:
    """Judge one crystal.

    Args:
        crystal: What `read_crystal` gave.
        composition: Whether to ask SMACT.
    """
    if crystal.record is None:
        return CrystalValidity(False, False, False if composition else None, crystal.error)
    structure_valid = structure_is_valid(crystal.structure)
    composition_valid = smact_accepts(crystal.formula) if composition else None
    return CrystalValidity(
        structure_valid and composition_valid is not False, structure_valid, composition_valid, None
    )


def passes(crystals: Sequence[ReadCrystal], validity_filter: ValidityFilter) -> list[bool]:
    """Which crystals are readable and pass the filter.

    Raises:
        ValueError: for an unknown filter.
        ImportError: if the filter needs smact and it is not installed.
    """
    if validity_filter not in VALIDITY_FILTERS:
        raise ValueError(f"validity_filter is {validity_filter!r}; accepted: {', '.join(VALIDITY_FILTERS)}")
    if validity_filter == "none":
        return [crystal.record is not None for crystal in crystals]
    composition = validity_filter == "structure+smact14"
    if composition:
        load_smact()
    return [judge(crystal, composition=composition).valid for crystal in crystals]


def validity(crystals: Iterable[Any], *, composition: Literal["smact14"] | None = "smact14") -> ValidityResult:
    """Fractions of generated crystals with valid structure and composition.

    Source: CDVAE (Xie et al., ICLR 2022), `scripts/eval_utils.py`; the oxidation states are SMACT's set of 2014, which
    the literature used and which is no longer SMACT's default.

    Args:
        crystals: Forms that `as_record` takes, or objects with `structure` and `error`; an error is not valid.
        composition: "smact14", or None to judge structures only.

    Returns:
        The fractions, the counts and the judgment of each crystal.

    Raises:
        ValueError: if there are no crystals or `composition` is something else.
        ImportError: if smact is needed and not installed.
    """
    if composition not in (SMACT_STATES, None):
        raise ValueError(f"composition is {composition!r}; accepted: {SMACT_STATES!r} or None")
    if composition is not None:
        load_smact()
    judged = tuple(judge(crystal, composition=composition is not None) for crystal in read_crystals(crystals))
    if not judged:
        raise ValueError("crystals is empty: expected at least one")
    total = len(judged)
    valid, structure = sum(c.valid for c in judged), sum(c.structure_valid for c in judged)
    compositions = None if composition is None else sum(bool(c.composition_valid) for c in judged)
    return ValidityResult(
        protocol="cdvae-validity: " + STRUCTURE_RULE + ("" if composition is None else "; " + COMPOSITION_RULE),
        min_distance=MIN_DISTANCE,
        min_volume=MIN_VOLUME,
        oxidation_states=composition,
        valid=valid / total,
        structure_valid=structure / total,
        composition_valid=None if compositions is None else compositions / total,
        num_crystals=total,
        num_unreadable=sum(c.error is not None for c in judged),
        num_valid=valid,
        num_structure_valid=structure,
        num_composition_valid=compositions,
        crystals=judged,
    )
