r"""Generate crystals for compositions of the test split and compare them with the true ones.

    OMP_NUM_THREADS=1 python scripts/evaluate_mat2seq.py runs/mat2seq/model --data mp_20.parquet --count 200

Each composition (of the primitive cell) gets one crystal. A match is what pymatgen's StructureMatcher says with
ltol 0.3, stol 0.5, angle_tol 10 (the DiffCSP protocol, n = 1). Prints JSON; --output also writes it to a file.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

MATCHER = {"ltol": 0.3, "stol": 0.5, "angle_tol": 10}


def choose_crystals(table: str, split: str, count: int, seed: int) -> list[Any]:
    """Structures drawn from a split, each reduced to its primitive cell."""
    import numpy as np

    from hf_crystal import canonicalize, load_crystal_dataset

    rows = load_crystal_dataset(table, split_column="split")[split]
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [canonicalize(rows[int(index)]).to_structure() for index in chosen]


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Figures with sample size, settings and seconds."""
    import numpy as np
    from pymatgen.analysis.structure_matcher import StructureMatcher

    from hf_crystal import Mat2SeqForCausalLM, Mat2SeqTokenizer

    truths = choose_crystals(args.data, args.split, args.count, args.seed)
    model = Mat2SeqForCausalLM.from_pretrained(args.model).eval()
    tokenizer = Mat2SeqTokenizer.from_pretrained(args.model)
    matcher = StructureMatcher(**MATCHER)
    start = time.perf_counter()
    decoded = composition = 0
    distances: list[float] = []
    for index, truth in enumerate(truths):
        wanted = {str(element): int(amount) for element, amount in truth.composition.items()}
        made = model.generate_crystals(
            tokenizer, composition=wanted, temperature=args.temperature, seed=args.seed + index
        )[0]
        decoded += made.structure is not None
        composition += made.structure is not None and made.structure.composition == truth.composition
        found = None if made.structure is None else matcher.get_rms_dist(made.structure, truth)
        if found is not None:
            distances.append(float(found[0]))
    return {
        "protocol": {"matcher": MATCHER, "n": 1, "temperature": args.temperature, "seed": args.seed},
        "split": args.split,
        "samples": len(truths),
        "decoded": decoded,
        "composition": composition,
        "matches": len(distances),
        "match_rate": len(distances) / len(truths),
        "rms_mean": float(np.mean(distances)) if distances else None,
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder with model and tokenizer")
    parser.add_argument("--data", required=True, help="table of crystals with a split column")
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    try:
        text = json.dumps(evaluate(args), indent=2)
    except (ValueError, OSError, KeyError) as error:
        print(f"evaluate_mat2seq: {error}", file=sys.stderr)
        return 2
    print(text)
    if args.output is not None:
        args.output.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
