# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Crystal structure prediction: match rate and RMSE as DiffCSP and CDVAE define them, METRe and cRMSE."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hf_crystal.evaluation.comparisons import PairComparer
from hf_crystal.evaluation.pools import Outcome
from hf_crystal.evaluation.results import PlainResult, ReadCrystal, read_crystals, read_references
from hf_crystal.evaluation.structure_matching.fast_matcher import rms_distances
from hf_crystal.evaluation.structure_matching.pymatgen_matcher import MatcherSettings
from hf_crystal.evaluation.valid_crystals import ValidityFilter, passes

SampleOutcome = Literal[
    "matched",
    "unmatched",
    "other_composition",
    "invalid",
    "invalid_reference",
    "unreadable",
    "error",
    "timeout",
    "crash",
]


DIFFCSP_MATCHER = MatcherSettings(ltol=0.3, stol=0.5, angle_tol=10.0)
DEFAULT_MATCHER = MatcherSettings(ltol=0.2, stol=0.3, angle_tol=5.0)


@dataclass(frozen=True)
class SampleMatch:
    """One prediction against its reference.

    Attributes:
        outcome: What came of it; only "matched" counts.
        rms: Displacement over (volume / atoms)^(1/3), for a match.
        reason: What went wrong, where something did.
    """

    outcome: SampleOutcome
    rms: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class MatchResult(PlainResult):
    """Match rate and RMSE.

    Attributes:
        protocol: Name, matcher, filter and number of samples.
        settings: Tolerances.
        validity_filter: What a prediction had to pass.
        filter_references: Whether the reference had to pass it too.
        n: Samples per item that were looked at.
        match_rate: Items with at least one match over all items.
        rmse: Mean over matched items of the smallest RMS displacement; NaN if none matched.
        crmse: The same mean over all items, `stol` for an item without match.
        num_items: Reference crystals.
        num_matched: Items with a match.
        num_samples: Predictions looked at; fewer than `n * num_items` where an item has fewer.
        counts: Predictions by outcome.
        best_rms: Smallest RMS displacement of each item, None without a match.
        samples: Every prediction of every item.
    """

    protocol: str
    settings: MatcherSettings
    validity_filter: ValidityFilter
    filter_references: bool
    n: int
    match_rate: float
    rmse: float
    crmse: float
    num_items: int
    num_matched: int
    num_samples: int
    counts: dict[str, int]
    best_rms: tuple[float | None, ...] = field(repr=False)
    samples: tuple[tuple[SampleMatch, ...], ...] = field(repr=False)

    def at(self, n: int) -> "MatchResult":
        """The result for the first `n` samples of each item, without matching again.

        Raises:
            ValueError: if `n` is not between 1 and the number of samples looked at.
        """
        if not 1 <= n <= self.n:
            raise ValueError(f"n is {n}; expected 1 to {self.n}, the samples per item of this result")
        samples = tuple(item[:n] for item in self.samples)
        return _match_result(samples, n, self.settings, self.validity_filter, self.filter_references)


@dataclass(frozen=True)
class MetreResult(PlainResult):
    """METRe and cRMSE.

    Attributes:
        protocol: Name, matcher and filter.
        settings: Tolerances.
        validity_filter: What a generated crystal had to pass.
        metre: References that at least one generated crystal matches, over all references.
        crmse: Mean over references of the smallest RMS displacement, `stol` for those without a match.
        rmse: The mean over matched references only; NaN if there is none.
        num_references: Reference crystals.
        num_matched: References with a match.
        num_generated: Generated crystals, unreadable and invalid ones included.
        num_usable: Generated crystals that are readable and pass the filter.
        counts: Compared pairs by outcome.
        best_rms: Smallest RMS displacement of each reference, None without a match.
        best_index: The generated crystal that has it, None without a match.
    """

    protocol: str
    settings: MatcherSettings
    validity_filter: ValidityFilter
    metre: float
    crmse: float
    rmse: float
    num_references: int
    num_matched: int
    num_generated: int
    num_usable: int
    counts: dict[str, int]
    best_rms: tuple[float | None, ...]
    best_index: tuple[int | None, ...]


def _means(best: Sequence[float | None], stol: float) -> tuple[float, float]:
    """RMSE over what matched, cRMSE over everything."""
    matched = [rms for rms in best if rms is not None]
    rmse = math.fsum(matched) / len(matched) if matched else math.nan
    return rmse, (math.fsum(matched) + stol * (len(best) - len(matched))) / len(best)


def _match_result(
    samples: tuple[tuple[SampleMatch, ...], ...],
    n: int,
    settings: MatcherSettings,
    validity_filter: ValidityFilter,
    filter_references: bool,
) -> MatchResult:
    best = tuple(min((s.rms for s in item if s.rms is not None), default=None) for item in samples)
    rmse, crmse = _means(best, settings.stol)
    num_matched = sum(rms is not None for rms in best)
    whose = "prediction and reference" if filter_references else "prediction"
    judged = "no validity filter" if validity_filter == "none" else f"{validity_filter} validity of {whose}"
    return MatchResult(
        protocol=f"diffcsp-match: n={n}, {settings}.get_rms_dist, {judged}",
        settings=settings,
        validity_filter=validity_filter,
        filter_references=filter_references,
        n=n,
        match_rate=num_matched / len(best),
        rmse=rmse,
        crmse=crmse,
        num_items=len(best),
        num_matched=num_matched,
        num_samples=sum(len(item) for item in samples),
        counts=dict(Counter(sample.outcome for item in samples for sample in item)),
        best_rms=best,
        samples=samples,
    )


