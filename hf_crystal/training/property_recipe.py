"""Recipes of property models: YAML files in which every key is checked."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from hf_crystal.training.arguments import CrystalTrainingArguments, DataArguments, TargetArguments
from hf_crystal.training.optimizers import RELEASE_BIAS_WEIGHT_DECAY
from hf_crystal.training.property_models import property_config, property_config_class
from hf_crystal.training.recipe_files import Recipe, check_keys, read_section, read_training

# of both papers (arXiv:2403.11686, arXiv:2503.02209), beside those of `CrystalTrainingArguments`
PAPER_DEFAULTS = {
    "batch_size": 128,
    "num_train_epochs": 500,
    "swa_epochs": 50,
    "per_device_eval_batch_size": 64,
    "logging_steps": 10,
    "logging_first_step": True,
    "save_total_limit": 2,
}


@dataclass(kw_only=True)
class TrainingRecipe(Recipe):
    """A complete description of one property-model training.

    Attributes:
        published: Figures of the paper for this setting, if there are any; not read by the training.
        model: `model_type` ("crystalformer" or "crystalframer"), fields of its config, and optionally `pretrained`, a
            folder or repository to start from.
        data: Crystals, labels and splits.
        training: Training arguments. Without `eval_steps` the model is evaluated and saved every epoch; without
            `swa_epochs` the best validation checkpoint is tested.
    """

    SECTIONS = ("description", "cost", "published", "model", "data", "training")

    published: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any]
    data: DataArguments
    training: CrystalTrainingArguments

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "TrainingRecipe":
        """See `Recipe.from_dict`."""
        recipe = super().from_dict(given)
        recipe.published = dict(given.get("published") or {})
        return recipe

    @classmethod
    def read_sections(cls, model: dict[str, Any], data: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
        """Checked sections by name."""
        _check_model_section(model)
        targets = data.pop("targets", [])
        if not isinstance(targets, list) or not all(isinstance(target, Mapping) for target in targets):
            raise ValueError(f"data.targets={targets!r}: expected a list of {{name, unit, column}}")
        data["targets"] = [
            read_section(TargetArguments, target, f"data.targets[{index}]") for index, target in enumerate(targets)
        ]
        checked = read_section(DataArguments, data, "data")
        try:
            property_config(model, checked.targets)
        except StrictDataclassError as error:  # the config's own checks
            raise ValueError(f"model: {error.__cause__ or error}") from error
        return {"model": model, "data": checked, "training": _training_arguments(model, training)}

    def model_config(self) -> PreTrainedConfig:
        """Config of the model, with the names and units of the targets."""
        return property_config(self.model, self.data.targets)


def _training_arguments(model: Mapping[str, Any], given: Mapping[str, Any]) -> CrystalTrainingArguments:
    values = PAPER_DEFAULTS | dict(given)
    if values.get("bias_weight_decay") is None:
        values["bias_weight_decay"] = RELEASE_BIAS_WEIGHT_DECAY if model.get("match_release", False) else 0.0
    every = values.get("eval_steps")
    interval = "epoch" if every is None else "steps"
    chosen: dict[str, Any] = {"eval_strategy": interval, "save_strategy": interval, "save_steps": every or 500}
    if values["swa_epochs"] == 0:
        chosen |= {
            "load_best_model_at_end": True,
            "metric_for_best_model": "scaled_mae",
            "greater_is_better": False,
        }
    return read_training(CrystalTrainingArguments, values, **chosen)


def _check_model_section(model: Mapping[str, Any]) -> None:
    if "model_type" not in model:
        raise ValueError("model: needs model_type, crystalformer or crystalframer")
    config_class = property_config_class(model["model_type"])
    inherited = {entry.name for entry in dataclasses.fields(PreTrainedConfig)}
    own = [entry.name for entry in dataclasses.fields(config_class) if entry.name not in inherited]
    own = [name for name in own if name not in ("target_names", "target_units")]  # these come from data.targets
    # transformers stores unknown config keys silently, so a misspelt one would train another model
    check_keys("model", model, ["model_type", "pretrained", *own])


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> TrainingRecipe:
    """Read the recipe of a property model; see `Recipe.load`."""
    return TrainingRecipe.load(path, overrides)
