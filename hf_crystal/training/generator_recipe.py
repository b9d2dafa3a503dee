"""Recipes of generators: YAML files in which every key is checked."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict

from hf_crystal.training.arguments import RecipeTrainingArguments
from hf_crystal.training.recipe_files import Recipe, read_section, read_training


@strict
@dataclass(kw_only=True)
class GeneratorModelArguments:
    """Shape of the language model.

    Attributes:
        model_type: "llama", or "gpt2" as in the paper.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: As in `LlamaConfig`.
        max_position_embeddings: Longest sequence in tokens, conditions included.
        dropout: Dropout of what attention and feed-forward layers add to the hidden states, in training only.
        embedding_init: "random", or "meaning": like elements and near numbers begin near each other.
        pretrained: Generator of this shape whose weights are trained further: embedded name, folder or repository.
    """

    model_type: Literal["llama", "gpt2"] = "llama"
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    intermediate_size: int = 768
    max_position_embeddings: int = 1024
    dropout: float = 0.0
    embedding_init: Literal["random", "meaning"] = "random"
    pretrained: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout}: expected 0 up to, not including, 1")
        if self.num_attention_heads < 1 or self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"model.hidden_size={self.hidden_size}: expected a multiple of twice num_attention_heads="
                f"{self.num_attention_heads}"
            )


@strict
@dataclass(kw_only=True)
class GeneratorDataArguments:
    """Crystals, splits and conditions.

    Attributes:
        path: Table of crystals, any form that `load_crystal_dataset` reads.
        split_column: Column with the split of each row.
        train_split, validation_split, test_split: Values of that column.
        max_train_rows, max_validation_rows, max_test_rows: Use only this many rows, chosen by the seed.
        conditions: Property of the tokenizer → column of the table.
        num_workers: Processes that tokenize.
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


@dataclass
class GeneratorTrainingArguments(RecipeTrainingArguments):
    """Training of a generator.

    The rates rise linearly over `warmup_steps`; a cosine takes them down to a tenth of a percent. `bf16` is on with a
    GPU. On a CPU it is twice as fast if that has bfloat16 instructions (AVX512-BF16, AMX); if not, runs compute in
    float32 and say so.

    Attributes:
        condition_probability: Chance of each known condition to be written in front of a sequence.
        composition_loss_probability: Chance of a sequence that its composition carries loss.
        given_condition_probability: `condition_probability` of the other sequences; null for the same.
        validity_samples: Sequences sampled without grammar at each validation.
    """

    batch_size: int = 64
    per_device_eval_batch_size: int = 128
    num_train_epochs: int = 10
    learning_rate: float = 1e-3
    muon_learning_rate: float = 0.02
    warmup_steps: int = 100
    weight_decay: float = 0.01
    bf16: bool = field(default_factory=torch.cuda.is_available)
    eval_strategy: str = "steps"
    eval_steps: int | None = 500
    logging_steps: int = 50
    logging_first_step: bool = True
    save_total_limit: int | None = 2
    prediction_loss_only: bool = True
    condition_probability: float = 0.3
    composition_loss_probability: float = 0.5
    given_condition_probability: float | None = None
    validity_samples: int = 32

    def __post_init__(self) -> None:
        if self.eval_steps is None or self.eval_steps < 1:
            raise ValueError(f"training.eval_steps={self.eval_steps}: expected 1 or more")
        self.save_steps = self.eval_steps
        super().__post_init__()
        for name in ("condition_probability", "composition_loss_probability", "given_condition_probability"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"training.{name}={value}: expected 0 to 1")


@dataclass(kw_only=True)
class GeneratorRecipe(Recipe):
    """A complete description of one generator training.

    Attributes:
        model: Shape of the model.
        data: Crystals, splits and conditions.
        training: Training arguments.
    """

    model: GeneratorModelArguments
    data: GeneratorDataArguments
    training: GeneratorTrainingArguments

    @classmethod
    def read_sections(cls, model: dict[str, Any], data: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
        """Checked sections by name."""
        return {
            "model": read_section(GeneratorModelArguments, model, "model"),
            "data": read_section(GeneratorDataArguments, data, "data"),
            "training": read_training(GeneratorTrainingArguments, training),
        }
