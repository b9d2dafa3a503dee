"""`hf-crystal train`: property models and generators from recipes."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = (
    "Example: hf-crystal train property --config scripts/recipes/crystalformer-mp20.yaml --data mp_20.parquet "
    "--output-dir runs/mp20"
)
GENERATOR_EXAMPLE = (
    "Example: hf-crystal train generator --config scripts/recipes_mat2seq/mat2seq-mp20.yaml --data mp_20.parquet "
    "--output-dir runs/mat2seq --max-hours 0.3"
)

Config = Annotated[Path, typer.Option(help="YAML recipe.")]
OutputDir = Annotated[Path, typer.Option(help="Folder of the run.")]
Data = Annotated[str | None, typer.Option(help="Table of crystals; overrides the recipe.")]
MaxHours = Annotated[float | None, typer.Option(help="Wall budget of the training.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the last complete checkpoint.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value of the recipe; may be repeated."),
]


def _overrides(config: Path, settings: list[str] | None, named: dict[str, object]) -> list[str]:
    if not config.is_file():
        raise ValueError(f"no such recipe: {config}")
    return [*(settings or []), *(f"{key}={value}" for key, value in named.items() if value is not None)]


def train_property(
    config: Config,
    output_dir: OutputDir,
    data: Data = None,
    pretrained: Annotated[
        str | None, typer.Option(help="Embedded checkpoint, folder or repository to fine-tune from.")
    ] = None,
    max_hours: MaxHours = None,
    resume: Resume = False,
    settings: Settings = None,
) -> None:
    """Train a property model, test it, and save it under OUTPUT_DIR/model with its record in OUTPUT_DIR/run.json."""
    overrides = _overrides(config, settings, {"data.path": data, "model.pretrained": pretrained})
    from ..training import load_recipe
    from ..training.property_run import train_property as run_training

    recipe = load_recipe(config, overrides)
    # without a terminal the Trainer prints its log lines on standard output
    with contextlib.redirect_stdout(sys.stderr):
        record = run_training(recipe, output_dir, resume=resume, max_hours=max_hours)
    if not record:  # not the main process
        return
    print(f"{record['steps']} steps, {record['epochs']:.2f} epochs, {record['training_seconds']:.0f} s of training")
    for target in record["test"]["targets"]:
        low, high = target["mae_interval"]
        print(
            f"{target['name']}: test MAE {target['mae']:.4f} {target['unit']} (95 % {low:.4f} to {high:.4f}) on "
            f"{target['n']} crystals; mean predictor {target['baseline_mae']:.4f}"
        )


def train_generator(
    config: Config,
    output_dir: OutputDir,
    data: Data = None,
    tokens: Annotated[Path | None, typer.Option(help="Folder of tokenized data that several runs share.")] = None,
    num_workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that tokenize; overrides the recipe.")
    ] = None,
    max_hours: MaxHours = None,
    resume: Resume = False,
    settings: Settings = None,
) -> None:
    """Train a generator, test it, and save it under OUTPUT_DIR/model with its record in OUTPUT_DIR/run.json."""
    overrides = _overrides(config, settings, {"data.path": data, "data.num_workers": num_workers})
    from ..training.generator_recipe import GeneratorRecipe
    from ..training.generator_run import train_generator as run_training

    recipe = GeneratorRecipe.load(config, overrides)
    with contextlib.redirect_stdout(sys.stderr):
        record = run_training(recipe, output_dir, tokens_folder=tokens, resume=resume, max_hours=max_hours)
    if not record:  # not the main process
        return
    answer, free = record["test"]["answer"], record["test"]["without_grammar"]
    print(f"{record['steps']} steps, {record['epochs']:.2f} epochs, {record['training_seconds']:.0f} s of training")
    print(
        f"test loss after the composition: {answer['nats_per_token']:.4f} nats/token, "
        f"{answer['nats_per_crystal']:.2f} nats/crystal (n={answer['crystals']}); without grammar "
        f"{free['decoded']:.0%} decode and {free['composition']:.0%} have the composition (n={free['samples']})"
    )
