"""Recipe files: YAML with sections, single values of which can be changed from the command line."""

import dataclasses
import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, get_args, get_type_hints

import torch
import yaml
from huggingface_hub.dataclasses import type_validator
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import HfArgumentParser
from transformers.utils import logging

logger = logging.get_logger(__name__)

Section = TypeVar("Section")

# keys of recipes written before they had the names of TrainingArguments
RENAMED_KEYS = {
    "accumulation_steps": "gradient_accumulation_steps",
    "num_epochs": "num_train_epochs",
    "eps": "adam_epsilon",
    "drop_last": "drop_last_train_rows",
    "eval_batch_size": "per_device_eval_batch_size",
    "log_steps": "logging_steps",
    "keep_checkpoints": "save_total_limit",
    "num_workers": "dataloader_num_workers",
}


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one value: "section.key=value", the value in YAML, numbers as places in lists.

    Raises:
        ValueError: For text of another form, and for a path through a plain value.
    """
    path, separator, text = override.partition("=")
    *parents, last = path.strip().split(".")
    if not (separator and parents):
        raise ValueError(f"override {override!r}: expected section.key=value")
    place: Any = values
    for parent in parents:
        place = place[int(parent)] if isinstance(place, list) else place.setdefault(parent, {})
        if not isinstance(place, dict | list):
            raise ValueError(f"override {override!r}: {parent!r} is a value, not a section")
    value = yaml.safe_load(text)
    if isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value


def without_folders(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a recipe for a record that travels with the model: files and folders by their names only.

    Args:
        recipe: Values of a recipe, by section.
    """
    described = {name: dict(section) if isinstance(section, Mapping) else section for name, section in recipe.items()}
    for section, key in (("data", "path"), ("model", "pretrained")):
        given = described[section].get(key)
        if given and (section == "data" or Path(given).is_dir()):  # not a repository's owner
            described[section][key] = Path(given).name
    return described


