"""Training table of `mat2seq-mp20`: MP-20's training part, and other compositions with crystals of known prototypes.

    python scripts/prepare_substituted_table.py DATA/mp_20.parquet substituted_table.parquet --count 24000 --workers 2

A composition is that of a training crystal, drawn at random, with one to three of its elements exchanged for ones that
take the same places (distances of the embedded index `mp20_train`, which is made of the training part alone),
charge-neutral by SMACT, and not in the training part. Its crystal is the first candidate of the index, kept where it
has `--min-share` of the votes. Such rows have no labels. Validation and test part are MP-20's; nothing is looked up in
them, so that a composition may be by chance one of theirs. About 0.1 CPU s a row; prints the counts as JSON.
"""

import argparse
import concurrent.futures
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from prepare_generator_table import crystal_columns

from hf_crystal.mat2seq.validity import load_smact, smact_accepts
from hf_crystal.prototypes import embedded_index
from hf_crystal.prototypes.families import Counts, contents, read_contents

COLUMNS = ["material_id", "lattice", "frac_coords", "atomic_numbers", "mb_e_form", "mb_band_gap_pbe", "split"]
EXCHANGED = {1: 0.6, 2: 0.3, 3: 0.1}  # elements of a composition, with their chances
NEAREST, TEMPERATURE = 12, 2.0  # elements that may take a place; of their distances
BLOCK = 500  # drawn by one seed


def exchange(numbers: list[int], distances: np.ndarray, generator: np.random.Generator) -> list[int] | None:
    """Atomic numbers with one to three of them exchanged; None where two became the same."""
    count = min(len(numbers), int(generator.choice(list(EXCHANGED), p=list(EXCHANGED.values()))))
    changed = list(numbers)
    for place in generator.choice(len(numbers), count, replace=False):
        costs = distances[numbers[place]].copy()
        costs[[0, numbers[place]]] = np.inf
        nearest = np.argsort(costs)[:NEAREST]
        weights = np.exp(-costs[nearest] / TEMPERATURE)
        changed[place] = int(generator.choice(nearest, p=weights / weights.sum()))
    return changed if len(set(changed)) == len(changed) else None


def formula_unit(composition: dict[int, int]) -> tuple[tuple[int, int], ...]:
    """As SMACT's rule takes it."""
    divisor = int(np.gcd.reduce(list(composition.values())))
    return tuple(sorted((number, count // divisor) for number, count in composition.items()))


@functools.cache
def known_contents() -> frozenset[tuple[Counts, tuple[int, ...]]]:
    """Cell contents of the training part."""
    return frozenset(map(read_contents, embedded_index().sequences))


def draw_block(seed: int, min_share: float) -> list[dict[str, Any]]:
    """Rows of one seed."""
    index, generator = embedded_index(), np.random.default_rng(seed)
    load_smact()
    rows = []
    for _ in range(BLOCK):
        counts, numbers = read_contents(index.sequences[generator.integers(len(index))])
        changed = exchange(list(numbers), index.distances, generator)
        if changed is None:
            continue
        composition = dict(zip(changed, counts, strict=True))
        if contents(composition) in known_contents() or not smact_accepts(formula_unit(composition)):
            continue
        found = index.candidates(composition, 1)
        if found and found[0].score >= min_share:
            record = found[0].canonical.to_record()
            rows.append({
                "material_id": f"substituted-{seed}-{len(rows)}",
                **crystal_columns(record.cell, record.frac_coords, record.atomic_numbers),
                "split": "train",
                "contents": contents(composition),
            })  # fmt: skip
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mp20", type=Path, help="mp_20.parquet")
    parser.add_argument("output", type=Path, help="parquet file to write")
    parser.add_argument("--count", type=int, default=24_000, help="crystals of other compositions (default: 24000)")
    parser.add_argument("--min-share", type=float, default=0.4, help="of the votes (default: 0.4)")
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    table = pd.read_parquet(given.mp20, columns=COLUMNS)
    made: dict[Any, dict[str, Any]] = {}
    with concurrent.futures.ProcessPoolExecutor(given.workers) as pool:
        first = 0
        while len(made) < given.count:
            draw = functools.partial(draw_block, min_share=given.min_share)
            for rows in pool.map(draw, range(first, first + 2 * given.workers)):
                for row in rows:
                    made.setdefault(row.pop("contents"), row)
            first += 2 * given.workers
            print(f"{len(made):,} of {first * BLOCK:,} compositions", flush=True)
    table = pd.concat([table, pd.DataFrame(list(made.values())[: given.count])], ignore_index=True)
    table.to_parquet(given.output, compression="zstd", index=False)
    print(json.dumps(table.split.value_counts().to_dict(), indent=2))


if __name__ == "__main__":
    main()
