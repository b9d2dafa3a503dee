"""How a prediction moves when the atoms of a crystal are displaced a little.

The study of the CrystalFramer paper (Ito et al., ICLR 2025): a model of crystals should answer continuously. Frames
that are chosen by an arg-max jump when two candidates change places; here they are averaged where they tie.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..typing import CrystalLike, PropertyModelLike
from .style import PALETTE, clean, new_figure

__all__ = ["PerturbationStudy", "perturbation_study", "plot_perturbation"]

DISPLACEMENTS = (1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 0.1)
_FLOOR = 1e-6  # lower end of the picture


@dataclass(frozen=True)
class PerturbationStudy:
    """Predictions for one crystal, displaced at random.

    Attributes:
        formula: reduced formula.
        target: what is predicted, `unit` its unit.
        displacements: `(D,)`, standard deviation of each coordinate of each atom, Å.
        values: `(D, repeats)`, predictions.
        reference: prediction for the crystal as given.
    """

    formula: str
    target: str
    unit: str
    displacements: np.ndarray
    values: np.ndarray
    reference: float

    @property
    def changes(self) -> np.ndarray:
        """`(D, repeats)`, how far each prediction is from the one for the crystal as given."""
        return np.abs(self.values - self.reference)


def perturbation_study(
    structure: CrystalLike,
    model: PropertyModelLike | None = None,
    *,
    displacements: Sequence[float] = DISPLACEMENTS,
    repeats: int = 16,
    target: str | None = None,
    seed: int = 0,
) -> PerturbationStudy:
    """Predict one crystal under random displacements of its atoms.

    Every repeat has one direction that is followed with growing length, so that the values of one repeat are a curve.

    Args:
        structure: one crystal in any accepted form.
        model: see `hf_crystal.loading.load_property_model`.
        displacements: standard deviations, Å.
        repeats: random directions.
        target: one of the model's targets; the first by default.
        seed: of the directions.

    Returns:
        `PerturbationStudy`.

    Raises:
        CrystalInputError: the crystal cannot be read.
        ValueError: no displacements or repeats, a negative displacement, an unknown target.
    """
    lengths = np.asarray(displacements, dtype=float)
    if not lengths.size or repeats < 1 or (lengths < 0).any():
        raise ValueError(f"displacements {list(displacements)}, repeats {repeats}; accepted: not negative, at least 1")
    from ..loading import load_property_model

    loaded, extractor = load_property_model(model)
    names = loaded.config.target_names
    if target is not None and target not in names:
        raise ValueError(f"target is {target!r}; the model has {', '.join(names)}")
    column = names.index(target) if target is not None else 0
    import torch

    from ..crystals.elements import reduced_formula

    arrays = extractor.extract(structure)
    directions = np.random.default_rng(seed).normal(size=(repeats, *arrays["positions"].shape))
    values = np.empty((len(lengths), repeats))
    with torch.no_grad():
        reference = float(loaded(**extractor.pad([arrays]).to(loaded.device)).logits[0, column])
        for row, length in enumerate(lengths):
            moved = [{**arrays, "positions": arrays["positions"] + length * way} for way in directions]
            values[row] = loaded(**extractor.pad(moved).to(loaded.device)).logits[:, column].cpu().numpy()
    formula = reduced_formula(arrays["atomic_numbers"].tolist())
    return PerturbationStudy(formula, names[column], loaded.config.target_units[column], lengths, values, reference)


def plot_perturbation(
    structure: CrystalLike,
    model: PropertyModelLike | Sequence[PropertyModelLike] | Mapping[str, PropertyModelLike] | None = None,
    **options: Any,
) -> Any:
    """Change of a prediction against the size of random displacements, a panel per crystal and a color per model.

    The line is the median over random directions, the band holds all of them.

    Args:
        structure: one crystal or a list.
        model: one model, a list, or a dictionary of title → model; see `hf_crystal.loading.load_property_model`.
        **options: passed to `perturbation_study`.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        CrystalInputError, ValueError: see `perturbation_study`.
    """
    structures = list(structure) if isinstance(structure, (list, tuple)) else [structure]
    models: dict[str, PropertyModelLike | None]
    if isinstance(model, Mapping):
        models = dict(model)
    elif isinstance(model, Sequence) and not isinstance(model, str):
        models = {_title(item): item for item in model}
    else:
        models = {_title(model): model}
    figure = new_figure(0.6 + 2.5 * len(structures), 3.1)
    panels = figure.subplots(1, len(structures), squeeze=False, sharey=True)[0]
    for axes, crystal in zip(panels, structures, strict=True):
        clean(axes)
        for place, (title, item) in enumerate(models.items()):
            study = perturbation_study(crystal, item, **options)
            moved = study.displacements > 0
            # below a millionth of a unit a float32 model gives rounding
            lengths, changes = study.displacements[moved], np.maximum(study.changes[moved], _FLOOR)
            color = PALETTE[place % len(PALETTE)]
            axes.fill_between(lengths, changes.min(axis=1), changes.max(axis=1), color=color, alpha=0.25, linewidth=0)
            line = "-" if place == 0 else "--"
            axes.plot(lengths, np.median(changes, axis=1), line, marker="o", markersize=3, color=color, label=title)
            axes.set_title(study.formula, fontsize=10)
            panels[0].set_ylabel(f"change of {study.target.replace('_', ' ')}, {study.unit}")
        axes.set(xscale="log", yscale="log", ylim=(_FLOOR, None))
    figure.supxlabel("standard deviation of displacements, Å", fontsize=9)
    panels[0].legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def _title(model: Any) -> str:
    if model is None:
        return "embedded model"
    return str(model) if isinstance(model, str) else type(model).__name__.removesuffix("ForPropertyPrediction")
