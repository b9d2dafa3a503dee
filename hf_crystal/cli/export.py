"""`hf-crystal export`: a folder ready for the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from .progress import quiet_transformers

EXAMPLE = "Example: hf-crystal export mat2seq-mp20 exported"


def export(
    model: Annotated[str, typer.Argument(help="Embedded checkpoint, or folder of a property model or a generator.")],
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    metrics: Annotated[
        Path | None, typer.Option(help="Evaluation JSON for the card; by default metrics.json of the model.")
    ] = None,
    hub_config: Annotated[
        Path | None,
        typer.Option(
            help="JSON for the card: title, summary, dataset, license, limits, tags, repo; by default hub_config.json "
            "of the model."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
) -> None:
    """Write a folder that loads where this package is not installed, and check that it does."""
    quiet_transformers()
    from ..hub import export_pretrained

    folder = export_pretrained(model, out, metrics=metrics, hub_config=hub_config, overwrite=overwrite)
    print(f"{folder}: loads without hf_crystal, outputs bit-equal")
