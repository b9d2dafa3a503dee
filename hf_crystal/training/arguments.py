"""What a training recipe may say, as dataclasses, and `TrainingArguments` with the papers' defaults."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments

Section = TypeVar("Section")


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


@dataclass(kw_only=True)
class DataArguments:
    """Where crystals, labels and splits come from.

    Attributes:
        source: "file" (parquet, or any form `load_crystal_dataset` reads), or a loader with official splits:
            "jarvis", "materials_project" (MEGNet 2018.6.1) or "oqmd".
        path: For "file": the table. For the others: a local copy; None downloads it.
        property_name: Property that chooses the official split of a loader.
        split_column: For "file": column with the split of each row.
        train_split, validation_split, test_split: Values of that column.
        max_train_rows, max_validation_rows: Use only this many rows, chosen by the seed; None uses all. The test
            split is never cut.
        cell_choice: "as_given", or "primitive" to reduce to the standard primitive cell at the data door, as
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
    cell_choice: str = "as_given"
    targets: list[TargetArguments] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.source not in ("file", "jarvis", "materials_project", "oqmd"):
            raise ValueError(f"data.source={self.source!r}: expected file, jarvis, materials_project or oqmd")
        if self.cell_choice not in ("as_given", "primitive"):
            raise ValueError(f"data.cell_choice={self.cell_choice!r}: expected as_given or primitive")
        if not self.targets:
            raise ValueError("data.targets is empty: name at least one target")
        names = [target.name for target in self.targets]
        if len(set(names)) < len(names):
            raise ValueError(f"data.targets: names must differ, got {names}")


