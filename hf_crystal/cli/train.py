"""`hf-crystal train property`: training from a recipe."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = (
    "Example: hf-crystal train property --config scripts/recipes/crystalformer-mp20.yaml --data mp_20.parquet "
    "--output-dir runs/mp20"
)


def train_property(
    config: Annotated[Path, typer.Option(help="YAML recipe.")],
    output_dir: Annotated[Path, typer.Option(help="Folder of the run.")],
    data: Annotated[str | None, typer.Option(help="Table of crystals; overrides the recipe.")] = None,
    pretrained: Annotated[str | None, typer.Option(help="Folder or repository to fine-tune from.")] = None,
    max_hours: Annotated[float | None, typer.Option(help="Wall budget of the training.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last complete checkpoint.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value of the recipe; may be repeated."),
    ] = None,
) -> None:
    """Train a property model, test it, and save it under OUTPUT_DIR/model with its record in OUTPUT_DIR/run.json."""
    if not config.is_file():
        raise ValueError(f"no such recipe: {config}")
    from ..training import load_recipe
    from ..training.property_run import train_property as run_training

    named = {"data.path": data, "model.pretrained": pretrained}
    overrides = [*(settings or []), *(f"{key}={value}" for key, value in named.items() if value is not None)]
    recipe = load_recipe(config, overrides)
    # without a terminal the Trainer prints its log lines on standard output
    with contextlib.redirect_stdout(sys.stderr):
        record = run_training(recipe, output_dir, resume=resume, max_hours=max_hours)
    if not record:  # not the main process
        return
    for target in record["test"]["targets"]:
        print(
            f"{target['name']}: test MAE {target['mae']:.4f} {target['unit']} on {target['n']} crystals; "
            f"mean predictor {target['baseline_mae']:.4f}"
        )
