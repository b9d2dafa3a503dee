# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Grammar-constrained generation with the continuous batching of transformers (`generate_batch`)."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessor
from transformers.generation.continuous_batching.cb_logits_processors import (
    CLASSIC_TO_CB_PROCESSORS_MAP,
    ContinuousBatchingLogitsProcessor,
)

from .grammar import CrystalGrammar
from .grammar_constraint import PromptConstraint
from .grammar_masks import GrammarNode, masks_of
from .logits_processor import SequenceReader, forbid
from .tokenization_mat2seq import Mat2SeqTokenizer

__all__ = ["ContinuousCrystalProcessor", "generate_continuously"]


_CPU_REQUESTS = 64  # sequences at a time
_CPU_PAGE = 64  # tokens per page of the cache


class ContinuousCrystalProcessor(LogitsProcessor):
    """`CrystalLogitsProcessor` for `generate_batch`, which shows a processor only the newest token of each sequence.

    Hand it to `Mat2SeqForCausalLM.with_processor`. The sequences are read from the engine's requests, so the
    `ContinuousBatchingConfig` needs `per_request_processors=True, use_async_batching=False, use_cuda_graph=False`.

    Args:
        tokenizer: The tokenizer.
        grammar: The grammar.
        constraints: Prompt (ids) → constraint; a prompt that is not listed is free.
    """

    supports_continuous_batching = True

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

    def find(self, ids: list[int]) -> GrammarNode:
        """Node of a sequence under the constraint of the prompt that it begins with, the longest such prompt."""
        for length in self._lengths:
            root = self._roots.get(tuple(ids[:length]))
            if root is not None:
                return self._reader.find(root, ids)
        return self._reader.find(self._free, ids)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Not called: the engine replaces it by its version per request."""
        raise ValueError("generate_batch needs ContinuousBatchingConfig(per_request_processors=True) for the grammar")


class _RequestProcessor(ContinuousBatchingLogitsProcessor):
    """What the engine makes of `ContinuousCrystalProcessor`."""

    supported_kwargs: dict[str, type] = {}
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self, processor: ContinuousCrystalProcessor):
        self._find = processor.find
        self._nodes: list[GrammarNode] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """No argument per request."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        """Find the place of each sequence that gets a token in this step."""
        states = [request.state for request in requests_with_new_token]
        self._nodes = [self._find([*state.initial_tokens, *state.generated_tokens]) for state in states]
        return torch.zeros(len(states), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Set the logits of every other token to −∞.  `scores (B, V)`."""
        if scores.shape[0] != len(self._nodes):
            raise ValueError("generate_batch pads its steps; the grammar needs use_cuda_graph=False")
        return forbid(scores, self._nodes)


CLASSIC_TO_CB_PROCESSORS_MAP[ContinuousCrystalProcessor] = _RequestProcessor


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
    limits: dict[str, Any] = {}
    if model.device.type == "cpu":  # the engine would take most of the memory, and write all of it
        pages = min(len(rows), _CPU_REQUESTS) * math.ceil((max_new_tokens + max(map(len, rows))) / _CPU_PAGE)
        limits = {"page_size": _CPU_PAGE, "num_blocks": pages, "max_batch_tokens": 8 * _CPU_REQUESTS}
    batching = ContinuousBatchingConfig(
        per_request_processors=True, use_cuda_graph=False, use_async_batching=False, **limits
    )
    with _attention_restored(model), model.with_processor(processor):
        outputs = model.generate_batch(
            [list(ids) for ids in rows], generation_config=config, continuous_batching_config=batching
        )
    found = [list(output.generated_tokens) for output in outputs.values()]
    errors = [output.error for output in outputs.values() if output.error]
    if errors or len(found) != len(rows):
        raise RuntimeError(f"generate_batch failed on {len(rows) - len(found) + len(errors)} sequences: {errors[:1]}")
    return found
