"""How often is a prototype the crystal of its formula? Fit `probability`, and count on other formulas what comes true.

    python scripts/fit_probability.py hf_crystal/prototypes/mp.parquet --count 3000

Random formulas of the index whose lowest known crystal lies at most 0.05 eV/atom above the hull are asked for as users
do, five candidates each, without the known crystals of the formula. A candidate is right where pymatgen's
`StructureMatcher` calls it that lowest crystal. Two thirds of the formulas fit the log-odds (share of the votes, cost
of the nearest known crystal), the others are counted. Writes the log-odds into the file, and prints a table. About 0.5
CPU s a formula.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from hf_crystal.evaluation import match_rate
from hf_crystal.evaluation.results import reduced_formula
from hf_crystal.evaluation.structure_matching.matching import DEFAULT_MATCHER
from hf_crystal.prototypes import PrototypeIndex
from hf_crystal.prototypes.families import read_contents

NEAR = 0.05  # eV/atom above the hull
CANDIDATES = 5
BINS = [0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0]


class Recorder(PrototypeIndex):
    """An index that keeps the cost of the nearest known crystal of the last question."""

    nearest: float

    def _probability(self, share: float | None, nearest: float) -> float | None:
        self.nearest = nearest
        return super()._probability(share, nearest)


def ask(index: Recorder, count: int, seed: int) -> pd.DataFrame:
    """A row for each candidate of `count` formulas: formula, rank, share, cost, whether it is right."""
    rows_of: dict[tuple, list[int]] = defaultdict(list)
    for row, sequence in enumerate(index.sequences):
        counts, numbers = read_contents(sequence)
        rows_of[reduced_formula(np.repeat(numbers, counts))].append(row)
    formulas = sorted(formula for formula in rows_of if len(formula) > 1)
    found, asked = [], 0
    for place in np.random.default_rng(seed).permutation(len(formulas)):
        rows = rows_of[formulas[place]]
        lowest = rows[int(np.argmin(index.rises[rows]))]
        if not index.above_hull[lowest] <= NEAR:
            continue
        own = {index.names[row] for row in rows}
        items = index.candidates(dict(formulas[place]), CANDIDATES, formula=True, exclude=own)
        right = match_rate(
            [[item] for item in items], [index.known(lowest).to_structure()] * len(items), settings=DEFAULT_MATCHER
        ).best_rms if items else []  # fmt: skip
        found += [(asked, k, item.score, index.nearest, right[k] is not None) for k, item in enumerate(items)]
        asked += 1
        if asked == count:
            break
    return pd.DataFrame(found, columns=["formula", "rank", "share", "cost", "right"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path, help="parquet file of a PrototypeIndex; its log-odds are written anew")
    parser.add_argument("--count", type=int, default=3000, help="formulas")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    from sklearn.linear_model import LogisticRegression

    index = Recorder.load(given.index)
    table = ask(index, given.count, given.seed)
    fits = table.formula < 2 * given.count // 3
    features = table[["share", "cost"]].to_numpy()
    model = LogisticRegression(C=1e3).fit(features[fits], table.right[fits])
    index.log_odds = [round(float(x), 2) for x in (*model.intercept_, *model.coef_[0])]
    index.save(given.index)
    print(f"log-odds: {index.log_odds}")
    held = table[~fits].assign(probability=model.predict_proba(features[~fits])[:, 1])
    without = given.count - 2 * given.count // 3 - held.formula.nunique()
    first = held[held["rank"] == 0]
    any_right = held.groupby("formula").right.max().sum() / (held.formula.nunique() + without)
    print(
        f"{held.formula.nunique() + without} other formulas, {without} without a candidate: the first is right for "
        f"{first.right.sum() / (len(first) + without):.1%}, one of {CANDIDATES} for {any_right:.1%}"
    )
    for name, part in (("first candidates", first), ("all candidates", held)):
        bins = part.groupby(pd.cut(part.probability, BINS), observed=True)
        print(f"{name}:")
        print(bins.agg(n=("right", "size"), said=("probability", "mean"), true=("right", "mean")).round(3).to_string())


if __name__ == "__main__":
    main()
