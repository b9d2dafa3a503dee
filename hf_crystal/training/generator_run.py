"""Train a generator from a recipe and write down what was done; the script calls this."""

# ruff: noqa: ARG002  (the signatures are those of TrainerCallback)

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.utils import logging

from hf_crystal.crystals.doubts import training_domain
from hf_crystal.evaluation.run_files import MODEL_FOLDER, RECIPE_NAME, RUN_NAME
from hf_crystal.loading import load_generator
from hf_crystal.training.data_order import LengthBatchSampler
from hf_crystal.training.generator_data import Mat2SeqCollator, element_blocks, tokenize_splits
from hf_crystal.training.generator_init import build_generator
from hf_crystal.training.generator_recipe import GeneratorRecipe, GeneratorTrainingArguments
from hf_crystal.training.generator_validity import ValidityCallback, answer_loss, free_validity
from hf_crystal.training.optimizers import build_optimizer
from hf_crystal.training.recipe_files import without_folders
from hf_crystal.training.run_control import (
    CompleteCheckpointCallback,
    WallBudgetCallback,
    environment_record,
    open_run,
)
from hf_crystal.training.weight_averaging import SWACallback

logger = logging.get_logger(__name__)

TOKENS_FOLDER = "tokens"
LAST_RATE = 1e-3  # share of the highest learning rate at the end


@dataclass
class GeneratorTask:
    """Everything a training loop needs, built from a recipe.

    Attributes:
        model: The language model.
        tokenizer: The tokenizer.
        splits: "train", "validation" and "test" token rows.
    """

    model: Any
    tokenizer: Any
    splits: Any


def prepare_generator_task(recipe: GeneratorRecipe, tokens_folder: str | Path) -> GeneratorTask:
    """Tokenize the data (or read the token rows) and build the model of a recipe; the recipe's seed is set first.

    Raises:
        ValueError: For data that do not fit the recipe, and sequences longer than the model's context.
    """
    from hf_crystal.mat2seq.tokenization_mat2seq import Mat2SeqTokenizer
    from hf_crystal.mat2seq.vocabulary import DEFAULT_PROPERTIES, OTHER_PROPERTIES

    set_seed(recipe.training.seed)
    known = {bins.name: bins for bins in (*DEFAULT_PROPERTIES, *OTHER_PROPERTIES)}
    unknown = sorted(set(recipe.data.conditions) - set(known))
    if unknown:
        raise ValueError(
            f"data.conditions: {unknown} unknown; accepted: {', '.join(known)}; others need bins in "
            "hf_crystal/mat2seq/vocabulary.py"
        )
    names = [name for name, bins in known.items() if bins in DEFAULT_PROPERTIES or name in recipe.data.conditions]
    tokenizer = Mat2SeqTokenizer(
        model_max_length=recipe.model.max_position_embeddings, properties=[known[name] for name in names]
    )
    with PartialState().local_main_process_first():  # the others read what the first wrote
        splits = tokenize_splits(recipe.data, tokenizer, tokens_folder, recipe.training.seed)
    longest = max(max(rows["length"]) for rows in splits.values()) + 2 * len(names)
    if longest > recipe.model.max_position_embeddings:
        raise ValueError(
            f"model.max_position_embeddings={recipe.model.max_position_embeddings}: the longest sequence has {longest}"
        )
    model = build_generator(recipe.model, tokenizer)
    if recipe.model.pretrained is not None:
        _take_weights(model, tokenizer, recipe.model.pretrained)
    return GeneratorTask(model, tokenizer, splits)


def _take_weights(model: Any, tokenizer: Any, name: str) -> None:
    """Begin with the weights of another generator; tokens that it lacks (of further conditions) keep their own.

    Args:
        model: Generator of the recipe, with random weights.
        tokenizer: Its tokenizer.
        name: See `hf_crystal.loading.load_generator`.

    Raises:
        ValueError: If tokens of both mean different things, or the shapes differ.
    """
    earlier, its_tokenizer = load_generator(name)
    its_bins = {bins.name: bins for bins in its_tokenizer.property_bins}
    other = [bins.name for bins in tokenizer.property_bins if its_bins.get(bins.name, bins) != bins]
    if its_tokenizer.settings != tokenizer.settings or other:
        what = f"bins of {', '.join(other)}" if other else "settings"
        raise ValueError(f"model.pretrained={name}: its tokenizer has other {what} than the recipe's")
    weights = earlier.state_dict()
    vocabulary, its_vocabulary = tokenizer.get_vocab(), its_tokenizer.get_vocab()
    shared = sorted(set(vocabulary) & set(its_vocabulary))
    embeddings = {module.weight.data_ptr() for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    for key, own in model.state_dict().items():
        theirs = weights.get(key)
        if own.data_ptr() in embeddings and theirs is not None and own.shape[1:] == theirs.shape[1:]:
            table = own.clone()
            table[[vocabulary[token] for token in shared]] = theirs[[its_vocabulary[token] for token in shared]]
            weights[key] = table
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"model.pretrained={name}: not of the shape of the recipe: {error}") from error


