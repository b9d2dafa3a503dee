r"""Match rate of 20 samples per crystal: our matcher against the plain loop over pymatgen's, same pairs, same run.

    OMP_NUM_THREADS=1 python scripts/bench_matching.py --data-dir ../shared

The samples are what the embedded generator writes for compositions of the MP-20 test split at temperature 1. The plain
loop calls `StructureMatcher.get_rms_dist` (which keeps reduced cells of its last 300 structures) for every pair. CPU
time of both is compared with the work of both in one process; the verdicts have to be equal. The last line is JSON.
"""

import argparse
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from benchmarking import Report, Timing


def make_samples(table: str, model_name: str, items: int, samples: int) -> tuple[list[Any], list[list[Any]]]:
    """True structures, and generated ones of their compositions."""
    from hf_crystal import canonicalize, load_crystal_dataset
    from hf_crystal.evaluation.results import read_crystal
    from hf_crystal.loading import load_generation_pipeline
    from hf_crystal.mat2seq.modeling_mat2seq import generate_crystals_for_prompts

    rows = load_crystal_dataset(table, split_column="split")["test"]
    chosen = np.random.default_rng(0).permutation(len(rows))[:items]
    truths = [read_crystal(rows[int(index)]).structure for index in chosen]
    pipeline = load_generation_pipeline(model_name)
    prompts = [
        {"composition": {str(e): int(n) for e, n in canonicalize(truth).to_structure().composition.items()}}
        for truth in truths
    ]
    made = generate_crystals_for_prompts(pipeline.model, pipeline.tokenizer, prompts, num_return=samples, seed=0)
    return truths, [[crystal.structure for crystal in item] for item in made]


def plain_loop(truths: list[Any], made: list[list[Any]]) -> list[float | None]:
    """RMS displacement of every pair, pymatgen called one pair after the other."""
    from hf_crystal.evaluation import DIFFCSP_MATCHER
    from hf_crystal.evaluation.structure_matching.pymatgen_matcher import pymatgen_rms

    return [
        pymatgen_rms(DIFFCSP_MATCHER, (crystal, truth))
        for truth, item in zip(truths, made, strict=True)
        for crystal in item
    ]


def ours(truths: list[Any], made: list[list[Any]]) -> list[float | None]:
    """The same by `match_rate`."""
    from hf_crystal.evaluation import match_rate

    return [sample.rms for item in match_rate(made, truths).samples for sample in item]


def timed(function: Any, *arguments: Any) -> tuple[Any, float]:
    """Result and CPU seconds."""
    start = time.process_time()
    result = function(*arguments)
    return result, time.process_time() - start


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("HF_CRYSTAL_BENCH_DATA", "."))
    parser.add_argument("--model", default="mat2seq-mp20")
    parser.add_argument("--items", type=int, default=100, help="compositions")
    parser.add_argument("--samples", type=int, default=20, help="crystals per composition")
    parser.add_argument("--parts", type=int, default=7, help="parts of the work, for the spread")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    tables = [
        path for path in (args.data_dir / "data/mp_20.parquet", args.data_dir / "mp_20.parquet") if path.is_file()
    ]
    if not tables:
        parser.error(f"no mp_20.parquet in {args.data_dir} or {args.data_dir}/data")
    truths, made = make_samples(str(tables[0]), args.model, args.items, args.samples)
    plain_loop(truths[:1], made[:1])  # imports
    ours(truths[:1], made[:1])
    times, different, matched, largest = [], 0, 0, 0.0
    for places in np.array_split(np.arange(len(truths)), args.parts):
        part = [truths[i] for i in places], [made[i] for i in places]
        expected, plain_seconds = timed(plain_loop, *part)
        found, our_seconds = timed(ours, *part)
        times.append((plain_seconds / len(expected), our_seconds / len(expected)))
        for a, b in zip(expected, found, strict=True):
            matched += a is not None
            difference = abs(a - b) if a is not None and b is not None else 0.0
            largest = max(largest, difference)
            different += (a is None) != (b is None) or difference > 1e-6
    plain_times, our_times = np.array(times).T
    report = Report(
        "matching",
        {"items": args.items, "samples": args.samples, "model": args.model, "matcher": "DiffCSP tolerances"},
    )
    pairs = args.items * args.samples
    for name, seconds in (("plain loop", plain_times), ("match_rate", our_times)):
        low, middle, high = np.percentile(1000 * seconds, [25, 50, 75])
        report.add(f"{name}, per pair", float(middle), "ms", spread=float(high - low))
    report.add_rate("match_rate", 1, Timing(float(np.median(our_times)), 0.0), "pairs/s")
    ratio = plain_times.sum() / our_times.sum()
    report.add("plain loop / match_rate", float(ratio), "times", bound=10, bound_name="wanted")
    report.add("pairs compared", pairs, "pairs")
    report.add("pairs that match", matched, "pairs")
    report.add("pairs with another verdict", different, "pairs")
    report.add("largest difference of the RMS", largest, "(V/N)^(1/3)")
    report.finish()
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
