"""Everything that is measured of a generator, from the compositions of a test split to one JSON."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from transformers.utils import logging

from hf_crystal.crystals.record import CHEMICAL_SYMBOLS, CRYSTAL_COLUMNS
from hf_crystal.evaluation import (
    distribution_distances,
    filter_matches,
    match_rate,
    metre,
    novelty,
    space_group_agreement,
    uniqueness,
    validity,
)
from hf_crystal.evaluation.conditions import GenerationSettings, Judge, measure_conditions, property_distances
from hf_crystal.evaluation.distributions import COVERAGE_CUTOFFS, Fingerprint, coverage
from hf_crystal.evaluation.intervals import mean_interval, wilson_interval
from hf_crystal.evaluation.results import read_references, reduced_formula
from hf_crystal.evaluation.samples import sample_prompts
from hf_crystal.typing import Generator

if TYPE_CHECKING:
    import datasets

    from hf_crystal.mat2seq.tokenization_mat2seq import Mat2SeqTokenizer

logger = logging.get_logger(__name__)

RESULT_NAME = "evaluation.json"


def evaluate_generation(
    model: Generator,
    tokenizer: "Mat2SeqTokenizer",
    splits: Mapping[str, "datasets.Dataset"],
    output_dir: str | Path,
    settings: GenerationSettings,
    *,
    judge: Judge | None = None,
    fingerprint: Fingerprint | None = None,
    dataset_name: str = "mp_20",
    described: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Sample crystals and measure them; samples lie in `output_dir`, where an interrupted evaluation resumes.

    Args:
        model: Causal language model.
        tokenizer: Its tokenizer.
        splits: Rows of crystals by split.
        output_dir: Folder of the samples and of `evaluation.json`.
        settings: What is sampled and measured.
        judge: Structures → values by property, such as `conditions.judge_of_pipeline`: measures whether
            conditions steer and how far the properties of crystals from nothing are from true ones.
        fingerprint: See `evaluation.coverage`; without it there is no coverage.
        dataset_name: Whose cutoffs `coverage` takes.
        described: Names of model and data, written in front of the figures.

    Returns:
        Settings and figures, each with its protocol, sample size and 95 % interval: content of `evaluation.json`.

    Raises:
        ValueError: For missing splits, and samples in the folder that were drawn with other settings.
    """
    for split in (settings.split, settings.train_split):
        if split not in splits:
            raise ValueError(f"the data has no split {split!r}; available: {', '.join(splits)}")
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    rows = splits[settings.split]
    if settings.count and settings.count < len(rows):
        rows = rows.select(np.sort(np.random.default_rng(settings.seed).permutation(len(rows))[: settings.count]))
    figures: dict[str, Any] = {}
    if settings.count != 0:
        figures.update(_predicted(model, tokenizer, rows, folder, settings))
    if settings.num_free:
        known = splits[settings.train_split]
        figures["free"] = _free(model, tokenizer, rows, known, folder, settings, judge, fingerprint, dataset_name)
    if judge is not None:
        figures["conditions"] = measure_conditions(model, tokenizer, folder, settings, judge)
    result = {
        **(described or {}),
        "settings": dataclasses.asdict(settings),
        "crystals": len(rows),
        "generation": figures,
    }
    text = json.dumps(result, indent=2, allow_nan=False)
    (folder / RESULT_NAME).write_text(text + "\n", encoding="utf-8")
    return json.loads(text)


def _summary(result: Any, **further: Any) -> dict[str, Any]:
    """Figures of a result without its lists, one entry per crystal."""
    return {key: value for key, value in result.to_dict().items() if not isinstance(value, list)} | further


def _share(name: str, successes: int, total: int) -> dict[str, Any]:
    return {name: successes / total, f"{name}_interval": wilson_interval(successes, total)}


# ------------------------------------------------------------------------------------------- structure prediction


