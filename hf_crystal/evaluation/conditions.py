"""What a property model says of generated crystals: whether conditions steer, and how properties are distributed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hf_crystal.evaluation.distributions import wasserstein
from hf_crystal.evaluation.intervals import wilson_interval
from hf_crystal.evaluation.samples import sample_prompts
from hf_crystal.evaluation.valid_crystals import structure_is_valid
from hf_crystal.typing import Generator

if TYPE_CHECKING:
    from hf_crystal.mat2seq.tokenization_mat2seq import Mat2SeqTokenizer
    from hf_crystal.pipelines.pipeline_crystal_property import CrystalPropertyPipeline

TOLERANCES = {"band_gap": 0.5, "formation_energy": 0.25}  # eV, eV/atom: how near a judged value has to be
Judge = Callable[[list[Any]], Mapping[str, Sequence[float | None]]]


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """What is sampled and measured.

    Attributes:
        split: Split of the prompts.
        train_split: Split that novelty is judged against.
        count: Compositions of the split, drawn by the seed; None takes all, 0 none (the split stays the reference of
            the distributions).
        num_samples: Crystals per composition at `temperature`, beside the greedy one; 0 for none.
        temperature: Sampling temperature, also of the unconditional samples.
        num_free: Crystals generated from nothing.
        collisions: What becomes of crystals whose atoms collide, see `generate_crystals_for_prompts`. With "replace"
            an answer may be one of several that were drawn: not what others call one attempt.
        num_conditioned: Crystals per value of a condition.
        guidance: Scales of guidance at which the conditions are asked for once more.
        smact: Whether SMACT (which has to be installed) judges compositions; match rates are then given under both
            protocols, unfiltered and with the filter of most papers.
        seed: Of everything.
        num_workers: Processes of the matching.
        time_limit: Seconds for one pair.
    """

    split: str = "test"
    train_split: str = "train"
    count: int | None = None
    num_samples: int = 20
    temperature: float = 1.0
    num_free: int = 1000
    collisions: Literal["keep", "replace"] = "keep"
    num_conditioned: int = 100
    guidance: tuple[float, ...] = ()
    smact: bool = False
    seed: int = 0
    num_workers: int = 0
    time_limit: float | None = None

    @property
    def sampling(self) -> dict[str, Any]:
        """Arguments of `sample_prompts`."""
        return {"temperature": self.temperature, "seed": self.seed, "collisions": self.collisions}

    @property
    def pool(self) -> dict[str, Any]:
        """Arguments of the functions that match."""
        return {"num_workers": self.num_workers, "time_limit": self.time_limit}


def judge_of_pipeline(pipeline: "CrystalPropertyPipeline") -> Judge:
    """A judge of the pipeline "crystal-property-prediction": values by the names of its targets."""

    def judge(structures: list[Any]) -> dict[str, list[float | None]]:
        """Predicted values by target."""
        answers = pipeline(structures)
        names = list(pipeline.model.config.target_names)
        return {name: [answer.get(name) for answer in answers] for name in names}  # an unreadable crystal has none

    return judge


def _targets(name: str, tokenizer: Any) -> list[float]:
    """Values to ask for: middles of every fourth bin."""
    edges = next(bins.edges for bins in tokenizer.property_bins if bins.name == name)
    middles = [(low + high) / 2 for low, high in zip(edges, edges[1:], strict=False)]
    return middles[1::4]


def _judged(crystals: Sequence[Any], judge: Judge) -> dict[str, list[float | None]]:
    """Values of decoded crystals by property; None for those without a structure or an answer."""
    readable = [place for place, crystal in enumerate(crystals) if crystal.structure is not None]
    values: dict[str, list[float | None]] = {}
    for name, answers in judge([crystals[place].structure for place in readable]).items():
        values[name] = [None] * len(crystals)
        for place, value in zip(readable, answers, strict=True):
            values[name][place] = value
    return values


def measure_conditions(
    model: Generator, tokenizer: "Mat2SeqTokenizer", folder: Path, settings: GenerationSettings, judge: Judge
) -> list[dict[str, Any]]:
    """How often a crystal asked for with a property has it, and how often one has it that was not asked for.

    Args:
        model: Causal language model.
        tokenizer: Its tokenizer.
        folder: Folder of the samples.
        settings: What is sampled.
        judge: Structures → values by property.

    Returns:
        One entry per property, value asked for and guidance scale.
    """
    names = [bins.name for bins in tokenizer.property_bins if bins.name in TOLERANCES]
    asked = [(name, target) for name in names for target in _targets(name, tokenizer)]
    count = settings.num_conditioned
    prompts: list[dict[str, Any]] = [{"properties": {name: target}} for name, target in asked for _ in range(count)]
    sampling = {"num_return": 1, **settings.sampling}
    nothing: list[dict[str, Any]] = [{}] * count
    plain = sample_prompts(model, tokenizer, nothing + prompts, folder / "conditioned.jsonl", **sampling)
    free, by_scale = plain[:count], {1.0: plain[count:]}
    for scale in settings.guidance:
        path = folder / f"conditioned_{scale:g}.jsonl"
        by_scale[scale] = sample_prompts(model, tokenizer, prompts, path, guidance=scale, **sampling)
    values_free = _judged([item[0] for item in free], judge)
    found = []
    for scale, drawn in by_scale.items():
        crystals = [item[0] for item in drawn]
        values = _judged(crystals, judge)
        for place, (name, target) in enumerate(asked):
            if name not in values:
                continue
            block = slice(place * count, (place + 1) * count)
            entry = _entry(name, target, scale, values[name][block], crystals[block])
            if scale == 1:
                entry |= _rate("without_condition", values_free[name], name, target)
            found.append(entry | {"temperature": settings.temperature})
    return found


def _entry(
    name: str, target: float, scale: float, values: Sequence[float | None], crystals: Sequence[Any]
) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    valid = sum(crystal.structure is not None and structure_is_valid(crystal.structure) for crystal in crystals)
    guided = "" if scale == 1 else f", guidance {scale:g}"
    return {
        "protocol": f"condition {name} = {target:g}{guided}: judged within {TOLERANCES[name]:g} of it",
        "property": name,
        "target": target,
        "guidance": scale,
        "samples": len(values),
        **_rate("success_rate", values, name, target),
        "median": float(np.median(known)) if known else None,
        "mean_deviation": float(np.mean(np.abs(np.array(known) - target))) if known else None,
        "valid_share": valid / len(values),
        "distinct_share": len({crystal.sequence for crystal in crystals}) / len(values),
    }


def _rate(figure: str, values: Sequence[float | None], name: str, target: float) -> dict[str, Any]:
    near = sum(value is not None and abs(value - target) <= TOLERANCES[name] for value in values)
    return {figure: near / len(values), f"{figure}_interval": wilson_interval(near, len(values))}


def property_distances(crystals: Sequence[Any], references: Sequence[Any], judge: Judge) -> list[dict[str, Any]]:
    """Wasserstein distance of each judged property between generated and true crystals, both judged alike.

    Source: CDVAE, `scripts/compute_metrics.py`, which also lets one model judge both.

    Args:
        crystals: Decoded crystals; those with valid structures count.
        references: pymatgen structures of the true crystals.
        judge: Structures → values by property.
    """
    valid = [c for c in crystals if c.structure is not None and structure_is_valid(c.structure)]
    if not valid:
        return []
    judged, truth = _judged(valid, judge), judge(list(references))
    found = []
    for name in judged:
        made, true = ([value for value in values[name] if value is not None] for values in (judged, truth))
        if made and true:
            found.append(
                {
                    "protocol": f"cdvae-wasserstein of {name}: structures that are valid, both sides by the judge",
                    "property": name,
                    "property_distance": wasserstein(made, true),
                    "num_sampled": len(made),
                    "num_references": len(true),
                }
            )
    return found
