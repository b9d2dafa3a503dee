"""Candidates from which a critic learns: of each crystal of an index what the index proposes without it, and which match.

python scripts/prepare_critic.py DATA/mp_20.parquet --output runs/critic

Writes train.pkl (the embedded index of MP-20's training part, each crystal left out in turn) and val.pkl (compositions of
the validation split): a list of (id, true crystal, candidates), a candidate being (crystal, share of the votes, name of the
known crystal, RMS displacement or None where it does not match). About 10 CPU minutes.
"""

import argparse
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from hf_crystal.crystals.record import CrystalRecord, as_record
from hf_crystal.evaluation import DIFFCSP_MATCHER
from hf_crystal.evaluation.structure_matching.fast_matcher import rms_distances
from hf_crystal.evaluation.structure_matching.reduced_crystals import reduce_crystal
from hf_crystal.prototypes import PrototypeIndex, embedded_index

Item = tuple[str, CrystalRecord, list[Any]]


def substituted(index: PrototypeIndex, contents: dict[int, int], num: int, name: str) -> list[Any]:
    """Name of the known crystal, crystal with other elements in a cell of predicted volume, share of the votes."""
    found: list[Any] = []
    for row, new, share in index._ranked([contents], None, frozenset([name])):
        known = index.known(row).to_record()
        numbers = np.array([new[number] for number in known.atomic_numbers.tolist()])
        factor = float(index.volumes[numbers].sum() / index.volumes[known.atomic_numbers].sum())
        crystal = CrystalRecord(numbers, known.frac_coords, known.cell * factor ** (1 / 3))
        if index._closeness(crystal) >= min(0.5, 0.8 * index._closeness(known)):
            found.append((index.names[row], crystal, share))
        if len(found) == num:
            break
    return found


def proposed(index: PrototypeIndex, name: str, truth: CrystalRecord, num: int) -> Item:
    """Candidates for the contents of a crystal, itself left out, and whether they match it."""
    found = substituted(index, Counter(truth.atomic_numbers.tolist()), num, name)
    target = reduce_crystal(truth, niggli=True)
    distances = rms_distances(DIFFCSP_MATCHER, [(reduce_crystal(c, niggli=False), target) for _, c, _ in found])
    return name, truth, [(c, share, known, rms) for (known, c, share), rms in zip(found, distances, strict=True)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", help="mp_20.parquet")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    index = embedded_index("mp20_train")
    rows = pd.read_parquet(given.table, columns=["material_id", "split", "lattice", "frac_coords", "atomic_numbers"])
    held = rows[rows.split == "val"].sample(frac=1, random_state=0).to_dict("records")
    parts = {
        "val": ([(row["material_id"], as_record(row)) for row in held], 20),
        "train": ([(name, index.known(row).to_record()) for row, name in enumerate(index.names)], 12),
    }
    for part, (crystals, num) in parts.items():
        found = [proposed(index, name, truth, num) for name, truth in tqdm(crystals, desc=part, mininterval=30)]
        (given.output / f"{part}.pkl").write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main()