@dataclass(kw_only=True)
class OptimizationArguments:
    """How to train; the defaults are those of both papers (SPEC_ENCODERS 4).

    Attributes:
        batch_size: Crystals per optimiser step over all processes and accumulation steps.
        accumulation_steps: Backward passes per optimiser step; does not change the result.
        max_atoms_per_batch: Instead of `batch_size`, fill each batch of a process up to this many atoms.
        num_epochs: Passes over the training split.
        swa_epochs: Average the weights over this many last epochs; 0 tests the best validation checkpoint instead.
        optimizer: "adamw" (the papers), or "muon": Muon for the linear maps inside the encoder, AdamW for the rest.
        learning_rate: AdamW's rate of the first step.
        muon_learning_rate: Muon's rate of the first step.
        decay_steps: T of the inverse square-root decay, in steps.
        betas: AdamW moment decays.
        eps: AdamW denominator term.
        weight_decay: Decay of everything but biases.
        bias_weight_decay: Decay of biases; None gives the paper's 0, or the release's 0.01 if the model config has
            `match_release`.
        max_grad_norm: Clip the gradient's 2-norm to this.
        drop_last: Leave out the rows that do not fill a batch, other ones every epoch.
        seed: Seed of initialisation, data order and row choice.
        eval_batch_size: Crystals per process in evaluation.
        eval_steps: Evaluate on the validation split and save a checkpoint every this many steps; None: every epoch.
        log_steps: Log the training loss every this many steps.
        keep_checkpoints: Newest checkpoints to keep, 2 or more: the previous one must outlive a torn save.
        dtype: "float32" or "float64", of weights and of the arithmetic.
        bf16: bfloat16 autocast around the model.
        num_workers: Processes that prepare batches.
    """

    batch_size: int = 128
    accumulation_steps: int = 1
    max_atoms_per_batch: int | None = None
    num_epochs: int = 500
    swa_epochs: int = 50
    optimizer: str = "adamw"
    learning_rate: float = 5e-4
    muon_learning_rate: float = 0.005
    decay_steps: int = 4000
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-8
    weight_decay: float = 1e-5
    bias_weight_decay: float | None = None
    max_grad_norm: float = 1.0
    drop_last: bool = True
    seed: int = 123
    eval_batch_size: int = 64
    eval_steps: int | None = None
    log_steps: int = 10
    keep_checkpoints: int = 2
    dtype: str = "float32"
    bf16: bool = False
    num_workers: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation_steps", "num_epochs", "eval_batch_size", "log_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name}={getattr(self, name)}: expected 1 or more")
        if not 0 <= self.swa_epochs <= self.num_epochs:
            raise ValueError(
                f"training.swa_epochs={self.swa_epochs}: expected 0 to num_epochs={self.num_epochs} inclusive"
            )
        if self.keep_checkpoints < 2:
            raise ValueError(f"training.keep_checkpoints={self.keep_checkpoints}: expected 2 or more")
        check_optimizer(self.optimizer, self.learning_rate, self.muon_learning_rate)
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"training.dtype={self.dtype!r}: expected float32 or float64")
        if len(self.betas) != 2:
            raise ValueError(f"training.betas={self.betas}: expected two numbers")

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch names it."""
        return torch.float64 if self.dtype == "float64" else torch.float32


def check_optimizer(optimizer: str, learning_rate: float, muon_learning_rate: float) -> None:
    """Refuse what no optimiser of a recipe can be built from.

    Raises:
        ValueError: For an unknown name, and for rates that are not positive.
    """
    if optimizer not in ("adamw", "muon"):
        raise ValueError(f"training.optimizer={optimizer!r}: expected adamw or muon")
    for name, rate in (("learning_rate", learning_rate), ("muon_learning_rate", muon_learning_rate)):
        if rate <= 0:
            raise ValueError(f"training.{name}={rate}: expected above 0")


def _unknown_key_message(where: str, key: str, accepted: list[str]) -> str:
    close = difflib.get_close_matches(key, accepted, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{where}: unknown key {key!r}{hint}; accepted: {', '.join(accepted)}"


def check_keys(where: str, given: Mapping[str, Any], accepted: list[str]) -> None:
    """Refuse keys that nothing would read.

    Raises:
        ValueError: With the accepted keys and the closest one.
    """
    for key in given:
        if key not in accepted:
            raise ValueError(_unknown_key_message(where, str(key), accepted))


def _fits(value: Any, annotation: Any) -> bool:
    if annotation is Any:
        return True
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in typing.get_args(annotation))
    if typing.get_origin(annotation) is list:
        (item,) = typing.get_args(annotation)
        return isinstance(value, list) and all(_fits(entry, item) for entry in value)
    if typing.get_origin(annotation) is dict:
        return isinstance(value, dict)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, type(None) if annotation is None else annotation)


def section_from_dict(section: type[Section], given: Mapping[str, Any], where: str) -> Section:
    """Build a recipe section, refusing unknown keys and values of another type.

    Args:
        section: Dataclass to build.
        given: Keys and values as YAML gave them.
        where: Name of the section in messages.

    Raises:
        ValueError: Naming the field, its value and what is accepted.
    """
    hints = typing.get_type_hints(section)
    accepted = [entry.name for entry in dataclasses.fields(section)]  # type: ignore[arg-type]
    check_keys(where, given, accepted)
    for key, value in given.items():
        if not _fits(value, hints[key]):
            advice = ""
            if isinstance(value, str) and _fits(0.0, hints[key]):
                advice = "; YAML reads 5e-4 as text, write 5.0e-4"
            expected = getattr(hints[key], "__name__", str(hints[key]))
            raise ValueError(f"{where}.{key}={value!r}: expected {expected}{advice}")
    try:
        return section(**given)
    except TypeError as error:
        required = [
            entry.name
            for entry in dataclasses.fields(section)  # type: ignore[arg-type]
            if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        ]
        raise ValueError(f"{where}: needs {', '.join(required)}; got {', '.join(given) or 'nothing'}") from error


@dataclass
class CrystalTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the papers' optimisation and the defaults that crystal batches need.

    Attributes:
        swa_epochs: See `OptimizationArguments`.
        optimizer: See `OptimizationArguments`; it takes the place of `optim`.
        muon_learning_rate: See `OptimizationArguments`.
        decay_steps: T of the inverse square-root decay, in steps.
        bias_weight_decay: Weight decay of biases.
        drop_last_train_rows: Leave out the rows that do not fill the last training batch. (`dataloader_drop_last`
            would drop rows of the evaluation too and is refused.)
        max_atoms_per_batch: Fill training batches by atoms instead of by crystals.
        max_hours: Wall budget of training; None means no limit.
    """

    learning_rate: float = 5e-4
    adam_beta2: float = 0.98
    weight_decay: float = 1e-5
    seed: int = 123
    remove_unused_columns: bool = False
    # a diverged run must look diverged: the filter would replace NaN losses by the average of the others
    logging_nan_inf_filter: bool = False
    # pinned batches are copied to a GPU while it works; without one torch only warns
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])
    swa_epochs: int = 0
    optimizer: str = "adamw"
    muon_learning_rate: float = 0.005
    decay_steps: int = 4000
    bias_weight_decay: float = 0.0
    drop_last_train_rows: bool = True
    max_atoms_per_batch: int | None = None
    max_hours: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_optimizer(self.optimizer, self.learning_rate, self.muon_learning_rate)
        if self.dataloader_drop_last:
            raise ValueError(
                "dataloader_drop_last=True drops rows of the evaluation as well; use drop_last_train_rows"
            )
        if self.train_sampling_strategy != "random":
            raise ValueError(
                f"train_sampling_strategy={self.train_sampling_strategy!r}: its order comes from the global random "
                "state, so a resumed run would differ; use max_atoms_per_batch for crystals of uneven size"
            )
        if self.save_total_limit is not None and self.save_total_limit < 2:
            raise ValueError(
                f"save_total_limit={self.save_total_limit}: keep 2 or more, the previous checkpoint must outlive a "
                "save that is killed half way"
            )
