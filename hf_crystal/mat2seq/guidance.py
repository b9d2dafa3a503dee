# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Classifier-free guidance: conditions that weigh more than they do in the model's own distribution."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor

from .grammar import CrystalGrammar
from .logits_processor import SequenceReader, pad_rows
from .prompts import PreparedPrompt
from .tokenization_mat2seq import Mat2SeqTokenizer

__all__ = ["ConditionGuidance", "unconditional_heads"]


def unconditional_heads(
    tokenizer: Mat2SeqTokenizer, grammar: CrystalGrammar, prompts: Sequence[PreparedPrompt]
) -> list[list[int]]:
    """Ids of the prompts without their conditions."""
    reader = SequenceReader(tokenizer, grammar)
    return [[tokenizer.bos_token_id, *reader.written(list(prompt.ids))] for prompt in prompts]


class ConditionGuidance(UnbatchedClassifierFreeGuidanceLogitsProcessor):
    """Each token follows p(token | condition)^scale p(token)^(1 - scale) (Ho and Salimans 2022, arXiv:2207.12598).

    The generator learns p(token) too, since conditions are dropped at random in training. The second reading of each
    row goes through transformers' own processor; this class adds batches of different prompts and rows that leave.
    Stands in front of the grammar: it needs the logits of all tokens.

    Args:
        scale: Guidance scale: 1 changes nothing, above 1 the condition weighs more.
        model: Causal language model.
        tokenizer: The tokenizer.
        grammar: The grammar.
        prompts: One per row of the batch.
    """

    def __init__(
        self,
        scale: float,
        model: Any,
        tokenizer: Mat2SeqTokenizer,
        grammar: CrystalGrammar,
        prompts: Sequence[PreparedPrompt],
    ):
        rows = unconditional_heads(tokenizer, grammar, prompts)
        padded: Any = pad_rows(rows, tokenizer.pad_token_id, model.device, left=True)
        super().__init__(scale, model, *padded)

    def keep(self, rows: torch.Tensor) -> None:
        """Forget all rows but these."""
        context: dict[str, Any] = self.unconditional_context
        for name in ("input_ids", "attention_mask"):
            context[name] = context[name][rows]
        context["past_key_values"].batch_select_indices(rows)
