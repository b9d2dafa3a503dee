"""Training recipes: YAML files in which every key is checked."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from hf_crystal.training.arguments import (
    DataArguments,
    OptimizationArguments,
    TargetArguments,
    check_keys,
    section_from_dict,
)
from hf_crystal.training.optimizers import RELEASE_BIAS_WEIGHT_DECAY
from hf_crystal.training.property_models import property_config_class
from hf_crystal.training.recipe_files import read_recipe

_SECTIONS = ["description", "cost", "published", "model", "data", "training"]


@dataclass(kw_only=True)
class TrainingRecipe:
    """A complete description of one property-model training.

    Attributes:
        description: What is trained on what, in a sentence.
        cost: Measured cost of the run, or that it was not measured.
        published: Figures of the paper for this setting, if there are any; not read by the training.
        model: `model_type` ("crystalformer" or "crystalframer"), fields of its config, and optionally `pretrained`, a
            folder or repository to start from.
        data: Crystals, labels and splits.
        training: Optimisation.
    """

    description: str = ""
    cost: str = "not measured"
    published: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    data: DataArguments
    training: OptimizationArguments

    @property
    def bias_weight_decay(self) -> float:
        """Weight decay of biases after the default of `OptimizationArguments.bias_weight_decay` is applied."""
        if self.training.bias_weight_decay is not None:
            return self.training.bias_weight_decay
        return RELEASE_BIAS_WEIGHT_DECAY if self.model.get("match_release", False) else 0.0

    def model_config(self) -> PreTrainedConfig:
        """Config of the model, with the names and units of the targets."""
        values = {key: value for key, value in self.model.items() if key not in ("model_type", "pretrained")}
        return property_config_class(self.model["model_type"])(
            target_names=[target.name for target in self.data.targets],
            target_units=[target.unit for target in self.data.targets],
            **values,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `recipe_from_dict` reads back."""
        return dataclasses.asdict(self)

    def save(self, path: str | Path) -> None:
        """Write the recipe as YAML, defaults included."""
        Path(path).write_text(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _check_model_section(model: Mapping[str, Any]) -> None:
    if "model_type" not in model:
        raise ValueError("model: needs model_type, crystalformer or crystalframer")
    config_class = property_config_class(model["model_type"])
    inherited = {entry.name for entry in dataclasses.fields(PreTrainedConfig)}
    own = [entry.name for entry in dataclasses.fields(config_class) if entry.name not in inherited]
    own = [name for name in own if name not in ("target_names", "target_units")]  # these come from data.targets
    # transformers stores unknown config keys without a word, so a misspelt one would train another model
    check_keys("model", model, ["model_type", "pretrained", *own])


def recipe_from_dict(given: Mapping[str, Any]) -> TrainingRecipe:
    """Build a recipe from nested plain values.

    Raises:
        ValueError: For unknown keys (with the accepted and the closest ones), wrong types and values out of range.
    """
    check_keys("recipe", given, _SECTIONS)
    for section in ("model", "data", "training"):
        if not isinstance(given.get(section, {}), Mapping):
            raise ValueError(f"{section}={given[section]!r}: expected a section with keys")
    model, data = dict(given.get("model", {})), dict(given.get("data", {}))
    _check_model_section(model)
    targets = data.pop("targets", [])
    if not isinstance(targets, list) or not all(isinstance(target, Mapping) for target in targets):
        raise ValueError(f"data.targets={targets!r}: expected a list of {{name, unit, column}}")
    data["targets"] = [
        section_from_dict(TargetArguments, target, f"data.targets[{index}]") for index, target in enumerate(targets)
    ]
    recipe = TrainingRecipe(
        description=str(given.get("description", "")),
        cost=str(given.get("cost", "not measured")),
        published=dict(given.get("published") or {}),
        model=model,
        data=section_from_dict(DataArguments, data, "data"),
        training=section_from_dict(OptimizationArguments, given.get("training", {}), "training"),
    )
    try:
        recipe.model_config()
    except StrictDataclassError as error:  # the config's own checks
        raise ValueError(f"model: {error.__cause__ or error}") from error
    return recipe


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> TrainingRecipe:
    """Read a recipe.

    Args:
        path: YAML file.
        overrides: "section.key=value" texts, values in YAML: `training.num_epochs=5`.

    Raises:
        ValueError: See `recipe_from_dict`; also for text that is no YAML, naming the file.
    """
    return read_recipe(path, overrides, recipe_from_dict, _SECTIONS)