def _sample_match(outcome: Outcome) -> SampleMatch:
    if outcome.failure is not None:
        return SampleMatch(outcome.failure, None, outcome.reason)
    return SampleMatch("unmatched") if outcome.value is None else SampleMatch("matched", outcome.value)


def _compare(
    crystals: Sequence[ReadCrystal],
    references: Sequence[ReadCrystal],
    pairs: Sequence[tuple[int, int]],
    settings: MatcherSettings,
    num_workers: int,
    time_limit: float | None,
) -> list[SampleMatch]:
    """Verdicts on (place of a crystal, row of a reference)."""
    with PairComparer(rms_distances, settings, num_workers=num_workers, time_limit=time_limit) as comparer:
        first = comparer.reduce(crystals, (place for place, _ in pairs), niggli=False)
        second = comparer.reduce(references, (row for _, row in pairs), niggli=True)
        return [_sample_match(o) for o in comparer.compare([(first[place], second[row]) for place, row in pairs])]


def _without_matcher(
    crystal: ReadCrystal, reference: ReadCrystal | None, *, valid: bool, prefilter: bool
) -> SampleMatch | None:
    """Verdict on a pair that needs no matcher, or None; the reference is None where it is not valid."""
    if crystal.record is None:
        return SampleMatch("unreadable", None, crystal.error)
    if not valid:
        return SampleMatch("invalid")
    if reference is None:
        return SampleMatch("invalid_reference")
    if prefilter and crystal.formula != reference.formula:
        return SampleMatch("other_composition")
    return None


def match_rate(
    predictions: Iterable[Any],
    references: Iterable[Any],
    *,
    n: int | None = None,
    settings: MatcherSettings = DIFFCSP_MATCHER,
    validity_filter: ValidityFilter = "none",
    filter_references: bool = False,
    prefilter: bool = True,
    num_workers: int = 0,
    time_limit: float | None = None,
) -> MatchResult:
    """Match rate and RMSE of predicted structures.

    Source: DiffCSP (Jiao et al., NeurIPS 2023), `scripts/compute_metrics.py`, and CrystaLLM's
    `bin/benchmark_metrics.py`. Most published figures (DiffCSP, FlowMM, OMatG, Uni-3DAR, Crystalite, CrystaLLM) use
    `validity_filter="structure+smact14"`; DiffCSP also filters the references for n = 1 (`filter_references=True`) and
    not for n = 20. Never compare across the two protocols; `filter_matches` gives the other one from the same matches.

    Species are compared as elements. A pair that raises, hangs or kills its process is no match, and is counted.

    Args:
        predictions: For each reference a crystal, or a list or tuple of crystals (fewer than `n` are allowed, and
            missing ones cannot match). Forms that `as_record` takes, or objects with `structure` and `error`.
        references: True crystals, all readable.
        n: Samples per item to look at; by default as many as the longest list has. See `MatchResult.at`.
        settings: Tolerances.
        validity_filter: What a prediction has to pass to be compared.
        filter_references: Whether the reference has to pass it too.
        prefilter: Whether to skip pairs of different reduced formula. `StructureMatcher` never matches those, so
            the figures are the same, and it takes much longer to find out.
        num_workers: Processes; 0 for none.
        time_limit: Seconds for one pair; needs and starts a process.

    Returns:
        The figures, with every sample.

    Raises:
        ValueError: if the numbers of predictions and references differ, there are none, or `n` is below 1.
        CrystalInputError: if a reference cannot be read.
        ImportError: if the filter needs smact and it is not installed.
    """
    truth = read_references(references)
    lists = [list(item) if isinstance(item, list | tuple) else [item] for item in predictions]
    if len(lists) != len(truth):
        raise ValueError(f"{len(lists)} predictions for {len(truth)} references: expected one item for each")
    if n is None:
        n = max(1, *(len(item) for item in lists))
    elif n < 1:
        raise ValueError(f"n is {n}; expected at least 1")
    owners = [index for index, item in enumerate(lists) for _ in item[:n]]
    crystals = read_crystals(crystal for item in lists for crystal in item[:n])
    valid = passes(crystals, validity_filter)
    valid_reference = passes(truth, validity_filter) if filter_references else [True] * len(truth)
    settled: dict[int, SampleMatch] = {}
    for place, (owner, crystal) in enumerate(zip(owners, crystals, strict=True)):
        reference = truth[owner] if valid_reference[owner] else None
        verdict = _without_matcher(crystal, reference, valid=valid[place], prefilter=prefilter)
        if verdict is not None:
            settled[place] = verdict
    pairs = [(place, owner) for place, owner in enumerate(owners) if place not in settled]
    verdicts = _compare(crystals, truth, pairs, settings, num_workers, time_limit)
    settled.update((place, verdict) for (place, _), verdict in zip(pairs, verdicts, strict=True))
    items: list[list[SampleMatch]] = [[] for _ in truth]
    for place, owner in enumerate(owners):
        items[owner].append(settled[place])
    return _match_result(tuple(map(tuple, items)), n, settings, validity_filter, filter_references)


