# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""`Mat2SeqForCausalLM`: a stock Llama language model over crystal sequences, and grammar-constrained generation.

Weights and configuration are those of `LlamaForCausalLM`: a saved folder loads with `AutoModelForCausalLM` where this
package is not installed. `generate_crystals` also takes any other causal language model with the same vocabulary.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from .canonical_text import SEPARATOR, composition_tokens, split_text
from .grammar_mat2seq import CrystalGrammar, GrammarState, PromptConstraint
from .records_crystal import CHEMICAL_SYMBOLS
from .symmetry_crystal import space_group_number, space_group_symbols
from .tokenization_mat2seq import DecodedCrystal, Mat2SeqTokenizer

__all__ = [
    "MAT2SEQ_SIZES",
    "CrystalLogitsProcessor",
    "Mat2SeqForCausalLM",
    "generate_crystals",
    "mat2seq_config",
    "parse_composition",
]

# hidden size, layers, heads, intermediate size; "paper" is the shape of the paper's GPT-2 (8 × 1024) in Llama form
MAT2SEQ_SIZES = {
    "tiny": (64, 2, 2, 192),
    "small": (256, 6, 4, 768),
    "base": (512, 8, 8, 1536),
    "paper": (1024, 8, 8, 2816),
}


def mat2seq_config(size: str, tokenizer: Mat2SeqTokenizer, **changes: Any) -> LlamaConfig:
    """Llama configuration of a named size for a tokenizer.

    Args:
        size: One of `MAT2SEQ_SIZES`.
        tokenizer: Gives the vocabulary and the special tokens.
        **changes: Fields of `LlamaConfig` to set.

    Raises:
        ValueError: for an unknown size.
    """
    if size not in MAT2SEQ_SIZES:
        raise ValueError(f"size is {size!r}; accepted: {', '.join(MAT2SEQ_SIZES)}")
    hidden, layers, heads, intermediate = MAT2SEQ_SIZES[size]
    fields = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": intermediate,
        "max_position_embeddings": 1024,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**{**fields, **changes})


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
        self.grammar = grammar
        if constraints is None or isinstance(constraints, PromptConstraint):
            constraints = [constraints or PromptConstraint()]
        self.constraints = list(constraints)
        self._token_of = {i: token for token, i in grammar.vocabulary.items()}
        self._pad, self._bos, self._eos = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
        self._skipped = {self._pad, self._bos}
        self._conditions = {i for token, i in grammar.vocabulary.items() if token.startswith("<")}
        self._states: dict[tuple[int, ...], GrammarState] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Set the logits of every other token to −∞.  `input_ids (B, L)`, `scores (B, V)`."""
        mask = torch.full_like(scores, -math.inf)
        rows = input_ids.tolist()
        states: dict[tuple[int, ...], GrammarState] = {}
        for row, ids in enumerate(rows):
            key = self._written(ids)
            states[key] = self._state(key)
            constraint = self.constraints[row * len(self.constraints) // len(rows)]
            if key and key[-1] == self._eos:
                mask[row, [self._eos, self._pad]] = 0.0
                continue
            tokens = self.grammar.allowed_tokens(states[key], constraint)
            mask[row, [self.grammar.vocabulary[token] for token in tokens]] = 0.0
        self._states = states
        return scores + mask

    def _written(self, ids: list[int]) -> tuple[int, ...]:
        """Ids of the crystal itself: padding, begin and conditions left out."""
        begin = 0
        while begin < len(ids) and ids[begin] in self._conditions and ids[begin] != self._eos:
            begin += 1
        end = ids.index(self._eos) + 1 if self._eos in ids else len(ids)
        return tuple(ids[begin:end])

    def _state(self, key: tuple[int, ...]) -> GrammarState:
        if key in self._states:
            return self._states[key]
        if key and key[:-1] in self._states:
            return self.grammar.advance(self._states[key[:-1]], self._token_of[key[-1]])
        state = GrammarState()
        for token_id in key:
            state = self.grammar.advance(state, self._token_of[token_id])
        return state


class Mat2SeqForCausalLM(LlamaForCausalLM):
    """Llama language model over crystal sequences, with `generate_crystals`."""

    def generate_crystals(self, tokenizer: Mat2SeqTokenizer, **options: Any) -> list[DecodedCrystal]:
        """See `generate_crystals` of this module."""
        return generate_crystals(self, tokenizer, **options)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:  # type: ignore[override]
        """Save as a stock Llama model, which serving engines know by its architecture name."""
        super().save_pretrained(save_directory, **kwargs)
        path = Path(save_directory) / "config.json"
        config = json.loads(path.read_text())
        config["architectures"] = ["LlamaForCausalLM"]
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def parse_composition(composition: Any) -> dict[int, int]:
    """Atomic number → count of a formula (`"Sr1Ti1O3"`), mapping of symbols or numbers, or pymatgen `Composition`.

    Raises:
        ValueError: for unknown elements, fractional or missing counts.
    """
    if isinstance(composition, str):
        try:
            from pymatgen.core import Composition
        except ImportError as error:
            raise ImportError("a formula as text needs pymatgen: pip install pymatgen") from error

        composition = Composition(composition)
    items = composition.items() if isinstance(composition, Mapping) else composition.element_composition.items()
    counts: dict[int, int] = {}
    for key, amount in items:
        symbol = getattr(key, "symbol", key)
        number = CHEMICAL_SYMBOLS.index(symbol) if symbol in CHEMICAL_SYMBOLS[1:] else symbol
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 118:
            raise ValueError(f"composition has {key!r}; accepted: element symbols or atomic numbers 1 to 118")
        if amount != int(amount) or amount < 1:
            raise ValueError(f"composition has {amount} {symbol}; accepted: whole numbers of atoms")
        counts[number] = counts.get(number, 0) + int(amount)
    if not counts:
        raise ValueError("composition is empty")
    return counts


def generate_crystals(
    model: Any,
    tokenizer: Mat2SeqTokenizer,
    *,
    composition: Any = None,
    formula_units: Sequence[int] | None = None,
    space_group: str | int | None = None,
    chemical_system: Sequence[str] | str | None = None,
    properties: Mapping[str, float] | None = None,
    prompt: str | None = None,
    num_return: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | None = None,
    batch_size: int = 32,
    max_atoms: int = 20,
    max_length: int | None = None,
    grammar: CrystalGrammar | None = None,
) -> list[DecodedCrystal]:
    """Generate crystals; each decodes, has the composition and the space group asked for.

    Args:
        model: Causal language model with the tokenizer's vocabulary.
        tokenizer: The tokenizer.
        composition: Atoms of the primitive cell, as a formula or mapping.
        formula_units: With these numbers the composition is a formula unit, and cells of so many units are allowed.
        space_group: Symbol such as `P4_2/mnm`, or ITA number.
        chemical_system: Elements, such as `"Li-Fe-O"`; each occurs, no other does.
        properties: Conditions, by name.
        prompt: Beginning of a sequence to be continued (a partial crystal); excludes the options above.
        num_return: Number of crystals.
        temperature: 0 for the most probable continuation.
        top_p: Nucleus sampling.
        seed: The same seed on the same machine gives the same crystals.
        batch_size: Sequences generated at a time.
        max_atoms: Largest primitive cell where no composition is given.
        max_length: Longest sequence in tokens; the model's context by default.
        grammar: A grammar with other bounds; `max_atoms` and `max_length` are then not used.

    Returns:
        `num_return` decoded crystals, with log-likelihoods of the generated part (temperature 1, without grammar).

    Raises:
        ValueError: for a prompt that no crystal fulfils.
    """
    if num_return < 1 or batch_size < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"num_return {num_return}, batch_size {batch_size}, temperature {temperature}, top_p {top_p}; "
            "accepted: at least 1, at least 1, at least 0, above 0 up to 1"
        )
    if max_length is None:
        max_length = int(getattr(model.config, "max_position_embeddings", 1024))
    grammar = grammar or CrystalGrammar(tokenizer, max_atoms=max_atoms, max_tokens=max_length)
    constraint = _constraint(composition, formula_units, space_group, chemical_system)
    grammar.check(constraint)
    head = _prompt_tokens(tokenizer, grammar, constraint, prompt)
    tokens = [tokenizer.bos_token, *tokenizer.condition_tokens(properties), *head]
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(tokens)], device=model.device)
    options: dict[str, Any] = {"do_sample": temperature > 0, "max_length": grammar.max_tokens + ids.shape[1]}
    if temperature > 0:
        options |= {"temperature": float(temperature), "top_p": float(top_p), "top_k": 0}
    devices = [model.device] if model.device.type == "cuda" else []
    results: list[DecodedCrystal] = []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        if seed is not None:
            torch.manual_seed(seed)
        while len(results) < num_return:
            rows = min(batch_size, num_return - len(results))
            batch = ids.expand(rows, -1)
            output = model.generate(
                input_ids=batch,
                attention_mask=torch.ones_like(batch),
                logits_processor=LogitsProcessorList([CrystalLogitsProcessor(tokenizer, grammar, constraint)]),
                return_dict_in_generate=True,
                output_logits=True,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **options,
            )
            likelihoods = _log_likelihoods(output, ids.shape[1], tokenizer.pad_token_id)
            decoded = tokenizer.batch_decode_structures(output.sequences)
            results += [
                dataclasses.replace(item, log_likelihood=value)
                for item, value in zip(decoded, likelihoods, strict=True)
            ]
    return results


def _constraint(
    composition: Any, formula_units: Sequence[int] | None, space_group: str | int | None, chemical_system: Any
) -> PromptConstraint:
    groups = None if space_group is None else [space_group_number(space_group)]
    if composition is not None:
        if chemical_system is not None:
            raise ValueError("composition and chemical_system exclude each other")
        unit = parse_composition(composition)
        multiples = [1] if formula_units is None else list(formula_units)
        if not multiples or min(multiples) < 1:
            raise ValueError(f"formula_units is {formula_units!r}; accepted: positive whole numbers")
        return PromptConstraint.build([{e: n * k for e, n in unit.items()} for k in multiples], groups)
    if formula_units is not None:
        raise ValueError("formula_units needs a composition")
    if chemical_system is None:
        return PromptConstraint.build(None, groups)
    symbols = chemical_system.split("-") if isinstance(chemical_system, str) else list(chemical_system)
    unknown = [symbol for symbol in symbols if symbol not in CHEMICAL_SYMBOLS[1:]]
    if unknown or not symbols:
        raise ValueError(f"chemical_system has {unknown or 'no elements'}; accepted: symbols such as 'Li-Fe-O'")
    numbers = [CHEMICAL_SYMBOLS.index(symbol) for symbol in symbols]
    return PromptConstraint.build(None, groups, numbers, numbers)


def _prompt_tokens(
    tokenizer: Mat2SeqTokenizer, grammar: CrystalGrammar, constraint: PromptConstraint, prompt: str | None
) -> list[str]:
    """What is certain from the start, as tokens; a text prompt is checked against the grammar."""
    if prompt is None:
        if constraint.compositions is None or len(constraint.compositions) > 1:
            return []
        tokens = [*composition_tokens(dict(constraint.compositions[0])), SEPARATOR]
        if len(constraint.space_groups) == 1:
            tokens += [space_group_symbols()[next(iter(constraint.space_groups)) - 1], SEPARATOR]
        return tokens
    if constraint != PromptConstraint():
        raise ValueError("prompt excludes composition, space_group and chemical_system: write them into it")
    return _checked_prompt(tokenizer, grammar, prompt)


def _checked_prompt(tokenizer: Mat2SeqTokenizer, grammar: CrystalGrammar, prompt: str) -> list[str]:
    tokens = split_text(prompt, tokenizer.layout)
    # A composition in the prompt may be larger than what would be generated freely.
    end = tokens.index(SEPARATOR) if SEPARATOR in tokens else 0
    constraint = PromptConstraint()
    if end:
        pairs = zip(tokens[0:end:2], tokens[1:end:2], strict=False)
        if end % 2 == 0:
            constraint = PromptConstraint.build([parse_composition({s: int(n) for s, n in pairs if n.isdecimal()})])
    state = GrammarState()
    for place, token in enumerate(tokens):
        allowed = grammar.allowed_tokens(state, constraint)
        if token not in allowed:
            raise ValueError(f"prompt token {place} is {token!r}; accepted there: {', '.join(allowed[:12])} …")
        state = grammar.advance(state, token)
    return tokens


def _log_likelihoods(output: Any, prompt_length: int, pad_token_id: int) -> list[float]:
    """Sum of log-probabilities of the generated tokens, padding left out; one per sequence."""
    generated = output.sequences[:, prompt_length:]
    total = torch.zeros(len(generated), dtype=torch.float64)
    for step, logits in enumerate(output.logits):
        column = generated[:, step]
        chosen = torch.log_softmax(logits.double(), dim=-1).gather(1, column[:, None])[:, 0].cpu()
        total += torch.where(column.cpu() == pad_token_id, torch.zeros_like(chosen), chosen)
    return total.tolist()
