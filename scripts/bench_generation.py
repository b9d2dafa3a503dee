r"""How fast are crystals generated?

Question: crystals per second of process CPU time with batches, cache, grammar masks and each prompt prefilled once,
against sampling the same model one by one without a cache. Held fixed: the embedded generator, prompts of real
compositions (MP-20 test), several samples of each, temperature 1, seed.

    OMP_NUM_THREADS=1 python scripts/bench_generation.py --data-dir ../shared

The last line of the output is JSON.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from benchmarking import Report, measure


def read_prompts(data: Path, count: int, seed: int, settings: Any) -> list[dict[str, Any]]:
    """Compositions of the primitive cells of random crystals of MP-20 test."""
    import numpy as np

    from hf_crystal import canonicalize, load_crystal_dataset

    rows = load_crystal_dataset(str(data), split_column="split")["test"]
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [{"composition": canonicalize(rows[int(index)], settings=settings).composition} for index in chosen]


def one_by_one(model: Any, tokenizer: Any, grammar: Any, prompts: list[Any], seed: int) -> None:
    """The plain way: one sequence at a time, no cache, the plain grammar asked at every step."""
    import torch
    from transformers import LogitsProcessorList

    from hf_crystal.mat2seq.logits_processor import PlainCrystalLogitsProcessor

    torch.manual_seed(seed)
    for prompt in prompts:
        ids = torch.tensor([prompt.ids])
        processor = PlainCrystalLogitsProcessor(tokenizer, grammar, [prompt.constraint])
        sequence = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            logits_processor=LogitsProcessorList([processor]),
            use_cache=False,
            do_sample=True,
            top_k=0,
            max_length=grammar.max_tokens,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        tokenizer.decode_structure(sequence[0])


def main(args: argparse.Namespace) -> int:
    """Print the figures; the last line is JSON."""
    from hf_crystal import Mat2SeqForCausalLM, Mat2SeqTokenizer
    from hf_crystal.checkpoints import embedded_checkpoint
    from hf_crystal.mat2seq.grammar import CrystalGrammar
    from hf_crystal.mat2seq.prompts import CrystalPrompt, prepare_prompt

    folder = args.model or embedded_checkpoint("mat2seq-mp20")
    tokenizer = Mat2SeqTokenizer.from_pretrained(folder)
    model = Mat2SeqForCausalLM.from_pretrained(folder).eval()
    data = Path(args.data_dir) / "data" / "mp_20.parquet"
    asked = read_prompts(data, args.num_prompts, args.seed, tokenizer.settings)
    grammar = CrystalGrammar(tokenizer, max_tokens=model.config.max_position_embeddings)
    prompts = [prepare_prompt(CrystalPrompt(**fields), tokenizer, grammar) for fields in asked]
    rows = args.num_prompts * args.samples
    settings = {"num_prompts": args.num_prompts, "samples": args.samples, "batch_size": rows, "data": "mp_20 test"}
    parameters = sum(p.numel() for p in model.parameters())
    report = Report("generation", {**settings, "model": "mat2seq-mp20", "parameters": parameters})

    plain = measure(lambda: one_by_one(model, tokenizer, grammar, prompts, args.seed), args.repeats, warmup=1)
    report.add_rate("one by one, no cache, plain grammar", len(prompts), plain, "crystals/s")
    options = {"seed": args.seed, "batch_size": rows, "grammar": grammar}

    def fast_run() -> Any:
        return model.generate_crystals_for_prompts(tokenizer, asked, num_return=args.samples, **options)

    fast = measure(fast_run, args.repeats)
    slow_rate = len(prompts) / plain.median
    report.add_rate(
        "batch, cache, masks, shared prefill", rows, fast, "crystals/s", bound=20 * slow_rate, bound_name="wanted"
    )
    report.add("batch against one by one", rows / fast.median / slow_rate, "times", bound=20, bound_name="wanted")

    report.finish()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("HF_CRYSTAL_BENCH_DATA")
    parser.add_argument("--data-dir", default=default, required=default is None, help="folder with data/mp_20.parquet")
    parser.add_argument("--model", help="folder with model and tokenizer; the embedded generator by default")
    parser.add_argument("--num-prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=32, help="samples of each prompt")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(main(parser.parse_args()))
