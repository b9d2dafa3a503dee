"""Which classes train under which `model_type`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from hf_crystal.checkpoints import checkpoint_folder, embedded_checkpoints

if TYPE_CHECKING:
    from hf_crystal.training.recipes import TrainingRecipe
    from hf_crystal.training.target_scaling import TargetScaling

_MODEL_TYPES = ("crystalformer", "crystalframer")


def _check_model_type(model_type: Any) -> None:
    if model_type not in _MODEL_TYPES:
        raise ValueError(f"model_type={model_type!r}: expected {' or '.join(_MODEL_TYPES)}")


def property_config_class(model_type: Any) -> Any:
    """Config class of a model type.

    Raises:
        ValueError: If there is none.
    """
    _check_model_type(model_type)
    if model_type == "crystalframer":
        from hf_crystal.encoders.configuration_crystalframer import CrystalFramerConfig

        return CrystalFramerConfig
    from hf_crystal.encoders.configuration_crystalformer import CrystalformerConfig

    return CrystalformerConfig


def property_model_class(model_type: Any) -> Any:
    """Property-prediction class of a model type.

    Raises:
        ValueError: If there is none.
    """
    _check_model_type(model_type)
    if model_type == "crystalframer":
        from hf_crystal.encoders.modeling_crystalframer import CrystalFramerForPropertyPrediction

        return CrystalFramerForPropertyPrediction
    from hf_crystal.encoders.modeling_crystalformer import CrystalformerForPropertyPrediction

    return CrystalformerForPropertyPrediction


def _location(pretrained: str) -> str:
    """Folder of the embedded checkpoint of that name, if there is one; else the folder or repository itself."""
    embedded = pretrained in embedded_checkpoints() and not Path(pretrained).is_dir()
    return str(checkpoint_folder(pretrained)) if embedded else pretrained


def _check_pretrained(section: dict[str, Any], saved: dict[str, Any]) -> None:
    """The recipe may leave out what the pretrained model fixes, but not contradict it."""
    defaults = property_config_class(section["model_type"])()
    for key, value in section.items():
        if key != "pretrained":
            actual = saved.get(key, getattr(defaults, key))
            if actual != value:
                raise ValueError(
                    f"model.{key}={value!r}: the pretrained model {section['pretrained']!r} has {actual!r}"
                )


def build_property_model(recipe: "TrainingRecipe", scaling: "TargetScaling") -> Any:
    """New or pretrained model of a recipe, in the recipe's dtype, with its target scaling set.

    Seed the global generator first: it initialises the weights. Starting from a pretrained model, the encoder (with
    its calibration) is kept, and of the head what belongs to targets of the same name.

    Args:
        recipe: Training recipe.
        scaling: Mean and spread of the training targets.

    Raises:
        ValueError: If the recipe describes another model than the pretrained one.
    """
    model_class = property_model_class(recipe.model["model_type"])
    config = recipe.model_config()
    pretrained = recipe.model.get("pretrained")
    if pretrained:
        location = _location(pretrained)
        saved, _ = PreTrainedConfig.get_config_dict(location)
        _check_pretrained(recipe.model, saved)
        model = model_class.from_pretrained(
            location,
            target_names=config.target_names,
            target_units=config.target_units,
            ignore_mismatched_sizes=True,
        )
    else:
        model = model_class(config)
    model = model.to(recipe.training.torch_dtype)
    model.set_target_scaling(list(scaling.mean), list(scaling.std))
    return model
