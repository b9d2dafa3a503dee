# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Grammar-constrained generation with the continuous batching of transformers (`generate_batch`)."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor

from .generation_processor_mat2seq import SequenceReader, forbid
from .grammar_constraint_mat2seq import PromptConstraint
from .grammar_masks_mat2seq import GrammarNode, masks_of
from .grammar_mat2seq import CrystalGrammar
from .tokenization_mat2seq import Mat2SeqTokenizer

__all__ = ["ContinuousCrystalProcessor", "generate_continuously"]


class ContinuousCrystalProcessor(ContinuousBatchingLogitsProcessor):
    """`CrystalLogitsProcessor` for `generate_batch`, which shows a processor only the newest token of each sequence.

    The sequences are read from the requests when a step is prepared; this needs synchronous batching and no graphs.

    Args:
        tokenizer: The tokenizer.
        grammar: The grammar.
        constraints: Prompt (ids) → constraint; a prompt that is not listed is free.
    """

    supported_kwargs: dict[str, type] = {}
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(
        self,
        tokenizer: Mat2SeqTokenizer,
        grammar: CrystalGrammar,
        constraints: Mapping[tuple[int, ...], PromptConstraint] | None = None,
    ):
        masks = masks_of(grammar, (tokenizer.eos_token_id, tokenizer.pad_token_id))
        self._reader = SequenceReader(tokenizer, grammar)
        self._free = masks.root(PromptConstraint())
        self._roots = {ids: masks.root(constraint) for ids, constraint in (constraints or {}).items()}
        self._lengths = sorted({len(ids) for ids in self._roots}, reverse=True)
        self._nodes: list[GrammarNode] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """No argument per request."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        """Find the place of each sequence that gets a token in this step."""
        self._nodes = []
        for request in requests_with_new_token:
            ids = [*request.state.initial_tokens, *request.state.generated_tokens]
            self._nodes.append(self._reader.find(self._root(ids), ids))
        return torch.arange(len(self._nodes), dtype=torch.int32)

    def _root(self, ids: list[int]) -> GrammarNode:
        """Root of the constraint of the prompt that a sequence begins with, the longest first."""
        for length in self._lengths:
            root = self._roots.get(tuple(ids[:length]))
            if root is not None:
                return root
        return self._free

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Set the logits of every other token to −∞.  `scores (B, V)`."""
        if scores.shape[0] != len(self._nodes):
            raise ValueError("generate_batch pads its steps; pass a ContinuousBatchingConfig without CUDA graphs")
        return forbid(scores, self._nodes)


@contextlib.contextmanager
def _attention_restored(model: Any) -> Iterator[None]:
    """`generate_batch` switches the model to paged attention; undo that."""
    before = model.config._attn_implementation
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def generate_continuously(
    model: Any,
    rows: Sequence[tuple[int, ...]],
    processor: ContinuousCrystalProcessor,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    eos_token_id: int,
    pad_token_id: int,
) -> list[list[int]]:
    """Generated ids (end included, prompt not) of each row.

    Raises:
        RuntimeError: if the engine gave up on a row.
    """
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        **sampling,
    )
    batching = ContinuousBatchingConfig(use_cuda_graph=False, use_async_batching=False)
    with _attention_restored(model), model.with_processor(processor):
        outputs = model.generate_batch(
            [list(ids) for ids in rows], generation_config=config, continuous_batching_config=batching
        )
    found = [list(output.generated_tokens) for output in outputs.values()]
    errors = [output.error for output in outputs.values() if output.error]
    if errors or len(found) != len(rows):
        raise RuntimeError(f"generate_batch failed on {len(rows) - len(found) + len(errors)} sequences: {errors[:1]}")
    return found
