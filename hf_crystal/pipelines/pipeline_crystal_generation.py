# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""The task "crystal-generation": a composition, a space group or nothing → crystals."""

from typing import Any

from transformers import Pipeline

__all__ = ["CrystalGenerationPipeline"]

_PROMPT_FIELDS = ("composition", "formula_units", "space_group", "chemical_system", "properties", "prompt")
_SAMPLING_FIELDS = ("temperature", "top_p", "seed", "generation_batch_size", "max_atoms", "max_length")
_RESULT_FIELDS = ("num_return_sequences", "unique", "max_rounds", "min_distance", "rank")


class CrystalGenerationPipeline(Pipeline):
    """Generate crystals.

    ```python
    pipe = pipeline("crystal-generation")                                # the checkpoint embedded in hf_crystal
    pipe("SrTiO3", num_return_sequences=4, seed=0)                       # a list of four dictionaries
    pipe(composition={"Ti": 2, "O": 4}, space_group="P4_2/mnm")
    pipe(["SrTiO3", "NaCl"], num_return_sequences=2)                     # a list of two lists
    pipe(chemical_system="Li-Fe-O", properties={"formation_energy": -2})
    ```

    Every crystal has the composition and the space group asked for, as its sequence spells them. A result has:

    - `structure`: pymatgen `Structure` of the primitive cell; `cif`: the same as CIF text;
    - `formula`: formula of the primitive cell; `space_group`: symbol as the sequence has it;
    - `sequence`: the sequence as text; equal crystals have equal sequences;
    - `log_likelihood`: natural logarithm of the probability of the generated part (temperature 1, without grammar).

    Arguments of each call:
        composition: Atoms of the primitive cell, a formula or a mapping; a list gives one list of results each.
        space_group, chemical_system, formula_units, properties, prompt: See `generate_crystals`; fields of the
            prompt may also come as one dictionary in place of the composition.
        num_return_sequences (`int`, defaults to 1): Crystals per prompt.
        temperature, top_p, seed, max_atoms, max_length: See `generate_crystals`.
        batch_size (`int`, defaults to 32): Sequences generated at a time.
        unique (`bool`, defaults to `True`): Leave out repeated sequences and draw others in their place. Where the
            model keeps repeating itself there may be fewer results than asked for.
        max_rounds (`int`, defaults to 4): How often crystals that were left out are replaced.
        min_distance (`float`, *optional*): Leave out crystals with two atoms closer than this, Å.
        rank (`bool`, defaults to `False`): Most probable crystal first; otherwise in the order of generation.
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
            raise ValueError(f"model is {type(self.model).__name__}; load it with Mat2SeqForCausalLM.from_pretrained")
        if not hasattr(self.tokenizer, "decode_structure"):
            raise ValueError(f"tokenizer is {type(self.tokenizer).__name__}; expected Mat2SeqTokenizer")

    def _sanitize_parameters(self, **given: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = (*_PROMPT_FIELDS, *_SAMPLING_FIELDS, *_RESULT_FIELDS)
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise TypeError(f"unknown arguments {unknown}; accepted are {', '.join(known)}")
        for name in ("num_return_sequences", "max_rounds"):
            if given.get(name) is not None and given[name] < 1:
                raise ValueError(f"{name} is {given[name]}; accepted: at least 1")
        prompt = {name: given[name] for name in _PROMPT_FIELDS if given.get(name) is not None}
        forward = {name: given[name] for name in (*_SAMPLING_FIELDS, *_RESULT_FIELDS) if given.get(name) is not None}
        return prompt, forward, {}

    def __call__(self, composition: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Generate for one prompt (a list of results) or for a list of prompts (a list of lists)."""
        if isinstance(composition, list):
            return [self(item, **kwargs) for item in composition]
        if kwargs.get("batch_size") is not None:  # the base class would take it for prompts per batch
            kwargs["generation_batch_size"] = kwargs.pop("batch_size")
        return super().__call__({} if composition is None else composition, **kwargs)

    def preprocess(self, input_: Any, **prompt: Any) -> dict[str, Any]:
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

    def _forward(  # type: ignore[override]
        self,
        input_tensors: dict[str, Any],
        num_return_sequences: int = 1,
        unique: bool = True,
        max_rounds: int = 4,
        min_distance: float | None = None,
        rank: bool = False,
        seed: int | None = None,
        generation_batch_size: int = 32,
        **sampling: Any,
    ) -> list[Any]:
        """Decoded crystals that pass the filters."""
        kept: list[Any] = []
        seen: set[str] = set()
        for turn in range(max_rounds if unique or min_distance is not None else 1):
            drawn = self.model.generate_crystals(
                self.tokenizer,
                **input_tensors,
                num_return=num_return_sequences - len(kept),
                batch_size=generation_batch_size,
                # each round draws others, and the same seed gives the same rounds
                seed=None if seed is None else seed + turn * 1_000_003,
                **sampling,
            )
            for item in drawn:
                if unique and item.sequence in seen:
                    continue
                seen.add(item.sequence)
                if min_distance is None or _smallest_distance(item.structure) >= min_distance:
                    kept.append(item)
            if len(kept) == num_return_sequences or sampling.get("temperature") == 0:
                break
        return sorted(kept, key=lambda item: -item.log_likelihood) if rank else kept

    def postprocess(self, model_outputs: list[Any], **_: Any) -> list[dict[str, Any]]:  # type: ignore[override]
        """Decoded crystals → results."""
        return [
            {
                "structure": item.structure,
                "cif": item.structure.to(fmt="cif"),
                "formula": item.structure.composition.formula.replace(" ", ""),
                "space_group": item.sequence.split(" | ")[1],
                "sequence": item.sequence,
                "log_likelihood": item.log_likelihood,
            }
            for item in model_outputs
        ]

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save model and tokenizer; load with the same task name after `import hf_crystal`.

        The base class would also write a pipeline entry that names an Auto class unknown to transformers, and the
        folder could not be loaded again.

        Args:
            save_directory: folder, created if missing.
            **kwargs: passed to `model.save_pretrained`.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.tokenizer.save_pretrained(save_directory)


def _smallest_distance(structure: Any) -> float:
    """Smallest distance between two atoms, periodic images included, Å."""
    radius = 4.0
    while True:
        distances = structure.get_neighbor_list(radius)[3]
        if len(distances):
            return float(distances.min())
        radius *= 2
