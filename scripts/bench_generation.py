r"""How fast are crystals generated, and what does the grammar cost?

Question: crystals per second of process CPU time with batches, cache, grammar masks and one reading of each prompt,
against sampling the same model one by one without a cache. Held fixed: the embedded generator, prompts of real
compositions (MP-20 test), several samples of each, temperature 1, seed. Beside it the same batch through `generate` of
transformers, which is what models other than a plain Llama take.

What the grammar adds is measured on the sampling alone (sequences are not decoded to structures): once with the
grammar, once with nothing forbidden and every row ending where it ended before, so that the model does the same work.
The bound is the time of the model alone, over the same steps of the same rows.

    OMP_NUM_THREADS=1 python scripts/bench_generation.py --data-dir ../shared

The last line of the output is JSON.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarking import Report, Timing, measure


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


def samplers(model: Any, tokenizer: Any, grammar: Any, rows: int) -> tuple[Any, Any, Any]:
    """Samplers that do not decode: with the grammar, with its record only, and with the model alone."""
    from hf_crystal.mat2seq.generation_steps import LlamaSteps
    from hf_crystal.mat2seq.logits_processor import CrystalLogitsProcessor
    from hf_crystal.mat2seq.sampler import CrystalSampler

    record: list[list[bool]] = []

    class Recording(CrystalLogitsProcessor):
        """The grammar; writes down which rows had ended after each step."""

        @property
        def ended(self) -> list[bool]:
            record.append(super().ended)
            return record[-1]

    class Replayed:
        """No grammar: rows end as they did."""

        def __init__(self) -> None:
            self._record = iter(record)

        @property
        def ended(self) -> list[bool]:
            return next(self._record)

        def start(self, rows: Any) -> None: ...
        def advance(self, token_ids: Any) -> None: ...
        def keep(self, rows: Any) -> None: ...
        def forbid_(self, scores: Any) -> Any:
            return scores

    class WithGrammar(CrystalSampler):
        def _processor(self, prompts: Any) -> Any:
            record.clear()
            return Recording(self.tokenizer, self.grammar, [prompt.constraint for prompt in prompts])

        def _decode(self, rows: Any, _likelihoods: Any) -> Any:
            return rows

    class WithoutGrammar(WithGrammar):
        def _processor(self, _prompts: Any) -> Any:
            return Replayed()

    class ModelAlone(WithoutGrammar):
        def _sample_by_steps(self, prompts: Any, rows: Any) -> Any:
            import torch

            steps = self._steps = self._steps or LlamaSteps(self.model)
            distinct, of_row = self._distinct(rows)
            tokens = self._begin(steps, [list(prompts[key].ids) for key in distinct], of_row)
            for ended, following in zip(record, record[1:] + record[-1:], strict=True):
                steps(tokens)
                if len(following) < len(ended):
                    left = (~torch.tensor(ended)).nonzero()[:, 0]
                    steps.keep(left)
                    tokens = tokens[left]
            return rows

    options = {"temperature": 1.0, "top_p": 1.0, "num_beams": 1, "batch_size": rows}
    return tuple(kind(model, tokenizer, grammar, **options) for kind in (WithGrammar, WithoutGrammar, ModelAlone))


def compare_static_cache(report: Report, model: Any, rows: int, repeats: int) -> None:
    """Thirty steps of one batch: ours, and the model's own with a static cache, eager and compiled."""
    import time

    import torch
    from transformers import StaticCache

    from hf_crystal.mat2seq.generation_steps import LlamaSteps

    head, length = 20, 50
    ids = torch.randint(3, model.config.vocab_size, (rows, length))

    def by_steps() -> None:
        steps = LlamaSteps(model)
        steps.read(ids[:, :head], torch.ones_like(ids[:, :head]))
        for place in range(head, length):
            steps(ids[:, place])

    def by_static_cache(forward: Any) -> None:
        cache = StaticCache(config=model.config, max_cache_len=length)
        model(input_ids=ids[:, :head], past_key_values=cache, use_cache=True)
        for place in range(head, length):
            positions = torch.full((rows, 1), place)
            forward(input_ids=ids[:, place, None], position_ids=positions, past_key_values=cache, use_cache=True)

    with torch.no_grad():
        compiled = torch.compile(model.forward, dynamic=False)
        begin = time.perf_counter()
        by_static_cache(compiled)
        report.add("compiling one batch size", time.perf_counter() - begin, "s")
        for name, function in (
            ("steps", by_steps),
            ("static cache", lambda: by_static_cache(model)),
            ("static cache, compiled", lambda: by_static_cache(compiled)),
        ):
            timing = measure(function, repeats)
            scale = 1000 / (length - head)
            report.add(f"a step of {rows} rows: {name}", scale * timing.median, "ms", spread=scale * timing.spread)


def main(args: argparse.Namespace) -> int:
    """Print the figures; the last line is JSON."""
    import numpy as np
    import torch

    from hf_crystal import Mat2SeqForCausalLM, Mat2SeqTokenizer
    from hf_crystal.checkpoints import embedded_checkpoint
    from hf_crystal.mat2seq import sampler as generation_sampler_mat2seq
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

    with mock.patch.object(generation_sampler_mat2seq, "has_llama_steps", return_value=False):
        stock = measure(fast_run, args.repeats)
    report.add_rate("the same through generate of transformers", rows, stock, "crystals/s")

    places = dict(enumerate(prompts))
    counts = dict.fromkeys(places, args.samples)

    def sample(sampler: Any) -> Any:
        torch.manual_seed(args.seed)
        with torch.no_grad():
            return list(sampler.draw(places, counts))

    # in turns, so that all three see the same state of the machine
    names = ("sampling alone, with grammar", "sampling alone, without grammar", "the model alone, the same steps")
    kinds = samplers(model, tokenizer, grammar, rows)
    times = np.array([[measure(lambda k=kind: sample(k), 1, 0).median for kind in kinds] for _ in range(args.repeats)])
    for name, (low, middle, high) in zip(names, np.percentile(times, [25, 50, 75], axis=0).T, strict=True):
        report.add_rate(name, rows, Timing(float(middle), float(high - low)), "crystals/s")
    added = float(np.median(times[:, 0] / times[:, 1])) - 1
    report.add("added by the grammar", 100 * added, "%", bound=15, bound_name="wanted")
    if args.compile:
        compare_static_cache(report, model, rows, args.repeats)
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
    parser.add_argument("--compile", action="store_true", help="also a static cache and torch.compile (needs g++)")
    sys.exit(main(parser.parse_args()))
