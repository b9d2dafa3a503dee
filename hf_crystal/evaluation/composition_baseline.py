# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""What the formula alone tells: a random forest on element fractions; needs scikit-learn (extra `metrics`)."""

from collections.abc import Sequence

import numpy as np

NUM_ELEMENTS = 118


def element_fractions(atomic_numbers: Sequence[Sequence[int]]) -> np.ndarray:
    """Share of each element's atoms, `(crystals, NUM_ELEMENTS)`, float32."""
    fractions = np.zeros((len(atomic_numbers), NUM_ELEMENTS), dtype=np.float32)
    for row, numbers in enumerate(atomic_numbers):
        np.add.at(fractions[row], np.asarray(numbers) - 1, 1 / len(numbers))
    return fractions


def forest_predictions(
    train: Sequence[Sequence[int]],
    labels: np.ndarray,
    test: Sequence[Sequence[int]],
    *,
    num_trees: int = 200,
    seed: int = 0,
) -> np.ndarray:
    """Predictions of one target from formulas; settings are scikit-learn's defaults and were not tuned.

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
        from sklearn.ensemble import RandomForestRegressor
    except ImportError as error:
        raise ImportError("the baseline needs scikit-learn: pip install scikit-learn") from error

    known = ~np.isnan(labels)
    forest = RandomForestRegressor(n_estimators=num_trees, n_jobs=1, random_state=seed)
    forest.fit(element_fractions(train)[known], labels[known])
    return np.asarray(forest.predict(element_fractions(test)))
