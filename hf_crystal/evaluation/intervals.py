# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""95 % confidence intervals of shares and means."""

import math
from collections.abc import Sequence

import numpy as np

_Z = 1.959964  # of the standard normal distribution, two-sided 95 %


def wilson_interval(successes: int, total: int) -> tuple[float, float]:
    """Interval of a share (E. B. Wilson, 1927), within 0 and 1 also for none and for all.

    Raises:
        ValueError: if there are no trials, or more successes than trials.
    """
    if total < 1 or not 0 <= successes <= total:
        raise ValueError(f"{successes} successes of {total}: expected 0 to total, and at least one trial")
    share, weight = successes / total, _Z**2 / total
    centre = share + weight / 2
    half = _Z * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    # the ends are exact for none and for all, but for rounding
    low = 0.0 if successes == 0 else (centre - half) / (1 + weight)
    high = 1.0 if successes == total else (centre + half) / (1 + weight)
    return low, high


def mean_interval(values: Sequence[float], *, draws: int = 1000, seed: int = 0) -> tuple[float, float] | None:
    """Bootstrap interval of a mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    rows = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.percentile(np.asarray(values, dtype=float)[rows].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
