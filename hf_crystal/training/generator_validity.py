"""How good a generator is while it trains: loss of the answer, and what it writes without the grammar."""

# ruff: noqa: ARG002  (the signatures are those of TrainerCallback)

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_crystal.training.generator_data import Mat2SeqCollator
from hf_crystal.typing import Generator

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_crystal.mat2seq.tokenization_mat2seq import Mat2SeqTokenizer


def answer_loss(
    model: Generator,
    tokenizer: "Mat2SeqTokenizer",
    rows: "Dataset",
    *,
    batch_size: int = 128,
    conditions: bool = False,
) -> dict[str, float]:
    """Loss of what follows the composition, exactly averaged over tokens.

    Args:
        model: Causal language model.
        tokenizer: The tokenizer.
        rows: Token rows of `tokenize_splits`.
        batch_size: Rows per batch.
        conditions: Whether all known conditions stand in front.

    Returns:
        `nats_per_token`, `perplexity`, `nats_per_crystal`, `tokens`, `crystals`.
    """
    collator = Mat2SeqCollator(tokenizer, float(conditions), composition_loss_probability=0.0)
    nats, tokens = 0.0, 0
    model.eval()
    ordered = rows.select(np.argsort(rows["length"], kind="stable"))  # like lengths together: less padding
    with torch.no_grad():
        for start in range(0, len(ordered), batch_size):
            batch = collator(list(ordered.select(range(start, min(start + batch_size, len(ordered))))))
            labels = batch.pop("labels").to(model.device)
            logits = model(**{key: value.to(model.device) for key, value in batch.items()}).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), reduction="sum"
            )
            nats += float(loss)
            tokens += int((labels[:, 1:] >= 0).sum())
    mean = nats / tokens
    return {
        "nats_per_token": mean,
        "perplexity": math.exp(mean),
        "nats_per_crystal": nats / len(rows),
        "tokens": tokens,
        "crystals": len(rows),
    }


def free_validity(
    model: Generator,
    tokenizer: "Mat2SeqTokenizer",
    rows: Sequence[Mapping[str, Any]],
    *,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, float]:
    """Sample one sequence per row's composition without the grammar (temperature 1).

    Returns:
        `decoded`: share that is a crystal; `composition`: share that is a crystal of the composition asked for;
        `samples`.
    """
    decoded = right = 0
    limit = int(model.config.max_position_embeddings)
    model.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        for start in range(0, len(rows), batch_size):
            heads = [list(row["input_ids"][: row["answer_start"]]) for row in rows[start : start + batch_size]]
            longest = max(len(head) for head in heads)
            padded = [[tokenizer.pad_token_id] * (longest - len(head)) + head for head in heads]
            ids = torch.tensor(padded, device=model.device)
            output = model.generate(  # type: ignore[misc,operator]  # transformers types `self` as a protocol
                input_ids=ids,
                attention_mask=(ids != tokenizer.pad_token_id).long(),
                do_sample=True,
                top_k=0,
                use_cache=True,
                max_length=min(limit, longest + 200),
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            for row, item in zip(
                rows[start : start + batch_size], tokenizer.batch_decode_structures(output), strict=True
            ):
                decoded += item.structure is not None
                right += item.canonical is not None and _spends_its_composition(item.canonical, row, tokenizer)
    return {"decoded": decoded / len(rows), "composition": right / len(rows), "samples": len(rows)}


def _spends_its_composition(crystal: Any, row: Mapping[str, Any], tokenizer: "Mat2SeqTokenizer") -> bool:
    """Whether the atoms written are those announced; decoding checks the sum, this checks the prompt."""
    head = tokenizer.encode(tokenizer.to_text(crystal))[: row["answer_start"]]
    return head == list(row["input_ids"][: row["answer_start"]])


class ValidityCallback(TrainerCallback):
    """Measure `free_validity` at every evaluation and keep it in the log history.

    Args:
        tokenizer: The tokenizer.
        rows: Rows whose compositions are asked for.
        seed: Seed of the sampling.
    """

    def __init__(self, tokenizer: "Mat2SeqTokenizer", rows: Sequence[Mapping[str, Any]], seed: int):
        self.tokenizer = tokenizer
        self.rows = list(rows)
        self.seed = seed

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add `eval_decoded` and `eval_composition` to the newest entry of the history."""
        if not self.rows or not state.is_world_process_zero:
            return
        model = kwargs["model"]
        was_training = model.training
        measured = free_validity(model, self.tokenizer, self.rows, seed=self.seed)
        model.train(was_training)
        for entry in reversed(state.log_history):
            if "eval_loss" in entry:
                entry.update({f"eval_{name}": value for name, value in measured.items()})
                break