def prompts_of(truths: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Contents of each row's cell as the data has it: the primitive cell of the true crystal would leak symmetry."""
    contents = (Counter(map(int, truth["atomic_numbers"])) for truth in truths)
    return [{"composition": {CHEMICAL_SYMBOLS[e]: count[e] for e in sorted(count)}} for count in contents]


def _predicted(
    model: Any, tokenizer: Any, rows: "datasets.Dataset", folder: Path, settings: GenerationSettings
) -> dict[str, Any]:
    """Match rate, METRe, validity and space groups of crystals generated for the compositions of true ones."""
    rows = rows.select_columns(list(CRYSTAL_COLUMNS))
    truths = [dict(row) for row in rows]
    prompts = prompts_of(truths)
    greedy = settings.sampling | {"temperature": 0.0, "seed": 0}
    likeliest = sample_prompts(model, tokenizer, prompts, folder / "greedy.jsonl", num_return=1, **greedy)
    sampled: dict[str, tuple[float, list[list[Any]]]] = {"greedy": (0.0, likeliest)}
    if settings.num_samples:
        path = folder / "sampled.jsonl"
        drawn = sample_prompts(model, tokenizer, prompts, path, num_return=settings.num_samples, **settings.sampling)
        sampled["sampled"] = (settings.temperature, drawn)
    figures: dict[str, Any] = {}
    for name, (temperature, crystals) in sampled.items():
        logger.info(f"matching {name}: {sum(map(len, crystals)):,} crystals")
        figures[name] = _judged_predictions(crystals, truths, prompts, settings) | {"temperature": temperature}
    if "sampled" in sampled:
        figures["sampled"] |= _likelier_than_greedy(*(drawn for _, drawn in sampled.values()))
    return figures


def _likelier_than_greedy(greedy: list[list[Any]], drawn: list[list[Any]]) -> dict[str, Any]:
    """Share of compositions of which a sample is more probable than what greedy decoding finds."""
    rounding = 1e-3  # nats; between two readings of one sequence
    likelier = sum(
        max(crystal.log_likelihood for crystal in item) > first.log_likelihood + rounding
        for (first,), item in zip(greedy, drawn, strict=True)
    )
    return _share("likelier_than_greedy", likelier, len(greedy))


def _judged_predictions(
    crystals: list[list[Any]], truths: list[Any], prompts: list[dict[str, Any]], settings: GenerationSettings
) -> dict[str, Any]:
    flat = [crystal for item in crystals for crystal in item]
    right = sum(
        crystal.structure is not None
        and {str(e): int(n) for e, n in crystal.structure.composition.items()} == prompt["composition"]
        for item, prompt in zip(crystals, prompts, strict=True)
        for crystal in item
    )
    decoded = sum(crystal.structure is not None for crystal in flat)
    found: dict[str, Any] = {
        "decoding": {
            "samples": len(flat),
            **_share("decoded", decoded, len(flat)),
            **_share("composition", right, len(flat)),
        }
    }
    # the two protocols of the field, from one matching
    results = {"match": match_rate(crystals, truths, **settings.pool)}
    if settings.smact:
        results["match_smact14"] = filter_matches(results["match"], crystals, truths)
    for label, full in results.items():
        for n in sorted({1, full.n}):
            result = full.at(n)
            matched = [rms for rms in result.best_rms if rms is not None]
            found[f"{label}_{n}"] = _summary(
                result,
                **_share("match_rate", result.num_matched, result.num_items),
                rmse_interval=mean_interval(matched),
            )
    everyone = metre(flat, truths, **settings.pool)
    found["metre"] = _summary(everyone, **_share("metre", everyone.num_matched, everyone.num_references))
    groups = space_group_agreement(flat)
    found["space_group"] = _summary(groups, **_share("agreement", groups.num_agreeing, groups.num_crystals))
    found["validity"] = _validity(flat, settings)
    return found


def _validity(crystals: list[Any], settings: GenerationSettings) -> dict[str, Any]:
    judged = validity(crystals, composition="smact14" if settings.smact else None)
    total = judged.num_crystals
    shares = _share("structure_validity", judged.num_structure_valid, total)
    if judged.num_composition_valid is not None:
        shares |= _share("composition_validity", judged.num_composition_valid, total)
        shares |= _share("validity", judged.num_valid, total)
    return _summary(judged, **shares)


# ------------------------------------------------------------------------------------------------ from nothing


def _free(
    model: Any,
    tokenizer: Any,
    rows: "datasets.Dataset",
    known: "datasets.Dataset",
    folder: Path,
    settings: GenerationSettings,
    judge: Judge | None,
    fingerprint: Fingerprint | None,
    dataset_name: str,
) -> dict[str, Any]:
    """Validity, uniqueness, novelty and distributions of crystals that nothing was asked of."""
    prompts: list[dict[str, Any]] = [{}] * settings.num_free
    drawn = sample_prompts(model, tokenizer, prompts, folder / "free.jsonl", num_return=1, **settings.sampling)
    crystals = [item[0] for item in drawn]
    truths = [dict(row) for row in rows.select_columns(list(CRYSTAL_COLUMNS))]
    found: dict[str, Any] = {"validity": _validity(crystals, settings)}
    distinct = uniqueness(crystals, **settings.pool)
    found["uniqueness"] = _summary(distinct, **_share("uniqueness", distinct.num_unique, distinct.num_crystals))
    new = novelty(crystals, _possibly_equal(crystals, known), **settings.pool)
    found["novelty"] = _summary(new, **_share("novelty", new.num_novel, new.num_crystals), num_references=len(known))
    groups = space_group_agreement(crystals)
    found["space_group"] = _summary(groups, **_share("agreement", groups.num_agreeing, groups.num_crystals))
    kept: Literal["structure", "structure+smact14"] = "structure+smact14" if settings.smact else "structure"
    found["distributions"] = _summary(distribution_distances(crystals, truths, validity_filter=kept))
    if judge is not None:
        references = [reference.structure for reference in read_references(truths)]
        found["properties"] = property_distances(crystals, references, judge)
    if fingerprint is not None:
        structure_cutoff, composition_cutoff = COVERAGE_CUTOFFS[dataset_name]
        covered = coverage(
            crystals,
            truths,
            fingerprint=fingerprint,
            structure_cutoff=structure_cutoff,
            composition_cutoff=composition_cutoff,
        )
        found["coverage"] = _summary(covered)
    return found | {"temperature": settings.temperature}


def _possibly_equal(crystals: list[Any], known: "datasets.Dataset") -> list[dict[str, Any]]:
    """Known crystals with a formula that was generated: only they can be equal, and reading all would take long."""
    formulas = {
        reduced_formula(site.specie.Z for site in crystal.structure) for crystal in crystals if crystal.structure
    }
    places = [i for i, numbers in enumerate(known["atomic_numbers"]) if reduced_formula(numbers) in formulas]
    chosen = known.select(places or [0]).select_columns(list(CRYSTAL_COLUMNS))
    return [dict(row) for row in chosen]
