# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""S.U.N.: the share of generated crystals that are stable, unique and novel."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_crystal.evaluation.generation import novelty, uniqueness
from hf_crystal.evaluation.intervals import wilson_interval
from hf_crystal.evaluation.results import PlainResult, ReadCrystal, read_crystals
from hf_crystal.evaluation.structure_matching.matching import DEFAULT_MATCHER
from hf_crystal.evaluation.structure_matching.pymatgen_matcher import MatcherSettings

STABLE, METASTABLE = 0.0, 0.1  # eV/atom above the hull, at most

SUN_RULE = (
    f"S.U.N.: at most {STABLE:g} eV/atom above the hull (M.S.U.N.: {METASTABLE:g}), equal to no reference of its "
    "formula, and of those equal to each other one; over all crystals given"
)


@dataclass(frozen=True)
class SunResult(PlainResult):
    """Stable, unique and novel crystals; all shares are of `num_crystals`, unreadable ones included.

    Attributes:
        protocol: The definition, the matcher, and whose energies they are.
        settings: Tolerances of the matcher.
        sun: Share at most 0 eV/atom above the hull, novel, and counted once where several are equal.
        sun_interval: Its 95 % interval (Wilson), as if crystals were drawn independently.
        msun: The same at most 0.1 eV/atom above the hull.
        msun_interval: Its interval.
        num_crystals: Crystals given.
        num_unreadable: Crystals that could not be read; they are none of the rest.
        num_without_energy: Readable crystals without a distance from the hull; they are not stable.
        num_stable: Crystals at most 0 eV/atom above the hull.
        num_metastable: Crystals at most 0.1 eV/atom above the hull.
        num_unique: Distinct crystals.
        num_novel: Crystals that equal no reference.
        num_sun: Groups of equal crystals with a stable and novel one.
        num_msun: The same for 0.1 eV/atom.
        num_references: Reference crystals.
        failures: Pairs that the matcher could not compare, by kind; such a pair counts as different.
    """

    protocol: str
    settings: MatcherSettings
    sun: float
    sun_interval: tuple[float, float]
    msun: float
    msun_interval: tuple[float, float]
    num_crystals: int
    num_unreadable: int
    num_without_energy: int
    num_stable: int
    num_metastable: int
    num_unique: int
    num_novel: int
    num_sun: int
    num_msun: int
    num_references: int
    failures: dict[str, int]


def sun(
    crystals: Iterable[Any],
    e_above_hull: Sequence[float | None],
    references: Iterable[Any],
    *,
    energies_by: str,
    settings: MatcherSettings = DEFAULT_MATCHER,
    num_workers: int = 0,
    time_limit: float | None = None,
) -> SunResult:
    """Share of generated crystals that are stable, unique and novel.

    The figure depends on whose energies they are, on whether crystals were relaxed, on the hull and on the references:
    compare it with others of the same protocol only.

    Args:
        crystals: Forms that `as_record` takes, or objects with `structure` and `error`; relaxed, if the energies are
            those of relaxed crystals.
        e_above_hull: Distance of each from the hull of known phases, eV/atom, such as `RelaxedHull.judge` and
            `predict_stability` give; None where it is not known.
        references: Known crystals, all readable, or a `PrototypeIndex`.
        energies_by: Whose energies they are, for the protocol: "CHGNet 0.3.0, relaxed" for instance.
        settings: Tolerances of the matcher.
        num_workers: Processes; 0 for none.
        time_limit: Seconds for one pair; needs and starts a process.

    Raises:
        ValueError: there are no crystals or references, distances are not as many as crystals or one is not finite.
        CrystalInputError: a reference cannot be read.
    """
    read = read_crystals(crystals)
    if len(e_above_hull) != len(read):
        raise ValueError(f"{len(e_above_hull)} distances from the hull for {len(read)} crystals")
    for index, distance in enumerate(e_above_hull):
        if distance is not None and not math.isfinite(distance):
            raise ValueError(f"e_above_hull of crystal {index} is {distance}; accepted: eV/atom, or None")
    options: dict[str, Any] = {"settings": settings, "num_workers": num_workers, "time_limit": time_limit}
    given = [crystal.record for crystal in read]
    distinct = uniqueness(given, bucket_by="formula", **options)
    known, num_references = _references(references, read)
    match: Sequence[int | None] = [None] * len(read)
    failures = dict(distinct.failures)
    if known:
        compared = novelty(given, known, bucket_by="formula", **options)
        match = compared.match
        failures = {
            kind: failures.get(kind, 0) + compared.failures.get(kind, 0) for kind in {*failures, *compared.failures}
        }
    novel = {index for index, crystal in enumerate(read) if crystal.record is not None and match[index] is None}
    near = {
        limit: {
            index
            for index, (crystal, distance) in enumerate(zip(read, e_above_hull, strict=True))
            if crystal.record is not None and distance is not None and distance <= limit
        }
        for limit in (STABLE, METASTABLE)
    }
    groups = {limit: len({distinct.representative[index] for index in near[limit] & novel}) for limit in near}
    total = len(read)
    return SunResult(
        protocol=f"{SUN_RULE}; {settings}.fit; energies by {energies_by}",
        settings=settings,
        sun=groups[STABLE] / total,
        sun_interval=wilson_interval(groups[STABLE], total),
        msun=groups[METASTABLE] / total,
        msun_interval=wilson_interval(groups[METASTABLE], total),
        num_crystals=total,
        num_unreadable=distinct.num_unreadable,
        num_without_energy=sum(
            crystal.record is not None and distance is None
            for crystal, distance in zip(read, e_above_hull, strict=True)
        ),
        num_stable=len(near[STABLE]),
        num_metastable=len(near[METASTABLE]),
        num_unique=distinct.num_unique,
        num_novel=len(novel),
        num_sun=groups[STABLE],
        num_msun=groups[METASTABLE],
        num_references=num_references,
        failures=failures,
    )


def _references(references: Any, read: Sequence[ReadCrystal]) -> tuple[list[Any], int]:
    """Known crystals to compare with, and how many are known: of an index those of the same formulas are enough."""
    if not hasattr(references, "known_of"):
        known = list(references)
        if not known:
            raise ValueError("references is empty: expected at least one crystal")
        return known, len(known)
    formulas = dict.fromkeys(crystal.formula for crystal in read if crystal.record is not None)
    return [item for formula in formulas for item in references.known_of(dict(formula))], len(references)