def filter_matches(
    result: MatchResult,
    predictions: Iterable[Any],
    references: Iterable[Any],
    validity_filter: ValidityFilter = "structure+smact14",
    *,
    filter_references: bool = True,
) -> MatchResult:
    """An unfiltered result under the filter of another protocol, without matching again.

    Args:
        result: What `match_rate` gave for these crystals with `validity_filter="none"`.
        predictions: The same as were given to `match_rate`.
        references: The same as were given to `match_rate`.
        validity_filter: What a prediction has to pass.
        filter_references: Whether the reference has to pass it too.

    Returns:
        The figures that `match_rate` gives with this filter.

    Raises:
        ValueError: if the result is filtered already, or of other numbers of crystals.
        ImportError: if the filter needs smact and it is not installed.
    """
    if result.validity_filter != "none":
        raise ValueError(f"the result has validity_filter {result.validity_filter!r} already; expected 'none'")
    lists = [list(item) if isinstance(item, list | tuple) else [item] for item in predictions]
    if [len(item[: result.n]) for item in lists] != [len(item) for item in result.samples]:
        raise ValueError("predictions has other numbers of crystals than the result: expected those it was made from")
    valid = iter(passes(read_crystals(crystal for item in lists for crystal in item[: result.n]), validity_filter))
    truth = read_references(references) if filter_references else ()
    valid_reference = passes(truth, validity_filter) if filter_references else [True] * len(lists)
    samples = []
    for item, reference in zip(result.samples, valid_reference, strict=True):
        judged: list[SampleMatch] = []
        for sample, passed in zip(item, valid, strict=False):
            if sample.outcome != "unreadable" and not (passed and reference):
                sample = SampleMatch("invalid_reference" if passed else "invalid")
            judged.append(sample)
        samples.append(tuple(judged))
    return _match_result(tuple(samples), result.n, result.settings, validity_filter, filter_references)


def metre(
    generated: Iterable[Any],
    references: Iterable[Any],
    *,
    settings: MatcherSettings = DIFFCSP_MATCHER,
    validity_filter: ValidityFilter = "none",
    prefilter: bool = True,
    num_workers: int = 0,
    time_limit: float | None = None,
) -> MetreResult:
    """METRe ("match everyone to reference") and cRMSE: how many references any generated crystal finds.

    Unlike the match rate, it does not matter which reference a crystal was generated for, so several polymorphs of one
    composition are not an unfair question. Source: Martirossyan et al., arXiv 2509.12178.

    Args:
        generated: Generated crystals in any order and number; forms as in `match_rate`.
        references: True crystals, all readable.
        settings: Tolerances.
        validity_filter: What a generated crystal has to pass to be compared.
        prefilter: Whether to skip pairs of different reduced formula; changes no figure.
        num_workers: Processes; 0 for none.
        time_limit: Seconds for one pair; needs and starts a process.

    Returns:
        The figures, with the best match of each reference.

    Raises:
        ValueError: if there are no references.
        CrystalInputError: if a reference cannot be read.
        ImportError: if the filter needs smact and it is not installed.
    """
    truth = read_references(references)
    crystals = read_crystals(generated)
    usable = [place for place, valid in enumerate(passes(crystals, validity_filter)) if valid]
    pairs = [
        (place, row)
        for row, reference in enumerate(truth)
        for place in usable
        if not prefilter or crystals[place].formula == reference.formula
    ]
    outcomes = _compare(crystals, truth, pairs, settings, num_workers, time_limit)
    best_rms: list[float | None] = [None] * len(truth)
    best_index: list[int | None] = [None] * len(truth)
    for (place, row), sample in zip(pairs, outcomes, strict=True):
        if sample.rms is not None and (best_rms[row] is None or sample.rms < best_rms[row]):  # type: ignore[operator]
            best_rms[row], best_index[row] = sample.rms, place
    rmse, crmse = _means(best_rms, settings.stol)
    num_matched = sum(rms is not None for rms in best_rms)
    judged = "no validity filter" if validity_filter == "none" else f"{validity_filter} validity of generated"
    return MetreResult(
        protocol=f"metre: {settings}.get_rms_dist, all pairs, {judged}, stol for unmatched in cRMSE",
        settings=settings,
        validity_filter=validity_filter,
        metre=num_matched / len(truth),
        crmse=crmse,
        rmse=rmse,
        num_references=len(truth),
        num_matched=num_matched,
        num_generated=len(crystals),
        num_usable=len(usable),
        counts=dict(Counter(sample.outcome for sample in outcomes)),
        best_rms=tuple(best_rms),
        best_index=tuple(best_index),
    )
