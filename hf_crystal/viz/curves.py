"""Predictions against labels, and the course of a training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .style import PALETTE, SEQUENTIAL, clean, new_figure

__all__ = ["plot_parity", "plot_training"]

_MANY_POINTS = 1500  # from here on density is shown instead of points


# file or folder of a run, its content, or the logged rows
CurveSource = str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]]


def plot_parity(predictions: ArrayLike, labels: ArrayLike, *, name: str = "", unit: str = "") -> Any:
    """Predictions against labels, and the distribution of the errors.

    Args:
        predictions: `(n,)`.
        labels: `(n,)`, same unit; pairs with NaN are left out.
        name: what is predicted.
        unit: its unit.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: lengths differ, or no pair is complete.
    """
    predicted, known = np.asarray(predictions, dtype=float).ravel(), np.asarray(labels, dtype=float).ravel()
    if predicted.shape != known.shape:
        raise ValueError(f"{len(predicted)} predictions and {len(known)} labels; expected as many")
    complete = np.isfinite(predicted) & np.isfinite(known)
    if not complete.any():
        raise ValueError("no prediction has a label: all pairs contain NaN")
    predicted, known = predicted[complete], known[complete]
    figure = new_figure(7.0, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    low, high = min(predicted.min(), known.min()), max(predicted.max(), known.max())
    margin = 0.03 * (high - low or 1.0)
    limits = low - margin, high + margin
    left.plot(limits, limits, color="0.4", linewidth=0.8, zorder=0)
    if len(known) > _MANY_POINTS:
        drawn = left.hexbin(
            known, predicted, gridsize=60, extent=(*limits, *limits), bins="log", mincnt=1, cmap=SEQUENTIAL
        )
        bar = figure.colorbar(drawn, ax=left, shrink=0.85)
        bar.set_label("crystals per cell", size=9)
        bar.ax.tick_params(labelsize=8)
    else:
        left.scatter(known, predicted, s=9, color=PALETTE[0], alpha=0.6, linewidths=0)
    quantity = name.replace("_", " ") or "value"
    suffix = f", {unit}" if unit else ""
    left.set(xlim=limits, ylim=limits, aspect="equal", xlabel=f"{quantity}{suffix}, label", ylabel="prediction")
    _draw_errors(right, predicted - known, suffix)
    for axes in (left, right):
        clean(axes)
    return figure


def _draw_errors(axes: Any, errors: np.ndarray, suffix: str) -> None:
    """Share of crystals with an error below x, the median and the mean marked."""
    sizes = np.sort(np.abs(errors))
    share = np.arange(1, len(sizes) + 1) / len(sizes)
    positive = np.maximum(sizes, max(sizes.max() * 1e-4, 1e-12))
    axes.plot(positive, share, color=PALETTE[0])
    marks = (("median", float(np.median(sizes)), ":"), ("mean (MAE)", float(sizes.mean()), "--"))
    for label, value, style in marks:
        axes.axvline(value, color=PALETTE[5], linestyle=style, linewidth=1.1, label=f"{label} {value:.3g}")
    axes.set(xscale="log", ylim=(0, 1), xlabel=f"absolute error{suffix}", ylabel="share of crystals below")
    axes.set_title(f"{len(errors):,} crystals, RMSE {np.sqrt((errors**2).mean()):.3g}", fontsize=9)
    axes.legend(fontsize=8, loc="upper left", facecolor="white", edgecolor="none", framealpha=0.85)


def read_training_curve(source: CurveSource) -> list[dict[str, Any]]:
    """Rows with `step` and whatever was logged.

    Args:
        source: `metrics.json` of a run, `trainer_state.json` of a checkpoint, a folder with either, their content, or
            the rows themselves (`trainer.state.log_history`).

    Raises:
        ValueError: nothing was logged there.
    """
    found: Any = source
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.is_dir():
            inside = [path / name for name in ("metrics.json", "trainer_state.json") if (path / name).is_file()]
            if not inside:
                raise ValueError(f"{path} has neither metrics.json nor trainer_state.json")
            path = inside[0]
        found = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(found, Mapping):
        found = found.get("training_curve") or found.get("log_history") or []
    rows = [dict(row) for row in found if "step" in row]
    if not rows:
        raise ValueError(f"no training curve in {source if isinstance(source, (str, Path)) else 'the rows given'}")
    return rows


def plot_training(source: CurveSource) -> Any:
    """Loss, validation error and learning rate over the steps of a training.

    Args:
        source: see `read_training_curve`.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: nothing was logged there.
    """
    rows = read_training_curve(source)
    evaluated = sorted({key for row in rows for key in row if key.startswith("eval_") and _is_error(key)})
    panels = [("loss", ["loss"])] if any("loss" in row for row in rows) else []
    panels += [("validation error", evaluated)] if evaluated else []
    panels += [("learning rate", ["learning_rate"])] if any("learning_rate" in row for row in rows) else []
    figure = new_figure(3.2 * max(len(panels), 1), 2.8)
    grid = figure.subplots(1, len(panels), squeeze=False)
    for axes, (title, keys) in zip(grid[0], panels, strict=True):
        clean(axes)
        for key, color in zip(keys, PALETTE, strict=False):
            steps, values = _series(rows, key)
            axes.plot(steps, values, color=color, linewidth=1.2, label=key.removeprefix("eval_").replace("_", " "))
        axes.set(xlabel="step", title=title)
        if title != "learning rate":
            axes.set_yscale("log")
        if len(keys) > 1:
            axes.legend(frameon=False, fontsize=8)
    return figure


def _is_error(key: str) -> bool:
    return any(word in key for word in ("mae", "rmse", "loss"))


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    pairs = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), (int, float))]
    return [float(step) for step, _ in pairs], [float(value) for _, value in pairs]
