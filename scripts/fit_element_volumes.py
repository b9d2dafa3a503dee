# /// script
# requires-python = ">=3.11"
# dependencies = ["hf_crystal"]
# ///
"""Volumes of the elements in crystals, for the warning about an odd volume per atom (`hf_crystal.crystals.doubts`).

    python scripts/fit_element_volumes.py DATA_FOLDER/materials_project.parquet

The volume per atom of a crystal is the sum over its elements of x (a + b f), with their shares x and the share f of
anions: an atom that gives its electrons away is smaller. Relative errors count, and the reweighted least squares let
go of crystals that are a factor of two away, which are failed relaxations. Fitted on four fifths of the crystals;
prints the rows of the table and how often the last fifth lies beyond limits. Half a minute.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from hf_crystal.crystals.doubts import ANIONS

_RIDGE = 1e-3
_EXPLODED = 150.0  # Å³ per atom
_LIMITS = (0.5, 0.6, 0.7, 1.5, 1.75, 1.9, 2.0)
_SHOWN = (0.1, 1, 50, 99)
_SMALLEST = 3.0  # Å³ per atom, expected


def main(path: Path) -> None:
    """Fit, print the table and how often crystals lie beyond limits."""
    frame = pd.read_parquet(path, columns=["lattice", "atomic_numbers"])
    cells = np.stack(frame.lattice.to_numpy()).astype(float).reshape(-1, 3, 3)
    amounts = np.stack([np.bincount(numbers, minlength=119) for numbers in frame.atomic_numbers]).astype(float)
    volumes = np.abs(np.linalg.det(cells)) / amounts.sum(1)
    shares = amounts / amounts.sum(1, keepdims=True)
    design = np.concatenate([shares, shares * shares[:, list(ANIONS)].sum(1, keepdims=True)], axis=1)
    training = np.random.default_rng(0).random(len(frame)) < 0.8
    weights, kept = 1 / volumes**2, volumes < _EXPLODED
    for _ in range(25):
        rows = training & kept
        scaled = design[rows] * np.sqrt(weights[rows])[:, None]
        normal = scaled.T @ scaled + _RIDGE * np.eye(design.shape[1])
        fitted = np.linalg.solve(normal, scaled.T @ (volumes[rows] * np.sqrt(weights[rows])))
        expected = np.maximum(design @ fitted, _SMALLEST)
        ratios = volumes / expected
        off = np.abs(np.log(ratios))
        weights, kept = 1 / expected**2 / np.maximum(off, 0.02), off < np.log(2)
    for name, part in (("a", fitted[:119]), ("b", fitted[119:])):
        print(f"{name}:", ", ".join(f"{value:.1f}" for value in part))
    others = ratios[~training]
    shown = dict(zip(_SHOWN, np.percentile(others, _SHOWN).round(2).tolist(), strict=True))
    print(f"{len(others)} crystals of the last fifth, percentiles of the ratio: {shown}")
    for limit in _LIMITS:
        beyond = others < limit if limit < 1 else others > limit
        print(
            f"beyond {limit}: {100 * beyond.mean():.2f} %, of them above 4: {100 * (others[beyond] > 4).mean():.0f} %"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="materials_project.parquet")
    main(parser.parse_args().table)
