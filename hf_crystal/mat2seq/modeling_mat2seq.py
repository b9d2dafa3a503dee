# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""`Mat2SeqForCausalLM`: a stock Llama language model over crystal sequences, and grammar-constrained generation.

Weights and configuration are those of `LlamaForCausalLM`: a saved folder loads with `AutoModelForCausalLM` where this
package is not installed. `generate_crystals` also takes any other causal language model with the same vocabulary.
"""

import copy
import dataclasses
import json
import math
import os
import secrets
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from ..crystals.doubts import TrainingDomain
from ..crystals.elements import cell_formula
from .grammar import CrystalGrammar
from .logits_processor import CrystalLogitsProcessor
from .prompts import CrystalPrompt, PreparedPrompt, parse_composition, prepare_prompt
from .sampler import CrystalSampler
from .selection import CrystalSelection, crystal_filter, log_likelihood_of
from .tokenization_mat2seq import DecodedCrystal, Mat2SeqTokenizer
from .validity import smact_accepts

__all__ = [
    "MAT2SEQ_SIZES",
    "CrystalLogitsProcessor",
    "CrystalPrompt",
    "Mat2SeqForCausalLM",
    "generate_crystals",
    "generate_crystals_for_prompts",
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

_COLDEST = 1e-6  # nothing below differs from greedy decoding, and logits divided by it are finite
_MAX_ATOMS = 20  # of the primitive cell, where the prompt does not say it
# options of `generate_crystals_for_prompts`
_CHOICES = {"unseen": ("warn", "refuse"), "collisions": ("replace", "keep"), "on_error": ("raise", "return")}


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


class Mat2SeqForCausalLM(LlamaForCausalLM):
    """Llama language model over crystal sequences, with `generate_crystals`."""

    def generate_crystals(self, tokenizer: Mat2SeqTokenizer, **options: Any) -> list[DecodedCrystal]:
        """See `generate_crystals` of this module."""
        return generate_crystals(self, tokenizer, **options)

    def generate_crystals_for_prompts(
        self, tokenizer: Mat2SeqTokenizer, prompts: Sequence[Any], **options: Any
    ) -> list[list[DecodedCrystal]]:
        """See `generate_crystals_for_prompts` of this module."""
        return generate_crystals_for_prompts(self, tokenizer, prompts, **options)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:  # type: ignore[override]
        """Save as a stock Llama model, which serving engines know by its architecture name."""
        super().save_pretrained(save_directory, **kwargs)
        path = Path(save_directory) / "config.json"
        config = json.loads(path.read_text())
        config["architectures"] = ["LlamaForCausalLM"]
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def generate_crystals(
    model: PreTrainedModel,
    tokenizer: Mat2SeqTokenizer,
    *,
    composition: str | Mapping[Any, Any] | None = None,
    formula_units: int | Sequence[int] | Literal["any"] | None = None,
    space_group: str | int | Sequence[str | int] | None = None,
    chemical_system: Sequence[str] | str | None = None,
    properties: Mapping[str, float | None] | None = None,
    cell: Mapping[str, float | Sequence[float]] | None = None,
    sites: Sequence[str] | None = None,
    prompt: str | None = None,
    **options: Any,
) -> list[DecodedCrystal]:
    """Generate crystals; each decodes, has the composition and the space group asked for.

    Args:
        model: Causal language model with the tokenizer's vocabulary.
        tokenizer: The tokenizer.
        composition, formula_units, space_group, chemical_system, properties, cell, sites, prompt: What is asked for,
            see `CrystalPrompt`.
        **options: See `generate_crystals_for_prompts`.

    Returns:
        `num_return` decoded crystals; fewer if filters or `unique` left none to replace them.

    Raises:
        ValueError: for a prompt that no crystal fulfills, before anything is sampled.
    """
    asked = CrystalPrompt(composition, formula_units, space_group, chemical_system, properties, cell, sites, prompt)
    return generate_crystals_for_prompts(model, tokenizer, [asked], **options)[0]


def generate_crystals_for_prompts(
    model: PreTrainedModel,
    tokenizer: Mat2SeqTokenizer,
    prompts: Sequence[CrystalPrompt | Mapping[str, Any]],
    *,
    num_return: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    num_beams: int = 1,
    guidance: float = 1.0,
    seed: int | None = None,
    batch_size: int = 256,
    max_atoms: int | None = None,
    max_length: int | None = None,
    unique: bool = False,
    min_distance: float | None = None,
    smact: bool = False,
    unseen: Literal["warn", "refuse"] = "warn",
    collisions: Literal["replace", "keep"] = "replace",
    max_rounds: int = 4,
    rank: bool | Callable[[DecodedCrystal], float] = False,
    on_error: Literal["raise", "return"] = "raise",
    progress: Callable[[int], None] | None = None,
    grammar: CrystalGrammar | None = None,
) -> list[list[DecodedCrystal]]:
    """Generate crystals for many prompts, different ones in one batch.

    Args:
        model: Causal language model with the tokenizer's vocabulary.
        tokenizer: The tokenizer.
        prompts: What is asked for: `CrystalPrompt` or mappings of its fields.
        num_return: Crystals per prompt.
        temperature: 0 for greedy decoding: the likeliest token at each step; below 1e-6 is 0.
        top_p: Nucleus sampling.
        num_beams: Above 1: beam search instead of sampling; the `num_return` best beams.
        guidance: Above 1: properties asked for weigh more (classifier-free guidance, twice the time); 0 ignores them.
        seed: A seed, a prompt and the index of a sample give one crystal, whatever the batch size, the other prompts
            and the number of samples are; copies of a prompt draw crystals of their own. Holds where the model
            computes in float32 or float64. None: other crystals in each call, except of greedy and beam search, whose
            samples, where these fail, are those of seed 0. The global random state is not used.
        batch_size: Sequences generated at a time; more are faster and need more memory.
        max_atoms: Largest primitive cell; a composition of more atoms is refused. None: any composition that is asked
            for, 20 where there is none.
        max_length: Longest sequence in tokens; the model's context by default.
        unique: Leave out repeated sequences of a prompt and draw others in their place.
        min_distance: Leave out crystals with two atoms nearer than this, Å, and draw others. Greedy and beam search
            take further beams, and sample where these fail too; `warnings` of the crystal says so.
        smact: Leave out compositions that are not charge-neutral by SMACT (needs smact), and draw others likewise. A
            prompt whose compositions are all left out gives one `DecodedCrystal` with the error, nothing is drawn.
        unseen: What becomes of elements, and pairs of elements in one crystal, that no training crystal has: "warn":
            `warnings` of the crystal names them; "refuse": a prompt that needs them raises, other crystals with them
            are left out.
        collisions: What becomes of crystals with two atoms closer than half the sum of their covalent radii:
            "replace": others are drawn in their place, likewise; where all collide they are kept, and `warnings` says
            so; "keep": nothing is done.
        max_rounds: How often crystals that were left out are replaced, the first drawing included.
        rank: True: most probable crystal first, by `log_likelihood`; a function: largest value first.
        on_error: "return": a prompt that no crystal fulfills gives one `DecodedCrystal` with the error, the others are
            not affected; "raise": nothing is sampled.
        progress: Called with the number of crystals so far, whenever there are more.
        grammar: A grammar with other bounds; `max_atoms` and `max_length` are then not used.

    Returns:
        Per prompt its crystals, with log-likelihoods of the generated part (temperature 1, without grammar).

    Raises:
        ValueError: for a prompt that no crystal fulfills, and options out of range, before anything is sampled.
        ImportError: if smact is asked for and missing.
    """
    counts = {"num_return": num_return, "batch_size": batch_size, "max_rounds": max_rounds, "num_beams": num_beams}
    choices = {"unseen": unseen, "collisions": collisions, "on_error": on_error}
    _check_options({**counts, "max_atoms": max_atoms}, temperature, top_p, guidance, choices)
    temperature = temperature if temperature > _COLDEST else 0.0
    domain = TrainingDomain(model.config)
    strict = domain if unseen == "refuse" else None
    keeps = crystal_filter(min_distance, smact, strict)
    asked = [prompt if isinstance(prompt, CrystalPrompt) else CrystalPrompt(**prompt) for prompt in prompts]
    if grammar is None:
        context = int(getattr(model.config, "max_position_embeddings", 1024)) if max_length is None else max_length
        # room for all conditions in every call: what a prompt may become must not depend on the prompts beside it
        grammar = _grammar(tokenizer, max_atoms or _MAX_ATOMS, context - 2 * len(tokenizer.property_bins))
    prepared, errors = _prepare(asked, tokenizer, grammar, on_error, smact, strict, max_atoms)
    sampler = CrystalSampler(
        model,
        tokenizer,
        grammar,
        temperature=temperature,
        top_p=top_p,
        num_beams=num_beams,
        batch_size=batch_size,
        seed=(secrets.randbits(63) if temperature > 0 and num_beams == 1 else 0) if seed is None else seed,
        guidance=guidance,
    )
    selection = CrystalSelection(
        prepared,
        domain,
        num_return=num_return,
        unique=unique,
        keeps=keeps,
        collisions=collisions == "keep",
        progress=progress,
    )
    with torch.no_grad():
        _draw(sampler, prepared, selection, max_rounds, unique)
    score = rank if callable(rank) else log_likelihood_of
    for found in selection.kept.values() if rank else ():
        found.sort(key=score, reverse=True)
    selection.add_colliding()  # last, however likely
    kept = selection.kept
    return [kept[index] if index in kept else [DecodedCrystal(None, errors[index])] for index in range(len(asked))]


def _draw(
    sampler: CrystalSampler,
    prompts: Mapping[int, PreparedPrompt],
    selection: CrystalSelection,
    max_rounds: int,
    unique: bool,
) -> None:
    """Draw crystals until each prompt has its number; where greedy or beam search gives none that pass, sample."""
    is_beam, replaces = sampler.num_beams > 1, selection.replaces
    if sampler.temperature > 0 and not is_beam:
        for turn in range(max_rounds if unique or replaces else 1):
            selection.add(sampler.draw(prompts, selection.missing(turn), dict(selection.drawn)))
        return
    wanted = selection.missing()
    selection.add(
        sampler.draw(prompts, dict.fromkeys(wanted, sampler.num_beams) if is_beam and replaces else wanted),
        is_beam=True,
    )
    empty = selection.none() if replaces else []
    sampling = copy.copy(sampler)
    sampling.temperature, sampling.num_beams = sampler.temperature or 1.0, 1
    selection.drawn.clear()  # samples are counted from the first, however many beams there were
    for _ in range(max_rounds if empty else 0):
        wanted = {key: count for key, count in selection.missing(2).items() if key in empty}
        selection.add_sampled(sampling.draw(prompts, wanted, dict(selection.drawn)), sampling.temperature)


_GRAMMARS: weakref.WeakKeyDictionary[Mat2SeqTokenizer, dict[tuple[int, int], CrystalGrammar]] = (
    weakref.WeakKeyDictionary()
)


def _grammar(tokenizer: Mat2SeqTokenizer, max_atoms: int, max_tokens: int) -> CrystalGrammar:
    """Grammar of these bounds; it is kept, and with it what it has worked out, as long as the tokenizer lives."""
    kept = _GRAMMARS.setdefault(tokenizer, {})
    key = (max_atoms, max_tokens)
    if key not in kept:
        kept[key] = CrystalGrammar(tokenizer, max_atoms=max_atoms, max_tokens=max_tokens)
    return kept[key]


def _check_options(
    counts: Mapping[str, int | None], temperature: float, top_p: float, guidance: float, choices: Mapping[str, str]
) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} is {count}; accepted: at least 1")
    for name, choice in choices.items():
        if choice not in _CHOICES[name]:
            raise ValueError(f"{name} is {choice!r}; accepted: {' or '.join(map(repr, _CHOICES[name]))}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; accepted: a number of at least 0")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; accepted: above 0 up to 1")
    num_return, num_beams = counts["num_return"] or 1, counts["num_beams"] or 1
    if num_beams > 1 and num_return > num_beams:
        raise ValueError(f"num_return is {num_return}; beam search gives up to num_beams = {num_beams} crystals")
    if guidance < 0 or (guidance != 1 and num_beams > 1):
        raise ValueError(f"guidance is {guidance}; accepted: at least 0, and 1 with beam search")


def _prepare(
    asked: Sequence[CrystalPrompt],
    tokenizer: Mat2SeqTokenizer,
    grammar: CrystalGrammar,
    on_error: str,
    smact: bool,
    domain: TrainingDomain | None,
    max_atoms: int | None,
) -> tuple[dict[int, PreparedPrompt], dict[int, ValueError]]:
    """Prompts that can be fulfilled, and the reasons why the others cannot, by place."""
    prepared, errors = {}, {}
    for index, prompt in enumerate(asked):
        try:
            found = prepare_prompt(prompt, tokenizer, grammar)
            if domain is not None and (foreign := domain.unseen([[*found.constraint.needed_elements]])[0]):
                raise ValueError("; ".join(foreign))
            found = found if max_atoms is None else _without_large(found, max_atoms)
        except ValueError as error:
            if on_error == "raise":
                raise error if len(asked) == 1 else ValueError(f"prompt {index}: {error}") from error
            errors[index] = error
            continue
        try:
            prepared[index] = _without_refused(found) if smact else found
        except ValueError as error:  # the prompt is sound, the filter decides: no reason to stop the others
            errors[index] = error
    return prepared, errors


def _without_large(prompt: PreparedPrompt, max_atoms: int) -> PreparedPrompt:
    """The prompt without compositions of more atoms.

    Raises:
        ValueError: if all of them have more.
    """
    compositions = prompt.constraint.compositions
    if compositions is None:
        return prompt
    small = tuple(counts for counts in compositions if sum(n for _, n in counts) <= max_atoms)
    if not small:
        smallest = min(sum(n for _, n in counts) for counts in compositions)
        raise ValueError(f"max_atoms is {max_atoms}; the composition asked for has {smallest} atoms")
    return dataclasses.replace(prompt, constraint=dataclasses.replace(prompt.constraint, compositions=small))


def _without_refused(prompt: PreparedPrompt) -> PreparedPrompt:
    """The prompt without compositions that SMACT refuses: what is drawn would be left out.

    Raises:
        ValueError: if it refuses all of them.
    """
    compositions = prompt.constraint.compositions
    if compositions is None:
        return prompt
    accepted = tuple(counts for counts in compositions if smact_accepts(counts))
    if not accepted:
        names = ", ".join(cell_formula([z for z, n in counts for _ in range(n)]) for counts in compositions[:5])
        raise ValueError(f"SMACT finds no charge-neutral oxidation states for {names}; leave out smact to generate it")
    return dataclasses.replace(prompt, constraint=dataclasses.replace(prompt.constraint, compositions=accepted))
