"""`hf-crystal train`: property models and generators from recipes."""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..checkpoints import DEFAULT_MODEL
from .progress import quiet_transformers
from .writers import announce_written

EXAMPLE = (
    "Example: hf-crystal train property --from crystalformer-mp --data my.csv --target Tc --unit K\n\n"
    "By a recipe: hf-crystal train property --config scripts/recipes/crystalformer-mp20.yaml --data mp_20.parquet "
    "--output-dir runs/mp20"
)
GENERATOR_EXAMPLE = (
    "Example: hf-crystal train generator --config scripts/recipes_mat2seq/mat2seq-mp20.yaml --data mp_20.parquet "
    "--output-dir runs/mat2seq --max-hours 0.3"
)

_OF_RECIPES = {  # options of a fine-tuning without a recipe, and where a recipe has them
    **dict.fromkeys(["target", "unit", "column"], "data.targets"),
    "epochs": "training.num_train_epochs",
    "seed": "training.seed",
}

Config = Annotated[Path, typer.Option(help="YAML recipe.")]
OutputDir = Annotated[Path, typer.Option(help="Folder of the run.")]
Data = Annotated[str | None, typer.Option(help="Table of crystals; overrides the recipe.")]
MaxHours = Annotated[
    float | None, typer.Option(help="Wall budget of the training; a generator's cosine ends with it.")
]
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
    config: Annotated[Path | None, typer.Option(help="YAML recipe; without one a table is fine-tuned on.")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Folder of the run; without a recipe runs/TARGET.")] = None,
    data: Annotated[str | None, typer.Option(help="Table of crystals and labels; overrides the recipe.")] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            "--from",
            "--pretrained",
            help=f"Embedded checkpoint, folder or repository to fine-tune from; without a recipe {DEFAULT_MODEL}.",
        ),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Property to learn, a column of the table.")] = None,
    unit: Annotated[
        str | None, typer.Option(help="Unit of labels and predictions, 1 for none; needed with --target.")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Column of the labels, where it is not named as --target.")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, max=50, help="Parts of the cross-validation; 5 by default.")
    ] = None,
    folds_column: Annotated[str | None, typer.Option(help="Column that names the part of each row.")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the rows; by default fixed for their number.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of a fine-tuning without a recipe; 123 by default.")
    ] = None,
    max_hours: MaxHours = None,
    resume: Resume = False,
    settings: Settings = None,
) -> None:
    """Train a property model by a recipe, or fine-tune one on a table.

    With a recipe: train, test, and save under OUTPUT_DIR/model with the record in OUTPUT_DIR/run.json. With --data and
    --target: cross-validate against the formula alone, then train on all rows; the model with its card is in
    OUTPUT_DIR/all/model, the errors in OUTPUT_DIR/result.json. The same call resumes after an interruption.
    """
    if config is None:
        if settings or resume or max_hours is not None:
            raise typer.BadParameter("--set, --resume and --max-hours need a recipe", param_hint="--config")
        given = {"--data": data, "--target": target, "--unit": unit}
        if missing := [name for name, value in given.items() if value is None]:
            raise typer.BadParameter("must be given, or a recipe with --config", param_hint=", ".join(missing))
        if folds is not None and folds_column is not None:
            raise typer.BadParameter(
                f"{folds}, and --folds-column {folds_column}, whose values are the parts; give one of the two",
                param_hint="--folds",
            )
        _fine_tune(
            data=data,
            target=target,
            unit=unit,
            output_dir=output_dir or Path("runs") / str(target),
            pretrained=pretrained or DEFAULT_MODEL,
            column=column,
            folds=5 if folds is None else folds,
            folds_column=folds_column,
            epochs=epochs,
            seed=123 if seed is None else seed,
        )
        return
    if output_dir is None:
        raise typer.BadParameter("a recipe needs a folder for its run", param_hint="--output-dir")
    of_tables = {"target": target, "unit": unit, "column": column, "folds": folds, "folds-column": folds_column}
    of_tables |= {"epochs": epochs, "seed": seed}
    for name in (name for name, value in of_tables.items() if value is not None):
        key = _OF_RECIPES.get(name)
        reason = (
            f"the recipe has this: {key}, which --set changes" if key else "for --data and --target without a recipe"
        )
        raise typer.BadParameter(reason, param_hint=f"--{name}")
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
    for found in record["test"]["targets"]:
        low, high = found["mae_interval"]
        print(
            f"{found['name']}: test MAE {found['mae']:.4f} {found['unit']} (95 % {low:.4f} to {high:.4f}) on "
            f"{found['n']} crystals; mean predictor {found['baseline_mae']:.4f}"
        )


def _fine_tune(**arguments: Any) -> None:
    """Cross-validation, a model of all rows, its card."""
    quiet_transformers()
    import datasets

    from ..cards import DESCRIPTION_NAME, render_model_card
    from ..loading import load_property_model
    from ..training.fine_tuning import FineTuning

    datasets.disable_progress_bars()
    tuning = FineTuning(**arguments)
    # the losses of each training are in its run.json
    with contextlib.redirect_stdout(io.StringIO()):
        record = tuning.run(lambda line: print(f"hf-crystal: {line}", file=sys.stderr))
    model, _ = load_property_model(tuning.model_folder)
    rows = f"{record['test']['targets'][0]['n']} crystals of {Path(tuning.data).name}"
    base = Path(tuning.pretrained).name  # of a folder no more: the text travels
    about = {
        "title": f"{tuning.target} of crystals",
        "summary": f"`{base}`, fine-tuned on {rows} by `hf-crystal train property`.",
        "dataset": f"{rows}, after what `{base}` was trained on",
        "limits": "Errors hold for crystals like those of the table, whose elements are the ones named above.",
    }
    card = render_model_card(model, metrics=record, hub_config=about)
    (tuning.model_folder / "README.md").write_text(card, encoding="utf-8")
    (tuning.model_folder / DESCRIPTION_NAME).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    found = record["test"]["targets"][0]
    low, high = found["mae_interval"]
    forest = f"formula only {found['composition_mae']:.4g}, " if "composition_mae" in found else ""
    print(
        f"{tuning.target}: MAE {found['mae']:.4g} {tuning.unit} (95 % {low:.4g} to {high:.4g}) in cross-validation, "
        f"{forest}mean predictor {found['baseline_mae']:.4g}; {found['n']} crystals, half of them within "
        f"{found['median_error']:.4g}"
    )
    of_parts = [share["mae"] for share in record["cross_validation"]]
    print(f"mean of the MAE of {len(of_parts)} parts: {sum(of_parts) / len(of_parts):.4g} {tuning.unit}")
    if "gain_over_composition_interval" in found:
        low, high = found["gain_over_composition_interval"]
        verdict = "better" if low > 0 else "worse" if high < 0 else "not told apart by these crystals"
        print(
            f"MAE of the formula only minus that of the model: {found['composition_mae'] - found['mae']:.4g} "
            f"{tuning.unit} (95 % {low:.4g} to {high:.4g}, same crystals): the model is {verdict}"
        )
    announce_written(f"{tuning.model_folder} (model and card), {tuning.output_dir}/result.json, predictions.csv")
    print(f"hf-crystal: next: hf-crystal predict my.cif --model {tuning.model_folder}", file=sys.stderr)


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
