# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Batched sampling; each prompt is prefilled once and shared by its samples.

A seed gives the same crystals in every batch: each crystal has random numbers of its own, and where the rounding of a
batch could change a token, the row decides alone, without a cache.
"""

import dataclasses
import hashlib
import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedModel

from .grammar import CrystalGrammar
from .guidance import guided, unconditional_heads
from .logits_processor import CrystalLogitsProcessor, pad_rows
from .prompts import PreparedPrompt
from .tokenization_mat2seq import DecodedCrystal, Mat2SeqTokenizer

__all__ = ["CrystalSampler"]

_ENDED_SHARE = 8  # rows that have ended leave when they are one of so many: leaving copies the cache of the others
_ROUNDING = 1024  # rounding errors of a dtype that the logits of a batch may differ by


class CrystalSampler:
    """Draws crystals for prepared prompts.

    Args:
        model: Causal language model with the tokenizer's vocabulary.
        tokenizer: The tokenizer.
        grammar: The grammar.
        temperature: 0 for greedy decoding: the likeliest token at each step.
        top_p: Nucleus sampling.
        num_beams: Above 1: beam search.
        batch_size: Sequences generated at a time.
        seed: Crystals are drawn from this seed, their prompt and their index.
        guidance: Scale of classifier-free guidance for rows with conditions; not for beam search.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Mat2SeqTokenizer,
        grammar: CrystalGrammar,
        *,
        temperature: float,
        top_p: float,
        num_beams: int,
        batch_size: int,
        seed: int,
        guidance: float = 1.0,
    ):
        self.model: Any = model  # transformers types the `self` of `generate` as a protocol
        self.tokenizer = tokenizer
        self.grammar = grammar
        self.temperature = float(temperature)
        self.top_p = float(top_p)
        self.num_beams = num_beams
        self.guidance = float(guidance)
        self.seed = seed
        self.batch_size = max(1, batch_size // num_beams)

    def draw(
        self, prompts: Mapping[int, PreparedPrompt], counts: Mapping[int, int], drawn: Mapping[int, int] | None = None
    ) -> Iterator[tuple[int, DecodedCrystal]]:
        """Crystals with the key of their prompt; samples of one prompt stand together, the best beam first.

        Args:
            prompts: Key → prompt, all of a call: of equal prompts each draws crystals of its own.
            counts: Key → number of crystals, at most `num_beams` with beam search; keys left out draw none.
            drawn: Key → number of crystals drawn before, none by default.
        """
        keys = [key for key in prompts if counts.get(key)]
        if self.num_beams > 1:
            for begin in range(0, len(keys), self.batch_size):
                batch = keys[begin : begin + self.batch_size]
                returned = max(counts[key] for key in batch)
                found = self._search([prompts[key] for key in batch], returned)
                beams = [(key, beam) for key in batch for beam in range(returned)]
                yield from ((key, item) for (key, beam), item in zip(beams, found, strict=True) if beam < counts[key])
            return
        streams = _streams(prompts)
        before = drawn or {}
        rows = [(key, before.get(key, 0) + sample) for key in keys for sample in range(counts[key])]
        for begin in range(0, len(rows), self.batch_size):
            part = rows[begin : begin + self.batch_size]
            numbers = [self._numbers(streams[key], sample) for key, sample in part] if self.temperature > 0 else None
            of_row = [key for key, _ in part]
            yield from zip(of_row, self._sample([prompts[key] for key in of_row], numbers), strict=True)

    # --------------------------------------------------------------------------------------------------- one batch

    def _numbers(self, stream: str, sample: int) -> torch.Tensor:
        """Random numbers of one crystal, one per token, shape (max_tokens,); the same on every device."""
        digest = hashlib.sha256(f"{self.seed} {sample} {stream}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        return torch.rand(self.grammar.max_tokens, dtype=torch.float64, generator=generator)

    def _sample(
        self, asked: Sequence[PreparedPrompt], random_numbers: Sequence[torch.Tensor] | None
    ) -> list[DecodedCrystal]:
        """One crystal per prompt, with random numbers for each; None for the most probable tokens."""
        rows = _Rows(self.model, self.tokenizer.pad_token_id, [list(prompt.ids) for prompt in asked])
        free = None  # the same rows without their conditions
        if self.guidance != 1 and any(prompt.has_conditions for prompt in asked):
            heads = unconditional_heads(self.tokenizer, self.grammar, asked)
            free = _Rows(self.model, self.tokenizer.pad_token_id, heads)
        processor = CrystalLogitsProcessor(self.tokenizer, self.grammar, [prompt.constraint for prompt in asked])
        processor.start([list(prompt.ids) for prompt in asked])
        places = torch.arange(len(asked), device=self.model.device)
        numbers = None if random_numbers is None else torch.stack(list(random_numbers)).to(places.device)
        likelihoods = torch.zeros(len(asked), dtype=torch.float64, device=places.device)
        ended = torch.zeros_like(places, dtype=torch.bool)
        written: list[list[int]] = [[] for _ in asked]
        for step in range(self.grammar.max_tokens):
            own = rows.logits().log_softmax(dim=-1)
            scores = own if free is None else guided(own, free.logits().log_softmax(dim=-1), self.guidance)
            column = None if numbers is None else numbers[places, step, None]
            tokens, unsure = self._choose(processor.forbid_(scores.clone()), column, rows.rounding)
            for row in (unsure & ~ended).nonzero()[:, 0].tolist():
                alone = rows.logits_alone(row).log_softmax(dim=-1)
                if free is not None:
                    alone = guided(alone, free.logits_alone(row).log_softmax(dim=-1), self.guidance)
                number = None if column is None else column[row, None]
                tokens[row] = self._choose(processor.forbid_(alone, row), number, rows.rounding)[0]
            likelihoods[places] += own.gather(1, tokens[:, None])[:, 0].double().masked_fill(ended, 0.0)
            chosen = tokens.tolist()
            for place, token, done in zip(places.tolist(), chosen, ended.tolist(), strict=True):
                if not done:
                    written[place].append(token)
            processor.advance(chosen)
            for part in (rows, free):
                if part is not None:
                    part.append(tokens)
            ended = torch.tensor(processor.ended, device=places.device)
            if ended.sum() * _ENDED_SHARE >= len(ended):
                left = (~ended).nonzero()[:, 0]
                if not len(left):
                    break
                for holder in (rows, free, processor):
                    if holder is not None:
                        holder.keep(left)
                places, ended = places[left], ended[left]
        sequences = [[*prompt.ids, *row] for prompt, row in zip(asked, written, strict=True)]
        return self._decode(sequences, likelihoods.tolist())

    def _choose(
        self, scores: torch.Tensor, numbers: torch.Tensor | None, rounding: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A token of each row, and whether rounding may have decided it.

        Args:
            scores: Log-probabilities with −∞ for forbidden tokens, shape (B, V).
            numbers: Random numbers of [0, 1), shape (B, 1); None for the most probable token.
            rounding: How far scores may lie off.
        """
        if self.guidance > 1:
            rounding *= 2 * self.guidance - 1
        if numbers is None:
            best = scores.topk(2, dim=-1)
            return best.indices[:, 0], best.values[:, 0] - best.values[:, 1] <= 2 * rounding
        rounding /= min(1.0, self.temperature)
        shares = (scores / self.temperature).softmax(dim=-1)
        unsure = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        if self.top_p < 1:
            ordered, tokens = shares.sort(dim=-1, descending=True, stable=True)
            before = ordered.cumsum(dim=-1, dtype=torch.float64) - ordered
            outside = before >= self.top_p
            unsure |= ((before - self.top_p).abs() <= rounding).any(dim=-1)
            edges = ordered[:, :-1] * (1 - 2 * rounding) <= ordered[:, 1:]  # the next token could take its place
            unsure |= (edges & ~outside[:, :-1] & outside[:, 1:]).any(dim=-1)
            shares = shares.masked_fill(outside.gather(1, tokens.argsort(dim=-1)), 0.0)
        summed = shares.cumsum(dim=-1, dtype=torch.float64)
        summed = summed / summed[:, -1:]
        # The first token whose sum exceeds the number has a probability above zero.
        chosen = torch.searchsorted(summed, numbers, right=True)
        # Sums on either side of the number do not move by more than the logits do.
        lower = summed.gather(1, (chosen - 1).clamp(min=0)).masked_fill(chosen == 0, -1.0)
        upper = summed.gather(1, chosen)
        unsure |= (torch.minimum(numbers - lower, upper - numbers) <= rounding)[:, 0]
        return chosen[:, 0], unsure

    def _search(self, prompts: list[PreparedPrompt], returned: int) -> list[DecodedCrystal]:
        """The best beams of each prompt."""
        ids, mask = self._padded([list(prompt.ids) for prompt in prompts], left=True)
        processor = CrystalLogitsProcessor(self.tokenizer, self.grammar, [prompt.constraint for prompt in prompts])
        sequences = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            logits_processor=LogitsProcessorList([processor]),
            max_length=self.grammar.max_tokens + ids.shape[1],
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            num_beams=self.num_beams,
            num_return_sequences=returned,
            do_sample=False,
        ).tolist()
        rows = [self._stripped(row) for row in sequences]
        lengths = [len(prompt.ids) for prompt in prompts for _ in range(returned)]
        return self._decode(rows, self._score(rows, lengths))

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


class _Rows:
    """Rows that grow together and leave one by one, with the model's cache.

    Args:
        model: Causal language model.
        pad_token_id: Padding in front of shorter heads.
        heads: What each row begins with; equal heads are prefilled once.
    """

    def __init__(self, model: PreTrainedModel, pad_token_id: int, heads: Sequence[list[int]]):
        self._model = model
        accepted = inspect.signature(model.forward).parameters.values()
        self._has_positions = any(p.name == "position_ids" or p.kind == p.VAR_KEYWORD for p in accepted)
        distinct = {tuple(head): place for place, head in enumerate(dict.fromkeys(map(tuple, heads)))}
        of_row = torch.tensor([distinct[tuple(head)] for head in heads], device=model.device)
        ids, mask = pad_rows([list(head) for head in distinct], pad_token_id, model.device, left=True)
        self._cache: Any = None
        if ids.shape[1] > 1:
            self._cache = self._forward(ids[:, :-1], mask[:, :-1]).past_key_values
            self._cache.batch_select_indices(of_row)
        self._ids, self._mask = ids[of_row], mask[of_row]
        self._dtype = torch.promote_types(model.dtype, torch.float32)
        self.rounding = _ROUNDING * torch.finfo(self._dtype).eps

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        options = {"attention_mask": mask, "past_key_values": self._cache, "use_cache": True}
        if self._has_positions:  # other models count them off the mask
            options["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        return self._model(input_ids=ids, **options)

    def logits(self) -> torch.Tensor:
        """Logits `(B, V)` of the next token of each row, to be called once per token."""
        output = self._forward(self._ids[:, -1:], self._mask)
        self._cache = output.past_key_values
        return output.logits[:, -1].to(self._dtype)

    def logits_alone(self, row: int) -> torch.Tensor:
        """The same of one row `(1, V)`, from its ids alone: no cache, padding or other row can change a bit of it."""
        ids = self._ids[row][self._mask[row] > 0][None]
        return self._model(input_ids=ids, use_cache=False).logits[:, -1].to(self._dtype)

    def append(self, tokens: torch.Tensor) -> None:
        """One more token of each row.  `tokens (B,)`."""
        self._ids = torch.cat([self._ids, tokens[:, None]], dim=1)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)

    def keep(self, rows: torch.Tensor) -> None:
        """Only these rows stay.  `rows (m,)`."""
        self._cache.batch_select_indices(rows)
        self._ids, self._mask = self._ids[rows], self._mask[rows]


def _streams(prompts: Mapping[int, PreparedPrompt]) -> dict[int, str]:
    """Text that names the random numbers of each prompt: what it asks for, and how many equal ones stand in front."""
    seen: Counter[str] = Counter()
    streams = {}
    for key, prompt in prompts.items():
        fields = vars(prompt.constraint).items()
        asked = [(name, sorted(value) if isinstance(value, frozenset) else value) for name, value in fields]
        text = repr((prompt.ids, asked))
        streams[key] = f"{seen[text]} {text}"
        seen[text] += 1
    return streams
