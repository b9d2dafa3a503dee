"""Sections of a training recipe: data and targets, and `TrainingArguments` with the papers' defaults."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from huggingface_hub.dataclasses import strict
from transformers import TrainingArguments

from hf_crystal.data import OFFICIAL_SOURCES


@strict
@dataclass(kw_only=True)
class TargetArguments:
    """One quantity to learn.

    Attributes:
        name: Name in the model's `config.target_names`.
        unit: Unit of the labels and of the predictions, as text; "" for a pure number.
        column: Column of the data that holds the labels; the name by default.
    """

    name: str
    unit: str
    column: str = ""

    def __post_init__(self) -> None:
        self.column = self.column or self.name


@strict
@dataclass(kw_only=True)
class DataArguments:
    """Where crystals, labels and splits come from.

    Attributes:
        source: "file" (parquet, or any form `load_crystal_dataset` reads), or a data set with official splits:
            x where `hf_crystal.data` has a `load_x`, such as "jarvis".
        path: For "file": the table. For the others: a local copy; None downloads it.
        property_name: Property that chooses the official split of a loader.
        split_column: For "file": column with the split of each row.
        train_split, validation_split, test_split: Values of that column.
        max_train_rows, max_validation_rows: Use only this many rows, chosen by the seed; None uses all. The test
            split is never cut.
        cell_choice: "as_given", or "primitive" to reduce to the standard primitive cell when a crystal is read, as
            Crystalformer's release does. Saved with the feature extractor.
        targets: What to learn.
    """

    source: str = "file"
    path: str | None = None
    property_name: str | None = None
    split_column: str = "split"
    train_split: str = "train"
    validation_split: str = "val"
    test_split: str = "test"
    max_train_rows: int | None = None
    max_validation_rows: int | None = None
    cell_choice: Literal["as_given", "primitive"] = "as_given"
    targets: list[TargetArguments] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.source not in ("file", *OFFICIAL_SOURCES):
            raise ValueError(f"data.source={self.source!r}: expected file, {' or '.join(OFFICIAL_SOURCES)}")
        if not self.targets:
            raise ValueError("data.targets is empty: name at least one target")
        names = [target.name for target in self.targets]
        if len(set(names)) < len(names):
            raise ValueError(f"data.targets: names must differ, got {names}")


@dataclass
class RecipeTrainingArguments(TrainingArguments):
    """What the trainings of both kinds of models have beside `TrainingArguments`.

    Attributes:
        batch_size: Crystals per optimizer step over all processes and accumulation steps. It sets
            `per_device_train_batch_size`, so neither processes nor accumulation change the result; None keeps the
            latter.
        num_train_epochs: Passes over the training split.
        swa_epochs: Average the weights over this many last epochs.
        optimizer: "adamw", or "muon": Muon for the linear maps inside the layers, AdamW for the rest. It takes the
            place of `optim`.
        muon_learning_rate: Muon's highest rate.
        bias_weight_decay: Weight decay of biases and other vectors: 0 in the paper. In a property model's recipe it is
            the release's 0.01 by default if the model config has `match_release`.
        max_hours: Wall budget of training; None means no limit.
    """

    remove_unused_columns: bool = False
    # a diverged run must look diverged: the filter would replace NaN losses by the average of the others
    logging_nan_inf_filter: bool = False
    # pinned batches are copied to a GPU while it works; without one torch only warns
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])
    seed: int = 123
    adam_beta2: float = 0.98
    num_train_epochs: int = 3
    eval_steps: int | None = None
    batch_size: int | None = None
    swa_epochs: int = 0
    optimizer: Literal["adamw", "muon"] = "adamw"
    muon_learning_rate: float = 0.005
    bias_weight_decay: float = 0.0
    max_hours: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "gradient_accumulation_steps", "num_train_epochs", "per_device_eval_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"training.{name}={value}: expected 1 or more")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"training.optimizer={self.optimizer!r}: expected adamw or muon")
        for name in ("learning_rate", "muon_learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"training.{name}={getattr(self, name)}: expected above 0")
        if self.save_total_limit is not None and self.save_total_limit < 2:
            raise ValueError(
                f"training.save_total_limit={self.save_total_limit}: keep 2 or more, the previous checkpoint must "
                "outlive a save that is killed half way"
            )
        if self.batch_size is not None:
            parts = self.world_size * self.gradient_accumulation_steps
            self.per_device_train_batch_size = max(1, self.batch_size // parts)


@dataclass
class CrystalTrainingArguments(RecipeTrainingArguments):
    """Training of a property model, with the papers' optimization and the defaults that crystal batches need.

    Attributes:
        decay_steps: T of the inverse square-root decay, in steps.
        drop_last_train_rows: Skip the rows that do not fill the last training batch, other ones every epoch.
            (`dataloader_drop_last` would drop rows of the evaluation too and is refused.)
        max_atoms_per_batch: Fill training batches by atoms instead of by crystals.
        dtype: Of weights and arithmetic; for recipes, the Trainer takes its model as it is.
    """

    learning_rate: float = 5e-4
    weight_decay: float = 1e-5
    decay_steps: int = 4000
    drop_last_train_rows: bool = True
    max_atoms_per_batch: int | None = None
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = self.world_size * self.gradient_accumulation_steps
        if self.batch_size is not None and self.batch_size % parts:
            raise ValueError(
                f"training.batch_size={self.batch_size} does not divide into {self.world_size} processes x "
                f"{self.gradient_accumulation_steps} accumulation steps"
            )
        if self.dataloader_drop_last:
            raise ValueError(
                "dataloader_drop_last=True drops rows of the evaluation as well; use drop_last_train_rows"
            )
        if self.train_sampling_strategy != "random":
            raise ValueError(
                f"train_sampling_strategy={self.train_sampling_strategy!r}: its order comes from the global random "
                "state, so a resumed run would differ; use max_atoms_per_batch for crystals of uneven size"
            )
