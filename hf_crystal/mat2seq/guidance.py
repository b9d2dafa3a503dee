# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Classifier-free guidance: conditions that weigh more than they do in the model's own distribution."""

from collections.abc import Sequence

import torch

from .grammar import CrystalGrammar
from .logits_processor import SequenceReader
from .prompts import PreparedPrompt
from .tokenization_mat2seq import Mat2SeqTokenizer

__all__ = ["guided", "unconditional_heads"]


def unconditional_heads(
    tokenizer: Mat2SeqTokenizer, grammar: CrystalGrammar, prompts: Sequence[PreparedPrompt]
) -> list[list[int]]:
    """Ids of the prompts without their conditions."""
    reader = SequenceReader(tokenizer, grammar)
    return [[tokenizer.bos_token_id, *reader.written(list(prompt.ids))] for prompt in prompts]


def guided(conditional: torch.Tensor, free: torch.Tensor, scale: float) -> torch.Tensor:
    """Log of p(token | condition)^scale p(token)^(1 - scale) (Ho and Salimans 2022, arXiv:2207.12598).

    The generator learns p(token) too, since conditions are dropped at random in training. Forbidden tokens are masked
    afterwards: the formula needs the probabilities of all.

    Args:
        conditional: Log-probabilities under the condition, shape (B, V).
        free: The same without the condition.
        scale: 1 changes nothing, above 1 the condition weighs more, 0 ignores it.
    """
    return torch.lerp(free, conditional, scale)
