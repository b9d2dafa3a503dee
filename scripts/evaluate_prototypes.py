"""Match rate of candidates from known prototypes on a benchmark's compositions (exact cell contents).

python scripts/evaluate_prototypes.py DATA/mp_20.parquet --split val --limit 500 --num 12
python scripts/evaluate_prototypes.py DATA/mp_20.parquet --split test --num 1 --output docs/prototypes.json
python scripts/evaluate_prototypes.py DATA/mpts_52.parquet --split test --num 1 --index mp --without-formulas
python scripts/evaluate_prototypes.py --textbook scripts/textbook_compounds.yaml          # as users get them
python scripts/evaluate_prototypes.py --textbook scripts/textbook_compounds.yaml --novel  # without the formula itself
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from hf_crystal.evaluation import DIFFCSP_MATCHER, filter_matches, match_rate
from hf_crystal.evaluation.intervals import wilson_interval
from hf_crystal.evaluation.results import reduced_formula
from hf_crystal.mat2seq.prompts import parse_composition
from hf_crystal.prototypes import PrototypeIndex, embedded_index, propose
from hf_crystal.prototypes.families import contents, read_contents
from hf_crystal.stability import predicted_energies


def benchmark(
    index: PrototypeIndex,
    table: str,
    split: str,
    limit: int | None,
    num: int,
    without_formulas: bool,
    judged: bool,
) -> dict[str, Any]:
    """Match rate of the first and of any candidate; figures of the first under both protocols.

    Args:
        index: Known crystals.
        table: parquet file.
        split: Value of its column `split`.
        limit: Random rows; None for all.
        num: Candidates of each composition.
        without_formulas: Leave out known crystals of the formulas of the split.
        judged: Predicted energies count, too.
    """
    rows = pd.read_parquet(table, columns=["split", "lattice", "frac_coords", "atomic_numbers"])
    rows = rows[rows.split == split]
    exclude: set[str] = set()
    if without_formulas:
        held = {reduced_formula(numbers) for numbers in rows.atomic_numbers}
        for name, sequence in zip(index.names, index.sequences, strict=True):
            counts, numbers = read_contents(sequence)
            if reduced_formula(np.repeat(numbers, counts)) in held:
                exclude.add(name)
        print(f"left out {len(exclude):,} of {len(index):,} known crystals: their formulas are among those asked for")
    rows = rows.sample(limit, random_state=0) if limit else rows
    truth = rows[["lattice", "frac_coords", "atomic_numbers"]].to_dict("records")
    start, found = time.process_time(), []
    for row in truth:
        numbers, counts = np.unique(row["atomic_numbers"], return_counts=True)
        composition = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
        found.append(index.candidates(composition, num, exclude=exclude, judge=predicted_energies if judged else None))
    seconds = (time.process_time() - start) / len(truth)
    result = match_rate(found, truth, n=num, settings=DIFFCSP_MATCHER)
    for n in sorted({1, min(5, num), num}):
        at = result.at(n)
        print(f"{split}, {len(truth)} compositions, any of {n}: {100 * at.match_rate:.2f} %, RMSE {at.rmse:.4f}")
    empty = sum(not items for items in found)
    print(f"without a candidate: {empty}; {seconds:.3f} CPU s per composition; {result.protocol}")
    first = [items[0] if items else None for items in found]
    unfiltered = match_rate(first, truth, settings=DIFFCSP_MATCHER)
    figures: dict[str, Any] = {
        "model": "candidates from known prototypes",
        "data": Path(table).name,
        "split": split,
        "without_prediction": empty,
    }
    for name, at in (("match_1", unfiltered), ("match_smact14_1", filter_matches(unfiltered, first, truth))):
        keys = ("protocol", "match_rate", "rmse", "num_items", "num_matched")
        figures[name] = {key: at.to_dict()[key] for key in keys}
        figures[name]["match_rate_interval"] = wilson_interval(at.num_matched, at.num_items)
    return figures


def own_names(index: PrototypeIndex, formula: str) -> set[str]:
    """Names of the crystals of a formula."""
    wanted = {contents(composition) for composition in index.compositions(parse_composition(formula))}
    pairs = zip(index.names, index.sequences, strict=True)
    return {name for name, sequence in pairs if read_contents(sequence) in wanted}


def textbook(index: PrototypeIndex | None, path: str, novel: bool, num: int = 5) -> None:
    """Formulas of known prototypes: space group and number of atoms in the primitive cell, at rank 1 and within 5.

    Args:
        index: None for what users get.
        path: YAML file.
        novel: Without the crystals of the formula, as if it were not known.
        num: Candidates.
    """
    first = within = 0
    start = time.process_time()
    known = embedded_index("mp") if novel and index is None else index
    entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    for formula, accepted in entries.items():
        wanted = {tuple(pair) for pair in accepted}
        if novel:
            own = own_names(known, formula)
            items = known.candidates(formula, num, formula=True, exclude=own, judge=predicted_energies)
        else:
            items = propose(formula, num, index=index, judge=predicted_energies)
        found = [(item.canonical.space_group, len(item.structure)) for item in items]
        rank = next((k + 1 for k, pair in enumerate(found) if pair in wanted), None)
        first, within = first + (rank == 1), within + (rank is not None)
        print(f"{formula:12s} rank {rank or '-'}  {found}")
    seconds = (time.process_time() - start) / len(entries)
    print(f"{len(entries)} formulas: {first} right at rank 1, {within} within {num}; {seconds:.2f} CPU s per formula")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", nargs="?", help="parquet table with a column 'split'")
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int, help="random rows of the split; all by default")
    parser.add_argument("--num", type=int, default=12, help="candidates per composition")
    parser.add_argument("--index", help="file, or name of an embedded index; mp20_train by default, for textbooks mp")
    parser.add_argument("--without-formulas", action="store_true", help="leave out crystals of the formulas asked for")
    parser.add_argument("--judge", action="store_true", help="predicted energies count, too; with textbooks always")
    parser.add_argument("--output", type=Path, help="write the figures of the first candidates here, as JSON")
    parser.add_argument("--textbook", help="YAML: formula → accepted [space group, atoms in the primitive cell]")
    parser.add_argument("--novel", action="store_true", help="of the textbook, leave out crystals of the formula")
    given = parser.parse_args()
    index = given.index and (
        PrototypeIndex.load(given.index) if Path(given.index).is_file() else embedded_index(given.index)
    )
    if given.textbook:
        textbook(index, given.textbook, given.novel)
    if given.table:
        options = (given.split, given.limit, given.num, given.without_formulas, given.judge)
        figures = benchmark(index or embedded_index(), given.table, *options)
        if given.output:
            given.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
