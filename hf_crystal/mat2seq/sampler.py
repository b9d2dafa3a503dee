# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Sequences out of a language model: batches of different prompts, each prompt read once for all its samples.

Llama models take the steps of `generation_steps_mat2seq`; other models and beam search go through `generate` of
transformers. The same seed gives the same crystals both ways, as far as rounding does not turn a draw.
"""

import copy
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

from .generation_steps import LlamaSteps, has_llama_steps, read_prompts
from .grammar import CrystalGrammar
from .grammar_constraint import PromptConstraint
from .guidance import ConditionGuidance, unconditional_heads
from .logits_processor import CrystalLogitsProcessor, pad_rows
from .prompts import PreparedPrompt
from .tokenization_mat2seq import DecodedCrystal, Mat2SeqTokenizer

__all__ = ["CrystalSampler"]

_FEW_ROWS = 8  # below, a step of `generate` costs the same with half the rows
_ENDED_SHARE = 8  # rows that have ended leave when they are one of so many: leaving copies the cache of the others


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
        self._warpers: list[LogitsProcessor] = []
        if self.temperature not in (0, 1):
            self._warpers.append(TemperatureLogitsWarper(self.temperature))
        if self.temperature > 0 and self.top_p < 1:
            self._warpers.append(TopPLogitsWarper(self.top_p))
        self._steps: LlamaSteps | None = None

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
        from .generation_continuous import ContinuousCrystalProcessor, generate_continuously

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
        """One crystal per row, a row being the key of its prompt."""
        return (self._sample_by_steps if has_llama_steps(self.model) else self._sample_by_generate)(prompts, rows)

    def _sample_by_steps(self, prompts: Mapping[int, PreparedPrompt], rows: list[int]) -> list[DecodedCrystal]:
        """`_sample_by_generate` without `generate`: rows leave soon after they have ended."""
        distinct, of_row = self._distinct(rows)
        asked = [prompts[key] for key in distinct]
        steps = self._steps = self._steps or LlamaSteps(self.model)
        tokens = self._begin(steps, [list(prompt.ids) for prompt in asked], of_row)
        free = copy.copy(steps) if self._is_guided(asked) else None  # the same weights, rows without conditions
        free_tokens = tokens
        if free is not None:
            free_tokens = self._begin(free, unconditional_heads(self.tokenizer, self.grammar, asked), of_row)
        places = torch.arange(len(rows), device=tokens.device)
        processor = self._processor([prompts[key] for key in rows])
        processor.start([list(prompts[key].ids) for key in rows])
        written = torch.full((len(rows), self.grammar.max_tokens), self.tokenizer.pad_token_id, device=places.device)
        likelihoods = torch.zeros(len(rows), dtype=torch.float64, device=places.device)
        lengths, ended = torch.zeros_like(places), torch.zeros_like(places, dtype=torch.bool)
        for step in range(self.grammar.max_tokens):
            scores = own = steps(tokens).float().log_softmax(dim=-1)
            if free is not None:
                scores = torch.lerp(free(free_tokens).float().log_softmax(dim=-1), own, self.guidance)
            processor.forbid_(scores)
            for warper in self._warpers:
                scores = warper(written[places, :step], scores)
            drawn = scores.argmax(dim=-1) if self.temperature == 0 else _draw(scores, _numbers(rows, places))
            tokens = free_tokens = drawn
            written[places, step] = tokens
            gained = own.gather(1, tokens[:, None])[:, 0]
            likelihoods[places] += gained.double().masked_fill(ended, 0.0)
            lengths[places[~ended]] = step + 1
            processor.advance(tokens.tolist())
            ended = torch.tensor(processor.ended, device=places.device)
            if ended.sum() * _ENDED_SHARE >= len(ended):
                left = (~ended).nonzero()[:, 0]
                if not len(left):
                    break
                steps.keep(left)
                processor.keep(left)
                if free is not None:
                    free.keep(left)
                tokens = free_tokens = tokens[left]
                places, ended = places[left], ended[left]
        found = zip(rows, written.tolist(), lengths.tolist(), strict=True)
        sequences = [[*prompts[key].ids, *row[:length]] for key, row, length in found]
        return self._decode(sequences, likelihoods.tolist())

    def _begin(self, steps: LlamaSteps, heads: list[list[int]], of_row: torch.Tensor) -> torch.Tensor:
        """Let steps read the heads, once each, and go on with the rows; the last token of each row."""
        ids, mask = self._padded(heads, left=True)
        steps.read(ids[:, :-1], mask[:, :-1])
        steps.keep(of_row)
        return ids[of_row, -1]

    def _distinct(self, rows: list[int]) -> tuple[list[int], torch.Tensor]:
        """The different keys of the rows, and which of them each row has."""
        distinct = {key: place for place, key in enumerate(dict.fromkeys(rows))}
        return list(distinct), torch.tensor([distinct[key] for key in rows], device=self.model.device)

    def _sample_by_generate(self, prompts: Mapping[int, PreparedPrompt], rows: list[int]) -> list[DecodedCrystal]:
        """The same by `generate`, for every model.

        Rows that have ended leave the batch whenever they are half of it: the longest sequence of a batch has about
        three times the mean length.
        """
        distinct, of_row = self._distinct(rows)
        ids, mask = self._padded([list(prompts[key].ids) for key in distinct], left=True)
        guides = self._guides([prompts[key] for key in rows])
        options: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True}
        if len(ids) < len(rows) and ids.shape[1] > 1:
            options["past_key_values"] = read_prompts(self.model, ids[:, :-1], mask[:, :-1])
            options["past_key_values"].batch_select_indices(of_row)
        ids, mask = ids[of_row], mask[of_row]
        processor = self._processor([prompts[key] for key in rows])
        drawing = [_Draw(rows, ids.device)] if self.temperature > 0 else []
        processors = [*guides, processor, *self._warpers, *drawing]
        leaving: list[Any] = [*guides, processor, *drawing]
        options["stopping_criteria"] = StoppingCriteriaList([_HalfEnded(self._ends)])
        places = torch.arange(len(rows))
        sequences: dict[int, list[int]] = {}
        likelihoods = torch.zeros(len(rows), dtype=torch.float64)
        limit = self.grammar.max_tokens + ids.shape[1]
        while len(places):
            output = self._generate(ids, mask, processors, limit, output_logits=True, **options)
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
                for part in leaving:
                    part.keep(keep)
        return self._decode([sequences[place] for place in range(len(rows))], likelihoods.tolist())

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

    def _is_guided(self, prompts: list[PreparedPrompt]) -> bool:
        return self.guidance != 1 and any(prompt.has_conditions for prompt in prompts)

    def _guides(self, prompts: list[PreparedPrompt]) -> list[ConditionGuidance]:
        if not self._is_guided(prompts):
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
        return pad_rows(rows, self.tokenizer.pad_token_id, self.model.device, left=left)

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


def _numbers(rows: list[int], places: torch.Tensor) -> torch.Tensor:
    """A random number for each row that is left; what a row gets does not depend on when others have left."""
    return torch.rand(len(rows), 1, dtype=torch.float64, device=places.device)[places]


def _draw(scores: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """A token of each row, shape (B,), by one random number of [0, 1) per row.

    `torch.multinomial` takes a random number per row and token, a sixth of the time of a small model.
    """
    summed = scores.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    # The first token whose sum exceeds the number has a probability above zero.
    chosen = torch.searchsorted(summed, numbers * summed[:, -1:], right=True)
    return torch.where(chosen < scores.shape[1], chosen, scores.argmax(dim=-1, keepdim=True))[:, 0]


class _Draw(LogitsProcessor):
    """Draws a token of each row and leaves only this one; greedy `generate` then takes it."""

    def __init__(self, rows: list[int], device: torch.device):
        self._rows = rows
        self._places = torch.arange(len(rows), device=device)

    def keep(self, rows: torch.Tensor) -> None:
        """Forget all rows but these."""
        self._places = self._places[rows]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Zero for the token drawn, −∞ for the others.  `scores (B, V)`."""
        chosen = _draw(scores, _numbers(self._rows, self._places))
        return torch.full_like(scores, -math.inf).scatter_(1, chosen[:, None], 0.0)


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
