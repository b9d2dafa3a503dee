# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Generated crystals as a distribution: coverage by fingerprints, Wasserstein distances of density and elements."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hf_crystal.evaluation.pools import FAILURES
from hf_crystal.evaluation.results import PlainResult, ReadCrystal, read_crystals, read_references
from hf_crystal.evaluation.valid_crystals import ValidityFilter, passes

# data set -> cutoffs of structure and composition distance, `scripts/compute_metrics.py` of CDVAE
COVERAGE_CUTOFFS = {"mp_20": (0.4, 10.0), "carbon_24": (0.2, 4.0), "perov_5": (0.2, 4.0)}

Fingerprint = Callable[[Any], tuple[Any, Any] | None]
_BLOCK_ENTRIES = 4_000_000  # distances held at a time


@dataclass(frozen=True)
class CoverageResult(PlainResult):
    """COV-R and COV-P.

    Attributes:
        protocol: Name, fingerprint and cutoffs.
        structure_cutoff: Largest distance of structure fingerprints that counts as covered.
        composition_cutoff: The same for composition fingerprints.
        recall: COV-R, references near a generated crystal over all references.
        precision: COV-P, generated crystals near a reference over all generated crystals, whatever became of them.
        structure_distance_recall: Mean distance of a reference to the nearest generated structure; NaN without any.
        structure_distance_precision: Mean distance of a generated structure to the nearest reference.
        composition_distance_recall: As above, for compositions.
        composition_distance_precision: As above, for compositions.
        num_generated: Generated crystals.
        num_unreadable: Generated crystals that could not be read.
        num_no_fingerprint: Readable generated crystals without fingerprint.
        num_references: Reference crystals.
        num_references_covered: References near a generated crystal.
        num_generated_covered: Generated crystals near a reference.
    """

    protocol: str
    structure_cutoff: float
    composition_cutoff: float
    recall: float
    precision: float
    structure_distance_recall: float
    structure_distance_precision: float
    composition_distance_recall: float
    composition_distance_precision: float
    num_generated: int
    num_unreadable: int
    num_no_fingerprint: int
    num_references: int
    num_references_covered: int
    num_generated_covered: int


@dataclass(frozen=True)
class DistributionResult(PlainResult):
    """Wasserstein distances between generated and reference crystals.

    Attributes:
        protocol: Name, filter and sample.
        validity_filter: What a generated crystal had to pass to be used.
        density_distance: Of the mass density, g/cm³; NaN where no generated crystal could be used.
        num_elements_distance: Of the number of elements.
        num_generated: Generated crystals.
        num_usable: Readable ones that pass the filter.
        num_sampled: Those used, drawn without replacement.
        num_references: Reference crystals, all used.
        seed: Of the draw.
    """

    protocol: str
    validity_filter: ValidityFilter
    density_distance: float
    num_elements_distance: float
    num_generated: int
    num_usable: int
    num_sampled: int
    num_references: int
    seed: int


def wasserstein(first: ArrayLike, second: ArrayLike) -> float:
    """Wasserstein-1 distance of two samples on a line: ∫ |F(x) - G(x)| dx of their distribution functions.

    Args:
        first: (n,) numbers.
        second: (m,) numbers, in the same unit, which is also that of the result.

    Raises:
        ValueError: if one of them is empty.
    """
    a, b = np.sort(np.asarray(first, dtype=float)), np.sort(np.asarray(second, dtype=float))
    if not a.size or not b.size:
        raise ValueError(f"samples have {a.size} and {b.size} values: expected at least one each")
    points = np.sort(np.concatenate([a, b]))
    steps = np.searchsorted(a, points[:-1], side="right") / a.size
    steps -= np.searchsorted(b, points[:-1], side="right") / b.size
    return float(np.abs(steps) @ np.diff(points))


