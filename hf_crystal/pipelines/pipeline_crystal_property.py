# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""The task "crystal-property-prediction": crystals in any accepted form → property values with their units."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import Pipeline

from .formula_crystal import reduced_formula

__all__ = ["CrystalPropertyPipeline"]

# fields of a result besides the targets
_RESERVED_FIELDS = ("formula", "num_atoms", "embedding", "error")
# batches that are read ahead and sorted by size together
_BATCHES_PER_CHUNK = 16


class _Crystals(Dataset):
    """A list of crystals, read on access."""

    def __init__(self, crystals: Any, read: Any):
        self.crystals = crystals
        self.read = read

    def __len__(self) -> int:
        return len(self.crystals)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.read(self.crystals[index])


class _CrystalStream(IterableDataset):
    """An iterator of crystals, read one after the other."""

    def __init__(self, crystals: Iterable[Any], read: Any):
        self.crystals = crystals
        self.read = read

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.read, self.crystals)


def _as_list(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return items


def _is_many(inputs: Any) -> bool:
    """Whether `inputs` holds several crystals: a list, tuple, iterator, torch dataset or table of `datasets`."""
    if isinstance(inputs, (list, tuple, Iterator, Dataset)):
        return True
    # datasets.Dataset and IterableDataset; the library may be absent where this file travels
    return type(inputs).__module__.partition(".")[0] == "datasets"


class CrystalPropertyPipeline(Pipeline):
    """Predict properties of crystals.

    ```python
    pipe = pipeline("crystal-property-prediction")      # the checkpoint embedded in hf_crystal
    pipe("NaCl.cif")                                     # {"formula": "NaCl", "num_atoms": 8, "formation_energy…": …}
    pipe(["a.cif", structure, record], batch_size=32)    # a list, in order
    for result in pipe(crystal_generator()): ...         # streamed
    ```

    Accepts what `CrystalFeatureExtractor` accepts: pymatgen `Structure`, ASE `Atoms`, path or text of a CIF or
    POSCAR file, record. One crystal gives one dictionary, a list a list, a generator or data set an iterator:

    - `formula`: reduced formula; `num_atoms`: atoms in the given cell;
    - per target of the model its value under the target's name, and its unit under `<target>_unit`;
    - `embedding`: the pooled vector of the encoder, with `return_embedding=True`;
    - or only `error`: the reason, for a crystal that cannot be read; the others go on.

    Arguments of the constructor and of each call:
        batch_size (`int`, defaults to 16): crystals per forward pass at most. Crystals are sorted by size within
            chunks of 16 batches, which saves padding; results keep the order of the inputs.
        max_batch_atoms (`int`, defaults to 4096): atoms per forward pass at most, padding included; a larger crystal
            goes alone.
        num_workers (`int`, defaults to 0): processes that read files while the model computes.
        return_embedding (`bool`, defaults to `False`).
    """

    _load_feature_extractor: bool | None = True  # type: ignore[assignment]
    _load_tokenizer: bool | None = False  # type: ignore[assignment]
    _load_image_processor: bool | None = False  # type: ignore[assignment]
    _load_video_processor: bool | None = False  # type: ignore[assignment]
    _load_processor: bool | None = False  # type: ignore[assignment]
    feature_extractor: Any  # a CrystalFeatureExtractor; that class is not importable where this file travels

    def __init__(self, *args: Any, batch_size: int | None = None, **kwargs: Any):
        super().__init__(*args, batch_size=16 if batch_size is None else batch_size, **kwargs)
        self.model.eval()  # frames are perturbed in training
        if self.feature_extractor is None:
            raise ValueError("feature_extractor is missing: pass CrystalFeatureExtractor() along with the model")
        names, units = list(self.model.config.target_names), list(self.model.config.target_units)
        reserved = sorted({*names} & {*_RESERVED_FIELDS, *(f"{name}_unit" for name in names)})
        if reserved:
            raise ValueError(f"target names {reserved} of the model collide with fields of the result; rename them")
        self._targets = list(zip(names, units, strict=True))

    def _sanitize_parameters(
        self,
        return_embedding: bool | None = None,
        max_batch_atoms: int | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise TypeError(
                f"unknown arguments {sorted(unknown)}; accepted are batch_size, max_batch_atoms, num_workers, "
                "return_embedding"
            )
        forward: dict[str, Any] = {}
        if max_batch_atoms is not None:
            if max_batch_atoms < 1:
                raise ValueError(f"max_batch_atoms must be positive, got {max_batch_atoms}")
            forward["max_batch_atoms"] = max_batch_atoms
        postprocess = {} if return_embedding is None else {"return_embedding": return_embedding}
        return {}, forward, postprocess

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Predict for one crystal, a list of crystals, or an iterator or data set of crystals."""
        batch_size = kwargs.get("batch_size")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        if not _is_many(inputs):
            return super().__call__(inputs, *args, **kwargs)
        if isinstance(inputs, (list, tuple)):
            return super().__call__(list(inputs), *args, **kwargs) if inputs else []
        # a generator is what the base class streams
        return super().__call__((crystal for crystal in inputs), *args, **kwargs)

    def preprocess(self, input_: Any) -> dict[str, Any]:  # type: ignore[override]
        """Read one crystal: its arrays, or `{"error": reason}`."""
        try:
            return self.feature_extractor.extract(input_)
        except ValueError as error:
            # CrystalInputError tells the bare reason; it cannot be imported where this file travels
            return {"error": str(error.reason if hasattr(error, "reason") else error)}

    def _forward(self, input_tensors: Any) -> Any:  # type: ignore[override]
        outputs = self.model(**input_tensors)
        return {"logits": outputs.logits, "pooler_output": outputs.pooler_output}

    def postprocess(self, model_outputs: Any, return_embedding: bool = False) -> Any:  # type: ignore[override]
        """One crystal's outputs → its result."""
        if "error" in model_outputs:
            return {"error": model_outputs["error"]}
        numbers = model_outputs["atomic_numbers"].tolist()
        result: dict[str, Any] = {"formula": reduced_formula(numbers), "num_atoms": len(numbers)}
        for (name, unit), value in zip(self._targets, model_outputs["logits"].tolist(), strict=True):
            result[name] = value
            result[f"{name}_unit"] = unit
        if return_embedding:
            result["embedding"] = model_outputs["pooler_output"].float().tolist()
        return result

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[dict[str, Any]]:
        """Results in the order of `inputs`; called by the base class."""
        if preprocess_params:
            raise TypeError(f"preprocessing takes no arguments, got {sorted(preprocess_params)}")
        dataset: Dataset
        if isinstance(inputs, list):
            dataset = _Crystals(inputs, self.preprocess)
        else:
            # each worker would read the whole stream
            dataset, num_workers = _CrystalStream(inputs, self.preprocess), 0
        chunks = DataLoader(
            dataset, batch_size=batch_size * _BATCHES_PER_CHUNK, num_workers=num_workers, collate_fn=_as_list
        )
        for chunk in chunks:
            for outputs in self._predict_chunk(chunk, batch_size, **forward_params):
                yield self.postprocess(outputs, **postprocess_params)

    def run_single(
        self,
        inputs: Any,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> dict[str, Any]:
        """The result of one crystal; called by the base class."""
        return next(self.get_iterator([inputs], 0, 1, preprocess_params, forward_params, postprocess_params))

    def _predict_chunk(
        self, chunk: list[dict[str, Any]], batch_size: int, max_batch_atoms: int = 4096
    ) -> list[dict[str, Any]]:
        """Outputs of a chunk of crystals in its order, computed in batches of similar size."""
        outputs = list(chunk)  # errors stay as they are
        readable = [index for index, item in enumerate(chunk) if "error" not in item]
        # largest first: a batch that does not fit in memory fails at once, not after an hour
        readable.sort(key=lambda index: -len(chunk[index]["atomic_numbers"]))
        while readable:
            largest = len(chunk[readable[0]]["atomic_numbers"])
            size = max(1, min(batch_size, max_batch_atoms // largest))
            batch, readable = readable[:size], readable[size:]
            predictions = self.forward(self.feature_extractor.pad([chunk[index] for index in batch]))
            for row, index in enumerate(batch):
                outputs[index] = {
                    "atomic_numbers": chunk[index]["atomic_numbers"],
                    "logits": predictions["logits"][row],
                    "pooler_output": predictions["pooler_output"][row],
                }
        return outputs

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save model and feature extractor; load with the same task name after `import hf_crystal`.

        The base class would also write a pipeline entry that names an Auto class unknown to transformers, and the
        folder could not be loaded again. `hf_crystal.export_pretrained` writes a folder that carries its code.

        Args:
            save_directory: folder, created if missing.
            **kwargs: passed to `model.save_pretrained`.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.feature_extractor.save_pretrained(save_directory)
