"""Any way of naming a property model → the model and its feature extractor."""

import os
from pathlib import Path
from typing import Any

__all__ = ["load_property_model"]


def load_property_model(model: Any = None, feature_extractor: Any = None, device: Any = None) -> tuple[Any, Any]:
    """A model with a property head, in evaluation mode, and the feature extractor that belongs to it.

    Args:
        model: None for the embedded checkpoint that the pipeline uses, name of an embedded checkpoint, folder,
            repository of the Hub, a loaded model, or a `CrystalPropertyPipeline`.
        feature_extractor: replaces the model's own; default settings for a loaded model without one.
        device: torch device to move the model to; by default it stays where it is.

    Returns:
        Model and `CrystalFeatureExtractor`.

    Raises:
        TypeError: `model` is an object that is no crystal model with a property head.
        OSError: no such folder or repository.
    """
    from .auto_model import AutoModelForCrystalPropertyPrediction
    from .checkpoints import checkpoint_folder, embedded_checkpoint, embedded_checkpoints
    from .encoders.feature_extraction_crystal import CrystalFeatureExtractor

    if model is None:
        model = embedded_checkpoint()
    if isinstance(model, (str, os.PathLike)):
        known = str(model) in embedded_checkpoints() and not Path(model).is_dir()
        location = checkpoint_folder(str(model)) if known else model
        model = AutoModelForCrystalPropertyPrediction.from_pretrained(location, dtype="auto")
        feature_extractor = feature_extractor or CrystalFeatureExtractor.from_pretrained(location)
    elif hasattr(model, "feature_extractor") and hasattr(model, "model"):  # a pipeline
        feature_extractor = feature_extractor or model.feature_extractor
        model = model.model
    if not hasattr(model, "encoder") or not hasattr(getattr(model, "config", None), "target_names"):
        raise TypeError(f"model is a {type(model).__name__}; a crystal model with a property head is accepted")
    if device is not None:
        model = model.to(device)
    return model.eval(), feature_extractor or CrystalFeatureExtractor()
