"""Gates of routed heads."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .style import SEQUENTIAL, clean, new_figure

__all__ = ["plot_gates"]


def plot_gates(gates: Mapping[str, ArrayLike]) -> Any:
    """How much each head of each block works in real space, a panel per property or model.

    Args:
        gates: name → `model.routing_gates`, `(blocks, heads)`, 0 (reciprocal space) to 1 (real space).

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: nothing is given, or an array of another shape.
    """
    found = {name: np.asarray(values, dtype=float) for name, values in gates.items()}
    wrong = {name: values.shape for name, values in found.items() if values.ndim != 2}
    if wrong or not found:
        raise ValueError(f"gates have the shape {wrong}; expected (blocks, heads) for at least one name")
    figure = new_figure(1.2 + 2.2 * len(found), 2.6)
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    image = None
    for axes, (name, values) in zip(panels, found.items(), strict=True):
        image = axes.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(values.shape[1]), range(1, values.shape[1] + 1))
        axes.set_yticks(range(values.shape[0]), range(1, values.shape[0] + 1))
        axes.set(title=name.replace("_", " "), xlabel="head", ylabel="block")
        clean(axes)
    bar = figure.colorbar(image, ax=list(panels), shrink=0.85)
    bar.set_label("weight of real space", size=9)
    bar.ax.tick_params(labelsize=8)
    return figure
