r"""Compare ways of writing numbers: 1, 2 or 3 decimal digits per token, same model, same CPU time.

    OMP_NUM_THREADS=1 python scripts/compare_numbers.py runs/mat2seq/tokens --cpu-seconds 250

The first argument is a folder of token rows that scripts/train_mat2seq.py made (tokens/ of a run); its texts are split
anew. Each way gets a fresh model and the same CPU seconds; the loss is given per crystal, since tokens differ, and the
match rate at n = 1 (greedy, grammar, StructureMatcher of the DiffCSP protocol) is counted on validation crystals
as their sequences decode. Prints one line per way and JSON on the last line.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

WEIGHT_DECAY = 0.05


def rows_with_digits(rows: Any, tokenizer: Any, other: Any) -> Any:
    """Token rows in the spelling of another tokenizer."""
    from hf_crystal.mat2seq.sequence_text import split_text

    def rewrite(row: dict[str, Any]) -> dict[str, Any]:
        tokens = split_text(tokenizer.decode(row["input_ids"]), other.layout)
        ids = other.convert_tokens_to_ids([other.bos_token, *tokens, other.eos_token])
        return {**row, "input_ids": ids, "length": len(ids)}

    return [rewrite(row) for row in rows]


def batches(rows: list[dict[str, Any]], size: int, seed: int) -> Iterator[list[dict[str, Any]]]:
    """Endless batches of rows of like length, in an order drawn anew for each pass."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(rows), generator=generator).tolist()
        block = 50 * size
        groups: list[list[int]] = []
        for start in range(0, len(order), block):
            part = sorted(order[start : start + block], key=lambda index: rows[index]["length"])
            groups += [part[at : at + size] for at in range(0, len(part), size)]
        for group in torch.randperm(len(groups), generator=generator).tolist():
            yield [rows[index] for index in groups[group]]


def train(
    model: Any, collator: Any, rows: list[dict[str, Any]], *, cpu_seconds: float, rate: float, size: int, seed: int
) -> int:
    """Train for so many CPU seconds, cosine rate with warm-up; returns the number of steps."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    model.train()
    start = time.process_time()
    for step, batch in enumerate(batches(rows, size, seed)):
        used = (time.process_time() - start) / cpu_seconds
        if used >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / 100, 0.5 * (1 + math.cos(math.pi * used)))
        model(**collator(batch)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return step


def greedy(model: Any, tokenizer: Any, rows: list[dict[str, Any]], size: int = 50) -> list[Any]:
    """The crystal of each row's composition by greedy decoding, within the grammar."""
    from transformers import LogitsProcessorList

    from hf_crystal.mat2seq.grammar import CrystalGrammar, PromptConstraint
    from hf_crystal.mat2seq.modeling_mat2seq import CrystalLogitsProcessor

    made: list[Any] = []
    grammar = CrystalGrammar(tokenizer, max_tokens=300)
    model.eval()
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        heads = [row["input_ids"][: row["answer_start"]] for row in part]
        longest = max(map(len, heads))
        ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(head)) + head for head in heads])
        constraints = [PromptConstraint.build([tokenizer.parse(row["input_ids"]).composition]) for row in part]
        output = model.generate(
            input_ids=ids,
            attention_mask=(ids != tokenizer.pad_token_id).long(),
            logits_processor=LogitsProcessorList([CrystalLogitsProcessor(tokenizer, grammar, constraints)]),
            do_sample=False,
            max_length=longest + 300,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        made += tokenizer.batch_decode_structures(output)
    return made


def measure(digits: int, folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train with one way of writing and judge it."""
    import datasets

    from hf_crystal import Mat2SeqForCausalLM, Mat2SeqTokenizer
    from hf_crystal.evaluation import match_rate
    from hf_crystal.mat2seq.modeling_mat2seq import mat2seq_config
    from hf_crystal.training.generator_data import Mat2SeqCollator
    from hf_crystal.training.generator_validity import answer_loss

    written, tokenizer = Mat2SeqTokenizer(), Mat2SeqTokenizer(digits_per_token=digits)
    splits = {
        name: rows_with_digits(rows, written, tokenizer) for name, rows in datasets.load_from_disk(folder).items()
    }
    torch.manual_seed(args.seed)
    shape = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = mat2seq_config("tiny", tokenizer, intermediate_size=384, max_position_embeddings=512, **shape)
    model = Mat2SeqForCausalLM(config)
    steps = train(
        model,
        Mat2SeqCollator(tokenizer, 0.3, 0.5),
        splits["train"],
        cpu_seconds=args.cpu_seconds,
        rate=2e-3,
        size=32,
        seed=args.seed,
    )
    loss = answer_loss(model, tokenizer, datasets.Dataset.from_list(splits["validation"]))
    chosen = splits["validation"][: args.count]  # the test part is for what has been chosen
    matches = match_rate(
        greedy(model, tokenizer, chosen), [tokenizer.decode_structure(row["input_ids"]) for row in chosen]
    )
    return {
        "digits_per_token": digits,
        "vocabulary": len(tokenizer),
        "mean_tokens": sum(row["length"] for row in splits["train"]) / len(splits["train"]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "epochs": round(32 * steps / len(splits["train"]), 2),
        "nats_per_crystal": loss["nats_per_crystal"],
        "nats_per_token": loss["nats_per_token"],
        "validation_crystals": loss["crystals"],
        "match_rate": matches.match_rate,
        "rmse": matches.to_dict()["rmse"],
        "matched_crystals": len(chosen),
        "protocol": matches.protocol,
    }


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", help="folder of token rows of scripts/train_mat2seq.py")
    parser.add_argument("--digits", type=int, nargs="+", default=[1, 2, 3], choices=[1, 2, 3])
    parser.add_argument("--cpu-seconds", type=float, default=250.0, help="training time of each way")
    parser.add_argument("--count", type=int, default=200, help="validation compositions for the match rate")
    parser.add_argument("--seed", type=int, default=123)
    args = parser.parse_args()
    results = []
    for digits in args.digits:
        results.append(measure(digits, args.tokens, args))
        print({key: value for key, value in results[-1].items() if key != "protocol"}, flush=True)
    print(json.dumps({"cpu_seconds": args.cpu_seconds, "seed": args.seed, "ways": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
