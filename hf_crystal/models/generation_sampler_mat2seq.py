# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Sequences out of a language model: batches of different prompts, each prompt read once for all its samples."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from .generation_guidance_mat2seq import ConditionGuidance
from .generation_processor_mat2seq import CrystalLogitsProcessor
from .generation_prompts_mat2seq import PreparedPrompt
from .grammar_constraint_mat2seq import PromptConstraint
from .grammar_mat2seq import CrystalGrammar
from .tokenization_mat2seq import DecodedCrystal, Mat2SeqTokenizer

__all__ = ["CrystalSampler"]

_FEW_ROWS = 8  # below, a step costs the same with half the rows


class CrystalSampler:
    """Draws crystals for prepared prompts.

    Args:
        model: Causal language model with the tokenizer's vocabulary.
        tokenizer: The tokenizer.
        grammar: The grammar.
        temperature: 0 for the most probable continuation.
        top_p: Nucleus sampling.
        num_beams: Above 1: beam search.
        batch_size: Sequences generated at a time.
        guidance: Scale of `ConditionGuidance` for rows with conditions; not for beam search or `draw_continuously`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Mat2SeqTokenizer,
        grammar: CrystalGrammar,
        *,
        temperature: float,
        top_p: float,
        num_beams: int,
        batch_size: int,
        guidance: float = 1.0,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.grammar = grammar
        self.temperature = float(temperature)
        self.top_p = float(top_p)
        self.num_beams = num_beams
        self.guidance = float(guidance)
        self.batch_size = max(1, batch_size // num_beams)
        self._ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
        self._drawing: list[LogitsProcessor] = []
        if self.temperature > 0:
            heat = [] if self.temperature == 1 else [TemperatureLogitsWarper(self.temperature)]
            nucleus = [TopPLogitsWarper(self.top_p)] if self.top_p < 1 else []
            self._drawing = [*heat, *nucleus, _Draw()]

    def draw(
        self, prompts: Mapping[int, PreparedPrompt], counts: Mapping[int, int]
    ) -> Iterator[tuple[int, DecodedCrystal]]:
        """Crystals with the key of their prompt, `counts` of each; samples of one prompt stand together."""
        beams = self.num_beams > 1
        rows = [key for key in prompts for _ in range(1 if beams else counts[key])]
        for begin in range(0, len(rows), self.batch_size):
            batch = rows[begin : begin + self.batch_size]
            if beams:
                returned = max(counts[key] for key in batch)
                keys = [key for key in batch for _ in range(returned)]
                found = list(zip(keys, self._search([prompts[key] for key in batch], returned), strict=True))
                yield from (item for place, item in enumerate(found) if place % returned < counts[item[0]])
            else:
                yield from zip(batch, self._sample(prompts, batch), strict=True)

    def draw_continuously(
        self, prompts: Mapping[int, PreparedPrompt], counts: Mapping[int, int]
    ) -> Iterator[tuple[int, DecodedCrystal]]:
        """The same by `generate_batch`.

        Raises:
            ValueError: for another model, and for beam search.
        """
        if self.num_beams > 1 or not hasattr(self.model, "with_processor"):
            raise ValueError("continuous_batching needs a Mat2SeqForCausalLM and num_beams 1")
        left = dict(prompts)
        while left:
            # The engine tells sequences apart by how they begin: prompts that begin alike take turns.
            constraints: dict[tuple[int, ...], PromptConstraint] = {}
            turn = [k for k, p in left.items() if constraints.setdefault(p.ids, p.constraint) == p.constraint]
            yield from self._draw_turn([(key, left.pop(key)) for key in turn], counts, constraints)

    def _draw_turn(
        self,
        prompts: list[tuple[int, PreparedPrompt]],
        counts: Mapping[int, int],
        constraints: Mapping[tuple[int, ...], PromptConstraint],
    ) -> Iterator[tuple[int, DecodedCrystal]]:
        from .generation_continuous_mat2seq import ContinuousCrystalProcessor, generate_continuously

        rows = [(key, prompt.ids) for key, prompt in prompts for _ in range(counts[key])]
        generated = generate_continuously(
            self.model,
            [ids for _, ids in rows],
            ContinuousCrystalProcessor(self.tokenizer, self.grammar, constraints),
            max_new_tokens=self.grammar.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        for begin in range(0, len(rows), self.batch_size):
            part = rows[begin : begin + self.batch_size]
            answers = generated[begin : begin + self.batch_size]
            sequences = [[*ids, *answer] for (_, ids), answer in zip(part, answers, strict=True)]
            likelihoods = self._score(sequences, [len(ids) for _, ids in part])
            yield from zip([key for key, _ in part], self._decode(sequences, likelihoods), strict=True)

    # --------------------------------------------------------------------------------------------------- one batch

    def _sample(self, prompts: Mapping[int, PreparedPrompt], rows: list[int]) -> list[DecodedCrystal]:
        """One crystal per row, a row being the key of its prompt.

        Rows that have ended leave the batch whenever they are half of it: the longest sequence of a batch has about
        three times the mean length.
        """
        distinct = list(dict.fromkeys(rows))
        of_row = torch.tensor([distinct.index(key) for key in rows], device=self.model.device)
        ids, mask = self._padded([list(prompts[key].ids) for key in distinct], left=True)
        options: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True}
        if len(distinct) < len(rows) and ids.shape[1] > 1:
            options["past_key_values"] = self._prefill(ids[:, :-1], mask[:, :-1], of_row)
        ids, mask = ids[of_row], mask[of_row]
        processor = self._processor([prompts[key] for key in rows])
        guides = self._guides([prompts[key] for key in rows])
        options["stopping_criteria"] = StoppingCriteriaList([_HalfEnded(self._ends)])
        places = torch.arange(len(rows))
        sequences: dict[int, list[int]] = {}
        likelihoods = torch.zeros(len(rows), dtype=torch.float64)
        limit = self.grammar.max_tokens + ids.shape[1]
        while len(places):
            output = self._generate(
                ids, mask, [*guides, processor, *self._drawing], limit, output_logits=True, **options
            )
            generated = output.sequences[:, ids.shape[1] :]
            likelihoods[places] += _likelihoods(output.logits, generated, self.tokenizer.pad_token_id).cpu()
            ended = torch.isin(output.sequences[:, -1], torch.tensor(self._ends, device=ids.device))
            if output.sequences.shape[1] >= limit:
                ended[:] = True
            for place, row in zip(places[ended.cpu()].tolist(), output.sequences[ended].tolist(), strict=True):
                sequences[place] = row
            keep = (~ended).nonzero()[:, 0]
            places = places[keep.cpu()]
            ids = output.sequences[keep]
            mask = torch.cat([mask[keep], mask.new_ones(len(keep), generated.shape[1])], dim=1)
            options["past_key_values"] = output.past_key_values
            if len(keep):
                output.past_key_values.batch_select_indices(keep)
                processor.keep(keep)
                for guide in guides:
                    guide.keep(keep)
        return self._decode([sequences[place] for place in range(len(rows))], likelihoods.tolist())

    def _prefill(self, ids: torch.Tensor, mask: torch.Tensor, of_row: torch.Tensor) -> Any:
        """Keys and values of the prompts, read once each and handed to all rows."""
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        output = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True)
        cache = output.past_key_values
        cache.batch_select_indices(of_row)
        return cache

    def _search(self, prompts: list[PreparedPrompt], returned: int) -> list[DecodedCrystal]:
        """The best beams of each prompt."""
        ids, mask = self._padded([list(prompt.ids) for prompt in prompts], left=True)
        options = {"num_beams": self.num_beams, "num_return_sequences": returned, "do_sample": False}
        limit = self.grammar.max_tokens + ids.shape[1]
        sequences = self._generate(ids, mask, [self._processor(prompts)], limit, **options).tolist()
        rows = [self._stripped(row) for row in sequences]
        lengths = [len(prompt.ids) for prompt in prompts for _ in range(returned)]
        return self._decode(rows, self._score(rows, lengths))

    def _processor(self, prompts: list[PreparedPrompt]) -> CrystalLogitsProcessor:
        return CrystalLogitsProcessor(self.tokenizer, self.grammar, [prompt.constraint for prompt in prompts])

    def _guides(self, prompts: list[PreparedPrompt]) -> list[ConditionGuidance]:
        if self.guidance == 1 or not any(prompt.has_conditions for prompt in prompts):
            return []
        return [ConditionGuidance(self.guidance, self.model, self.tokenizer, self.grammar, prompts)]

    def _generate(
        self, ids: torch.Tensor, mask: torch.Tensor, processors: list[LogitsProcessor], limit: int, **options: Any
    ) -> Any:
        return self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            logits_processor=LogitsProcessorList(processors),
            max_length=limit,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            **options,
        )

    def _padded(self, rows: list[list[int]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and attention mask of rows of different lengths."""
        width = max(map(len, rows))
        pad = [[0] * (width - len(row)) for row in rows]
        fill = self.tokenizer.pad_token_id
        ids = [[fill] * len(p) + row if left else row + [fill] * len(p) for p, row in zip(pad, rows, strict=True)]
        mask = [p + [1] * len(row) if left else [1] * len(row) + p for p, row in zip(pad, rows, strict=True)]
        return torch.tensor(ids, device=self.model.device), torch.tensor(mask, device=self.model.device)

    def _stripped(self, ids: list[int]) -> list[int]:
        """Ids without padding in front and behind."""
        begin = ids.index(self.tokenizer.bos_token_id)
        return ids[begin : ids.index(self.tokenizer.eos_token_id, begin) + 1]

    def _score(self, rows: list[list[int]], lengths: list[int]) -> list[float]:
        """Log-likelihoods of what follows the first `lengths` ids of each row."""
        ids, mask = self._padded(rows, left=False)
        logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        chosen = logits.log_softmax(dim=-1).gather(2, ids[:, 1:, None])[..., 0].double()
        place = torch.arange(1, ids.shape[1], device=ids.device)
        generated = (place >= torch.tensor(lengths, device=ids.device)[:, None]) & (mask[:, 1:] > 0)
        return torch.where(generated, chosen, 0.0).sum(dim=1).tolist()

    def _decode(self, rows: list[list[int]], likelihoods: list[float]) -> list[DecodedCrystal]:
        decoded = self.tokenizer.batch_decode_structures(rows)
        return [
            dataclasses.replace(item, log_likelihood=value) for item, value in zip(decoded, likelihoods, strict=True)
        ]


