"""Errors of property predictions, in the property's unit, beside what knowing only the mean would give."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hf_crystal.evaluation.results import PlainResult

PROTOCOL = "regression-v1: mean over crystals with a known label; percentile bootstrap over crystals"


@dataclass(frozen=True)
class TargetMetrics:
    """Errors of one target.

    Attributes:
        name: Target name.
        unit: Unit of every figure below except `r2`.
        n: Crystals with a known label.
        mae: Mean absolute error.
        mae_interval: Bootstrap interval of the MAE (95 % unless asked otherwise); None when not asked for.
        rmse: Root mean square error.
        r2: Coefficient of determination on these crystals; NaN when their labels are all equal.
        baseline_mae: MAE of predicting `baseline_mean` for every crystal.
        baseline_mean: The constant of the mean predictor: the training mean, if it was given, else the mean of
            these labels.
        nonmetal_n: Of a band gap, crystals whose label is above zero; None of other targets. Metals, which are easy
            to tell, are half of most data sets and halve the MAE over all.
        nonmetal_mae: MAE of these.
        nonmetal_mae_interval: Bootstrap interval of it.
    """

    name: str
    unit: str
    n: int
    mae: float
    mae_interval: tuple[float, float] | None
    rmse: float
    r2: float
    baseline_mae: float
    baseline_mean: float
    nonmetal_n: int | None = None
    nonmetal_mae: float | None = None
    nonmetal_mae_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class RegressionMetrics(PlainResult):
    """Errors of all targets and the protocol that produced them.

    Attributes:
        protocol: Name and short statement of the protocol.
        confidence: Level of the intervals.
        targets: One entry per target, in the order of the columns.
    """

    protocol: str
    confidence: float
    targets: tuple[TargetMetrics, ...]

    @property
    def mae(self) -> float:
        """MAE when there is one target.

        Raises:
            ValueError: If there are several; their units may differ, so there is no one figure.
        """
        if len(self.targets) != 1:
            raise ValueError(f"mae of {len(self.targets)} targets: ask for one of {[t.name for t in self.targets]}")
        return self.targets[0].mae

    def target(self, name: str) -> TargetMetrics:
        """Entry of one target.

        Raises:
            KeyError: If there is no target of that name.
        """
        for entry in self.targets:
            if entry.name == name:
                return entry
        raise KeyError(f"target {name!r}: expected one of {[t.name for t in self.targets]}")


def _columns(values: Any, what: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise ValueError(f"{what} has shape {array.shape}: expected (rows,) or (rows, targets)")
    return array


def _bootstrap_interval(errors: np.ndarray, num_bootstrap: int, confidence: float, seed: int) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    means = np.empty(num_bootstrap)
    # one resample at a time: n indices instead of n * num_bootstrap
    for index in range(num_bootstrap):
        means[index] = errors[generator.integers(0, len(errors), len(errors))].mean()
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def regression_metrics(
    predictions: ArrayLike,
    labels: ArrayLike,
    *,
    target_names: Sequence[str] | None = None,
    target_units: Sequence[str] | None = None,
    baseline_mean: ArrayLike | None = None,
    num_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> RegressionMetrics:
    """MAE, RMSE and R2 per target, with the mean predictor's MAE and a bootstrap interval of the MAE.

    Args:
        predictions: (rows,) or (rows, targets), physical units.
        labels: The same shape; NaN = unknown, left out.
        target_names: Names of the columns; "target" or "target_0", … by default.
        target_units: Units of the columns; "" by default.
        baseline_mean: Mean of the training labels, one number per target. Without it the mean of `labels` is used,
            which makes the baseline slightly too good.
        num_bootstrap: Resamples for the interval; 0 leaves it out.
        confidence: Level of the interval.
        seed: Seed of the resampling.

    Returns:
        One `TargetMetrics` per column and the protocol.

    Raises:
        ValueError: If shapes disagree, a target has no known label, a prediction for a known label is not finite or
            a label is infinite; the message names target and row.
    """
    predicted, known_values = _columns(predictions, "predictions"), _columns(labels, "labels")
    if predicted.shape != known_values.shape:
        raise ValueError(f"predictions have shape {predicted.shape} but labels {known_values.shape}")
    count = predicted.shape[1]
    default_names = ["target"] if count == 1 else [f"target_{index}" for index in range(count)]
    names = list(target_names) if target_names is not None else default_names
    units = list(target_units) if target_units is not None else [""] * count
    if len(names) != count or len(units) != count:
        raise ValueError(f"{count} columns of predictions but {len(names)} target_names and {len(units)} target_units")
    means: list[float | None] = [None] * count
    if baseline_mean is not None:
        means = [float(value) for value in np.asarray(baseline_mean, dtype=np.float64).reshape(-1)]
        if len(means) != count:
            raise ValueError(f"baseline_mean has {len(means)} values for {count} targets")
    return RegressionMetrics(
        protocol=PROTOCOL,
        confidence=confidence,
        targets=tuple(
            _target_metrics(
                predicted[:, i], known_values[:, i], names[i], units[i], means[i], num_bootstrap, confidence, seed
            )
            for i in range(count)
        ),
    )


def _target_metrics(
    predictions: np.ndarray,
    labels: np.ndarray,
    name: str,
    unit: str,
    baseline_mean: float | None,
    num_bootstrap: int,
    confidence: float,
    seed: int,
) -> TargetMetrics:
    rows = np.flatnonzero(~np.isnan(labels))
    if rows.size == 0:
        raise ValueError(f"target {name!r}: none of the {len(labels)} rows has a known label")
    for what, values in (("label", labels), ("prediction", predictions)):
        bad = rows[~np.isfinite(values[rows])]
        if bad.size:
            raise ValueError(
                f"target {name!r}: {bad.size} {what}s are not finite, the first in row {bad[0]} ({values[bad[0]]})"
            )
    truth, residual = labels[rows], predictions[rows] - labels[rows]
    errors = np.abs(residual)
    spread = float(((truth - truth.mean()) ** 2).sum())
    mean = float(truth.mean()) if baseline_mean is None else baseline_mean
    # a gap is told by the target's name, as `band_gap` or `mbj_bandgap`
    nonmetal = errors[truth > 0] if "gap" in name.lower() else errors[:0]
    of_nonmetals: dict[str, Any] = {}
    if nonmetal.size:
        of_nonmetals = {"nonmetal_n": int(nonmetal.size), "nonmetal_mae": float(nonmetal.mean())}
        if num_bootstrap:
            of_nonmetals["nonmetal_mae_interval"] = _bootstrap_interval(nonmetal, num_bootstrap, confidence, seed)
    return TargetMetrics(
        name=name,
        unit=unit,
        n=int(rows.size),
        mae=float(errors.mean()),
        mae_interval=_bootstrap_interval(errors, num_bootstrap, confidence, seed) if num_bootstrap else None,
        rmse=float(np.sqrt((residual**2).mean())),
        r2=float(1 - (residual**2).sum() / spread) if spread > 0 else math.nan,
        baseline_mae=float(np.abs(truth - mean).mean()),
        baseline_mean=mean,
        **of_nonmetals,
    )
