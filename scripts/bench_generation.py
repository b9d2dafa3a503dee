r"""How fast are crystals generated, and what does the grammar cost?

Question: crystals per second of process CPU time with batches, cache, grammar masks and one reading of each prompt,
against sampling the same model one by one without a cache; and against the same batches without masks. Held fixed: the
embedded generator, prompts of real compositions (MP-20 test), several samples of each, temperature 1, seed. Without
masks the sequences are written for as many steps as the masked ones took, so both do the same work for the model. The
bound is the time of the model alone: a forward pass per step on a full cache of that batch.

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

    from hf_crystal.models.generation_processor_mat2seq import PlainCrystalLogitsProcessor

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


def batch_steps(
    model: Any, tokenizer: Any, ids: Any, mask: Any, processors: list[Any], seed: int, **limits: Any
) -> Any:
    """`generate` on one batch; nothing else, so that with and without masks can be compared."""
    import torch
    from transformers import LogitsProcessorList

    torch.manual_seed(seed)
    return model.generate(
        input_ids=ids,
        attention_mask=mask,
        logits_processor=LogitsProcessorList(processors),
        do_sample=True,
        top_k=0,
        pad_token_id=tokenizer.pad_token_id,
        **limits,
    )


def main(args: argparse.Namespace) -> int:
    """Print the figures; the last line is JSON."""
    import torch

    from hf_crystal import Mat2SeqForCausalLM, Mat2SeqTokenizer
    from hf_crystal.checkpoints import embedded_checkpoint
    from hf_crystal.models.generation_processor_mat2seq import CrystalLogitsProcessor
    from hf_crystal.models.generation_prompts_mat2seq import CrystalPrompt, prepare_prompt
    from hf_crystal.models.grammar_mat2seq import CrystalGrammar

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
    fast = measure(
        lambda: model.generate_crystals_for_prompts(tokenizer, asked, num_return=args.samples, **options), args.repeats
    )
    slow_rate = len(prompts) / plain.median
    report.add_rate(
        "batch, cache, masks, shared prefill", rows, fast, "crystals/s", bound=20 * slow_rate, bound_name="wanted"
    )
    report.add("batch against one by one", rows / fast.median / slow_rate, "times", bound=20, bound_name="wanted")

    width = max(len(prompt.ids) for prompt in prompts)
    pads = [[0] * (width - len(prompt.ids)) for prompt in prompts]
    ids = torch.tensor([[tokenizer.pad_token_id] * len(p) + list(q.ids) for p, q in zip(pads, prompts, strict=True)])
    mask = torch.tensor([p + [1] * len(q.ids) for p, q in zip(pads, prompts, strict=True)])
    ids, mask = (part.repeat_interleave(args.samples, dim=0) for part in (ids, mask))
    constraints = [prompt.constraint for prompt in prompts]

    def masked(seed: int = args.seed) -> Any:
        processor = CrystalLogitsProcessor(tokenizer, grammar, constraints)
        limit = {"max_length": grammar.max_tokens + width, "eos_token_id": tokenizer.eos_token_id}
        return batch_steps(model, tokenizer, ids, mask, [processor], seed, **limit)

    steps = masked().shape[1] - width

    def unmasked() -> Any:
        # no end token: exactly as many steps, rows that are done are computed to the end in both
        return batch_steps(model, tokenizer, ids, mask, [], args.seed, max_new_tokens=steps, eos_token_id=None)

    with_grammar, without = measure(masked, args.repeats), measure(unmasked, args.repeats)
    report.add_rate("generate alone, with masks", rows, with_grammar, "crystals/s")
    report.add_rate("generate alone, without masks, as many steps", rows, without, "crystals/s")
    share = 1 - without.median / with_grammar.median
    report.add("share of the grammar in generate", 100 * share, "%", bound=15, bound_name="wanted")

    def model_alone() -> None:
        with torch.no_grad():
            cache = None
            for step in range(steps):
                new = ids if step == 0 else ids[:, -1:]
                cache = model(input_ids=new, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values

    bound = measure(model_alone, args.repeats)
    report.add_rate("the model alone, as many steps", rows, bound, "crystals/s")
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