def _fingerprints(crystals: list[ReadCrystal], fingerprint: Fingerprint) -> list[tuple[np.ndarray, np.ndarray] | None]:
    result: list[tuple[np.ndarray, np.ndarray] | None] = []
    for crystal in crystals:
        found = None
        if crystal.record is not None:
            try:
                found = fingerprint(crystal.structure)
            except FAILURES:  # as in the protocol: no fingerprint, not covered, counted
                found = None
        if found is None:
            result.append(None)
            continue
        structure, composition = (np.asarray(vector, dtype=float).reshape(-1) for vector in found)
        result.append((structure, composition))
    return result


def _nearest(rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean distance of each row to the nearest column and of each column to the nearest row."""
    to_columns, to_rows = np.empty(len(rows)), np.full(len(columns), np.inf)
    block = max(1, _BLOCK_ENTRIES // max(1, columns.size))
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        distances = np.sqrt(((part[:, None, :] - columns[None, :, :]) ** 2).sum(axis=-1))
        to_columns[start : start + block] = distances.min(axis=1)
        to_rows = np.minimum(to_rows, distances.min(axis=0))
    return to_columns, to_rows


def _scaled(values: np.ndarray, scale: tuple[Any, Any] | None) -> np.ndarray:
    """Values minus mean over standard deviation; NaN and columns without spread become 0, as in the protocol."""
    if scale is None:
        return values
    mean, std = (np.asarray(part, dtype=float) for part in scale)
    if mean.shape != values.shape[1:] or std.shape != values.shape[1:]:
        raise ValueError(
            f"composition_scale has shapes {mean.shape} and {std.shape}; composition fingerprints need "
            f"{values.shape[1:]} each"
        )
    scaled = np.divide(values - mean, std, out=np.zeros_like(values), where=std > 0)
    return np.nan_to_num(scaled, nan=0.0)


def coverage(
    crystals: Iterable[Any],
    references: Iterable[Any],
    *,
    fingerprint: Fingerprint,
    structure_cutoff: float,
    composition_cutoff: float,
    composition_scale: tuple[Any, Any] | None = None,
) -> CoverageResult:
    """COV-R and COV-P: how much of a reference set generated crystals cover, and how many of them lie near it.

    A crystal is covered if the smallest structure distance and the smallest composition distance to the other set are
    both within the cutoffs; the two may come from different crystals. Source: CDVAE, `scripts/eval_utils.py`.

    Published figures use matminer (`CrystalNNFingerprint.from_preset("ops")` averaged over sites and
    `ElementProperty.from_preset("magpie")`, scaled with CDVAE's constants) and `COVERAGE_CUTOFFS`. matminer does not
    install beside pandas 3, so the fingerprint is an argument.

    Args:
        crystals: Generated crystals; forms that `as_record` takes, or objects with `structure` and `error`.
        references: Reference crystals, all readable.
        fingerprint: pymatgen `Structure` → (structure vector, composition vector), or None where there is none;
            raising counts as None.
        structure_cutoff: See `COVERAGE_CUTOFFS`.
        composition_cutoff: See `COVERAGE_CUTOFFS`.
        composition_scale: Mean and standard deviation that composition vectors are scaled with.

    Raises:
        ValueError: if there are no crystals or references, a reference has no fingerprint, or lengths differ.
        CrystalInputError: if a reference cannot be read.
    """
    truth, read = read_references(references), read_crystals(crystals)
    if not read:
        raise ValueError("crystals is empty: expected at least one")
    known = _fingerprints(truth, fingerprint)
    if None in known:
        raise ValueError(f"reference {known.index(None)} has no fingerprint; all references need one")
    found = [pair for pair in _fingerprints(read, fingerprint) if pair is not None]
    unreadable = sum(crystal.record is None for crystal in read)
    distances = _cover_distances(found, [pair for pair in known if pair is not None], composition_scale)
    (structure_precision, structure_recall), (composition_precision, composition_recall) = distances
    covered = (structure_recall <= structure_cutoff) & (composition_recall <= composition_cutoff)
    precise = (structure_precision <= structure_cutoff) & (composition_precision <= composition_cutoff)
    name = getattr(fingerprint, "__qualname__", type(fingerprint).__name__)
    return CoverageResult(
        protocol=f"cdvae-coverage: fingerprint {name}, cutoffs {structure_cutoff} and {composition_cutoff}",
        structure_cutoff=structure_cutoff,
        composition_cutoff=composition_cutoff,
        recall=float(covered.mean()),
        precision=float(precise.sum() / len(read)),
        structure_distance_recall=_mean(structure_recall),
        structure_distance_precision=_mean(structure_precision),
        composition_distance_recall=_mean(composition_recall),
        composition_distance_precision=_mean(composition_precision),
        num_generated=len(read),
        num_unreadable=unreadable,
        num_no_fingerprint=len(read) - unreadable - len(found),
        num_references=len(truth),
        num_references_covered=int(covered.sum()),
        num_generated_covered=int(precise.sum()),
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size and np.isfinite(values).all() else math.nan


def _cover_distances(
    found: list[tuple[np.ndarray, np.ndarray]],
    known: list[tuple[np.ndarray, np.ndarray]],
    composition_scale: tuple[Any, Any] | None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Nearest distances (generated to references, references to generated) of structures, then of compositions."""
    result = []
    for part, what in enumerate(("structure", "composition")):
        lengths = {len(pair[part]) for pair in (*found, *known)}
        if len(lengths) != 1:
            raise ValueError(f"{what} fingerprints have lengths {sorted(lengths)}; expected one length")
        columns = np.stack([pair[part] for pair in known])
        rows = np.stack([pair[part] for pair in found]) if found else np.empty((0, columns.shape[1]))
        if part == 1:
            rows, columns = _scaled(rows, composition_scale), _scaled(columns, composition_scale)
        result.append(_nearest(rows, columns))
    return result


def distribution_distances(
    crystals: Iterable[Any],
    references: Iterable[Any],
    *,
    num_samples: int | None = 1000,
    validity_filter: ValidityFilter = "structure",
    seed: int = 0,
) -> DistributionResult:
    """Wasserstein distances of the density and of the number of elements.

    Source: CDVAE, `scripts/compute_metrics.py`, which uses 1000 valid generated crystals
    (`validity_filter="structure+smact14"`) and all references. With fewer valid crystals than `num_samples` all of
    them are used; `num_sampled` says how many.

    Args:
        crystals: Generated crystals; forms that `as_record` takes, or objects with `structure` and `error`.
        references: Reference crystals, all readable.
        num_samples: Generated crystals to draw without replacement; None for all.
        validity_filter: What a generated crystal has to pass to be used.
        seed: Seed of the draw.

    Raises:
        ValueError: if there are no crystals or references, or an argument is out of range.
        CrystalInputError: if a reference cannot be read.
        ImportError: if the filter needs smact and it is not installed.
    """
    if num_samples is not None and num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; expected at least 1, or None for all")
    truth, read = read_references(references), read_crystals(crystals)
    if not read:
        raise ValueError("crystals is empty: expected at least one")
    usable = [crystal for crystal, valid in zip(read, passes(read, validity_filter), strict=True) if valid]
    used = usable
    if num_samples is not None and len(usable) > num_samples:
        chosen = np.random.default_rng(seed).choice(len(usable), num_samples, replace=False)
        used = [usable[index] for index in sorted(chosen)]

    def distance(value: Callable[[ReadCrystal], float]) -> float:
        """Wasserstein distance of one value, in its unit; NaN where no generated crystal is used."""
        return wasserstein([value(c) for c in used], [value(c) for c in truth]) if used else math.nan

    drawn = "all" if num_samples is None else f"up to {num_samples}"
    return DistributionResult(
        protocol=f"cdvae-wasserstein: {drawn} generated crystals with validity {validity_filter!r}, seed {seed}",
        validity_filter=validity_filter,
        density_distance=distance(lambda crystal: float(crystal.structure.density)),
        num_elements_distance=distance(lambda crystal: len(crystal.formula)),
        num_generated=len(read),
        num_usable=len(usable),
        num_sampled=len(used),
        num_references=len(truth),
        seed=seed,
    )
