# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Generated crystals against each other and against known ones: uniqueness, novelty, space groups."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hf_crystal.evaluation.comparisons import PairComparer
from hf_crystal.evaluation.pools import Outcome
from hf_crystal.evaluation.results import (
    PlainResult,
    ReadCrystal,
    find_space_group,
    read_crystal,
    read_crystals,
    read_references,
)
from hf_crystal.evaluation.structure_matching.fast_matcher import fits
from hf_crystal.evaluation.structure_matching.matching import DEFAULT_MATCHER
from hf_crystal.evaluation.structure_matching.pymatgen_matcher import MatcherSettings
from hf_crystal.mat2seq.space_groups import space_group_number

SYMPREC = 0.1  # Å; what CrystaLLM and the Materials Project use for crystals that are not exact

BucketBy = Literal["formula+space_group", "formula"]
_BUCKETS: tuple[BucketBy, ...] = ("formula+space_group", "formula")


@dataclass(frozen=True)
class UniquenessResult(PlainResult):
    """How many generated crystals differ from each other.

    Attributes:
        protocol: Name, matcher and buckets.
        settings: Tolerances.
        bucket_by: Crystals of different buckets were taken as different.
        symprec: Tolerance of the space groups, Å.
        uniqueness: Distinct crystals over all crystals given, unreadable ones included.
        num_crystals: Crystals given.
        num_unreadable: Crystals that could not be read; they are not counted as distinct.
        num_unique: Distinct crystals.
        num_pairs: Pairs compared.
        failures: Pairs that raised, timed out or crashed, by kind; such a pair counts as different.
        representative: For each crystal the first one that it equals (itself if new), None if unreadable.
    """

    protocol: str
    settings: MatcherSettings
    bucket_by: BucketBy
    symprec: float
    uniqueness: float
    num_crystals: int
    num_unreadable: int
    num_unique: int
    num_pairs: int
    failures: dict[str, int]
    representative: tuple[int | None, ...]


@dataclass(frozen=True)
class NoveltyResult(PlainResult):
    """How many generated crystals are not in a reference set.

    Attributes:
        protocol: Name, matcher and buckets.
        settings: Tolerances.
        bucket_by: Crystals of different buckets were taken as different.
        symprec: Tolerance of the space groups, Å.
        novelty: Novel crystals over all crystals given, unreadable ones included.
        num_crystals: Crystals given.
        num_unreadable: Crystals that could not be read; they are not counted as novel.
        num_novel: Readable crystals that equal no reference.
        num_references: Reference crystals.
        num_pairs: Pairs compared.
        failures: Pairs that raised, timed out or crashed, by kind; such a pair counts as different.
        match: For each crystal the first reference that it equals, or None.
    """

    protocol: str
    settings: MatcherSettings
    bucket_by: BucketBy
    symprec: float
    novelty: float
    num_crystals: int
    num_unreadable: int
    num_novel: int
    num_references: int
    num_pairs: int
    failures: dict[str, int]
    match: tuple[int | None, ...]


@dataclass(frozen=True)
class SpaceGroupResult(PlainResult):
    """Space groups that moyopy finds, against those that were expected.

    Attributes:
        protocol: Name and tolerance.
        symprec: Å.
        agreement: Crystals with the expected space group over all crystals given, unreadable ones included.
        num_crystals: Crystals given.
        num_agreeing: Crystals whose space group is the expected one.
        num_unreadable: Crystals that could not be read.
        num_not_found: Readable crystals for which moyopy found none.
        expected: ITA number expected of each; None for an unreadable crystal of which nothing was expected.
        found: ITA number found, or None.
    """

    protocol: str
    symprec: float
    agreement: float
    num_crystals: int
    num_agreeing: int
    num_unreadable: int
    num_not_found: int
    expected: tuple[int | None, ...]
    found: tuple[int | None, ...]


def _buckets(
    crystals: Sequence[ReadCrystal], places: Iterable[int], bucket_by: BucketBy, symprec: float
) -> dict[tuple[Any, ...], list[int]]:
    """Places by what crystals must share to be compared."""
    buckets: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for place in places:
        crystal = crystals[place]
        group = () if bucket_by == "formula" else (find_space_group(crystal.structure, symprec),)
        buckets[crystal.formula, *group].append(place)
    return buckets


