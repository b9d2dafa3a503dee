# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""The task "crystal-generation": a composition, a space group or nothing → crystals."""

import dataclasses
import functools
import importlib
import os
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers import Pipeline

from ..crystals.doubts import geometry_warnings
from ..crystals.elements import cell_formula, parse_composition

__all__ = ["CrystalGenerationPipeline", "result_of"]

_PROMPT_FIELDS = (
    "composition",
    "formula_units",
    "space_group",
    "chemical_system",
    "properties",
    "cell",
    "sites",
    "prompt",
)
_SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "num_beams",
    "guidance",
    "seed",
    "generation_batch_size",
    "max_atoms",
    "max_length",
)
_RESULT_FIELDS = (
    "num_return_sequences",
    "unique",
    "max_rounds",
    "min_distance",
    "smact",
    "unseen",
    "collisions",
    "candidates",
    "known",
    "rank",
    "progress",
)
_SOURCES = ("auto", "prototypes", "model")
_OF_FORMULAS = {"composition", "space_group"}  # what known prototypes can fulfill
_OF_ALL = {"max_atoms", "min_distance", "progress", "seed"}  # options that do not ask for the model


class CrystalGenerationPipeline(Pipeline):
    """Generate crystals.

    ```python
    pipe = pipeline("crystal-generation")                                # the checkpoint embedded in hf_crystal
    pipe("TiO2", num_return_sequences=4)                                 # of the formula: a list of four dictionaries
    pipe("SrTiO3", candidates="model", num_return_sequences=4, seed=0)   # of five atoms
    pipe(composition={"Ti": 2, "O": 4}, space_group="P4_2/mnm")
    pipe("TiO2", space_group=136, formula_units=2, cell={"a": 4.594}, sites=["Ti 2a"])   # a crystal given in part
    pipe(["SrTiO3", {"composition": "NaCl", "space_group": 225}], num_return_sequences=2)   # a list of two lists
    pipe(chemical_system="Li-Fe-O", properties={"formation_energy": -2})
    ```

    Every crystal has the composition and the space group asked for, as its sequence spells them. A result has:

    - `structure`: pymatgen `Structure` of the primitive cell; `cif`: the same crystal as CIF text, its conventional
      cell with the space group and the symmetry operations;
    - `formula`: formula of the primitive cell (`Ti2O4`); `space_group`: symbol as the sequence has it;
    - `sequence`: the sequence as text, the same for all descriptions of a crystal;
    - `log_likelihood`: natural logarithm of the probability (temperature 1, without grammar) of what follows the
      composition; with `candidates="model"` of the generated part. None where a sequence is longer than the context;
    - `source`: "model"; "known mp-…": a known crystal; "prototype mp-…": that one with other elements. `score`: None,
      or the share of such a crystal in the votes, or by energy among those known;
    - `probability`: of a prototype, that the lowest crystal of the formula is this one, if it lies near the hull
      (docs/how_to/generate.md); None where crystals of the formula are known, and for the model's;
    - `known_e_above_hull`: of a known crystal, how far its energy, calculated by DFT, is above the hull of known
      phases, eV/atom; None where it was not calculated, and for others;
    - with `stability=True`: `e_above_hull` and more, see `hf_crystal.stability.predict_stability`;
    - `warnings`: list of what to know about it, such as a property outside the trained range or an
      element that no training crystal has; mostly empty.

    A prompt that no crystal fulfills raises; in a list of prompts it gives `[{"error": reason}]`, the others are not
    affected.
    The prompts of a list are generated together.

    Arguments of each call:
        composition: A formula, or a mapping: atoms of the primitive cell; a list gives one list of results each.
        candidates (`"auto"`, `"prototypes"` or `"model"`, *optional*): Where crystals come from. "prototypes": known
            crystals of the formula with any number of formula units, lowest energy first, then known prototypes with
            its elements, see `hf_crystal.prototypes.propose`; "auto": then those of the model, and of the model alone
            where more than a formula and a space group is asked for; "model": of the model, and a formula, too, counts
            the atoms of the primitive cell. By default "auto" for the embedded default checkpoint where no option of
            sampling is given, else "model". Where this file has been exported without its package, only "model".
        known (`bool`, defaults to `True`): False leaves out what `StructureMatcher` takes for a known crystal of it.
        space_group, chemical_system, formula_units, properties, cell, sites, prompt: See `CrystalPrompt`; fields of
            the prompt may also come as one dictionary in place of the composition.
        num_return_sequences (`int`, defaults to 1): Crystals per prompt.
        temperature, top_p, num_beams, guidance, seed, max_atoms, max_length: See
            `generate_crystals_for_prompts`.
        batch_size (`int`, defaults to 256): Sequences generated at a time; more are faster and need more memory.
        unique (`bool`, defaults to `True`): Leave out repeated sequences and draw others in their place. Where the
            model keeps repeating itself there may be fewer results than asked for.
        min_distance (`float`, *optional*): Leave out crystals with atoms nearer than this, Å, and draw others.
        smact (`bool`, defaults to `False`): Leave out compositions that are not charge-neutral by SMACT, which has to
            be installed, and draw others.
        unseen (`"warn"` or `"refuse"`, defaults to `"warn"`): Elements, and pairs of elements in one crystal, that no
            training crystal has: `warnings` names them, or the prompt raises and crystals with them are left out.
        collisions (`"replace"` or `"keep"`, defaults to `"replace"`): What becomes of crystals of the model with two
            atoms closer than half the sum of their covalent radii.
        progress (function, *optional*): Called with the number of crystals so far.
        max_rounds (`int`, defaults to 4): How often crystals that were left out are replaced.
        stability (`bool`, defaults to `False`): Predict how far each crystal, unrelaxed, is above the hull of known
            phases. Results are not ordered by it. Needs the package.
        rank (`bool` or function of a `DecodedCrystal`, defaults to `True`): Most probable crystal first, by
            `log_likelihood`; a function: largest value first; `False`: in the order of generation.
    """

    _load_tokenizer: bool | None = True  # type: ignore[assignment]
    _load_feature_extractor: bool | None = False  # type: ignore[assignment]
    _load_image_processor: bool | None = False  # type: ignore[assignment]
    _load_video_processor: bool | None = False  # type: ignore[assignment]
    _load_processor: bool | None = False  # type: ignore[assignment]
    model: Any  # a Mat2SeqForCausalLM; neither class is importable where this file travels
    tokenizer: Any  # a Mat2SeqTokenizer

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.model.eval()
        if not hasattr(self.model, "generate_crystals"):
            raise ValueError(
                f"model is {type(self.model).__name__}; load it with Mat2SeqForCausalLM.from_pretrained. An adapter "
                "of PEFT may stay on such a model, or be merged into it (merge_and_unload)"
            )
        if not hasattr(self.tokenizer, "decode_structure"):
            raise ValueError(f"tokenizer is {type(self.tokenizer).__name__}; expected Mat2SeqTokenizer")

    def _sanitize_parameters(self, **given: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = (*_PROMPT_FIELDS, *_SAMPLING_FIELDS, *_RESULT_FIELDS, "stability")
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise TypeError(f"unknown arguments {unknown}; accepted are {', '.join(known)}")
        for name in ("num_return_sequences", "max_rounds", "generation_batch_size", "max_atoms"):
            if isinstance(given.get(name), str):
                raise ValueError(f"{name} is {given[name]!r}; accepted: a whole number")
            if given.get(name) is not None and given[name] < 1:
                raise ValueError(f"{name.removeprefix('generation_')} is {given[name]}; accepted: at least 1")
        if given.get("candidates") not in (None, *_SOURCES):
            raise ValueError(f"candidates is {given['candidates']!r}; accepted: {', '.join(map(repr, _SOURCES))}")
        prompt = {name: given[name] for name in _PROMPT_FIELDS if given.get(name) is not None}
        forward = {name: given[name] for name in (*_SAMPLING_FIELDS, *_RESULT_FIELDS) if given.get(name) is not None}
        return prompt, forward, {"stability": given["stability"]} if "stability" in given else {}

    def __call__(  # type: ignore[override]
        self, composition: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None = None, **kwargs: Any
    ) -> Any:
        """Generate for one prompt (a list of results) or for a list of prompts (a list of lists)."""
        if kwargs.get("batch_size") is not None:  # the base class would take it for prompts per batch
            kwargs["generation_batch_size"] = kwargs.pop("batch_size")
        if not isinstance(composition, (list, tuple)):
            return super().__call__({} if composition is None else composition, **kwargs)
        prompt, parameters, after = self._sanitize_parameters(**kwargs)
        prompts = [self.preprocess(item, **{**self._preprocess_params, **prompt}) for item in composition]
        parameters = {**self._forward_params, **parameters}
        after = {**self._postprocess_params, **after}
        return [self.postprocess(found, **after) for found in self._generate(prompts, on_error="return", **parameters)]

    def preprocess(self, input_: str | Mapping[str, Any], **prompt: object) -> dict[str, Any]:
        """Fields of one prompt: those of the call, and those of the input if it is a dictionary of them."""
        if isinstance(input_, dict) and set(input_) <= set(_PROMPT_FIELDS):
            own = dict(input_)
        else:
            own = {"composition": input_}
        twice = sorted(set(own) & set(prompt))
        if twice:
            raise ValueError(f"given twice: {', '.join(twice)}")
        return {**prompt, **own}

    def forward(self, model_inputs: dict[str, Any], **parameters: Any) -> Any:
        """Generate; a prompt holds no tensors, so there is nothing to move between devices."""
        return self._forward(model_inputs, **parameters)

    def _forward(self, input_tensors: dict[str, Any], **parameters: Any) -> list[Any]:  # type: ignore[override]
        """Decoded crystals of one prompt that pass the filters."""
        return self._generate([input_tensors], on_error="raise", **parameters)[0]

    def _generate(
        self,
        prompts: list[dict[str, Any]],
        num_return_sequences: int = 1,
        generation_batch_size: int = 256,
        unique: bool = True,
        rank: Any = True,
        candidates: str | None = None,
        known: bool = True,
        on_error: str = "raise",
        **options: Any,
    ) -> list[list[Any]]:
        """Decoded crystals of each prompt."""
        draw = functools.partial(
            self.model.generate_crystals_for_prompts, self.tokenizer,
            batch_size=generation_batch_size, unique=unique, rank=rank, **options,
        )  # fmt: skip
        if candidates is None:
            plain = set(options) <= _OF_ALL and unique and rank is True
            candidates = "auto" if not known or (plain and self._is_default()) else "model"
        needs = f"candidates is {candidates!r}; accepted is 'model'"
        propose: Any = None if candidates == "model" else _of_package("prototypes", needs).propose
        of_formulas = [propose is not None and _is_formula(prompt, candidates) for prompt in prompts]
        if not known and not all(of_formulas):
            raise ValueError(
                "known is False (--novel); accepted: with a formula, alone or with a space group, and candidates "
                "'auto' or 'prototypes': what the model alone writes is not compared with known crystals"
            )
        left = [prompt for prompt, is_formula in zip(prompts, of_formulas, strict=True) if not is_formula]
        drawn = iter(draw(left, num_return=num_return_sequences, on_error=on_error) if left else ())
        found: list[list[Any]] = []
        for prompt, is_formula in zip(prompts, of_formulas, strict=True):
            if not is_formula:
                found.append(next(drawn))
                continue

            def fill(n: int, prompt: dict[str, Any] = prompt) -> list[Any]:
                units = {"formula_units": "any"} if isinstance(prompt["composition"], str) else {}
                # the likelihood of all crystals of a list begins after the composition, see `_with_likelihood`
                return [
                    dataclasses.replace(item, log_likelihood=None) for item in draw([prompt | units], num_return=n)[0]
                ]

            judge = _of_package("stability", needs).predicted_energies
            bounds = {name: options[name] for name in ("max_atoms", "min_distance", "unseen") if name in options}
            generate = fill if candidates == "auto" else None
            try:
                items = propose(
                    **prompt, n=num_return_sequences, known=known, generate=generate, judge=judge, **bounds
                )
            except ValueError as error:
                if on_error == "raise":
                    raise
                items = [SimpleNamespace(error=error)]
            notes = () if all(item.error is not None for item in items) else _unlisted(prompt["composition"])
            found.append(
                [
                    dataclasses.replace(item, warnings=(*item.warnings, *notes)) if item.error is None else item
                    for item in map(self._with_likelihood, items)
                ]
            )
            if items and options.get("progress") is not None:
                options["progress"](len(items))
        return found

    def _with_likelihood(self, item: Any) -> Any:
        """A crystal with what the model thinks of it after its composition, where the model can read it."""
        if item.error is not None or item.log_likelihood is not None:
            return item
        ids = self.tokenizer.encode(item.sequence)
        if item.canonical.settings != self.tokenizer.settings or len(ids) > self.model.config.max_position_embeddings:
            return item
        begin = ids.index(self.tokenizer.convert_tokens_to_ids("|"))  # ends the composition
        rows = torch.tensor([ids], device=self.model.device)
        with torch.no_grad():
            logits = self.model(input_ids=rows).logits[0, :-1].float().log_softmax(dim=-1)
        likelihoods = logits.gather(1, rows[0, 1:, None])[begin:, 0].double()
        return dataclasses.replace(item, log_likelihood=likelihoods.sum().item())

    def _is_default(self) -> bool:
        """Whether the model is the default one of this package."""
        try:
            embedded = importlib.import_module("hf_crystal.checkpoints")
        except ImportError:
            return False
        return str(self.model.name_or_path) == str(embedded.checkpoint_folder(embedded.DEFAULT_GENERATOR))

    def postprocess(  # type: ignore[override]
        self, model_outputs: list[Any], stability: bool = False, **_: object
    ) -> list[dict[str, Any]]:
        """Decoded crystals → results."""
        results = [result_of(item) for item in model_outputs]
        if not stability:
            return results
        judged: list[dict[str, Any]] = _of_package(
            "stability", "stability is True; accepted is False"
        ).predict_stability(results)
        return judged

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: object) -> None:
        """Save model and tokenizer; load with the same task name after `import hf_crystal`.

        The base class would also write a pipeline entry that names an Auto class unknown to transformers, and the
        folder could not be loaded again.

        Args:
            save_directory: folder, created if missing.
            **kwargs: passed to `model.save_pretrained`.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.tokenizer.save_pretrained(save_directory)


def _of_package(name: str, needs: str) -> Any:
    """A module of the package that does not travel with this file."""
    try:
        return importlib.import_module(f"hf_crystal.{name}")
    except ImportError as error:
        raise ValueError(f"{needs}: the package hf_crystal, which has the known crystals, is missing") from error


def _unlisted(composition: str | Mapping[str, Any]) -> tuple[str, ...]:
    """A note where there is a phase of a formula that is none of the known crystals."""
    counts = parse_composition(composition)
    needs = "a formula needs"
    if _of_package("prototypes.proposals", needs)._default_index().knows(counts):
        return ()
    stability = _of_package("stability", needs)
    if not stability.has_phase(counts):
        return ()
    return (
        f"the hull ({stability.DEFAULT_REFERENCE}) has a phase of this formula that is none of the known crystals, "
        "mostly one of more than 96 atoms in the primitive cell or 24 Wyckoff positions",
    )


def _is_formula(prompt: Mapping[str, Any], candidates: str) -> bool:
    """Whether known prototypes can fulfill a prompt."""
    composition = prompt.get("composition")
    more = sorted(set(prompt) - _OF_FORMULAS)
    if candidates == "prototypes" and (composition is None or more):
        raise ValueError(
            f"candidates is 'prototypes', which takes composition and space_group, not {more or 'an empty prompt'}"
        )
    return not more and (isinstance(composition, str) or (candidates == "prototypes" and composition is not None))


def result_of(item: Any) -> dict[str, Any]:
    """A decoded crystal as a dictionary."""
    if item.error is not None:
        return {"error": str(item.error)}
    return {
        "structure": item.structure,
        "cif": item.canonical.to_cif(),
        "formula": cell_formula(item.structure.atomic_numbers),
        "space_group": item.sequence.split(" | ")[1],
        "sequence": item.sequence,
        "log_likelihood": item.log_likelihood,
        "score": item.score,
        "probability": item.probability,
        "known_e_above_hull": item.known_e_above_hull,
        "source": item.source,
        "warnings": [*item.warnings, *_doubts(item)],
    }


def _doubts(item: Any) -> list[str]:
    """What is implausible about the geometry of a decoded crystal, as predictions say it."""
    record = item.canonical.to_record()
    arrays = (record.atomic_numbers, record.frac_coords @ record.cell, record.cell)
    return geometry_warnings(*(array[None] for array in arrays))[0]
