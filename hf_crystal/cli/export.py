"""`hf-crystal export`: a folder ready for the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from .models import quiet_transformers, resolve_model

EXAMPLE = "Example: hf-crystal export crystalformer-mp20 exported --hub-config hub_configs/crystalformer-mp20.json"


def export(
    model: Annotated[str, typer.Argument(help="Embedded checkpoint or folder of a property model.")],
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    metrics: Annotated[
        Path | None, typer.Option(help="Evaluation JSON for the card; by default metrics.json of the model.")
    ] = None,
    hub_config: Annotated[Path | None, typer.Option(help="JSON with title, summary, data set for the card.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
) -> None:
    """Write a folder that loads with trust_remote_code where this package is not installed, and check that it does."""
    from ..checkpoints import embedded_checkpoints

    if not Path(model).is_dir() and model not in embedded_checkpoints():
        raise ValueError(f"model folder not found: {model}")
    quiet_transformers()
    from ..hub import export_pretrained

    folder = export_pretrained(resolve_model(model), out, metrics=metrics, hub_config=hub_config, overwrite=overwrite)
    print(f"{folder}: loads without hf_crystal, outputs bit-equal")
