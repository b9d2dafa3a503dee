r"""Do generated crystals decode, and are they what was asked for?

Question: of N crystals written by the embedded model and N by an untrained one of its shape, over the temperatures,
how many decode, have the composition and (as written) the space group that was asked for, stay within the context of
the model, and how many are found in the same space group again when they are canonicalized. Prompts are compositions
of the primitive cell and space groups of real crystals (MP-20 test). With --fuzz: are random token sequences and
mutated real ones a crystal or a ValueError with a reason, and how long does the slowest take?

    OMP_NUM_THREADS=1 python scripts/report_generation.py --data mp_20.parquet --count 10000 --output generation.json
    OMP_NUM_THREADS=1 python scripts/report_generation.py --data mp_20.parquet --fuzz 100000 --output fuzz.json

The last line of the output is JSON.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

TEMPERATURES = (0.7, 1.0, 1.2, 1.5)


def real_crystals(path: str, split: str, count: int, seed: int, settings: Any) -> list[Any]:
    """Random rows of a table as canonical crystals; rows are repeated where the table has fewer."""
    import numpy as np

    from hf_crystal import canonicalize, load_crystal_dataset

    rows = load_crystal_dataset(path, split_column="split")[split]
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    crystals = [canonicalize(rows[int(index)], settings=settings) for index in chosen]
    return [crystals[i % len(crystals)] for i in range(count)]


def judge(found: list[Any], asked: list[Any], limit: int, tokenizer: Any) -> dict[str, int]:
    """How many of the crystals are what was asked for."""
    from hf_crystal import canonicalize

    counts = Counter(
        dict.fromkeys(("crystals", "decoded", "composition", "space_group", "too_long", "found_again"), 0)
    )
    for item, truth in zip(found, asked, strict=True):
        counts["crystals"] += 1
        counts["too_long"] += len(tokenizer.encode(item.sequence)) > limit
        if item.error is not None:
            continue
        counts["decoded"] += 1
        counts["composition"] += item.canonical.composition == truth.composition
        counts["space_group"] += item.canonical.space_group == truth.space_group
        try:
            again = canonicalize(item.structure, settings=tokenizer.settings)
        except ValueError:  # atoms nearer than canonicalization accepts
            counts["not_canonicalized"] += 1
            continue
        counts["found_again"] += again.space_group == truth.space_group
    return dict(counts)


def report(args: argparse.Namespace) -> dict[str, Any]:
    """Counts per model and temperature."""
    import torch

    from hf_crystal import Mat2SeqForCausalLM, Mat2SeqTokenizer
    from hf_crystal.checkpoints import embedded_checkpoint

    folder = args.model or embedded_checkpoint("mat2seq-mp20")
    tokenizer = Mat2SeqTokenizer.from_pretrained(folder)
    trained = Mat2SeqForCausalLM.from_pretrained(folder).eval()
    torch.manual_seed(args.seed)
    models = {"trained": trained, "untrained": Mat2SeqForCausalLM(trained.config).eval()}
    each = max(1, args.count // len(TEMPERATURES))
    asked = real_crystals(args.data, args.split, each, args.seed, tokenizer.settings)
    # Prompts of one length together: sequences of one batch then end at about the same time.
    asked.sort(key=lambda crystal: (len(crystal.sites), crystal.space_group))
    prompts = [{"composition": crystal.composition, "space_group": crystal.space_group} for crystal in asked]
    limit = trained.config.max_position_embeddings
    figures = []
    for name, model in models.items():
        for temperature in TEMPERATURES:
            start = time.process_time()
            found = model.generate_crystals_for_prompts(
                tokenizer, prompts, temperature=temperature, seed=args.seed, batch_size=args.batch_size
            )
            seconds = time.process_time() - start
            counts = judge([items[0] for items in found], asked, limit, tokenizer)
            figures.append({"model": name, "temperature": temperature, **counts, "crystals_per_s": each / seconds})
            print(
                f"{name:9s} T {temperature:3.1f}: {counts['crystals']} crystals, decoded {counts['decoded']}, "
                f"composition {counts['composition']}, space group {counts['space_group']}, "
                f"too long {counts['too_long']}, found again {counts['found_again']}, {each / seconds:.0f} crystals/s",
                flush=True,
            )
    return {"report": "generation", "data": Path(args.data).stem, "split": args.split, "figures": figures}


def mutated(tokens: list[int], size: int, source: random.Random) -> list[int]:
    """A sequence of ids with one to four of them replaced, left out, doubled, put in or exchanged."""
    tokens = list(tokens)
    for _ in range(source.randint(1, 4)):
        place = source.randrange(len(tokens))
        match source.randrange(5):
            case 0:
                tokens[place] = source.randrange(size)
            case 1 if len(tokens) > 1:
                del tokens[place]
            case 2:
                tokens.insert(place, tokens[place])
            case 3:
                tokens.insert(place, source.randrange(size))
            case _:
                other = source.randrange(len(tokens))
                tokens[place], tokens[other] = tokens[other], tokens[place]
    return tokens


def fuzz(args: argparse.Namespace) -> dict[str, Any]:
    """Outcomes of random and mutated sequences, and the largest CPU time of one."""
    from hf_crystal import Mat2SeqTokenizer

    tokenizer = Mat2SeqTokenizer()
    source = random.Random(args.seed)
    real = [
        tokenizer.encode(crystal)
        for crystal in real_crystals(args.data, args.split, 500, args.seed, tokenizer.settings)
    ]
    size = len(tokenizer)
    outcomes: Counter[str] = Counter()
    others: list[str] = []
    largest = 0.0
    for index in range(args.fuzz):
        kind = "mutated" if index % 2 else "random"
        if kind == "mutated":
            ids = mutated(source.choice(real), size, source)
        else:  # now and then ids that no token has
            ids = [source.randrange(-2, size + 2) for _ in range(source.randrange(120))]
            ids = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] if source.random() < 0.5 else ids
        start = time.thread_time()
        try:
            structure = tokenizer.decode_structure(ids)
            outcomes[f"{kind}: crystal"] += len(structure) > 0
        except ValueError as error:
            outcomes[f"{kind}: {type(error).__name__}" if str(error) else f"{kind}: no reason"] += 1
        except Exception as error:  # what must not happen is what is looked for
            others.append(f"{type(error).__name__}: {error}; ids {ids}")
        largest = max(largest, time.thread_time() - start)
    for name, count in sorted(outcomes.items()):
        print(f"{name:45s} {count}")
    print(f"{len(others)} other exceptions; slowest {1000 * largest:.1f} ms of CPU time")
    result = {"report": "fuzz", "sequences": args.fuzz, "outcomes": dict(outcomes)}
    return {**result, "other_exceptions": others[:20], "num_other_exceptions": len(others), "slowest_s": largest}


def main(args: argparse.Namespace) -> int:
    """Print the report; the last line is JSON. Exit code 1 where a promise is broken."""
    result = fuzz(args) if args.fuzz else report(args)
    if args.output is not None:
        args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))
    if args.fuzz:
        broken = result["num_other_exceptions"] or result["slowest_s"] > 1
    else:
        promised = ("decoded", "composition", "space_group")
        broken = any(f["too_long"] or any(f[name] < f["crystals"] for name in promised) for f in result["figures"])
    return int(bool(broken))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="table of crystals with a split column")
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=10_000, help="crystals per model, over all temperatures")
    parser.add_argument("--model", help="folder with model and tokenizer; the embedded generator by default")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--fuzz", type=int, default=0, metavar="N", help="judge N broken sequences in place")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    sys.exit(main(parser.parse_args()))
