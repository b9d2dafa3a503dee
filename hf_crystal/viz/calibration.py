"""Whether error bars are honest."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..uncertainty import Calibration
from .style import PALETTE, clean, new_figure

__all__ = ["plot_calibration", "plot_rejection"]

_MARKERS = "os^D"


def plot_calibration(calibrations: Calibration | Mapping[str, Calibration], *, unit: str = "") -> Any:
    """Share of crystals inside the error bars against the nominal share, and errors against bars.

    Args:
        calibrations: what `hf_crystal.uncertainty.measure_calibration` returned; or several, by title.
        unit: of the target.

    Returns:
        `matplotlib.figure.Figure`.
    """
    named = calibrations if isinstance(calibrations, Mapping) else {"": calibrations}
    figure = new_figure(7.0, 3.3)
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="0.4", linewidth=0.8)
    for place, (title, found) in enumerate(named.items()):
        look = {"color": PALETTE[place % len(PALETTE)], "marker": _MARKERS[place % len(_MARKERS)], "markersize": 3.5}
        label = f"{title}: off by {found.miscalibration:.2f}" if title else f"off by {found.miscalibration:.2f}"
        left.plot(found.levels, found.coverage, label=label, **look)
        right.plot(found.bins[:, 0], found.bins[:, 1], label=title, linewidth=1.0, **look)
    sizes = [value for found in named.values() for value in found.bins.ravel() if value > 0]
    right.plot([min(sizes), max(sizes)], [min(sizes), max(sizes)], color="0.4", linewidth=0.8)
    suffix = f", {unit}" if unit else ""
    left.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="nominal share inside the bars", ylabel="share found")
    right.set(xscale="log", yscale="log", xlabel=f"predicted error{suffix}", ylabel=f"error found{suffix}")
    left.legend(frameon=False, fontsize=8, loc="upper left")
    for axes in (left, right):
        clean(axes)
    last = list(named.values())[-1]
    right.set_title(f"{last.num_crystals:,} crystals, rank correlation {last.rank_correlation:.2f}", fontsize=9)
    return figure


def plot_rejection(errors: Mapping[str, Sequence[float]], *, unit: str = "") -> Any:
    """Mean error of the predictions that are kept, against the share that is rejected as least sure.

    Args:
        errors: by title, the mean error with 0, 1/n, … (n - 1)/n of the predictions rejected.
        unit: of the errors.

    Returns:
        `matplotlib.figure.Figure`.
    """
    figure = new_figure(5.0, 3.3)
    axes = figure.subplots()
    for place, (title, values) in enumerate(errors.items()):
        look = {"color": PALETTE[place % len(PALETTE)], "marker": _MARKERS[place % len(_MARKERS)], "markersize": 3.5}
        axes.plot([100 * step / len(values) for step in range(len(values))], values, label=title, **look)
    axes.set(xlabel="rejected, %", ylabel=f"mean error of the rest{f', {unit}' if unit else ''}", xlim=(0, 100))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    clean(axes)
    return figure
