"""Recipes of generators: YAML files in which every key is checked."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hf_crystal.training.arguments import check_keys, check_optimizer, section_from_dict
from hf_crystal.training.recipe_files import read_recipe

_SECTIONS = ["description", "cost", "model", "data", "training"]


@dataclass(kw_only=True)
class GeneratorModelArguments:
    """Shape of the language model.

    Attributes:
        model_type: "llama", or "gpt2" as in the paper.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: As in `LlamaConfig`.
        max_position_embeddings: Longest sequence in tokens, conditions included.
        dropout: Dropout of what attention and feed-forward layers add to the hidden states, in training only.
        embedding_init: "random", or "meaning": like elements and near numbers begin near each other.
    """

    model_type: str = "llama"
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    intermediate_size: int = 768
    max_position_embeddings: int = 1024
    dropout: float = 0.0
    embedding_init: str = "random"

    def __post_init__(self) -> None:
        if self.embedding_init not in ("random", "meaning"):
            raise ValueError(f"model.embedding_init={self.embedding_init!r}: expected random or meaning")
        if self.model_type not in ("llama", "gpt2"):
            raise ValueError(f"model.model_type={self.model_type!r}: expected llama or gpt2")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout}: expected 0 up to, not including, 1")
        if self.num_attention_heads < 1 or self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"model.hidden_size={self.hidden_size}: expected a multiple of twice num_attention_heads="
                f"{self.num_attention_heads}"
            )


@dataclass(kw_only=True)
class GeneratorDataArguments:
    """Crystals, splits and conditions.

    Attributes:
        path: Table of crystals, any form that `load_crystal_dataset` reads.
        split_column: Column with the split of each row.
        train_split, validation_split, test_split: Values of that column.
        max_train_rows, max_validation_rows, max_test_rows: Use only this many rows, chosen by the seed.
        conditions: Property of the tokenizer → column of the table.
        num_workers: Processes that tokenise.
    """

    path: str | None = None
    split_column: str = "split"
    train_split: str = "train"
    validation_split: str = "val"
    test_split: str = "test"
    max_train_rows: int | None = None
    max_validation_rows: int | None = None
    max_test_rows: int | None = None
    conditions: dict[str, str] = field(default_factory=dict)
    num_workers: int = 1


@dataclass(kw_only=True)
class GeneratorTrainingArguments:
    """Optimisation.

    Attributes:
        batch_size: Crystals per optimiser step over all processes and accumulation steps.
        accumulation_steps: Backward passes per optimiser step; does not change the result.
        eval_batch_size: Crystals per evaluation batch.
        num_epochs: Passes over the training split.
        optimizer: "adamw", or "muon": Muon for the matrices inside the layers, AdamW for the rest.
        learning_rate: Highest rate of AdamW, after the warm-up; a cosine takes it down to a tenth of a percent.
        muon_learning_rate: The same for Muon.
        warmup_steps: Steps of linear warm-up.
        weight_decay: Decoupled weight decay of matrices; vectors have none.
        max_grad_norm: Gradients are clipped to this norm.
        bf16: Mixed precision; on a GPU always. On a CPU twice as fast if it has bfloat16 instructions (AVX512-BF16,
            AMX), slower if not.
        swa_epochs: The saved weights are the mean over the steps of so many last epochs; 0 takes the last weights.
        condition_probability: Chance of each known condition to be written in front of a sequence.
        composition_loss_probability: Chance of a sequence that its composition carries loss.
        given_condition_probability: `condition_probability` of the other sequences; null for the same.
        eval_steps: Steps between validations and checkpoints.
        log_steps: Steps between entries of the loss curve.
        validity_samples: Sequences sampled without grammar at each validation.
        seed: Seed of everything.
    """

    batch_size: int = 64
    eval_batch_size: int = 128
    accumulation_steps: int = 1
    num_epochs: int = 10
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    muon_learning_rate: float = 0.02
    warmup_steps: int = 100
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    bf16: bool = False
    swa_epochs: int = 0
    condition_probability: float = 0.3
    composition_loss_probability: float = 0.5
    given_condition_probability: float | None = None
    eval_steps: int = 500
    log_steps: int = 50
    validity_samples: int = 32
    seed: int = 123

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation_steps", "eval_batch_size", "num_epochs", "eval_steps", "log_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name}={getattr(self, name)}: expected 1 or more")
        for name in ("condition_probability", "composition_loss_probability"):
            self._check_chance(name)
        if self.given_condition_probability is not None:
            self._check_chance("given_condition_probability")
        if not 0 <= self.swa_epochs <= self.num_epochs:
            raise ValueError(f"training.swa_epochs={self.swa_epochs}: expected 0 to num_epochs={self.num_epochs}")
        check_optimizer(self.optimizer, self.learning_rate, self.muon_learning_rate)

    def _check_chance(self, name: str) -> None:
        if not 0 <= getattr(self, name) <= 1:
            raise ValueError(f"training.{name}={getattr(self, name)}: expected 0 to 1")


@dataclass(kw_only=True)
class GeneratorRecipe:
    """A complete description of one generator training.

    Attributes:
        description: What is trained on what, in a sentence.
        cost: Measured cost of the run, or that it was not measured.
        model: Shape of the model.
        data: Crystals, splits and conditions.
        training: Optimisation.
    """

    description: str = ""
    cost: str = "Not measured"
    model: GeneratorModelArguments
    data: GeneratorDataArguments
    training: GeneratorTrainingArguments

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `generator_recipe_from_dict` reads back."""
        return dataclasses.asdict(self)

    def save(self, path: str | Path) -> None:
        """Write the recipe as YAML, defaults included."""
        Path(path).write_text(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8")


def generator_recipe_from_dict(given: Mapping[str, Any]) -> GeneratorRecipe:
    """Build a recipe from nested plain values.

    Raises:
        ValueError: For unknown keys (with the accepted and the closest ones), wrong types and values out of range.
    """
    check_keys("recipe", given, _SECTIONS)
    for section in ("model", "data", "training"):
        if not isinstance(given.get(section, {}), Mapping):
            raise ValueError(f"{section}={given[section]!r}: expected a section with keys")
    return GeneratorRecipe(
        description=str(given.get("description", "")),
        cost=str(given.get("cost", "Not measured")),
        model=section_from_dict(GeneratorModelArguments, given.get("model", {}), "model"),
        data=section_from_dict(GeneratorDataArguments, given.get("data", {}), "data"),
        training=section_from_dict(GeneratorTrainingArguments, given.get("training", {}), "training"),
    )


def load_generator_recipe(path: str | Path, overrides: Sequence[str] = ()) -> GeneratorRecipe:
    """Read a recipe.

    Args:
        path: YAML file.
        overrides: "section.key=value" texts, values in YAML: `training.num_epochs=5`.

    Raises:
        ValueError: See `generator_recipe_from_dict`; also for text that is no YAML, naming the file.
    """
    return read_recipe(path, overrides, generator_recipe_from_dict, _SECTIONS)
