# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""The task "crystal-property-prediction": crystals in any accepted form → property values with their units."""

import math
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain, islice
from typing import Any, TypeGuard

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import Pipeline, PreTrainedConfig

from ..crystals.doubts import TrainingDomain, geometry_warnings
from ..crystals.elements import mixture_formula, reduced_formula
from ..crystals.occupancy import ordered_records
from ..crystals.reading import CrystalLike, as_record, record_to_structure
from ..crystals.record import CrystalInputError

__all__ = ["CrystalPropertyPipeline"]

# fields of a result besides the targets
_RESERVED_FIELDS = (
    "source",
    "model",
    "model_digest",
    "formula",
    "num_atoms",
    "embedding",
    "disorder",
    "ordering_formula",
    "warnings",
    "error",
    "metal_probability",
    "is_metal",
)
# fields of each target with an error head, after its name
_ERROR_FIELDS = ("standard_error", "low", "high")
# outputs of the model, those of an error head optional
_OUTPUTS = ("logits", "pooler_output", "standard_errors", "interval_widths", "metal_probability")
_GEOMETRY = ("strain", "distortion")
_STRAINED, _MOST_STRAINED = 0.06, 0.14  # strain that gets a warning, and that of the fit: docs/experiments.md
_MIXED = (
    "disordered: sites are read as mixtures of their elements, which models of ordered crystals were not trained on; "
    "energies are mostly too high; disorder='orderings' (--disorder orderings) predicts ordered crystals in its place"
)
# batches that are read ahead and sorted by size together
_BATCHES_PER_CHUNK = 16

_ELEMENT = "one element: in its ground state its formation energy is 0, and models predict up to 0.2 eV/atom more"
_OPEN = "not periodic along all axes (pbc): the model was trained on bulk crystals, and the result is an extrapolation"


