"""`hf-crystal convert`: an official checkpoint as a folder that `from_pretrained` loads."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from .progress import quiet_transformers

EXAMPLE = "Example: hf-crystal convert last.ckpt converted --set target_names=[e_form] --set target_units=[eV/atom]"


def _parse_settings(settings: list[str]) -> dict[str, Any]:
    """`field=value` texts, values in YAML."""
    import yaml

    from ..encoders.configuration_crystalformer import CrystalformerConfig
    from ..encoders.configuration_crystalframer import CrystalFramerConfig

    known = {field.name for cls in (CrystalformerConfig, CrystalFramerConfig) for field in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator:
            raise typer.BadParameter(f"{setting!r} is not of the form field=value", param_hint="--set")
        if name not in known:
            raise typer.BadParameter(f"the configuration has no field {name!r}", param_hint="--set")
        try:
            values[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise typer.BadParameter(f"{text!r} is not a YAML value", param_hint="--set") from error
    return values


def convert(
    official_checkpoint: Annotated[Path, typer.Argument(help="Lightning .ckpt of Crystalformer or CrystalFramer.")],
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Configuration field that the weights cannot tell."),
    ] = None,
) -> None:
    """Convert an official checkpoint; it is read without executing anything that it contains."""
    if not official_checkpoint.is_file():
        raise ValueError(f"no such file: {official_checkpoint}")
    if out.exists():
        raise ValueError(f"{out} exists already; choose another folder")
    quiet_transformers()
    values = _parse_settings(settings or [])
    from ..conversion import convert_official_checkpoint
    from ..encoders.feature_extraction_crystal import CrystalFeatureExtractor

    convert_official_checkpoint(official_checkpoint, out, **values)
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(out)
    # the official networks know fewer elements than the periodic table has
    CrystalFeatureExtractor(max_atomic_number=config.num_elements).save_pretrained(out)
    targets = ", ".join(config.target_names)
    print(
        f"{out}: {config.model_type}, {config.num_hidden_layers} layers, {config.hidden_size} wide, target {targets}"
    )
