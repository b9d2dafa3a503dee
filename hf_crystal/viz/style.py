"""Colors and measures that the pictures share."""

import functools
import importlib.resources
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..crystals.elements import FORMULA_RANK
from ..crystals.record import CHEMICAL_SYMBOLS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PALETTE", "SEQUENTIAL", "ColorScheme", "clean", "element_colors", "new_figure"]

# Okabe and Ito's palette: told apart with every common color-blindness; black is kept for text
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
SEQUENTIAL = "cividis"  # even in lightness, and the same for a color-blind reader
_FONT_SIZE = 9
ColorScheme = Literal["jmol", "vesta", "color-blind"]


def element_colors(symbols: Sequence[str], scheme: ColorScheme = "color-blind") -> dict[str, str]:
    """A color for each element, in the order of chemical formulas.

    Args:
        symbols: Chemical symbols, any number of times.
        scheme: "jmol" or "vesta", the colors of these programs (pymatgen's tables); "color-blind": those of `PALETTE`
            in turn, beyond eight elements the last one is shared.

    Raises:
        ValueError: another scheme.
    """
    if scheme not in get_args(ColorScheme):
        raise ValueError(f"colors is {scheme!r}; accepted: {', '.join(get_args(ColorScheme))}")
    order = sorted(set(symbols), key=lambda symbol: FORMULA_RANK[CHEMICAL_SYMBOLS.index(symbol)])
    if scheme == "color-blind":
        return {symbol: PALETTE[min(place, len(PALETTE) - 1)] for place, symbol in enumerate(order)}
    known = _program_colors()[{"jmol": "Jmol", "vesta": "VESTA"}[scheme]]
    codes = {symbol: "#{:02x}{:02x}{:02x}".format(*known[symbol]) for symbol in order if symbol in known}
    return {symbol: codes.get(symbol, PALETTE[-1]) for symbol in order}


@functools.cache
def _program_colors() -> dict[str, dict[str, list[int]]]:
    import yaml

    return yaml.safe_load((importlib.resources.files("pymatgen.vis") / "ElementColorSchemes.yaml").read_text("utf-8"))


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
