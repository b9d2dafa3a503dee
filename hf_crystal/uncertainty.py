"""How far a prediction can be trusted: the spread of an ensemble, brought to the scale of the errors.

Members of an ensemble are models of the same target: trained with other seeds, other snapshots of one training, or of
another architecture. Where they disagree, errors are larger; but the spread itself is no error bar: members share what
they have in common to be wrong about. `fit_error_model` learns from crystals with known labels

    sigma² = (scale · spread)² + floor²

by maximum likelihood of normal errors, and the quantiles of error / sigma in size, because errors of such models have
longer tails than normal ones: an interval of these quantiles holds the share of new crystals that it names (split
conformal prediction). `Calibration` measures on other crystals whether the bars are honest. In place of a spread
stands any number that grows with the error, such as the distance to the nearest known crystals for a single model.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

__all__ = [
    "Calibration",
    "EnsemblePrediction",
    "ErrorModel",
    "conformal_quantiles",
    "fit_error_model",
    "measure_calibration",
    "predict_ensemble",
]

LEVELS = tuple(round(0.05 * step, 2) for step in range(1, 20))
_SMALLEST = 1e-9


@dataclass(frozen=True)
class ErrorModel:
    """Standard deviation of the error from the spread of the members: sigma² = (scale · spread)² + floor².

    Attributes:
        scale: how much larger errors are than the spread.
        floor: what remains where all members agree, in the target's unit.
        quantiles: of error / sigma in size at `LEVELS`, found when the model was fitted; empty for normal errors.
    """

    scale: float = 1.0
    floor: float = 0.0
    quantiles: tuple[float, ...] = ()

    def sigma(self, spread: ArrayLike) -> np.ndarray:
        """Standard deviation of the errors, same unit as `spread`."""
        return np.sqrt((self.scale * np.asarray(spread, dtype=float)) ** 2 + self.floor**2)

    def half_width(self, spread: ArrayLike, level: float = 0.9) -> np.ndarray:
        """Half the width of the interval that holds the value with a probability of `level`, 0.05 to 0.95.

        Raises:
            ValueError: the level is outside.
        """
        if not LEVELS[0] <= level <= LEVELS[-1]:
            raise ValueError(f"level is {level}; accepted: {LEVELS[0]} to {LEVELS[-1]}")
        return self.sigma(spread) * float(np.interp(level, LEVELS, self.reach()))

    def reach(self) -> np.ndarray:
        """Half widths of the intervals at `LEVELS`, in units of sigma."""
        from scipy.stats import norm

        return np.array(self.quantiles) if self.quantiles else norm.ppf(0.5 + np.array(LEVELS) / 2)


@dataclass(frozen=True)
class EnsemblePrediction:
    """Predictions of an ensemble for some crystals.

    Attributes:
        mean: `(B,)`, in `unit`.
        spread: `(B,)`, standard deviation over the members (unbiased).
        target, unit: what is predicted.
        warnings: what is doubtful about each crystal, see `CrystalPropertyPipeline`, of all members.
    """

    mean: np.ndarray
    spread: np.ndarray
    target: str
    unit: str
    warnings: tuple[tuple[str, ...], ...] = ()


def predict_ensemble(
    structures: Iterable[Any], models: Sequence[Any], *, target: str | None = None, batch_size: int = 16
) -> EnsemblePrediction:
    """Mean and spread of several models.

    Args:
        structures: crystals in any form that `CrystalFeatureExtractor` takes.
        models: at least two; see `hf_crystal.loading.load_property_model`.
        target: one that all of them have; the first of the first model by default.
        batch_size: crystals per forward pass.

    Returns:
        `EnsemblePrediction`.

    Raises:
        CrystalInputError: a crystal cannot be read.
        ValueError: fewer than two models, no crystals, or a target that a model lacks or has in another unit.
    """
    if len(models) < 2:
        raise ValueError(f"{len(models)} model given; an ensemble has at least two")
    items = list(structures)
    if not items:
        raise ValueError("no crystals given: the list is empty")
    from .crystals.record import CrystalInputError
    from .loading import load_property_pipeline

    columns, unit = [], ""
    doubts: list[dict[str, None]] = [{} for _ in items]
    for index, model in enumerate(models):
        pipe = load_property_pipeline(model)
        config = pipe.model.config
        units = dict(zip(config.target_names, config.target_units, strict=True))
        if index == 0:
            target = target or next(iter(units))
            unit = units.get(target, "")
        if target not in units or units[target] != unit:
            raise ValueError(f"model {index} has {units}; the ensemble predicts {target!r} in {unit!r}")
        results = pipe(items, batch_size=batch_size)
        for place, result in enumerate(results):
            if "error" in result:
                raise CrystalInputError(result["error"], index=place)
            doubts[place] |= dict.fromkeys(result["warnings"])
        columns.append([result[target] for result in results])
    values = np.array(columns)
    warnings = tuple(map(tuple, doubts))
    return EnsemblePrediction(values.mean(axis=0), values.std(axis=0, ddof=1), str(target), unit, warnings)


def _known(*columns: Any) -> list[np.ndarray]:
    """Columns as float arrays of one length, rows with NaN left out."""
    arrays = [np.asarray(column, dtype=float).ravel() for column in columns]
    if len({len(array) for array in arrays}) != 1:
        raise ValueError(f"lengths are {[len(array) for array in arrays]}; expected as many of each")
    kept = np.isfinite(np.stack(arrays)).all(axis=0)
    if kept.sum() < 2:
        raise ValueError(f"{int(kept.sum())} crystals with a label; expected at least two")
    return [array[kept] for array in arrays]


def fit_error_model(mean: ArrayLike, spread: ArrayLike, labels: ArrayLike) -> ErrorModel:
    """The error model of greatest likelihood for normal errors, with the quantiles that were found.

    Args:
        mean: predictions for crystals that no member was trained on, `(n,)`.
        spread: of the members, or another number that grows with the error, `(n,)`.
        labels: `(n,)`; NaN where unknown.

    Raises:
        ValueError: lengths differ, or fewer than two labels.
    """
    from scipy.optimize import minimize

    predicted, spreads, known = _known(mean, spread, labels)
    squared = (predicted - known) ** 2
    size = float(np.sqrt(squared.mean())) or _SMALLEST

    def loss(logarithms: np.ndarray) -> float:
        """Twice the mean negative log-likelihood, up to a constant."""
        variance = (np.exp(logarithms[0]) * spreads) ** 2 + np.exp(2 * logarithms[1]) + (_SMALLEST * size) ** 2
        return float((np.log(variance) + squared / variance).mean())

    best = minimize(loss, [0.0, np.log(size)], method="Nelder-Mead", options={"maxiter": 2000, "xatol": 1e-4})
    fitted = ErrorModel(float(np.exp(best.x[0])), float(np.exp(best.x[1])))
    ratios = np.sqrt(squared) / np.maximum(fitted.sigma(spreads), _SMALLEST * size)
    return ErrorModel(fitted.scale, fitted.floor, tuple(conformal_quantiles(ratios, LEVELS).tolist()))


def conformal_quantiles(ratios: ArrayLike, levels: ArrayLike) -> np.ndarray:
    """Multiples of sigma that hold new errors with the probabilities `levels`, from ratios `(n,)` error / sigma."""
    seen = np.sort(np.asarray(ratios, dtype=float))
    # the n + 1 of split conformal prediction: a new crystal counts among those seen
    ranks = np.minimum(np.ceil(np.asarray(levels) * (len(seen) + 1)).astype(int), len(seen)) - 1
    return seen[ranks]


@dataclass(frozen=True)
class Calibration:
    """Whether error bars are as long as errors.

    Attributes:
        levels: nominal shares of crystals inside the bars; `coverage` the shares found.
        miscalibration: mean absolute difference of the two; 0 is perfect.
        bins: `(k, 2)`, root mean square of sigma and of the errors, crystals in k bins of growing sigma.
        rank_correlation: Spearman's, of sigma and the size of the error.
        num_crystals: crystals with a label.
    """

    levels: np.ndarray
    coverage: np.ndarray
    miscalibration: float
    bins: np.ndarray
    rank_correlation: float
    num_crystals: int


def measure_calibration(
    mean: ArrayLike, sigma: ArrayLike, labels: ArrayLike, *, model: ErrorModel | None = None, num_bins: int = 10
) -> Calibration:
    """Compare error bars with errors.

    Args:
        mean, sigma: predictions and standard deviations of their errors, `(n,)`.
        labels: `(n,)`; NaN where unknown.
        model: the error model that gave sigma, whose quantiles the intervals take; normal errors by default.
        num_bins: bins of as many crystals each.

    Raises:
        ValueError: lengths differ, fewer than two labels, or a sigma that is negative.
    """
    from scipy.stats import spearmanr

    predicted, bars, known = _known(mean, sigma, labels)
    if (bars < 0).any():
        raise ValueError(f"sigma has {int((bars < 0).sum())} negative entries")
    errors = np.abs(predicted - known)
    levels = np.array(LEVELS)
    coverage = np.array([(errors <= width * bars).mean() for width in (model or ErrorModel()).reach()])
    order = np.argsort(bars, kind="stable")
    parts = [part for part in np.array_split(order, num_bins) if len(part)]
    bins = np.array([[np.sqrt((bars[part] ** 2).mean()), np.sqrt((errors[part] ** 2).mean())] for part in parts])
    varies = np.ptp(bars) > 0 and np.ptp(errors) > 0
    correlation = float(spearmanr(bars, errors).statistic) if varies else 0.0
    return Calibration(levels, coverage, float(np.abs(coverage - levels).mean()), bins, correlation, len(errors))