def learning_rate_factor(step: int, *, warmup_steps: int, total_steps: int, clock: WallBudgetCallback) -> float:
    """Linear warm-up, then a cosine down to `LAST_RATE`, over the steps or the wall budget, whichever runs out first.

    Args:
        step: Optimizer steps done.
        warmup_steps: Steps of warm-up.
        total_steps: Steps of the whole run.
        clock: Tells the share of the wall budget that is used.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    by_steps = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    progress = min(1.0, max(by_steps, clock.fraction_used()))
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


def train_generator(
    recipe: GeneratorRecipe,
    output_dir: str | Path,
    *,
    tokens_folder: str | Path | None = None,
    resume: bool = False,
    max_hours: float | None = None,
) -> dict[str, Any]:
    """Train, test and save a generator.

    Writes `model/` (weights, config, generation config, tokenizer: load it with `from_pretrained`), and beside it
    `recipe.yaml`, `run.json` (see `run_record`), `tokens/` (unless given elsewhere) and `checkpoints/`.

    Args:
        recipe: Training recipe.
        output_dir: Folder of the run.
        tokens_folder: Folder of token rows that several runs share.
        resume: Continue from the last complete checkpoint of that folder; begin anew if none was completed.
        max_hours: Wall budget of training and its evaluations, earlier parts of a resumed run included; tokenizing
            and the final test come on top. The cosine ends with the budget.

    Returns:
        The content of `run.json`; empty on other processes than the first.

    Raises:
        ValueError: For recipes and data that do not fit, and `resume` without a run.
        FileExistsError: If the folder has checkpoints already and `resume` is False.
    """
    output_dir = Path(output_dir)
    checkpoints, checkpoint = open_run(output_dir, without_folders(recipe.to_dict()), resume=resume)
    clock = WallBudgetCallback(max_hours)
    clock.resume_from = checkpoint
    environment = environment_record()  # of the code that runs: the checkout may change meanwhile
    half = recipe.training.bf16 and computes_bfloat16()
    environment["precision"] = "bfloat16" if half else "float32"
    if recipe.training.bf16 and not half:
        logger.warning("training.bf16: this CPU has no instructions for bfloat16; the run computes in float32")
    arguments = dataclasses.replace(recipe.training, output_dir=str(checkpoints), max_hours=max_hours, bf16=half)
    task = prepare_generator_task(recipe, tokens_folder or output_dir / TOKENS_FOLDER)
    trainer = _trainer(recipe, task, arguments, clock)
    trainer.train(resume_from_checkpoint=str(clock.resume_from) if clock.resume_from else None)
    seconds = clock.seconds_used
    task.model = _whole_model(recipe, task, trainer)
    record: dict[str, Any] = {}
    if trainer.is_world_process_zero():
        measured = {"environment": environment, "test": _test_figures(task, recipe.training.seed)}
        record = run_record(recipe, task, trainer, seconds, measured)
        for name, value in training_domain(element_blocks(task.splits["train"], task.tokenizer)).items():
            setattr(task.model.config, name, value)
        task.model.config.use_cache = True  # the Trainer switches it off
        task.model.save_pretrained(output_dir / MODEL_FOLDER)
        task.tokenizer.save_pretrained(output_dir / MODEL_FOLDER)
        recipe.save(output_dir / RECIPE_NAME)
        (output_dir / RUN_NAME).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    trainer.accelerator.wait_for_everyone()
    return record


def computes_bfloat16() -> bool:
    """Whether bfloat16 is not slower than float32 here: on an accelerator, or a CPU with instructions for it."""
    if torch.accelerator.is_available():
        return True
    able = getattr(torch.cpu, "get_capabilities", lambda: {"bf16": True})()  # older torch does not tell
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _whole_model(recipe: GeneratorRecipe, task: GeneratorTask, trainer: Trainer) -> Any:
    """The trained model without mixed precision; with FSDP gathered from its shards, on the first process."""
    if not trainer.is_fsdp_enabled:
        return trainer.accelerator.unwrap_model(task.model, keep_fp32_wrapper=False)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    model = build_generator(recipe.model, task.tokenizer)
    if trainer.is_world_process_zero():
        model.load_state_dict(state)
    return model


def _check_fsdp(training: GeneratorTrainingArguments) -> None:
    """Refuse what needs whole matrices where each process has a part of them."""
    for name, accepted in (("optimizer", "adamw"), ("swa_epochs", 0), ("validity_samples", 0)):
        if getattr(training, name) != accepted:
            raise ValueError(f"training.{name}={getattr(training, name)!r}: with FSDP expected {accepted!r}")


def _test_figures(task: GeneratorTask, seed: int) -> dict[str, Any]:
    rows = task.splits["test"]
    return {
        "answer": answer_loss(task.model, task.tokenizer, rows),
        "answer_with_conditions": answer_loss(task.model, task.tokenizer, rows, conditions=True),
        "without_grammar": free_validity(task.model, task.tokenizer, _first_rows(rows, 200), seed=seed),
    }


def _first_rows(rows: Any, count: int) -> list[dict[str, Any]]:
    return [dict(row) for row in rows.select(range(min(count, len(rows))))]


class _GeneratorTrainer(Trainer):
    """Trainer with our optimizer and schedule, and batches of like length whose order depends on seed and epoch only.

    The stock length groups are drawn from the global generator, which a resume in the middle of an epoch finds in
    another state: rows would be repeated and left out.
    """

    train_dataset: Any
    data_collator: Any
    optimizer: Any
    lr_scheduler: Any
    args: GeneratorTrainingArguments
    rate: Callable[[int], float]

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of the recipe; with FSDP the Trainer takes none that was made before the shards."""
        if self.optimizer is None:
            trained: Any = self.model if model is None else model  # Trainer types it as any module
            self.optimizer = build_optimizer(trained, self.args, rest_weight_decay=0.0)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Warm-up and cosine, by steps or by the wall budget."""
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: self.rate(step)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_train_dataloader(self) -> DataLoader:
        """Batches of one process."""
        self.train_batch_sampler = LengthBatchSampler(
            self.train_dataset["length"],
            self.args.batch_size,
            parts=self.args.world_size * self.args.gradient_accumulation_steps,
            seed=self.args.seed,
        )
        loader = DataLoader(self.train_dataset, batch_sampler=self.train_batch_sampler, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)


class _EpochCallback(TrainerCallback):
    """Tells batch sampler and collator their epoch, on which all their draws depend."""

    def __init__(self, trainer: _GeneratorTrainer):
        self.trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Tell the epoch; a resumed one begins in its middle."""
        for part in (self.trainer.train_batch_sampler, self.trainer.data_collator):
            part.set_epoch(int(state.epoch or 0))