def _pieces(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items; the last one may be shorter."""
    rest = iter(items)
    while piece := list(islice(rest, size)):
        yield piece


def _read_crystals(
    extractor: Any, config: Any, disorder: str, num_orderings: int, crystals: list[Any]
) -> list[dict[str, Any]]:
    """What `extract_all` gives, and of disordered crystals what `disorder` says: arrays, `orderings`, or `error`."""
    items = extractor.extract_all(crystals)
    obstacle = config.open_axes_obstacle
    for place, item in enumerate(items):
        if "pbc" in item:
            reason = f"pbc is {tuple(item['pbc'].tolist())}: this model has {obstacle}"
            doubtful = {**item, "warnings": [*item.get("warnings", ()), _OPEN]}
            item = items[place] = {"error": reason} if obstacle else doubtful
        if "occupancies" not in item:
            continue
        try:
            if disorder == "refuse":
                as_record(crystals[place])  # its reason
            elif disorder == "orderings":
                formula = mixture_formula(item["occupancies"])
                ordered = ordered_records(as_record(crystals[place], disorder="mix"), num_orderings)
                found = [record_to_structure(record) for record in ordered]
                way = f"mean over {len(found)} orderings" if len(found) > 1 else "the one distinct ordering"
                doubt = f"disordered ({formula}): {way} {found[0].reduced_formula} of {len(found[0])} atoms"
                notes = [*item.get("warnings", ()), doubt]
                items[place] = {
                    "orderings": extractor.extract_all(found),
                    "warnings": notes,
                    "formula": formula,
                    "ordering_formula": found[0].reduced_formula,
                }
            else:
                items[place] = {**item, "warnings": [*item.get("warnings", ()), *mixture_doubts(config)]}
        except CrystalInputError as error:
            items[place] = {"error": error.reason}
    return items


def mixture_doubts(config: PreTrainedConfig) -> list[str]:
    """Warnings of a disordered crystal that the model of this config reads as a mixture."""
    return [] if getattr(config, "trained_disordered", None) else [_MIXED]


def batch_doubts(
    inputs: Mapping[str, Any], domain: TrainingDomain, radius: float
) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """Warnings of each crystal of a padded batch: new elements, new pairs of elements, odd geometry.

    Args:
        inputs: what `CrystalFeatureExtractor.pad` gives.
        domain: what the model was trained on.
        radius: how far the model looks, Å.
    """
    numbers, positions, cells = (inputs[name].numpy() for name in ("atomic_numbers", "positions", "cell"))
    totals, everyone = None, list(numbers)
    if "occupancies" in inputs:  # the minor elements of a site count, too
        held = inputs["occupancies"].numpy()
        totals, present = held.sum(axis=-1), held.any(axis=1) * np.arange(1, held.shape[-1] + 1)
        everyone = list(np.concatenate([numbers, present], axis=1))
    periodic = inputs["pbc"].numpy() if "pbc" in inputs else None
    odd = geometry_warnings(numbers, positions, cells, radius, totals, periodic)
    return domain.unseen_elements(everyone), domain.unseen_pairs(everyone), odd


def _end_with_parent() -> None:
    """End this worker process without a word at Ctrl-C, and when the process that started it is gone (`kill -9`)."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

    def wait() -> None:
        """Sleep until the parent is gone, then end this process."""
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _is_many(inputs: object) -> TypeGuard[Iterable[Any]]:
    """Whether `inputs` holds several crystals: a list, tuple, iterator, torch dataset or table of `datasets`."""
    if isinstance(inputs, (list, tuple, Iterator, Dataset)):
        return True
    # datasets.Dataset and IterableDataset; the library may be absent where this file travels
    return type(inputs).__module__.partition(".")[0] == "datasets"


def _mean_of(outputs: list[dict[str, Any]], item: dict[str, Any]) -> dict[str, Any]:
    """Output of a disordered crystal from those of its orderings, and the spread of these."""
    good = [output for output in outputs if "error" not in output]
    if not good:
        return outputs[0]
    values = torch.stack([output["logits"] for output in good])
    doubts = dict.fromkeys(chain(item["warnings"], *(output["warnings"] for output in good)))
    return {
        "atomic_numbers": good[0]["atomic_numbers"],
        "formula": item["formula"],
        "ordering_formula": item["ordering_formula"],
        "disorder": "orderings",
        # ordered atoms sit where they would relax from, so that only the edges are judged
        **{
            name: torch.stack([output[name] for output in good]).mean(0)
            for name in (*_OUTPUTS, "strain")
            if all(name in output for output in good)
        },
        "spread": values.std(0, correction=0),
        "warnings": list(doubts),
    }


def _at_rest(strain: float, distortion: float) -> list[str]:
    """A warning of a crystal that does not look like one at rest, in a list."""
    if abs(strain) > _STRAINED:
        share = f"about {abs(math.expm1(strain)):.0%}" if abs(strain) < _MOST_STRAINED else "a tenth or more"
        way = "longer" if strain > 0 else "shorter"
        return [
            f"edges look {share} {way} than those of a crystal at rest, unless atoms or elements are in wrong places; "
            "values are for the crystal as given"
        ]
    if distortion > 0:
        return [
            "does not look like a crystal at rest: displaced atoms, exchanged elements or wrong edges look like this, "
            "and crystals far from the hull; values are for the crystal as given"
        ]
    return []


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
    - of a model with an error head per target `<target>_standard_error` (of crystals like this one, 68 % have a
      smaller error), `<target>_low` and `<target>_high` (an interval that holds 90 %), and of one with a band gap
      `metal_probability`; above 0.5 `is_metal` is true and the gap is 0, the value of least expected error;
      of orderings all of these are means;
    - `disorder`, of a disordered crystal only: which way was taken, `"mix"` or `"orderings"`, with the standard
      deviation over orderings under `<target>_spread`, and whose energy it is, `ordering_formula`;
    - `embedding`: the pooled vector of the encoder, with `return_embedding=True`;
    - `warnings`: list of what is doubtful, mostly empty: an element, or two elements in one crystal, that no training
      crystal has; atoms closer than half the sum of their covalent radii, an odd volume per atom, edges too
      long or short, an atom without neighbors; disorder; a slab, wire or molecule; what was doubtful in the file.
      An element never seen is also a Python warning;
    - or only `error`: the reason, for a crystal that cannot be read or has no finite prediction; the others are
      predicted.

    Arguments of the constructor and of each call:
        batch_size (`int`, defaults to 16): crystals per forward pass at most. Crystals are sorted by size within
            chunks of 16 batches, which saves padding; results keep the order of the inputs.
        max_batch_atoms (`int`, defaults to 4096): atoms per forward pass at most, padding included; a larger crystal
            goes alone.
        num_workers (`int`, defaults to 0): processes that read crystals while the model computes.
        return_embedding (`bool`, defaults to `False`).
        unseen (`"warn"` or `"refuse"`, defaults to `"warn"`): Elements, and pairs of elements, that no training
            crystal has: the value comes with a warning, or the crystal gives `error`. Checkpoints that do not record
            what they were trained on do neither.
        disorder (`"mix"`, `"orderings"` or `"refuse"`, defaults to `"mix"`): of crystals with partly occupied sites.
            `"mix"` reads a site as the mixture of its elements, with a warning unless the model was trained on
            such crystals; `"orderings"` gives the mean over
            ordered crystals of about the composition (`hf_crystal.disorder.orderings`; needs pymatgen); `"refuse"`
            an `error`.
        num_orderings (`int`, defaults to 8): how many ordered ones.
    """

    _load_feature_extractor: bool | None = True  # type: ignore[assignment]
    _load_tokenizer: bool | None = False  # type: ignore[assignment]
    _load_image_processor: bool | None = False  # type: ignore[assignment]
    _load_video_processor: bool | None = False  # type: ignore[assignment]
    _load_processor: bool | None = False  # type: ignore[assignment]
    model: Any  # a model with a property head; neither class is importable where this file travels
    feature_extractor: Any  # a CrystalFeatureExtractor

    def __init__(self, *args: Any, batch_size: int | None = None, **kwargs: Any):
        super().__init__(*args, batch_size=16 if batch_size is None else batch_size, **kwargs)
        self.model.eval()  # frames are perturbed in training
        if self.feature_extractor is None:
            raise ValueError("feature_extractor is missing: pass CrystalFeatureExtractor() along with the model")
        names, units = list(self.model.config.target_names), list(self.model.config.target_units)
        fields = {f"{name}_{field}" for name in names for field in ("unit", *_ERROR_FIELDS)}
        reserved = sorted({*names} & {*_RESERVED_FIELDS, *fields})
        if reserved:
            raise ValueError(f"target names {reserved} of the model collide with fields of the result; rename them")
        self._targets = list(zip(names, units, strict=True))
        self._domain = TrainingDomain(self.model.config)

    def _sanitize_parameters(
        self,
        return_embedding: bool | None = None,
        max_batch_atoms: int | None = None,
        unseen: str | None = None,
        disorder: str | None = None,
        num_orderings: int | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise TypeError(
                f"unknown arguments {sorted(unknown)}; accepted are batch_size, max_batch_atoms, num_workers, "
                "return_embedding, unseen, disorder, num_orderings"
            )
        reading: dict[str, Any] = {}
        if disorder is not None:
            if disorder not in ("mix", "orderings", "refuse"):
                raise ValueError(f"disorder is {disorder!r}; accepted: 'mix', 'orderings' or 'refuse'")
            reading["disorder"] = disorder
        if num_orderings is not None:
            if num_orderings < 1:
                raise ValueError(f"num_orderings must be positive, got {num_orderings}")
            reading["num_orderings"] = num_orderings
        forward: dict[str, Any] = {}
        if max_batch_atoms is not None:
            if max_batch_atoms < 1:
                raise ValueError(f"max_batch_atoms must be positive, got {max_batch_atoms}")
            forward["max_batch_atoms"] = max_batch_atoms
        if unseen is not None:
            if unseen not in ("warn", "refuse"):
                raise ValueError(f"unseen is {unseen!r}; accepted: 'warn' or 'refuse'")
            forward["unseen"] = unseen
        postprocess = {} if return_embedding is None else {"return_embedding": return_embedding}
        return reading, forward, postprocess

    def __call__(self, inputs: CrystalLike | Iterable[CrystalLike], *args: object, **kwargs: Any) -> Any:
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

    def preprocess(  # type: ignore[override]
        self, input_: CrystalLike, disorder: str = "mix", num_orderings: int = 8
    ) -> dict[str, Any]:
        """Read one crystal: its arrays, or `{"error": reason}`."""
        return _read_crystals(self.feature_extractor, self.model.config, disorder, num_orderings, [input_])[0]

    def _forward(self, input_tensors: Any) -> Any:  # type: ignore[override]
        outputs = self.model(**input_tensors)
        return {name: outputs[name] for name in (*_OUTPUTS, *_GEOMETRY) if outputs.get(name) is not None}

    def postprocess(self, model_outputs: dict[str, Any], return_embedding: bool = False) -> Any:  # type: ignore[override]
        """One crystal's outputs → its result."""
        if "error" in model_outputs:
            return {"error": model_outputs["error"]}
        numbers = model_outputs["atomic_numbers"].tolist()
        formula = model_outputs.get("formula") or reduced_formula(numbers)
        result: dict[str, Any] = {"formula": formula, "num_atoms": len(numbers)}
        for place, ((name, unit), value) in enumerate(
            zip(self._targets, model_outputs["logits"].tolist(), strict=True)
        ):
            if not math.isfinite(value):
                return {"error": f"{result['formula']}: the model gives {value} for {name}, which is no prediction"}
            result[name] = value
            result[f"{name}_unit"] = unit
            result |= self._error_fields(name, value, model_outputs)
            if "spread" in model_outputs:
                result[f"{name}_spread"] = model_outputs["spread"].tolist()[place]
        if "metal_probability" in model_outputs:
            result["metal_probability"] = float(model_outputs["metal_probability"])
            result["is_metal"] = result["metal_probability"] > 0.5
        result |= {name: model_outputs[name] for name in ("disorder", "ordering_formula") if name in model_outputs}
        result["warnings"] = list(model_outputs.get("warnings", ()))
        if len(set(numbers)) == 1 and any(
            name.startswith("formation_energy") and result.get(f"{name}_low", 0) > 0 for name, _ in self._targets
        ):
            result["warnings"].append(_ELEMENT)
        strain, distortion = (float(model_outputs.get(name, 0.0)) for name in _GEOMETRY)
        # few training crystals are elements, and perfect diamond would not look at rest
        result["warnings"] += _at_rest(strain, distortion if len(set(numbers)) > 1 else 0.0)
        if return_embedding:
            result["embedding"] = model_outputs["pooler_output"].float().tolist()
        return result

    def _error_fields(self, name: str, value: float, outputs: Mapping[str, Any]) -> dict[str, float]:
        """Standard error and interval of one target; a gap's does not reach below 0."""
        if "standard_errors" not in outputs:
            return {}
        config = self.model.config
        place = config.target_names.index(name)
        width = float(outputs["interval_widths"][place])
        low = max(0.0, value - width) if place == config.gap_index else value - width
        errors = (float(outputs["standard_errors"][place]), low, value + width)
        return {f"{name}_{field}": number for field, number in zip(_ERROR_FIELDS, errors, strict=True)}

    def get_iterator(
        self,
        inputs: Iterable[Any],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[dict[str, Any]]:
        """Results in the order of `inputs`; called by the base class."""
        read = self._read(inputs, batch_size, num_workers, **preprocess_params)
        for group in _pieces(read, _BATCHES_PER_CHUNK):
            for outputs in self._predict_chunk(list(chain(*group)), batch_size, **forward_params):
                yield self.postprocess(outputs, **postprocess_params)

    def _read(
        self, crystals: Iterable[Any], size: int, num_workers: int, disorder: str = "mix", num_orderings: int = 8
    ) -> Iterator[list[dict[str, Any]]]:
        """Arrays or errors of `size` crystals after the other; worker processes read up to two chunks ahead."""
        read = partial(_read_crystals, self.feature_extractor, self.model.config, disorder, num_orderings)
        pieces = _pieces(crystals, size)
        if not num_workers:
            yield from map(read, pieces)
            return
        pool = ProcessPoolExecutor(num_workers, initializer=_end_with_parent)
        try:
            ahead = deque(pool.submit(read, piece) for piece in islice(pieces, 2 * _BATCHES_PER_CHUNK))
            while ahead:
                result = ahead.popleft().result()
                ahead.extend(pool.submit(read, piece) for piece in islice(pieces, 1))
                yield result
        except BaseException:
            # a worker may be stuck in a read, which shutdown would wait for; Python 3.14 has kill_workers()
            for worker in list((pool._processes or {}).values()):
                worker.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def run_single(
        self,
        inputs: CrystalLike,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> dict[str, Any]:
        """The result of one crystal; called by the base class."""
        return next(self.get_iterator([inputs], 0, 1, preprocess_params, forward_params, postprocess_params))

    def _predict_chunk(self, chunk: list[dict[str, Any]], batch_size: int, **options: Any) -> list[dict[str, Any]]:
        """Outputs of a chunk of crystals in its order; the mean where a crystal stands for several ordered ones."""
        parts = [item.get("orderings", [item]) for item in chunk]
        outputs = iter(self._predict_all(list(chain(*parts)), batch_size, **options))
        grouped = [list(islice(outputs, len(part))) for part in parts]
        return [
            _mean_of(group, item) if "orderings" in item else group[0]
            for group, item in zip(grouped, chunk, strict=True)
        ]

    def _predict_all(
        self, chunk: list[dict[str, Any]], batch_size: int, max_batch_atoms: int = 4096, unseen: str = "warn"
    ) -> list[dict[str, Any]]:
        """Outputs of crystals in their order, computed in batches of similar size."""
        outputs = list(chunk)  # errors stay as they are
        readable = [index for index, item in enumerate(chunk) if "error" not in item]
        # largest first: a batch that does not fit in memory fails at once, not after an hour
        readable.sort(key=lambda index: -len(chunk[index]["atomic_numbers"]))
        while readable:
            largest = len(chunk[readable[0]]["atomic_numbers"])
            size = max(1, min(batch_size, max_batch_atoms // largest))
            batch, readable = readable[:size], readable[size:]
            inputs = self.feature_extractor.pad([chunk[index] for index in batch])
            foreign, doubts = self._doubts(inputs, announce=unseen == "warn")
            predictions = self.forward(inputs)
            for row, index in enumerate(batch):
                if unseen == "refuse" and foreign[row]:
                    outputs[index] = {"error": "; ".join(foreign[row])}
                    continue
                mixed = "occupancies" in chunk[index]
                # of mixtures and foreign elements the model does not know how they rest; doubts say it already
                names = _OUTPUTS if mixed or foreign[row] or doubts[row] else (*_OUTPUTS, *_GEOMETRY)
                outputs[index] = {
                    "atomic_numbers": chunk[index]["atomic_numbers"],
                    "warnings": [*chunk[index].get("warnings", ()), *foreign[row], *doubts[row]],
                    **{name: predictions[name][row] for name in names if name in predictions},
                }
                if mixed:
                    outputs[index] |= {"formula": mixture_formula(chunk[index]["occupancies"]), "disorder": "mix"}
        return outputs

    def _doubts(self, inputs: Mapping[str, Any], announce: bool) -> tuple[list[list[str]], list[list[str]]]:
        """Warnings of each crystal of a batch: what no training crystal has, and what is odd about its geometry."""
        elements, pairs, odd = batch_doubts(inputs, self._domain, self.model.config.neighbor_radius)
        if announce:  # for those who read the value only; Python shows each once
            for text in chain(*elements):
                warnings.warn(text, stacklevel=2)
        return [[*one, *other] for one, other in zip(elements, pairs, strict=True)], odd

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: object) -> None:
        """Save model and feature extractor; load with the same task name after `import hf_crystal`.

        The base class would also write a pipeline entry that names an Auto class unknown to transformers, and the
        folder could not be loaded again. `hf_crystal.export_pretrained` writes a folder that carries its code.

        Args:
            save_directory: folder, created if missing.
            **kwargs: passed to `model.save_pretrained`.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.feature_extractor.save_pretrained(save_directory)
