"""Train a property model from a recipe and write down what was done; the scripts and the CLI call this."""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from hf_crystal.crystals.elements import CHEMICAL_SYMBOLS
from hf_crystal.evaluation.regression import RegressionMetrics, regression_metrics
from hf_crystal.evaluation.run_files import MODEL_FOLDER, RECIPE_NAME, RUN_NAME
from hf_crystal.training.property_data import label_columns, load_property_data, trained_on
from hf_crystal.training.property_models import build_property_model
from hf_crystal.training.property_recipe import TrainingRecipe
from hf_crystal.training.recipe_files import without_folders
from hf_crystal.training.run_control import environment_record, open_run
from hf_crystal.training.target_scaling import TargetScaling, compute_target_scaling
from hf_crystal.training.trainer import CrystalTrainer


@dataclass
class PropertyTask:
    """Everything a training loop needs, built from a recipe.

    Attributes:
        model: Property model with its target scaling set.
        feature_extractor: Turns crystals into tensors; saved with the model.
        collator: Turns data rows into batches with labels.
        splits: "train", "validation" and "test" rows.
        scaling: Mean and spread of the training targets.
    """

    model: Any
    feature_extractor: Any
    collator: Any
    splits: dict[str, Any]
    scaling: TargetScaling


def prepare_property_task(recipe: TrainingRecipe) -> PropertyTask:
    """Load the data and build the model of a recipe; the recipe's seed is set first."""
    from hf_crystal.data import CrystalCollator
    from hf_crystal.encoders.feature_extraction_crystal import CrystalFeatureExtractor

    set_seed(recipe.training.seed)
    splits = load_property_data(recipe.data, recipe.training.seed)
    columns = label_columns(recipe.data)
    scaling = compute_target_scaling(splits["train"], columns)
    model = build_property_model(recipe.model, recipe.data.targets).to(getattr(torch, recipe.training.dtype))
    domain = trained_on(splits["train"])
    if recipe.model.get("pretrained"):  # the encoder knows these: a small table has few pairs of elements
        domain["trained_pairs"] = _joined(model.config.trained_pairs or {}, domain["trained_pairs"])
    for name, value in domain.items():
        setattr(model.config, name, value)
    model.set_target_scaling(list(scaling.mean), list(scaling.std))
    feature_extractor = CrystalFeatureExtractor(
        max_atomic_number=model.config.num_elements,
        cell_choice="primitive" if recipe.data.cell_choice == "primitive" else "as_given",
    )
    collator = CrystalCollator(feature_extractor, label_names=columns)
    return PropertyTask(model, feature_extractor, collator, splits, scaling)


def _joined(first: dict[str, str], second: dict[str, str]) -> dict[str, str]:
    """Pairs of elements of two sets of training crystals."""
    pairs = {
        symbol: set(f"{first.get(symbol, '')} {second.get(symbol, '')}".split()) for symbol in {**first, **second}
    }
    return {symbol: " ".join(sorted(others, key=CHEMICAL_SYMBOLS.index)) for symbol, others in pairs.items()}


def train_property(
    recipe: TrainingRecipe, output_dir: str | Path, *, resume: bool = False, max_hours: float | None = None
) -> dict[str, Any]:
    """Train, test and save a property model.

    Writes `model/` (config, weights, feature extractor: load it with `from_pretrained`), and beside it
    `recipe.yaml`, `run.json` (see `run_record`) and `checkpoints/`.

    Args:
        recipe: Training recipe.
        output_dir: Folder of the run.
        resume: Continue from the last complete checkpoint of that folder; begin anew if none was completed.
        max_hours: Wall budget of training and its evaluations, earlier parts of a resumed run included; the run
            then ends with a checkpoint, and with weight averaging over the share of the budget that `swa_epochs`
            has of `num_epochs`. The final test comes on top.

    Returns:
        The content of `run.json`.

    Raises:
        ValueError: For recipes and data that do not fit, and `resume` without a run.
        FileExistsError: If the folder has checkpoints already and `resume` is False.
    """
    output_dir = Path(output_dir)
    checkpoints, checkpoint = open_run(output_dir, without_folders(recipe.to_dict()), resume=resume)
    environment = environment_record()  # of the code that runs: the checkout may change meanwhile
    arguments = dataclasses.replace(recipe.training, output_dir=str(checkpoints), max_hours=max_hours)
    task = prepare_property_task(recipe)
    trainer = CrystalTrainer(
        model=task.model,
        args=arguments,
        data_collator=task.collator,
        train_dataset=task.splits["train"],
        eval_dataset=task.splits["validation"],
        processing_class=task.feature_extractor,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    predicted = trainer.predict(task.splits["test"])
    record: dict[str, Any] = {}
    if trainer.is_world_process_zero():
        test = regression_metrics(
            predicted.predictions,
            np.asarray(predicted.label_ids),
            target_names=task.model.config.target_names,
            target_units=task.model.config.target_units,
            baseline_mean=task.scaling.mean,
        )
        record = run_record(recipe, task, trainer, environment, test)
        save_run(recipe, task, record, output_dir)
    trainer.accelerator.wait_for_everyone()
    return record


def save_run(recipe: TrainingRecipe, task: PropertyTask, record: dict[str, Any], output_dir: Path) -> None:
    """Write the model folder, the recipe and the record of a run."""
    task.model.save_pretrained(output_dir / MODEL_FOLDER)
    task.feature_extractor.save_pretrained(output_dir / MODEL_FOLDER)
    recipe.save(output_dir / RECIPE_NAME)
    (output_dir / RUN_NAME).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def run_record(
    recipe: TrainingRecipe,
    task: PropertyTask,
    trainer: CrystalTrainer,
    environment: dict[str, Any],
    test: RegressionMetrics,
) -> dict[str, Any]:
    """What was run, what it cost and what came out.

    Returns:
        Recipe, seed, commit, versions, cost (`training_seconds` of wall time with validation, resumed parts included;
        `cpu_seconds` of this process from its start), training and validation curves (target units as in
        `config.target_units`, `units` repeats them), weight averaging, and the test metrics beside the mean
        predictor's.
    """
    history = trainer.state.log_history
    curve_keys = ("step", "epoch", "loss", "grad_norm", "learning_rate")
    return {
        "recipe": without_folders(recipe.to_dict()),
        "seed": recipe.training.seed,
        **environment,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "finished": trainer.state.global_step >= trainer.state.max_steps,
        "training_seconds": round(trainer.clock.seconds_used, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "num_parameters": sum(p.numel() for p in task.model.parameters() if p.requires_grad),
        "rows": {name: len(rows) for name, rows in task.splits.items()},
        "target_mean": list(task.scaling.mean),
        "target_std": list(task.scaling.std),
        "units": {target.name: target.unit for target in recipe.data.targets},
        "weight_averaging": {"start_step": trainer.swa.start_step, "steps_averaged": trainer.swa.num_averaged},
        "training_curve": [{k: entry[k] for k in curve_keys if k in entry} for entry in history if "loss" in entry],
        "validation_curve": [
            {k.removeprefix("eval_"): v for k, v in entry.items()} for entry in history if "eval_loss" in entry
        ],
        "test": test.to_dict(),
    }
