"""`hf-crystal evaluate`: errors of a property model on labeled crystals; quality of a generator."""

import importlib.util
import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..checkpoints import DEFAULT_GENERATOR, DEFAULT_MODEL
from .options import GeneratorName, PropertyModelName
from .progress import counter, quiet_transformers

EXAMPLE = (
    "Example: hf-crystal evaluate property --model crystalformer-mp20 --data mp_20.parquet --column mb_e_form "
    "--column mb_band_gap_pbe"
)

_ALL = "all rows"
GENERATION_EXAMPLE = (
    "Example: hf-crystal evaluate generation --model mat2seq-mp20 --data mp_20.parquet --count 200 --output-dir output"
)


def evaluate_property(
    data: Annotated[str, typer.Option(help="Table of crystals with labels, any form load_crystal_dataset reads.")],
    model: PropertyModelName = DEFAULT_MODEL,
    split: Annotated[
        str | None, typer.Option(help="Split to evaluate; by default test, of data without splits all rows.")
    ] = None,
    split_column: Annotated[
        str | None, typer.Option(help="Column with the split of each row; by default split.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="Label column of each target, in the model's order, or target=column of some; by default those of "
            "the training."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Crystals per forward pass.")] = 64,
    output: Annotated[Literal["table", "json"], typer.Option(help="How the figures are written.")] = "table",
    output_file: Annotated[Path | None, typer.Option(help="Write the JSON here as well.")] = None,
) -> None:
    """Measure a property model: MAE with its interval, RMSE, R², and the MAE of predicting the training mean."""
    if batch_size < 1:
        raise typer.BadParameter(f"{batch_size} is not positive", param_hint="--batch-size")
    if output_file is not None and not output_file.parent.is_dir():
        raise typer.BadParameter(f"folder {output_file.parent} does not exist", param_hint="--output-file")
    quiet_transformers()
    from ..evaluation.property_report import evaluate_property_folder
    from ..loading import check_property_model

    location = check_property_model(model)
    splits = _splits(data, split_column, split)
    split = split or (_ALL if _ALL in splits else "test")
    if split not in splits:
        raise ValueError(f"{data} has no split {split!r}; available: {', '.join(splits)}")
    with counter(len(splits[split]), "crystal") as tell:
        metrics = evaluate_property_folder(
            location, splits[split], column or None, batch_size=batch_size, progress=tell
        )
    record = {"model": model, "data": Path(data).name, "split": split, **metrics.to_dict()}
    text = json.dumps(record, indent=2, allow_nan=False)
    if output_file is not None:
        output_file.write_text(text + "\n", encoding="utf-8")
    if output == "json":
        print(text)
        return
    for target in metrics.targets:
        interval = ""
        if target.mae_interval is not None:
            interval = f" ({metrics.confidence:.0%}: {target.mae_interval[0]:.4f} to {target.mae_interval[1]:.4f})"
        print(
            f"{target.name}: MAE {target.mae:.4f}{interval}, RMSE {target.rmse:.4f}, "
            f"R2 {target.r2:.4f}; mean predictor {target.baseline_mae:.4f} {target.unit}; {target.n} crystals"
            + (
                f"; non-metals: MAE {target.nonmetal_mae:.4f}, {target.nonmetal_n} crystals"
                if target.nonmetal_n
                else ""
            )
        )


def _splits(data: str, split_column: str | None, split: str | None) -> dict[str, Any]:
    """Rows by split; those of a table without splits, where none is asked for, as one part."""
    from ..data import load_crystal_dataset

    try:
        return load_crystal_dataset(data, split_column=split_column or "split")
    except ValueError as error:
        if split or split_column or not str(error).startswith("split_column"):
            raise
    splits = load_crystal_dataset(data)
    if set(splits) != {"train"}:
        return splits
    print(
        f"hf-crystal: {data} has no splits: all rows are measured. The errors of rows that the model was trained on "
        "are no measure of others",
        file=sys.stderr,
    )
    return {_ALL: splits["train"]}


def _shares(tree: Any, name: str = "") -> list[tuple[str, str, list[float]]]:
    """Section, figure and (value, low, high) of every figure with an interval."""
    found: list[tuple[str, str, list[float]]] = []
    if isinstance(tree, list):
        for entry in tree:
            words = (name, entry.get("property", ""), entry.get("target", ""))
            guided = f" guidance {entry['guidance']:g}" if entry.get("guidance", 1) != 1 else ""
            found += _shares(entry, " ".join(str(word) for word in words).strip() + guided)
    elif isinstance(tree, dict):
        for key, entry in tree.items():
            interval = tree.get(f"{key}_interval")
            if interval is not None and entry is not None:
                found.append((name, key, [entry, *interval]))
            elif not key.endswith("_interval"):
                found += _shares(entry, f"{name} {key}".strip())
    return found


def _tell_steps() -> None:
    """Hours of work: say on standard error what is finished."""
    logger = logging.getLogger("hf_crystal")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)


def evaluate_generation(
    data: Annotated[str, typer.Option(help="Table of crystals with splits, any form load_crystal_dataset reads.")],
    output_dir: Annotated[
        Path, typer.Option(help="Folder of samples and figures; an interrupted evaluation resumes there.")
    ],
    model: GeneratorName = DEFAULT_GENERATOR,
    split: Annotated[str, typer.Option(help="Split whose compositions are asked for.")] = "test",
    train_split: Annotated[str, typer.Option(help="Split that novelty is judged against.")] = "train",
    split_column: Annotated[str, typer.Option(help="Column with the split of each row.")] = "split",
    count: Annotated[int | None, typer.Option(min=0, help="Compositions, drawn by the seed; by default all.")] = None,
    num_samples: Annotated[int, typer.Option(min=0, help="Crystals per composition beside the greedy one.")] = 20,
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature.")] = 1.0,
    num_free: Annotated[int, typer.Option(min=0, help="Crystals generated from nothing.")] = 1000,
    collisions: Annotated[
        Literal["keep", "replace"],
        typer.Option(
            help="Crystals whose atoms collide: kept as the one attempt, or others drawn as `generate` does."
        ),
    ] = "keep",
    judge: Annotated[str | None, typer.Option(help="Property model that judges conditions.")] = None,
    num_conditioned: Annotated[int, typer.Option(min=1, help="Crystals per value of a condition.")] = 100,
    guidance: Annotated[
        list[float] | None, typer.Option(help="Ask for the conditions with this guidance too; may be repeated.")
    ] = None,
    smact: Annotated[
        bool | None,
        typer.Option(
            "--smact/--no-smact",
            help="Judge compositions by SMACT and give the filtered match rate of most papers beside the unfiltered "
            "one; by default where smact is installed.",
        ),
    ] = None,
    dataset_name: Annotated[str, typer.Option(help="mp_20, perov_5 or carbon_24: cutoffs of coverage.")] = "mp_20",
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes of the matching.")] = 0,
    time_limit: Annotated[float | None, typer.Option(help="Seconds for one pair of crystals.")] = None,
    output: Annotated[Literal["table", "json"], typer.Option(help="How the figures are written.")] = "table",
) -> None:
    """Measure a generator: match rate, METRe, validity, uniqueness, novelty, space groups, conditions."""
    quiet_transformers()
    from ..data import load_crystal_dataset
    from ..evaluation.conditions import GenerationSettings, judge_of_pipeline
    from ..evaluation.generator_report import evaluate_generation as run_evaluation
    from ..loading import load_generation_pipeline, load_property_pipeline

    settings = GenerationSettings(
        split=split,
        train_split=train_split,
        count=count,
        num_samples=num_samples,
        temperature=temperature,
        num_free=num_free,
        collisions=collisions,
        num_conditioned=num_conditioned,
        guidance=tuple(guidance or ()),
        smact=importlib.util.find_spec("smact") is not None if smact is None else smact,
        seed=seed,
        num_workers=num_workers,
        time_limit=time_limit,
    )
    if not settings.smact:
        print("hf-crystal: without smact: no filtered match rates, no validity of compositions", file=sys.stderr)
    pipeline = load_generation_pipeline(model)
    judging = None if judge is None else judge_of_pipeline(load_property_pipeline(judge))
    splits = load_crystal_dataset(data, split_column=split_column)
    _tell_steps()
    result = run_evaluation(
        pipeline.model,
        pipeline.tokenizer,
        splits,
        output_dir,
        settings,
        judge=judging,
        dataset_name=dataset_name,
        described={"model": model, "judge": judge, "data": Path(data).name},
    )
    if output == "json":
        print(json.dumps(result, indent=2, allow_nan=False))
        return
    for section, figure, (value, low, high) in _shares(result["generation"]):
        print(f"{section}: {figure} {value:.4f} (95%: {low:.4f} to {high:.4f})")
