"""`export_pretrained`: weights, configuration, code, reader or tokenizer, card, license, recipe; all tried out."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from .._partial import partial_path, remove_path
from ..cards import DESCRIPTION_NAME, given_fields, load_metrics, render_model_card, shipped_hub_config
from ..loading import load_generator, load_property_model, resolve_model
from ..typing import Generator, ModelName, PropertyModel
from . import generators, properties
from .files import license_text, recipe_text

if TYPE_CHECKING:
    from ..encoders.feature_extraction_crystal import CrystalFeatureExtractor
    from ..mat2seq.tokenization_mat2seq import Mat2SeqTokenizer

logger = logging.get_logger(__name__)


def export_pretrained(
    model: ModelName | PropertyModel | Generator,
    out: str | Path,
    *,
    feature_extractor: "CrystalFeatureExtractor | None" = None,
    tokenizer: "Mat2SeqTokenizer | None" = None,
    metrics: Mapping[str, Any] | str | Path | None = None,
    hub_config: Mapping[str, Any] | str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a complete Hub repository of a property model or a generator, and check it before it has its name.

    A property model's folder holds the weights, `config.json` and `preprocessor_config.json` with their `auto_map`,
    every code file needed, the pipeline, a model card, the license and the recipe, so it loads with
    `trust_remote_code=True` where only torch, transformers, safetensors and numpy are installed. A generator's folder
    is a stock Llama's, which needs no remote code, and its tokenizer and grammar travel as code. Both are tried in a
    separate process without this package before the folder is moved to `out`: weights are compared with those given,
    and outputs with those of the folder loaded here, bit for bit.

    Args:
        model: model with a property head, crystal generator, or the name of one: a folder or an embedded checkpoint.
        out: folder to create; must not exist unless `overwrite`.
        feature_extractor: of a property model; by default that of the model's folder, else a fresh one.
        tokenizer: of a generator; by default that of the model's folder.
        metrics: evaluation figures for the card, or the path of their JSON file; by default `metrics.json` of the
            model's folder.
        hub_config: title, summary, data set and so on for the card (see `hf_crystal.cards.DEFAULT_HUB_CONFIG`), or
            the path of a JSON file; by default that of an embedded checkpoint named by `model`, or the
            `hub_config.json` of the model's folder.
        overwrite: replace an earlier export.

    Returns:
        `out` as a path.

    Raises:
        ValueError: `out` exists, the model folder does not, the card cannot be filled, or a serving engine would
            refuse the generator.
        TypeError: the model is neither.
        RuntimeError: the written folder does not load alone or computes something else; nothing is left at `out`.
    """
    out = Path(out)
    if out.exists() and not (overwrite and (out / "config.json").is_file()):
        hint = (
            "overwrite=True (--overwrite) replaces it" if (out / "config.json").is_file() else "choose another folder"
        )
        raise ValueError(f"{out} exists already; {hint}")
    source = Path(resolve_model(model)) if isinstance(model, (str, os.PathLike)) else None
    if hub_config is None and source is not None and (source / DESCRIPTION_NAME).is_file():
        hub_config = source / DESCRIPTION_NAME
    if hub_config is None and isinstance(model, str) and resolve_model(model) != model:
        hub_config = shipped_hub_config(model)
    if source is not None and not source.is_dir():
        raise ValueError(f"model folder not found: {source}")
    given: Any = source or model
    kind: Any
    pair: tuple[Any, Any]
    if generators.is_generator(given):
        kind, pair = generators, load_generator(given, tokenizer)
    else:
        kind, pair = properties, load_property_model(given, feature_extractor)
    loaded, companion = pair
    if metrics is None and source is not None and (source / "metrics.json").is_file():
        metrics = source / "metrics.json"
    figures = load_metrics(metrics) if isinstance(metrics, (str, Path)) else metrics
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = partial_path(out)
    try:
        folder = scratch / out.name
        folder.mkdir(parents=True)
        kind.write_folder(loaded, companion, folder)
        texts = {
            "README.md": render_model_card(loaded, metrics=figures, hub_config=hub_config),
            "LICENSE": license_text("LICENSE"),
            "NOTICE": license_text("NOTICE"),
            "metrics.json": None if figures is None else json.dumps(figures, indent=2) + "\n",
            "recipe.yaml": recipe_text(figures),
            DESCRIPTION_NAME: None if hub_config is None else json.dumps(given_fields(hub_config), indent=2) + "\n",
        }
        for name, text in texts.items():
            if text is not None:
                (folder / name).write_text(text, encoding="utf-8")
        # weights that were trained lie at other addresses than those of a file, and sums may be rounded otherwise
        kind.check_folder(folder, _written(kind, folder, loaded), companion)
        if out.exists():
            shutil.rmtree(out)
        os.replace(folder, out)
    finally:
        remove_path(scratch)
    logger.info(f"exported to {out}; it loads without hf_crystal and gives bit-equal outputs")
    return out


def _written(kind: Any, folder: Path, model: Any) -> Any:
    """The model of an exported folder, whose weights are those of the model that was exported.

    Raises:
        RuntimeError: they are not.
    """
    found = load_generator(folder)[0] if kind is generators else load_property_model(folder)[0]
    theirs = found.state_dict()
    for name, weight in model.state_dict().items():
        if name not in theirs or not torch.equal(theirs[name], weight.to(theirs[name])):
            raise RuntimeError(f"{name} of the exported folder is not that of the model in memory")
    return found
