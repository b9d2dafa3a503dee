"""How often is a prototype the crystal of its formula? Fit `probability`, and count on other formulas what comes true.

    python scripts/fit_probability.py hf_crystal/prototypes/mp.parquet --held-out training_table.parquet --count 3000

Random formulas of the index whose lowest known crystal lies at most 0.05 eV/atom above the hull are asked for as users
do, without the known crystals of the formula: eight prototypes each, of which the five likeliest count. A candidate is
right where pymatgen's `StructureMatcher` calls it that lowest crystal. Two thirds of the formulas fit the log-odds
(share of the votes, cost of the nearest known crystal, and predicted energy above the lowest of the eight), the
others are counted. Only formulas whose lowest crystal is among the validation rows of the table that the model was
trained on: of others the model may know the energy. Writes the log-odds into the file, with and without the energy,
and prints tables. About 0.5 CPU s a formula.
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
from hf_crystal.prototypes.index import _JUDGED, _LARGEST_RISE
from hf_crystal.stability import predicted_energies

NEAR = 0.05  # eV/atom above the hull
CANDIDATES = 5
BINS = [0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0]


class Recorder(PrototypeIndex):
    """An index that keeps the cost of the nearest known crystal and the energies of the last question."""

    nearest: float

    def _judged(self, items, odds, nearest, judge):
        self.nearest = nearest
        return super()._judged(items, odds, nearest, judge)


def ask(index: Recorder, held_out: set[str], count: int, seed: int) -> pd.DataFrame:
    """A row for each candidate of `count` formulas: formula, share, cost, rise, whether it is right."""
    rows_of: dict[tuple, list[int]] = defaultdict(list)
    for row, sequence in enumerate(index.sequences):
        counts, numbers = read_contents(sequence)
        rows_of[reduced_formula(np.repeat(numbers, counts))].append(row)
    formulas = sorted(formula for formula in rows_of if len(formula) > 1)
    found, asked = [], 0
    for place in np.random.default_rng(seed).permutation(len(formulas)):
        rows = rows_of[formulas[place]]
        lowest = rows[int(np.argmin(index.rises[rows]))]
        if index.names[lowest] not in held_out or not index.above_hull[lowest] <= NEAR:
            continue
        own = {index.names[row] for row in rows}
        items = index.candidates(dict(formulas[place]), _JUDGED, formula=True, exclude=own)
        truth = [index.known(lowest).to_structure()] * len(items)
        right = match_rate([[item] for item in items], truth, settings=DEFAULT_MATCHER).best_rms if items else []
        energies = np.array(predicted_energies([item.structure for item in items]), dtype=float)
        rises = np.nan_to_num(energies - min(energies, default=0.0), nan=_LARGEST_RISE).clip(max=_LARGEST_RISE)
        found += [
            (asked, item.score, index.nearest, rise, rms is not None)
            for item, rise, rms in zip(items, rises, right, strict=True)
        ]
        asked += 1
        if asked == count:
            break
    return pd.DataFrame(found, columns=["formula", "share", "cost", "rise", "right"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path, help="parquet file of a PrototypeIndex; its log-odds are written anew")
    parser.add_argument("--held-out", type=Path, required=True, help="training table of the default property model")
    parser.add_argument("--count", type=int, default=3000, help="formulas")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    from sklearn.linear_model import LogisticRegression

    rows = pd.read_parquet(given.held_out, columns=["material_id", "split"])
    index = Recorder.load(given.index)
    index.log_odds = (0.0, 1.0, 0.0)  # in the order of the votes
    table = ask(index, set(rows.material_id[rows.split == "val"]), given.count, given.seed)
    asked = 1 + table.formula.max()
    fits = table.formula < 2 * asked // 3
    for name, columns in (("log_odds", ["share", "cost"]), ("judged_log_odds", ["share", "cost", "rise"])):
        features = table[columns].to_numpy()
        model = LogisticRegression(C=1e3).fit(features[fits], table.right[fits])
        setattr(index, name, [round(float(x), 2) for x in (*model.intercept_, *model.coef_[0])])
        held = table[~fits].assign(probability=model.predict_proba(features[~fits])[:, 1])
        held = held.sort_values(["formula", "probability"], ascending=[True, False])
        held = held[held.groupby("formula").cumcount() < CANDIDATES]
        number = asked - 2 * asked // 3
        first = held.groupby("formula").first()
        print(
            f"{name}: {getattr(index, name)}; {number} other formulas, {number - len(first)} without a candidate: the "
            f"first is right for {first.right.sum() / number:.1%}, one of {CANDIDATES} for "
            f"{held.groupby('formula').right.max().sum() / number:.1%}"
        )
        for whose, part in (("first candidates", first), ("all candidates", held)):
            bins = part.groupby(pd.cut(part.probability, BINS), observed=True)
            shares = bins.agg(n=("right", "size"), said=("probability", "mean"), true=("right", "mean"))
            print(f"{whose}:\n{shares.round(3).to_string()}")
    index.save(given.index)


if __name__ == "__main__":
    main()
