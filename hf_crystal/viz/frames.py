"""The local frames of CrystalFramer, drawn on the atoms, block by block."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..typing import CrystalLike, PropertyModelLike
from .inspection import AtomView, EncoderView, inspect_encoder
from .style import PALETTE, element_colors, new_figure

__all__ = ["plot_frames"]

_AXIS_COLORS = (PALETTE[5], PALETTE[0], PALETTE[2])  # e1, e2, e3
_AXIS_LENGTHS = (1.0, 0.8, 0.6)  # so that axes along one direction are seen side by side
_AXIS_STYLES = ("-", "--", ":")  # told apart in gray too


def plot_frames(
    structure: CrystalLike | EncoderView,
    model: PropertyModelLike = "crystalframer-mp",
    *,
    atom: int | Sequence[int] = 0,
    head: int = 0,
    radius: float = 4.0,
) -> Any:
    """The frame of an atom in each block, among the neighbors that it attends to.

    An arrow is an axis of the frame: e1 solid, e2 dashed, e3 dotted, of falling length. Where several choices are
    equally good, as on symmetric sites, the model takes the mean over all of them and each is drawn, as opaque as its
    weight. Neighbors are drawn the larger the more attention they get in this block and head.

    Args:
        structure: one crystal in any accepted form or what `inspect_encoder` returned; or a list, one row each.
        model: a model with frames; see `hf_crystal.loading.load_property_model`.
        atom: atom in the middle, counted from 0; one for all crystals, or one each.
        head: head, counted from 0.
        radius: neighbors within this distance are drawn, Å.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        CrystalInputError: a crystal cannot be read.
        ValueError: the model has no frames; there is no such atom or head; a number of atoms that does not fit.
    """
    structures = list(structure) if isinstance(structure, (list, tuple)) else [structure]
    centers = [atom] * len(structures) if isinstance(atom, int) else list(atom)
    if len(centers) != len(structures):
        raise ValueError(f"atom has {len(centers)} entries for {len(structures)} crystals")
    views = [inspect_encoder(item, model) for item in structures]
    for view, center in zip(views, centers, strict=True):
        view.check(atom=center, head=head)
        if any(not block.atoms or block.atoms[center].axes is None for block in view.blocks):
            raise ValueError("this model has no frames; choose a CrystalFramer such as 'crystalframer-mp'")
    count = len(views[0].blocks)
    figure = new_figure(0.4 + 2.4 * count, 0.7 + 2.3 * len(views))
    grid = figure.subplots(len(views), count, squeeze=False, subplot_kw={"projection": "3d"})
    for row, (view, center) in enumerate(zip(views, centers, strict=True)):
        for column, block in enumerate(view.blocks):
            _draw(grid[row, column], view, block.atoms[center], center, head, radius)
            if row == 0:
                grid[row, column].set_title(f"block {column + 1} of {count}", fontsize=9)
        _row_label(grid[row, 0], view, center)
    _legend(figure)
    return figure


def _row_label(axes: Any, view: EncoderView, center: int) -> None:
    colors = element_colors(view.symbols)
    axes.text2D(0.0, 0.93, f"{view.formula}: {view.labels[center]}", transform=axes.transAxes, weight="bold")
    for place, (symbol, color) in enumerate(colors.items()):
        axes.text2D(0.0 + 0.12 * place, 0.02, symbol, transform=axes.transAxes, color=color, weight="bold")


def _draw(axes: Any, view: EncoderView, detail: AtomView, center: int, head: int, radius: float) -> None:
    colors = element_colors(view.symbols)
    distances = detail.distances
    near = (distances > 1e-3) & (distances < radius)
    weights = detail.weights[near, head]
    strength = weights / max(float(weights.max(initial=0.0)), 1e-12)
    points = detail.vectors[near]
    symbols = [view.symbols[key] for key in detail.keys[near]]
    for point, share, symbol in zip(points, strength, symbols, strict=True):
        axes.plot(*zip((0, 0, 0), point, strict=True), color="0.75", linewidth=0.3 + 1.2 * share, zorder=1)
        axes.scatter(*point, s=12 + 90 * share, color=colors[symbol], edgecolors="0.3", linewidths=0.4, alpha=0.9)
    axes.scatter(0, 0, 0, s=70, color=colors[view.symbols[center]], edgecolors="black", linewidths=1.0)
    _draw_axes(axes, detail, head, 0.75 * radius)
    axes.set(xlim=(-radius, radius), ylim=(-radius, radius), zlim=(-radius, radius))
    axes.set_box_aspect((1, 1, 1), zoom=1.7)
    axes.view_init(elev=18, azim=-62)
    axes.set_axis_off()


def _draw_axes(axes: Any, detail: AtomView, head: int, length: float) -> None:
    listed = detail.axes if detail.axes is not None else np.zeros((0, 6))
    for owner, axis, x, y, z, weight in listed:
        if int(owner) != head or weight < 0.01:
            continue
        axes.quiver(
            *(0, 0, 0),
            *(_AXIS_LENGTHS[int(axis)] * length * np.array([x, y, z])),
            color=_AXIS_COLORS[int(axis)],
            linestyle=_AXIS_STYLES[int(axis)],
            linewidth=1.8,
            alpha=0.25 + 0.75 * float(weight),
            arrow_length_ratio=0.13,
        )


def _legend(figure: Any) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=color, ls=style, linewidth=2, label=f"$e_{number}$")
        for number, (color, style) in enumerate(zip(_AXIS_COLORS, _AXIS_STYLES, strict=True), 1)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
