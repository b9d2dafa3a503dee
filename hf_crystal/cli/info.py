"""`hf-crystal info`: what is installed."""

import json
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import Annotated

import typer

EXAMPLE = "Example: hf-crystal info crystalformer-mp"
_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "pymatgen", "moyopy", "ase")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _elements_seen(name: str) -> str:
    """How many elements the training crystals of an embedded checkpoint have."""
    from ..checkpoints import checkpoint_folder

    config = json.loads((checkpoint_folder(name) / "config.json").read_text(encoding="utf-8"))
    return f", {len(config['trained_elements'])} elements seen" if "trained_elements" in config else ""


def _tested_on(name: str) -> str:
    """The test crystals of an embedded checkpoint, as its card names them."""
    from huggingface_hub import ModelCard

    from ..checkpoints import checkpoint_folder

    results = ModelCard.load(checkpoint_folder(name) / "README.md").data.eval_results
    return f"    tested on the {results[0].dataset_split} part of: {results[0].dataset_name}"


def _property_lines(name: str) -> Iterator[str]:
    """One line per target of an embedded property model: error on its test split, beside the baselines."""
    from ..card_figures import load_metrics, target_rows
    from ..checkpoints import checkpoint_folder

    metrics = load_metrics(checkpoint_folder(name) / "metrics.json")
    yield f"  {name}: crystal properties, {metrics['num_parameters']:,} parameters{_elements_seen(name)}"
    yield _tested_on(name)
    for row in target_rows(metrics):
        forest = f"formula only {row['composition_mae']:.4f}, " if "composition_mae" in row else ""
        baselines = f"{forest}mean predictor {row['baseline_mae']:.4f}"
        yield f"    {row['name']}: test MAE {row['mae']:.4f} {row['unit']} ({baselines}; {row['n']:,} crystals)"


def _generator_lines(name: str) -> Iterator[str]:
    """One line per measured match rate of an embedded generator."""
    from ..card_figures import generation_rows, load_metrics
    from ..checkpoints import checkpoint_folder

    metrics = load_metrics(checkpoint_folder(name) / "metrics.json")
    yield f"  {name}: crystal generation, {metrics['num_parameters']:,} parameters{_elements_seen(name)}"
    yield _tested_on(name)
    for row in generation_rows(metrics):
        if row["figure"] == "match_rate":
            yield f"    {row['label']}: {row['value']:.4f} ({row['setting']}; {row['samples']:,} samples)"


def info(
    checkpoint: Annotated[str | None, typer.Argument(help="Name of an embedded checkpoint; all by default.")] = None,
) -> None:
    """Show versions, devices, and the embedded checkpoints with their measured errors."""
    import torch

    from .. import __version__
    from ..checkpoints import embedded_checkpoint, embedded_checkpoints, embedded_generators

    if checkpoint is not None:
        embedded_checkpoint(checkpoint)  # refuses a name that is none
    print(f"hf_crystal {__version__}, Python {platform.python_version()}")
    for package in _PACKAGES:
        print(f"  {package:13}{_version(package)}")
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    print(f"devices: cpu ({torch.get_num_threads()} threads){''.join(f', {name}' for name in devices)}")
    print("embedded checkpoints:")
    for names, lines in ((embedded_checkpoints(), _property_lines), (embedded_generators(), _generator_lines)):
        for name in names:
            if checkpoint in (None, name):
                print("\n".join(lines(name)))