def check_keys(where: str, given: Mapping[str, Any], accepted: Iterable[str], listed: Iterable[str] = ()) -> None:
    """Refuse keys that nothing would read.

    Args:
        where: Name of the section in messages.
        given: Section.
        accepted: Its keys.
        listed: Keys to name in the message; all of them by default.

    Raises:
        ValueError: With the accepted keys and the closest one.
    """
    accepted = list(accepted)
    for key in given:
        if key not in accepted:
            close = difflib.get_close_matches(str(key), accepted, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            shown = ", ".join(dict.fromkeys(listed or accepted))
            raise ValueError(f"{where}: unknown key {key!r}{hint}; accepted: {shown}")


def _floats(section: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """YAML writes a whole number without its point; a field for floats takes it."""
    types = get_type_hints(section)
    return {
        key: float(value) if type(value) is int and float in (types[key], *get_args(types[key])) else value
        for key, value in given.items()
    }


def read_section(section: type[Section], given: Mapping[str, Any], where: str) -> Section:
    """Build a `@strict` section of a recipe.

    Raises:
        ValueError: For unknown and missing keys and values of another type, naming section, field and value.
    """
    check_keys(where, given, [entry.name for entry in dataclasses.fields(section)])  # type: ignore[arg-type]
    try:
        return section(**_floats(section, given))
    except StrictDataclassFieldValidationError as error:
        raise ValueError(f"{where}: {error.__cause__}") from error
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def current_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """Training section of a recipe with the names of `TrainingArguments`; warns of older names."""
    current, old = dict(given), []
    if isinstance(current.get("betas"), list) and len(current["betas"]) == 2:
        old.append("betas")
        current["adam_beta1"], current["adam_beta2"] = current.pop("betas")
    for key in RENAMED_KEYS.keys() & current.keys():
        old.append(key)
        current[RENAMED_KEYS[key]] = current.pop(key)
    if old:
        new = ", ".join(RENAMED_KEYS.get(key, "adam_beta1 and adam_beta2") for key in old)
        logger.warning(f"training: the recipe has older names ({', '.join(old)}); they are now {new}")
    return current


def read_training(section: type[Section], given: Mapping[str, Any], **chosen: Any) -> Section:
    """Training arguments of a recipe.

    They are those of `TrainingArguments` and its subclass `section`; under torchrun they start the process group.

    Args:
        section: Subclass of `TrainingArguments`.
        given: Section of the recipe, with current names.
        **chosen: Arguments that the recipe does not set itself.

    Raises:
        ValueError: For unknown keys, values of another type and out of range, naming field and value.
    """
    hints = get_type_hints(section)  # HfArgumentParser changes the types of the fields themselves
    types = {entry.name: hints[entry.name] for entry in dataclasses.fields(section)}  # type: ignore[arg-type]
    check_keys("training", given, types, [*RECORDED, *section.__annotations__])
    values = _floats(section, given)
    for key, value in values.items():
        try:
            type_validator(key, value, types[key])
        except TypeError as error:
            text = isinstance(value, str) and float in (types[key], *get_args(types[key]))
            advice = "; YAML reads 5e-4 as text, write 5.0e-4" if text else ""
            raise ValueError(f"training.{key}={value!r}: {error}{advice}") from error
    machine = {"use_cpu": not torch.cuda.is_available(), "disable_tqdm": not sys.stderr.isatty()}
    arguments = HfArgumentParser(section).parse_dict(machine | chosen | values)[0]  # type: ignore[arg-type]
    if not 0 <= arguments.swa_epochs <= arguments.num_train_epochs:
        raise ValueError(
            f"training.swa_epochs={arguments.swa_epochs}: expected 0 to num_train_epochs={arguments.num_train_epochs}"
        )
    return arguments


# arguments that a saved recipe always states, beside those of the subclasses and those it was given
RECORDED = (
    "batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "swa_epochs",
    "optimizer",
    "learning_rate",
    "muon_learning_rate",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "weight_decay",
    "bias_weight_decay",
    "max_grad_norm",
    "bf16",
    "seed",
    "per_device_eval_batch_size",
    "eval_steps",
    "logging_steps",
    "save_total_limit",
)


@dataclass(kw_only=True)
class Recipe:
    """What the recipes of both kinds of models have in common.

    Attributes:
        description: What is trained on what, in a sentence.
        cost: Measured cost of the run, or that it was not measured.
        model: Section of the model.
        data: Crystals and splits.
        training: Training arguments.
        given: Keys of the training section that the recipe states itself.
    """

    SECTIONS: ClassVar[tuple[str, ...]] = ("description", "cost", "model", "data", "training")

    description: str = ""
    cost: str = "not measured"
    model: Any
    data: Any
    training: Any
    given: Sequence[str] = field(default=(), compare=False, repr=False)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """Build a recipe from nested plain values.

        Raises:
            ValueError: For unknown keys (with the accepted and the closest ones), wrong types and values out of range.
        """
        check_keys("recipe", given, cls.SECTIONS)
        for section in ("model", "data", "training"):
            if not isinstance(given.get(section, {}), Mapping):
                raise ValueError(f"{section}={given[section]!r}: expected a section with keys")
        training = current_names(given.get("training", {}))
        sections = cls.read_sections(dict(given.get("model", {})), dict(given.get("data", {})), training)
        texts = {key: str(given[key]) for key in ("description", "cost") if key in given}
        return cls(**sections, **texts, given=tuple(training))

    @classmethod
    def read_sections(cls, model: dict[str, Any], data: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
        """Checked sections by name."""
        raise NotImplementedError

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read, override and check a recipe.

        Args:
            path: YAML file.
            overrides: "section.key=value" texts, values in YAML: `training.num_train_epochs=5`.

        Raises:
            ValueError: See `from_dict`; also for text that is no YAML or no recipe, naming the file.
        """
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: not valid YAML: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path}: expected sections {', '.join(cls.SECTIONS)}")
        if isinstance(values.get("training"), dict):
            values["training"] = current_names(values["training"])  # an override may have the current name
        for override in overrides:
            apply_override(values, override)
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` reads back."""
        names = dict.fromkeys([*RECORDED, *type(self.training).__annotations__, *self.given])
        stated = {name: getattr(self.training, name) for name in names}
        training = {name: value.value if isinstance(value, Enum) else value for name, value in stated.items()}
        values = {
            entry.name: getattr(self, entry.name)
            for entry in dataclasses.fields(self)
            if entry.name not in ("training", "given")
        }
        plain = {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in values.items()}  # type: ignore[arg-type]
        return {key: dict(value) if isinstance(value, dict) else value for key, value in plain.items()} | {
            "training": training
        }

    def save(self, path: str | Path) -> None:
        """Write the recipe as YAML, defaults included."""
        Path(path).write_text(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8")
