"""Evaluate a saved property model on labeled rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_crystal.evaluation.regression import RegressionMetrics, regression_metrics
from hf_crystal.evaluation.run_files import MODEL_FOLDER, RUN_NAME
from hf_crystal.typing import PropertyModel

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_crystal.data import CrystalCollator


@torch.no_grad()
def predict_rows(
    model: PropertyModel,
    rows: "Dataset",
    collator: "CrystalCollator",
    *,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and labels of all rows, in order.

    Args:
        model: Property model; put into evaluation mode.
        rows: Data set of crystals with labels.
        collator: Turns rows into a batch with `labels`.
        batch_size: Crystals per forward pass.
        progress: Called with the number of crystals so far.

    Returns:
        Predictions and labels, each (rows, targets), physical units, float64; unknown labels are NaN.
    """
    model.eval()
    device = next(model.parameters()).device
    predictions, labels = [], []
    for start in range(0, len(rows), batch_size):
        batch = collator([rows[index] for index in range(start, min(start + batch_size, len(rows)))])
        inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
        predictions.append(model(**inputs).logits.double().cpu().numpy())
        labels.append(batch["labels"].double().cpu().numpy())
        if progress is not None:
            progress(min(start + batch_size, len(rows)))
    return np.concatenate(predictions), np.concatenate(labels)


def _recorded_columns(folder: str | Path) -> list[str]:
    """Label columns that a model was trained on, from the record in or beside its folder; empty without one."""
    folder = Path(folder)
    beside = [folder.parent / RUN_NAME] if folder.name == MODEL_FOLDER else []
    for file in (folder / "metrics.json", *beside):
        if file.is_file():
            recipe = json.loads(file.read_text(encoding="utf-8")).get("recipe") or {}
            return [target.get("column") or target["name"] for target in recipe.get("data", {}).get("targets", [])]
    return []


def evaluate_property_folder(
    folder: str | Path,
    rows: "Dataset",
    columns: list[str] | None = None,
    *,
    batch_size: int = 64,
    num_bootstrap: int = 1000,
    progress: Callable[[int], None] | None = None,
) -> RegressionMetrics:
    """Metrics of a saved property model on labeled rows; the mean predictor uses the model's training mean.

    Args:
        folder: Folder (or repository) with model and feature extractor.
        rows: Data set of crystals with the label columns.
        columns: Label column of each target, or `target=column` of those that are to be measured. By default those of
            the training, where its record lies in or beside the folder and the rows have them, otherwise
            `config.target_names`.
        batch_size: Crystals per forward pass.
        num_bootstrap: See `regression_metrics`.
        progress: See `predict_rows`.

    Raises:
        ValueError: If `columns` does not match the model's targets, or the data lacks one.
    """
    from hf_crystal.data import CrystalCollator
    from hf_crystal.loading import load_property_model

    model, feature_extractor = load_property_model(folder)
    config = model.config
    targets = list(config.target_names)
    pairs = [name.partition("=")[::2] for name in columns or ()]
    if not columns:
        recorded = _recorded_columns(folder)
        known = len(recorded) == len(targets) and set(recorded) <= set(rows.column_names)
        columns = recorded if known else targets
    elif set(dict(pairs)) <= set(targets) and all(column for _, column in pairs):
        targets, columns = [target for target, _ in pairs], [column for _, column in pairs]
    by_name = f"or those of some by name (--column {targets[0]}=my_column)"
    if len(columns) != len(targets):
        raise ValueError(
            f"{len(columns)} label columns ({', '.join(columns)}): the model has the targets {', '.join(targets)}; "
            f"give one column for each (--column), {by_name}"
        )
    missing = [name for name in columns if name not in rows.column_names]
    if missing:
        raise ValueError(
            f"no label column {', '.join(missing)}: give the one of each target of the model, "
            f"{', '.join(targets)}, in this order (--column), {by_name}; the data has {', '.join(rows.column_names)}"
        )
    collator = CrystalCollator(feature_extractor, label_names=columns)
    predictions, labels = predict_rows(model, rows, collator, batch_size=batch_size, progress=progress)
    places = [config.target_names.index(target) for target in targets]
    return regression_metrics(
        predictions[:, places],
        labels,
        target_names=targets,
        target_units=[config.target_units[place] for place in places],
        baseline_mean=model.head.target_mean.double().cpu().numpy()[places],
        num_bootstrap=num_bootstrap,
    )