def _readable(crystals: Sequence[ReadCrystal]) -> list[int]:
    return [place for place, crystal in enumerate(crystals) if crystal.record is not None]


def _check_bucket(bucket_by: str) -> None:
    if bucket_by not in _BUCKETS:
        raise ValueError(f"bucket_by is {bucket_by!r}; accepted: {', '.join(_BUCKETS)}")


def _protocol(name: str, settings: MatcherSettings, bucket_by: BucketBy, symprec: float) -> str:
    tolerance = f" (moyopy, symprec={symprec} Å)" if bucket_by == "formula+space_group" else ""
    return f"{name}: {settings}.fit within buckets of equal {bucket_by}{tolerance}"


def _failures(outcomes: Iterable[Outcome]) -> Counter[str]:
    return Counter(outcome.failure for outcome in outcomes if outcome.failure is not None)


def uniqueness(
    crystals: Iterable[Any],
    *,
    settings: MatcherSettings = DEFAULT_MATCHER,
    bucket_by: BucketBy = "formula+space_group",
    symprec: float = SYMPREC,
    num_workers: int = 0,
    time_limit: float | None = None,
) -> UniquenessResult:
    """Fraction of distinct crystals among generated ones.

    A crystal is compared with the first of each group before it, in the order given, as pymatgen's
    `group_structures` does. With `bucket_by="formula"` the groups are those of pymatgen; buckets of equal space group
    are faster and stricter: `StructureMatcher` with its loose tolerances calls some crystals of different symmetry
    equal.

    Args:
        crystals: Forms that `as_record` takes, or objects with `structure` and `error`.
        settings: Tolerances.
        bucket_by: What crystals must share to be compared at all.
        symprec: Tolerance of the space groups, Å.
        num_workers: Processes; 0 for none.
        time_limit: Seconds for one pair; needs and starts a process.

    Raises:
        ValueError: if there are no crystals or `bucket_by` is unknown.
    """
    _check_bucket(bucket_by)
    read = read_crystals(crystals)
    if not read:
        raise ValueError("crystals is empty: expected at least one")
    representative: list[int | None] = [None] * len(read)
    failures: Counter[str] = Counter()
    num_pairs = 0
    remaining = list(_buckets(read, _readable(read), bucket_by, symprec).values())
    with PairComparer(fits, settings, num_workers=num_workers, time_limit=time_limit) as comparer:
        # a crystal that is alone is compared with none
        reduced = comparer.reduce(read, (i for bucket in remaining if len(bucket) > 1 for i in bucket), niggli=True)
        # a round settles one group of every bucket: all that equal the first crystal left over
        while remaining:
            pairs = [(bucket[0], index) for bucket in remaining for index in bucket[1:]]
            outcomes = comparer.compare([(reduced[first], reduced[index]) for first, index in pairs])
            for bucket in remaining:
                representative[bucket[0]] = bucket[0]
            for (first, index), outcome in zip(pairs, outcomes, strict=True):
                if outcome.value:
                    representative[index] = first
            failures += _failures(outcomes)
            num_pairs += len(pairs)
            remaining = [left for bucket in remaining if (left := [i for i in bucket if representative[i] is None])]
    num_unique = sum(first == index for index, first in enumerate(representative))
    return UniquenessResult(
        protocol=_protocol("uniqueness", settings, bucket_by, symprec),
        settings=settings,
        bucket_by=bucket_by,
        symprec=symprec,
        uniqueness=num_unique / len(read),
        num_crystals=len(read),
        num_unreadable=sum(crystal.record is None for crystal in read),
        num_unique=num_unique,
        num_pairs=num_pairs,
        failures=dict(failures),
        representative=tuple(representative),
    )


