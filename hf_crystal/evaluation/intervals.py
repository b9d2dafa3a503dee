# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""95 % confidence intervals of shares and means, computed by scipy."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest, bootstrap


def wilson_interval(successes: int, total: int) -> tuple[float, float]:
    """Interval of a share (E. B. Wilson, 1927), within 0 and 1 also for none and for all.

    Raises:
        ValueError: if there are no trials, or more successes than trials.
    """
    if total < 1 or not 0 <= successes <= total:
        raise ValueError(f"{successes} successes of {total}: expected 0 to total, and at least one trial")
    interval = binomtest(successes, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float], *, draws: int = 1000, seed: int = 0) -> tuple[float, float] | None:
    """Bootstrap interval of a mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    generator = np.random.default_rng(seed)
    found = bootstrap(
        (np.asarray(values, dtype=float),), np.mean, n_resamples=draws, method="percentile", rng=generator
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