def _trainer(
    recipe: GeneratorRecipe, task: GeneratorTask, arguments: GeneratorTrainingArguments, clock: WallBudgetCallback
) -> Trainer:
    """A Trainer with our schedule and callbacks."""
    training = recipe.training
    train, validation = task.splits["train"], task.splits["validation"]
    if arguments.bf16 and not torch.cuda.is_available():
        task.model.set_attn_implementation("eager")  # the fused one goes backward five times slower in bfloat16
    rate = functools.partial(
        learning_rate_factor,
        warmup_steps=training.warmup_steps,
        total_steps=math.ceil(len(train) / training.batch_size) * training.num_train_epochs,
        clock=clock,
    )
    samples = _first_rows(validation, training.validity_samples)
    averaging = SWACallback(training.swa_epochs, fraction_used=clock.fraction_used)
    averaging.resume_from = clock.resume_from
    trainer = _GeneratorTrainer(
        model=task.model,
        args=arguments,
        data_collator=Mat2SeqCollator(
            task.tokenizer,
            training.condition_probability,
            training.composition_loss_probability,
            training.seed,
            training.given_condition_probability,
        ),
        train_dataset=train,
        eval_dataset=validation.add_column("fixed", [True] * len(validation)),
        processing_class=task.tokenizer,
        # the marker of a complete checkpoint comes last
        callbacks=[
            ValidityCallback(task.tokenizer, samples, training.seed),
            clock,
            averaging,
            CompleteCheckpointCallback(clock),
        ],
    )
    if trainer.is_fsdp_enabled:
        _check_fsdp(training)
    trainer.rate = rate
    trainer.add_callback(_EpochCallback(trainer))
    return trainer


def run_record(
    recipe: GeneratorRecipe, task: GeneratorTask, trainer: Trainer, seconds: float, measured: dict[str, Any]
) -> dict[str, Any]:
    """What was run, what it cost and what came out.

    Args:
        recipe: The recipe.
        task: Model and data.
        trainer: The Trainer after training.
        seconds: Wall seconds of training with validation, resumed parts included.
        measured: "environment", and "test", the figures of the test split.

    Returns:
        Recipe, seed, commit, versions, cost, curves and test figures; losses in nats. The validation loss is the
        mean over sequences of the batches' mean loss per token after the composition, without conditions.
    """
    curve_keys = ("step", "epoch", "loss", "grad_norm", "learning_rate")
    history = trainer.state.log_history
    return {
        "recipe": without_folders(recipe.to_dict()),
        "seed": recipe.training.seed,
        **measured["environment"],
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "training_seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "num_parameters": sum(p.numel() for p in task.model.parameters()),
        "rows": {name: len(rows) for name, rows in task.splits.items()},
        "mean_tokens": sum(task.splits["train"]["length"]) / len(task.splits["train"]),
        "training_curve": [{k: entry[k] for k in curve_keys if k in entry} for entry in history if "loss" in entry],
        "validation_curve": [
            {k.removeprefix("eval_"): v for k, v in entry.items()} for entry in history if "eval_loss" in entry
        ],
        "test": measured["test"],
    }
