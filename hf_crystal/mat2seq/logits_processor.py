# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""The grammar as logits processors: a fast one for use, and a plain one to compare it with."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessor

from .grammar import CrystalGrammar, GrammarState
from .grammar_constraint import PromptConstraint
from .grammar_masks import GrammarNode, masks_of
from .tokenization_mat2seq import Mat2SeqTokenizer

__all__ = ["CrystalLogitsProcessor", "PlainCrystalLogitsProcessor", "SequenceReader", "pad_rows"]


def pad_rows(
    rows: Sequence[list[int]], fill: int, device: torch.device, *, left: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask `(B, L)` of rows of different lengths, padded in front or behind."""
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    ids = [[fill] * len(p) + row if left else row + [fill] * len(p) for p, row in zip(pads, rows, strict=True)]
    mask = [p + [1] * len(row) if left else [1] * len(row) + p for p, row in zip(pads, rows, strict=True)]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


class SequenceReader:
    """Where in a row of ids the crystal itself begins and ends."""

    def __init__(self, tokenizer: Mat2SeqTokenizer, grammar: CrystalGrammar):
        self._pad, self._eos = tokenizer.pad_token_id, tokenizer.eos_token_id
        names = (token for token in grammar.vocabulary if token.startswith("<") and token != tokenizer.eos_token)
        self._skipped = {grammar.vocabulary[name] for name in names}

    def written(self, ids: list[int]) -> list[int]:
        """Ids of the crystal: padding, begin and conditions left out, nothing after the end."""
        begin = 0
        while begin < len(ids) and ids[begin] in self._skipped:
            begin += 1
        end = ids.index(self._eos, begin) + 1 if self._eos in ids[begin:] else len(ids)
        return ids[begin:end]

    def find(self, root: GrammarNode, ids: list[int]) -> GrammarNode:
        """Node of a row of ids under `root`."""
        node = root
        for token_id in self.written(ids):
            node = node.step(token_id)
        return node


class CrystalLogitsProcessor(LogitsProcessor):
    """Leaves only tokens from which a complete crystal can still be written.

    Works with sampling, greedy and beam search and with a batch of different prompts: rows are told apart by what is
    written in them, and `constraints` are spread over the rows in equal blocks.

    Args:
        tokenizer: The tokenizer.
        grammar: The grammar.
        constraints: One constraint, or one per prompt of the batch; none by default.
    """

    def __init__(
        self,
        tokenizer: Mat2SeqTokenizer,
        grammar: CrystalGrammar,
        constraints: PromptConstraint | Sequence[PromptConstraint] | None = None,
    ):
        if constraints is None or isinstance(constraints, PromptConstraint):
            constraints = [constraints or PromptConstraint()]
        masks = masks_of(grammar, (tokenizer.eos_token_id, tokenizer.pad_token_id))
        roots = {constraint: masks.root(constraint) for constraint in constraints}
        self._roots = [roots[constraint] for constraint in constraints]
        self._reader = SequenceReader(tokenizer, grammar)
        self._ids: torch.Tensor | None = None
        self._nodes: list[GrammarNode] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Set the logits of every other token to −∞.  `input_ids (B, L)`, `scores (B, V)`."""
        if self._continues(input_ids):
            self.advance(input_ids[:, -1].tolist())
        else:  # the first call, or beams changed places
            self.start(input_ids.tolist())
        self._ids = input_ids
        return self.forbid_(scores.clone())

    def start(self, rows: Sequence[list[int]]) -> None:
        """Begin with what is written in the rows."""
        share = len(rows) // len(self._roots) if len(rows) >= len(self._roots) else 1
        self._nodes = [
            self._reader.find(self._roots[min(row // share, len(self._roots) - 1)], ids)
            for row, ids in enumerate(rows)
        ]

    def advance(self, token_ids: Sequence[int]) -> None:
        """One more token of each row."""
        self._nodes = [node.step(token_id) for node, token_id in zip(self._nodes, token_ids, strict=True)]

    def forbid_(self, scores: torch.Tensor, row: int | None = None) -> torch.Tensor:
        """−∞ in place for what may not come next.  `scores (B, V)`, or `(1, V)` of one row."""
        nodes = self._nodes if row is None else [self._nodes[row]]
        return scores.masked_fill_(_forbidden(scores, nodes), -math.inf)

    @property
    def ended(self) -> list[bool]:
        """Whether each row has ended."""
        return [node.done for node in self._nodes]

    def keep(self, rows: torch.Tensor) -> None:
        """Only these rows stay; they are a batch of their own, one constraint per row."""
        self._nodes = [self._nodes[row] for row in rows.tolist()]
        self._roots = [self._roots[row] for row in rows.tolist()]

    def _continues(self, input_ids: torch.Tensor) -> bool:
        before = self._ids
        return (
            before is not None
            and before.shape == (input_ids.shape[0], input_ids.shape[1] - 1)
            and torch.equal(input_ids[:, :-1], before)
        )


def _forbidden(scores: torch.Tensor, nodes: Sequence[GrammarNode]) -> torch.Tensor:
    rows = np.concatenate([node.forbidden for node in nodes])
    mask = torch.from_numpy(rows).view(len(nodes), -1).to(scores.device)
    extra = scores.shape[1] - mask.shape[1]  # a model may have more logits than the vocabulary has tokens
    return torch.nn.functional.pad(mask, (0, extra), value=True) if extra else mask


class PlainCrystalLogitsProcessor(LogitsProcessor):
    """Reference of `CrystalLogitsProcessor`: asks the plain grammar about every row, from its beginning.

    Args:
        tokenizer: The tokenizer.
        grammar: The grammar.
        constraints: One per row.
    """

    def __init__(self, tokenizer: Mat2SeqTokenizer, grammar: CrystalGrammar, constraints: Sequence[PromptConstraint]):
        self.grammar = grammar
        self.constraints = constraints
        self._reader = SequenceReader(tokenizer, grammar)
        self._token_of = {i: token for token, i in grammar.vocabulary.items()}
        self._ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Set the logits of every token that is not allowed to −∞.  `input_ids (B, L)`, `scores (B, V)`."""
        mask = torch.full_like(scores, -math.inf)
        for row, (ids, constraint) in enumerate(zip(input_ids.tolist(), self.constraints, strict=True)):
            state = GrammarState()
            for token_id in self._reader.written(ids):
                state = self.grammar.advance(state, self._token_of[token_id], constraint)
            if state.phase == "end":
                mask[row, self._ends] = 0.0
            else:
                tokens = self.grammar.allowed_tokens(state, constraint)
                mask[row, [self.grammar.vocabulary[token] for token in tokens]] = 0.0
        return scores + mask
