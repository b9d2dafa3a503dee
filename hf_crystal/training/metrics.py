"""Validation figures of a property model while it trains."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike
from transformers import EvalPrediction

from hf_crystal.encoders.heads import LOSSES
from hf_crystal.evaluation.regression import regression_metrics
from hf_crystal.typing import PropertyModel


def scaled_mae(predictions: np.ndarray, labels: np.ndarray, std: np.ndarray) -> float:
    """MAE in units of each target's spread, averaged over the targets that have a known label.

    The only figure that may be compared across targets of different units, so the one to select models by.

    Args:
        predictions: (rows, targets) in physical units.
        labels: The same shape, NaN where unknown.
        std: (targets,) spread of each target in the training split.
    """
    errors = np.abs(predictions - labels) / std
    per_target = [column[~np.isnan(column)].mean() for column in errors.T if not np.isnan(column).all()]
    return float(np.mean(per_target))


def make_compute_metrics(model: PropertyModel) -> Callable[[EvalPrediction], dict[str, float]]:
    """Metrics in physical units for a property model.

    Args:
        model: Model whose `config.target_names` name the columns of its logits.

    Returns:
        Function for `Trainer(compute_metrics=...)` giving `mae_<target>` and `rmse_<target>` in the target's unit
        (`config.target_units`), `mae_mean_predictor_<target>` and `scaled_mae`. Unknown (NaN) labels are left out.
    """
    names = list(model.config.target_names)
    units = list(model.config.target_units)

    def compute(evaluated: EvalPrediction) -> dict[str, float]:
        """Figures of one evaluation."""
        predictions = np.asarray(evaluated.predictions, dtype=np.float64)
        labels = np.asarray(evaluated.label_ids, dtype=np.float64)
        mean = model.head.target_mean.detach().cpu().double().numpy()
        std = model.head.target_std.detach().cpu().double().numpy()
        report = regression_metrics(
            predictions, labels, target_names=names, target_units=units, baseline_mean=mean, num_bootstrap=0
        )
        metrics = {"scaled_mae": scaled_mae(predictions, labels, std)}
        for target in report.targets:
            metrics[f"mae_{target.name}"] = target.mae
            metrics[f"rmse_{target.name}"] = target.rmse
            metrics[f"mae_mean_predictor_{target.name}"] = target.baseline_mae
        return metrics

    return compute


def exact_scaled_loss(model: PropertyModel, predictions: ArrayLike, labels: ArrayLike) -> float:
    """Mean of the model's loss over all known labels at once, in units of each target's spread.

    Trainer averages batch means, repeats a ragged last batch and, under several processes, weighs them wrongly.

    Args:
        model: Property model with `config.loss_function` and `target_std`.
        predictions: (rows, targets) in physical units.
        labels: The same shape, NaN where unknown.
    """
    wrong = np.asarray(predictions, dtype=np.float64) - np.asarray(labels, dtype=np.float64)
    known = ~np.isnan(labels)
    std = np.broadcast_to(model.head.target_std.detach().cpu().double().numpy(), known.shape)
    errors = torch.from_numpy((wrong / std)[known])
    return float(LOSSES[model.config.loss_function](errors, torch.zeros_like(errors)))
