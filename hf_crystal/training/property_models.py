"""Which classes train under which `model_type`."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

from hf_crystal.loading import resolve_model
from hf_crystal.training.arguments import TargetArguments

_MODEL_TYPES = ("crystalformer", "crystalframer")


def _check_model_type(model_type: Any) -> None:
    if model_type not in _MODEL_TYPES:
        raise ValueError(f"model_type={model_type!r}: expected {' or '.join(_MODEL_TYPES)}")


def property_config_class(model_type: str | None) -> Any:
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


def property_model_class(model_type: str | None) -> Any:
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


def property_config(section: Mapping[str, Any], targets: Sequence[TargetArguments]) -> PreTrainedConfig:
    """Config of a recipe's model section, with the names and units of the targets."""
    values = {key: value for key, value in section.items() if key not in ("model_type", "pretrained")}
    return property_config_class(section["model_type"])(
        target_names=[target.name for target in targets],
        target_units=[target.unit for target in targets],
        **values,
    )


def _check_pretrained(section: Mapping[str, Any], saved: dict[str, Any]) -> None:
    """The recipe may leave out what the pretrained model fixes, but not contradict it."""
    defaults = property_config_class(section["model_type"])()
    for key, value in section.items():
        if key != "pretrained":
            actual = saved.get(key, getattr(defaults, key))
            if actual != value:
                raise ValueError(
                    f"model.{key}={value!r}: the pretrained model {section['pretrained']!r} has {actual!r}"
                )


def _with_frames(section: Mapping[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """Saved config of a Crystalformer as that of a CrystalFramer with the frames of the recipe."""
    fields = (
        vars(property_config_class("crystalframer")()).keys() - vars(property_config_class("crystalformer")()).keys()
    )
    frames = {key: value for key, value in section.items() if key in fields}
    # another factor of the distance part would be another function of the saved weights
    return {**saved, **frames, "radial_gain": 1.0, "model_type": "crystalframer"}


def build_property_model(section: Mapping[str, Any], targets: Sequence[TargetArguments]) -> Any:
    """New or pretrained model of a recipe.

    Seed the global generator first: it initializes the weights. Starting from a pretrained model, the encoder (with
    its calibration) is kept, and of the head what belongs to targets of the same name. A CrystalFramer may start from
    a Crystalformer and predicts what that one does until it is trained.

    Args:
        section: Model section of a recipe.
        targets: What the model predicts.

    Raises:
        ValueError: If the section describes another model than the pretrained one.
    """
    model_class = property_model_class(section["model_type"])
    config = property_config(section, targets)
    pretrained = section.get("pretrained")
    if not pretrained:
        return model_class(config)
    location = resolve_model(pretrained)
    saved, _ = PreTrainedConfig.get_config_dict(location)
    gains_frames = (saved.get("model_type"), section["model_type"]) == _MODEL_TYPES
    if gains_frames:
        saved = _with_frames(section, saved)
    _check_pretrained(section, saved)
    model = model_class.from_pretrained(
        location,
        config=property_config_class(section["model_type"]).from_dict(saved) if gains_frames else None,
        target_names=config.target_names,
        target_units=config.target_units,
        ignore_mismatched_sizes=True,
    )
    if gains_frames:
        for name, weight in model.named_parameters():
            if name.endswith(".value_angular"):
                weight.detach().zero_()
    model.drop_error_head()
    return model
