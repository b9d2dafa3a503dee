"""Pictures: what the encoders attend to, frames, parity, training, sequences, stability, and crystals in 3-D.

Every `plot_…` function returns a `matplotlib.figure.Figure`; save it with `figure.savefig("name.png")`. The colours
can be told apart with colour-blindness and in grey. Nothing is fetched from a network, the 3-D view included.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .attention import plot_attention as plot_attention
    from .calibration import plot_calibration as plot_calibration
    from .curves import plot_parity as plot_parity
    from .curves import plot_training as plot_training
    from .frames import plot_frames as plot_frames
    from .inspection import EncoderView as EncoderView
    from .inspection import inspect_encoder as inspect_encoder
    from .perturbation import perturbation_study as perturbation_study
    from .perturbation import plot_perturbation as plot_perturbation
    from .sequence import explain_sequence as explain_sequence
    from .sequence import plot_sequence as plot_sequence
    from .view3d import CrystalView as CrystalView
    from .view3d import view_3d as view_3d

_NAMES = {
    "CrystalView": "view3d",
    "EncoderView": "inspection",
    "explain_sequence": "sequence",
    "inspect_encoder": "inspection",
    "perturbation_study": "perturbation",
    "plot_attention": "attention",
    "plot_calibration": "calibration",
    "plot_frames": "frames",
    "plot_parity": "curves",
    "plot_perturbation": "perturbation",
    "plot_sequence": "sequence",
    "plot_training": "curves",
    "view_3d": "view3d",
}

__all__ = sorted(_NAMES)  # noqa: PLE0605


def __getattr__(name: str) -> object:
    """Load a public name on first use: matplotlib takes half a second to import."""
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted({*globals(), *__all__})
