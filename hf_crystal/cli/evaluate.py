"""`hf-crystal evaluate property`: errors of a model on labelled crystals."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from .models import DEFAULT_MODEL, check_model_type, quiet_transformers, resolve_model

EXAMPLE = (
    "Example: hf-crystal evaluate property --model crystalformer-mp20 --data mp_20.parquet --split test "
    "--column mb_e_form"
)


def evaluate_property(
    data: Annotated[str, typer.Option(help="Table of crystals with labels, any form load_crystal_dataset reads.")],
    model: Annotated[str, typer.Option(help="Embedded checkpoint, folder, or repository of the Hub.")] = DEFAULT_MODEL,
    split: Annotated[str, typer.Option(help="Split to evaluate.")] = "test",
    split_column: Annotated[str, typer.Option(help="Column with the split of each row.")] = "split",
    column: Annotated[
        list[str] | None,
        typer.Option(help="Label column of each target, in the model's order; by default the names of the targets."),
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
    location = resolve_model(model)
    quiet_transformers()
    check_model_type(location)
    from ..data import load_crystal_dataset
    from ..training.inference import evaluate_property_folder

    splits = load_crystal_dataset(data, split_column=split_column)
    if split not in splits:
        raise ValueError(f"{data} has no split {split!r}; available: {', '.join(splits)}")
    metrics = evaluate_property_folder(location, splits[split], column or None, batch_size=batch_size)
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
        )