def novelty(
    crystals: Iterable[Any],
    references: Iterable[Any],
    *,
    settings: MatcherSettings = DEFAULT_MATCHER,
    bucket_by: BucketBy = "formula+space_group",
    symprec: float = SYMPREC,
    num_workers: int = 0,
    time_limit: float | None = None,
) -> NoveltyResult:
    """Fraction of generated crystals that equal none of a reference set, the training set for instance.

    Args:
        crystals: Forms that `as_record` takes, or objects with `structure` and `error`.
        references: Known crystals, all readable.
        settings: Tolerances.
        bucket_by: What crystals must share to be compared at all.
        symprec: Tolerance of the space groups, Å.
        num_workers: Processes; 0 for none.
        time_limit: Seconds for one pair; needs and starts a process.

    Raises:
        ValueError: if there are no crystals or references, or `bucket_by` is unknown.
        CrystalInputError: if a reference cannot be read.
    """
    _check_bucket(bucket_by)
    known, read = read_references(references), read_crystals(crystals)
    if not read:
        raise ValueError("crystals is empty: expected at least one")
    buckets = _buckets(read, _readable(read), bucket_by, symprec)
    formulas = {key[0] for key in buckets}
    # the space group of references with other formulas is never needed
    rows = [row for row, reference in enumerate(known) if reference.formula in formulas]
    known_buckets = _buckets(known, rows, bucket_by, symprec)
    pairs = sorted(
        (index, row) for key, places in buckets.items() for index in places for row in known_buckets.get(key, ())
    )
    with PairComparer(fits, settings, num_workers=num_workers, time_limit=time_limit) as comparer:
        first = comparer.reduce(known, (row for _, row in pairs), niggli=False)
        second = comparer.reduce(read, (index for index, _ in pairs), niggli=True)
        outcomes = comparer.compare([(first[row], second[index]) for index, row in pairs])
    match: list[int | None] = [None] * len(read)
    for (index, row), outcome in zip(pairs, outcomes, strict=True):
        if outcome.value and match[index] is None:
            match[index] = row
    num_novel = sum(c.record is not None and row is None for c, row in zip(read, match, strict=True))
    return NoveltyResult(
        protocol=_protocol("novelty", settings, bucket_by, symprec),
        settings=settings,
        bucket_by=bucket_by,
        symprec=symprec,
        novelty=num_novel / len(read),
        num_crystals=len(read),
        num_unreadable=sum(crystal.record is None for crystal in read),
        num_novel=num_novel,
        num_references=len(known),
        num_pairs=len(pairs),
        failures=dict(_failures(outcomes)),
        match=tuple(match),
    )


def _written_space_group(crystal: Any, index: int, read: ReadCrystal) -> int | None:
    canonical = getattr(crystal, "canonical", None)
    if canonical is not None:
        return int(canonical.space_group)
    if read.record is None:
        return None
    raise ValueError(f"crystal {index} has no `canonical.space_group`: give `expected` space groups")


def space_group_agreement(
    crystals: Iterable[Any], expected: Sequence[int | str] | None = None, *, symprec: float = SYMPREC
) -> SpaceGroupResult:
    """Fraction of crystals in which moyopy finds the space group that was asked for or written.

    Args:
        crystals: Forms that `as_record` takes, or objects with `structure` and `error`.
        expected: ITA number or short symbol for each; by default what the sequence of each `DecodedCrystal` says
            (`canonical.space_group`).
        symprec: Tolerance, Å.

    Raises:
        ValueError: if there are no crystals, `expected` has another length or names no space group, or is left out
            for crystals that were not decoded from sequences.
    """
    items = list(crystals)
    if not items:
        raise ValueError("crystals is empty: expected at least one")
    if expected is not None and len(expected) != len(items):
        raise ValueError(f"{len(expected)} expected space groups for {len(items)} crystals")
    read = [read_crystal(item, index=index) for index, item in enumerate(items)]
    wanted = [
        _written_space_group(item, index, read[index]) if expected is None else space_group_number(expected[index])
        for index, item in enumerate(items)
    ]
    found = [None if c.record is None else find_space_group(c.structure, symprec) for c in read]
    agreeing = sum(number is not None and number == want for number, want in zip(found, wanted, strict=True))
    unreadable = sum(crystal.record is None for crystal in read)
    return SpaceGroupResult(
        protocol=f"space-group-agreement: moyopy, symprec={symprec} Å",
        symprec=symprec,
        agreement=agreeing / len(items),
        num_crystals=len(items),
        num_agreeing=agreeing,
        num_unreadable=unreadable,
        num_not_found=sum(number is None for number in found) - unreadable,
        expected=tuple(wanted),
        found=tuple(found),
    )
