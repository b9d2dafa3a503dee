"""Colors and measures that the pictures share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..crystals.elements import FORMULA_RANK
from ..crystals.record import CHEMICAL_SYMBOLS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PALETTE", "SEQUENTIAL", "clean", "element_colors", "new_figure"]

# Okabe and Ito's palette: told apart with every common color-blindness; black is kept for text
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
SEQUENTIAL = "cividis"  # even in lightness, and the same for a color-blind reader
_FONT_SIZE = 9


def element_colors(symbols: Sequence[str]) -> dict[str, str]:
    """A color for each element, in the order of chemical formulas; beyond eight elements the last one is shared."""
    order = sorted(set(symbols), key=lambda symbol: FORMULA_RANK[CHEMICAL_SYMBOLS.index(symbol)])
    return {symbol: PALETTE[min(place, len(PALETTE) - 1)] for place, symbol in enumerate(order)}


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches, independent of pyplot: safe in threads and without a screen.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install matplotlib") from error
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def clean(axes: "Axes") -> None:
    """Leave only the two spines that carry a scale, and give all texts their size."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_FONT_SIZE - 1)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set_fontsize(_FONT_SIZE)