class _Draw(LogitsProcessor):
    """Draws a token of each row and leaves only this one; greedy `generate` then takes it.

    One random number per row: `torch.multinomial` takes one per row and token, a sixth of the time of a small model.
    """

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Zero for the token drawn, −∞ for the others.  `scores (B, V)`."""
        summed = scores.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
        number = torch.rand(len(scores), 1, dtype=torch.float64, device=scores.device) * summed[:, -1:]
        # The first token whose sum exceeds the number has a probability above zero.
        chosen = torch.searchsorted(summed, number, right=True)
        chosen = torch.where(chosen < scores.shape[1], chosen, scores.argmax(dim=-1, keepdim=True))
        return torch.full_like(scores, -math.inf).scatter_(1, chosen, 0.0)


class _HalfEnded(StoppingCriteria):
    """Stops a batch of more than a few rows when half of them have ended."""

    def __init__(self, ends: list[int]):
        self._ends = ends

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ARG002
        rows = len(input_ids)
        ended = torch.isin(input_ids[:, -1], torch.tensor(self._ends, device=input_ids.device))
        return (ended.sum() * 2 >= rows).expand(rows) if rows > _FEW_ROWS else torch.zeros_like(ended)


def _likelihoods(logits: tuple[torch.Tensor, ...], generated: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """Sum of log-probabilities of the generated tokens, padding left out; one per sequence."""
    total = torch.zeros(len(generated), dtype=torch.float64, device=generated.device)
    for step, scores in enumerate(logits):
        column = generated[:, step]
        chosen = scores.gather(1, column[:, None])[:, 0] - scores.logsumexp(dim=-1)
        total += torch.where(column == pad_token_id, torch.zeros_like(chosen), chosen)
    return total
