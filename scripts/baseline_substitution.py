"""Crystal structure prediction without learning: a training crystal with its elements replaced.

    python scripts/baseline_substitution.py mp_20.parquet --output docs/baseline_substitution.json

For each test composition the training crystal with the same counts of atoms by element (whatever the elements) whose
elements are most alike is taken, and its elements are replaced. How unlike two elements are: difference of Mendeleev
numbers / 20 + of electronegativities + of atomic radii in Å, summed over the atoms. Match rates under both protocols
of the field, as `hf-crystal evaluate generation` gives them; needs smact. A generator has to beat this.
"""

import argparse
import itertools
import json
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DESCRIPTION = "the most alike training crystal with the same counts of atoms, its elements replaced"
LARGEST = 103  # what is tabulated of later elements is no radius


def element_distances() -> np.ndarray:
    """How unlike elements are, by atomic numbers, `(LARGEST + 1, LARGEST + 1)`."""
    from pymatgen.core import Element

    table = np.zeros((LARGEST + 1, 3))
    warnings.filterwarnings("ignore", message="No Pauling electronegativity")
    for number in range(1, LARGEST + 1):
        element = Element.from_Z(number)
        electronegativity = element.X if element.X == element.X and element.X else 2.0  # unknown of noble gases
        table[number] = (element.mendeleev_no or 0) / 20, electronegativity, float(element.atomic_radius or 1.5)
    return np.abs(table[:, None] - table[None]).sum(axis=2)


def contents(atomic_numbers: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Counts in ascending order, and the elements that have them."""
    found = sorted((count, number) for number, count in Counter(atomic_numbers).items())
    return tuple(count for count, _ in found), tuple(number for _, number in found)


def orders(counts: Sequence[int]) -> Iterator[list[int]]:
    """Every order of the elements that leaves the counts as they are."""
    groups = [list(group) for _, group in itertools.groupby(range(len(counts)), key=lambda place: counts[place])]
    for choice in itertools.product(*map(itertools.permutations, groups)):
        yield [place for part in choice for place in part]


class Substitution:
    """Predicts a crystal for given cell contents.

    Args:
        train: Rows of crystals with `lattice`, `frac_coords` and `atomic_numbers`.
    """

    def __init__(self, train: Sequence[dict[str, Any]]):
        self.train = train
        self.distances = element_distances()
        pool = defaultdict(list)
        for row, crystal in enumerate(train):
            counts, elements = contents(crystal["atomic_numbers"])
            pool[counts].append((row, elements))
        self.pool = {
            counts: (np.array([row for row, _ in found]), np.array([elements for _, elements in found]))
            for counts, found in pool.items()
        }

    def predict(self, atomic_numbers: Sequence[int]) -> dict[str, Any] | None:
        """Row of the predicted crystal; None where no training crystal has these counts."""
        counts, elements = contents(atomic_numbers)
        if counts not in self.pool:
            return None
        rows, theirs = self.pool[counts]
        best: tuple[float, int, list[int]] = (np.inf, 0, [])
        for order in orders(counts):
            ours = [elements[place] for place in order]
            cost = (self.distances[np.array(ours), theirs] * counts).sum(axis=1)
            if cost.min() < best[0]:
                best = (float(cost.min()), int(cost.argmin()), ours)
        _, place, ours = best
        replaced = dict(zip(theirs[place].tolist(), ours, strict=True))
        found = self.train[int(rows[place])]
        return {**found, "atomic_numbers": [replaced[number] for number in found["atomic_numbers"]]}


def measure(data: str, count: int | None, seed: int) -> dict[str, Any]:
    """Figures of the baseline on the test split."""
    from hf_crystal import load_crystal_dataset
    from hf_crystal.crystals.record import CRYSTAL_COLUMNS
    from hf_crystal.evaluation import filter_matches, match_rate
    from hf_crystal.evaluation.intervals import wilson_interval

    splits = load_crystal_dataset(data, split_column="split")
    train, test = (
        [dict(row) for row in splits[name].select_columns(list(CRYSTAL_COLUMNS))] for name in ("train", "test")
    )
    if count is not None and count < len(test):
        test = [test[row] for row in np.sort(np.random.default_rng(seed).permutation(len(test))[:count])]
    baseline = Substitution(train)
    predictions = [baseline.predict(crystal["atomic_numbers"]) for crystal in test]
    unfiltered = match_rate(predictions, test)
    found = {}
    for name, result in (("match_1", unfiltered), ("match_smact14_1", filter_matches(unfiltered, predictions, test))):
        keys = ("protocol", "match_rate", "rmse", "num_items", "num_matched")
        found[name] = {key: result.to_dict()[key] for key in keys}
        found[name]["match_rate_interval"] = wilson_interval(result.num_matched, result.num_items)
    without = sum(prediction is None for prediction in predictions)
    return {"model": DESCRIPTION, "data": Path(data).name, "without_prediction": without, **found}


def main(args: argparse.Namespace) -> int:
    """Measure and write; returns the exit code."""
    text = json.dumps(measure(args.data, args.count, args.seed), indent=2)
    if args.output is not None:
        args.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="table of crystals with the splits train and test")
    parser.add_argument("--count", type=int, help="test crystals, drawn by the seed; by default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    sys.exit(main(parser.parse_args()))
