"""Attention between the atoms of a crystal, and over shells of neighbors."""

from typing import Any

import numpy as np

from ..typing import CrystalLike, PropertyModelLike
from .inspection import BlockView, EncoderView, inspect_encoder
from .style import SEQUENTIAL, clean, element_colors, new_figure

__all__ = ["plot_attention"]

_MOST_LABELS = 24  # of atoms beside a matrix; more are labeled at intervals


def plot_attention(
    structure: CrystalLike | EncoderView,
    model: PropertyModelLike | None = None,
    *,
    atom: int = 0,
    block: int | None = None,
    head: int | None = None,
    max_distance: float = 7.0,
) -> Any:
    """What an encoder attends to, a column per block: between atoms of the cell, and over neighbor shells.

    The matrix holds the attention of each atom (row) to each atom (column), summed over the periodic images of the
    latter; rows sum to 1. The bars below show the same for one atom by distance: each bar is one shell of images,
    colored by element; the bar at 0 is the atom itself.

    Args:
        structure: one crystal in any accepted form, or what `inspect_encoder` returned.
        model: see `hf_crystal.loading.load_property_model`.
        atom: atom of the bars, counted from 0.
        block: show one block only, counted from 0, negative from the last; None for all.
        head: one head, counted from 0; None for the mean over heads.
        max_distance: end of the distance axis, Å.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        CrystalInputError: the crystal cannot be read.
        ValueError: there is no such atom, block or head.
    """
    view = inspect_encoder(structure, model)
    view.check(atom=atom, head=head)
    count = len(view.blocks)
    if block is not None:
        view.block(block)
    chosen = range(count) if block is None else [block % count]
    figure = new_figure(0.6 + 2.2 * max(len(chosen), 2), 5.0)
    grid = figure.subplots(2, len(chosen), squeeze=False, height_ratios=(1.25, 1))
    matrices = [_matrix(view.blocks[index], head) for index in chosen]
    top = max(float(matrix.max()) for matrix in matrices)
    image = None
    for column, index in enumerate(chosen):
        axes = grid[0, column]
        image = axes.imshow(matrices[column], cmap=SEQUENTIAL, vmin=0, vmax=top)
        axes.set_title(f"block {index + 1} of {count}", fontsize=9)
        _label_atoms(axes, view, with_rows=column == 0)
        _draw_shells(grid[1, column], view, index, atom, head, max_distance)
    height = max(axes.get_ylim()[1] for axes in grid[1])
    for axes in grid[1]:
        axes.set_ylim(0, height)
    for axes in grid[1, 1:]:
        axes.tick_params(labelleft=False)
    grid[0, 0].set_ylabel("atom that looks", fontsize=9)
    grid[1, 0].set_ylabel(f"attention of {view.labels[atom]}")
    bar = figure.colorbar(image, ax=list(grid[0]), shrink=0.85)
    bar.set_label("attention", size=9)
    bar.ax.tick_params(labelsize=8)
    _legend(grid[1, -1], view)
    heads = "mean over heads" if head is None else f"head {head + 1}"
    figure.suptitle(f"Attention in {view.formula}, {heads}", fontsize=11)
    return figure


def _matrix(block: BlockView, head: int | None) -> np.ndarray:
    return block.attention.mean(axis=0) if head is None else block.attention[head]


def _label_atoms(axes: Any, view: EncoderView, *, with_rows: bool) -> None:
    count = len(view.symbols)
    axes.tick_params(labelsize=7 if count > 12 else 8)
    places = range(0, count, -(-count // _MOST_LABELS))
    labels = [view.labels[place] for place in places]
    axes.set_xticks(places, labels, rotation=90)
    axes.set_yticks(places, labels if with_rows else [""] * len(labels))


def _draw_shells(axes: Any, view: EncoderView, index: int, atom: int, head: int | None, max_distance: float) -> None:
    """Bars of one atom's attention by distance, elements on top of one another."""
    clean(axes)
    axes.set_xlim(-0.25, max_distance)
    axes.set_xlabel("distance, Å")
    if not view.blocks[index].atoms:
        axes.text(0.5, 0.5, "reciprocal space:\nno single images", ha="center", va="center", transform=axes.transAxes)
        return
    colors = element_colors(view.symbols)
    detail = view.blocks[index].atoms[atom]
    symbols = np.array(view.symbols)[detail.keys]
    weights = detail.weights.mean(axis=1) if head is None else detail.weights[:, head]
    edges = np.arange(-0.05, max_distance + 0.1, 0.1)
    base = np.zeros(len(edges) - 1)
    for symbol, color in colors.items():
        bars = np.histogram(detail.distances, edges, weights=weights * (symbols == symbol))[0]
        seen = bars > 0  # every bar is an artist, and most distances have no shell
        axes.bar(edges[:-1][seen] + 0.05, bars[seen], width=0.14, bottom=base[seen], color=color, label=symbol)
        base += bars


def _legend(axes: Any, view: EncoderView) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=color, label=symbol) for symbol, color in element_colors(view.symbols).items()]
    axes.legend(handles=handles, frameon=False, fontsize=8, ncols=2 if len(handles) > 4 else 1, loc="upper right")
