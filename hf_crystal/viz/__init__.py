"""Pictures: what the encoders attend to, frames, parity, training, sequences, stability, and crystals in 3-D.

Every `plot_…` function returns a `matplotlib.figure.Figure`; save it with `figure.savefig("name.png")`. Its colors
can be told apart with color-blindness and in gray, those of the 3-D view with `colors="color-blind"`. Nothing is
fetched from a network.
"""

from .._lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
