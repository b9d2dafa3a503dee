"""Finding and loading the model that a command names."""

import re
from pathlib import Path
from typing import Any

DEFAULT_MODEL = "crystalformer-mp20"
_REPOSITORY = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


def quiet_transformers() -> None:
    """Keep the libraries' progress bars and notices out of a command's output."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def resolve_model(name: str) -> str:
    """Folder or Hub name of a model.

    Args:
        name: an embedded checkpoint, a folder, or a repository of the Hub.

    Returns:
        What `from_pretrained` takes.

    Raises:
        ValueError: none of these.
    """
    from ..checkpoints import checkpoint_folder, embedded_checkpoints, embedded_generators

    embedded = [*embedded_checkpoints(), *embedded_generators()]
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"model folder {name} has no config.json")
        return name
    if name in embedded:
        return str(checkpoint_folder(name))
    if "/" not in name or folder.is_absolute() or not _REPOSITORY.fullmatch(name):
        raise ValueError(
            f"model not found: {name}; accepted are a folder, a repository of the Hub (owner/name) or an embedded "
            f"checkpoint: {', '.join(embedded) or 'none in this installation'}"
        )
    return name


def check_model_type(location: str) -> None:
    """Raise `ValueError` where a folder or repository holds something else than a crystal model."""
    from transformers import PreTrainedConfig

    from ..auto import model_types

    accepted = model_types()
    model_type = PreTrainedConfig.get_config_dict(location)[0].get("model_type")
    if model_type not in accepted:
        raise ValueError(f"{location} holds a model of type {model_type!r}; accepted are {', '.join(accepted)}")


def check_device(device: str) -> None:
    """Raise `ValueError` where torch does not know a device or cannot use it."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ValueError(f"device {device} cannot be used: {str(error).splitlines()[0]}") from error


def load_property_pipeline(name: str, device: str | None) -> Any:
    """The pipeline "crystal-property-prediction" with the named model.

    Args:
        name: see `resolve_model`.
        device: torch device; None for an accelerator where there is one, else the CPU.

    Returns:
        `CrystalPropertyPipeline`.
    """
    location = resolve_model(name)
    if device is not None:
        check_device(device)
    quiet_transformers()
    check_model_type(location)
    from ..auto_model import AutoModelForCrystalPropertyPrediction
    from ..encoders.feature_extraction_crystal import CrystalFeatureExtractor
    from ..pipelines.pipeline_crystal_property import CrystalPropertyPipeline

    return CrystalPropertyPipeline(
        model=AutoModelForCrystalPropertyPrediction.from_pretrained(location, dtype="auto"),
        feature_extractor=CrystalFeatureExtractor.from_pretrained(location),
        task="crystal-property-prediction",
        device=device,
    )
