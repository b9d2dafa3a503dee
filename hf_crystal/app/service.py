"""What the web page does: predict, generate, look inside. Plain functions of plain values, without Gradio."""

import csv
import shutil
import tempfile
import threading
import weakref
import zipfile
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..candidates import group_candidates
from ..checkpoints import DEFAULT_GENERATOR, DEFAULT_MODEL, embedded_checkpoints, embedded_generators
from ..crystals.reading import as_record
from ..crystals.record import CrystalInputError, CrystalRecord
from ..loading import load_generation_pipeline, load_property_pipeline, measured_errors
from ..typing import CrystalLike
from .reading import CrystalReaders

__all__ = [
    "GeneratedCrystal",
    "Insight",
    "Prediction",
    "Service",
    "example_files",
]

MAX_FILES = 50
MAX_INSIDE_ATOMS = 500  # attention grows with the square: 4 s of a processor
MAX_GENERATED = 12
MAX_COMPOSITION = 200  # characters
_FOLDERS_KEPT = 32  # of files to be fetched; Gradio copies a file before the answer leaves
_ROW_FIELDS = ("crystal", "formula", "atoms", "property", "value", "unit", "typical error", "metal probability")
ABOVE_HULL = "energy above hull"
_CSV_FIELDS = (*_ROW_FIELDS, "warnings", "error")


def _remove(folders: Iterable[str]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def example_files() -> dict[str, Path]:
    """Name → file of the example crystals: inside an installed package, beside the package in a checkout."""
    inside = Path(__file__).parents[1] / "examples"
    folder = inside if inside.is_dir() else Path(__file__).parents[2] / "examples"
    return {path.stem: path for path in sorted(folder.glob("*.cif"))}


@dataclass
class Prediction:
    """What was predicted for some crystals.

    Attributes:
        rows: one per crystal and property: crystal, formula, atoms, property, value, unit, typical error (the standard
            error; of a model without an error head its mean error), metal probability of a gap, warnings.
        crystals: name → record of what could be read.
        errors: name and reason of what could not.
        warnings: name → what is doubtful, for those that have something.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    crystals: dict[str, CrystalRecord] = field(default_factory=dict)
    errors: list[tuple[str, str]] = field(default_factory=list)
    warnings: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class GeneratedCrystal:
    """One generated crystal.

    Attributes:
        structure: pymatgen `Structure`; `cif` the same as text.
        formula, space_group, sequence, log_likelihood, source: as the pipeline gives them.
        structure_valid: no atoms closer than 0.5 Å; composition_valid: charge-neutral by SMACT, None if not installed.
        properties: rows as in `Prediction.rows`.
        warnings: what is doubtful, as the pipeline gives it.
        num_equal: how many of the crystals generated are equal to it, itself included.
        probability, known_e_above_hull: as the pipeline gives them.
    """

    structure: Any
    cif: str
    formula: str
    space_group: str
    sequence: str
    log_likelihood: float | None
    source: str
    structure_valid: bool
    composition_valid: bool | None
    properties: list[dict[str, Any]]
    warnings: list[str] = field(default_factory=list)
    num_equal: int = 1
    probability: float | None = None
    known_e_above_hull: float | None = None

    @property
    def file_name(self) -> str:
        """Name of its CIF file."""
        safe = "".join(
            character if character.isalnum() or character in "-_" else "-" for character in self.space_group
        )
        return f"{self.formula}_{safe}.cif"


@dataclass
class Insight:
    """One crystal told again in other words.

    Attributes:
        change: what was done to it.
        record: the crystal as described now.
        sequence: its sequence.
        value: prediction of the first target; `target` and `unit` of it.
    """

    change: str
    record: CrystalRecord
    sequence: str
    value: float
    target: str
    unit: str


class Service:
    """Models in memory and the functions of the page; safe with several users at once.

    Args:
        property_models: names of embedded checkpoints, folders or repositories; the first is the default.
        generator: name of an embedded generator, folder or repository; the empty name for none.
        device: torch device of all models.
    """

    def __init__(
        self, property_models: Sequence[str] | None = None, generator: str | None = None, device: str = "cpu"
    ):
        self.property_models = list(property_models or _default_first(embedded_checkpoints(), DEFAULT_MODEL))
        default = next(iter(_default_first(embedded_generators(), DEFAULT_GENERATOR)), "")
        self.generator = default if generator is None else generator
        self._device = device
        # one computation of each kind at a time: more threads on a small machine make everybody wait
        self._lock, self._drawing = threading.RLock(), threading.RLock()
        self._loaded: dict[str, Any] = {}
        self.readers = CrystalReaders()
        self._folders: deque[str] = deque()
        weakref.finalize(self, _remove, self._folders)

    def _new_folder(self) -> Path:
        """A folder for one file; the oldest of many is removed, the rest when the process ends."""
        self._folders.append(tempfile.mkdtemp(prefix="hf_crystal-"))
        if len(self._folders) > _FOLDERS_KEPT:
            shutil.rmtree(self._folders.popleft(), ignore_errors=True)
        return Path(self._folders[-1])

    def property_pipeline(self, name: str) -> Any:
        """The pipeline "crystal-property-prediction" of a model, loaded on first use."""
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = load_property_pipeline(name, self._device)
            return self._loaded[name]

    def generation_pipeline(self) -> Any:
        """The pipeline "crystal-generation", loaded on first use."""
        with self._drawing:
            if "generator" not in self._loaded:
                self._loaded["generator"] = load_generation_pipeline(self.generator, self._device)
            return self._loaded["generator"]

    # ------------------------------------------------------------------------------------------------------ predict

    def read(self, files: Sequence[str | Path] = (), text: str = "", example: str | None = None) -> Prediction:
        """Crystals of uploaded files, a pasted text and an example, in this order; errors are collected.

        Raises:
            ValueError: too many files.
        """
        sources: list[tuple[str, Any]] = [(Path(file).name, Path(file)) for file in files]
        if text.strip():
            sources.append(("pasted text", text if "\n" in text else text + "\n"))
        if example:
            sources.append((example, example_files()[example]))
        found = Prediction()
        if len(sources) > MAX_FILES:
            raise ValueError(f"{len(sources)} files at once; this page takes {MAX_FILES}, the command line any number")
        for place, (name, result) in enumerate(self.readers.read(sources)):
            if sum(name == other for other, _ in sources) > 1:  # files of several folders may have one name
                name += f" ({sum(name == other for other, _ in sources[: place + 1])})"
            if isinstance(result, CrystalRecord):
                found.crystals[name] = result
            else:
                found.errors.append((name, result))
        return found

    def predict(
        self, model: str, files: Sequence[str | Path] = (), text: str = "", example: str | None = None
    ) -> Prediction:
        """Properties of crystals, each with its standard error; without an error head with the model's mean error.

        Raises:
            ValueError: too many files.
        """
        found = self.read(files, text, example)
        for name, record in list(found.crystals.items()):
            (result,) = self.results(model, [record])
            if "error" in result:
                del found.crystals[name]
                found.errors.append((name, result["error"]))
                continue
            found.warnings |= {name: result["warnings"]} if result["warnings"] else {}
            doubts = "; ".join(result["warnings"])
            found.rows += [{"crystal": name, **row, "warnings": doubts} for row in self._rows(model, result)]
        return found

    def results(self, model: str, crystals: Sequence[CrystalLike], unseen: str = "warn") -> list[dict[str, Any]]:
        """One result per crystal, as the pipeline gives it."""
        pipe = self.property_pipeline(model)
        with self._lock:
            return list(pipe(list(crystals), unseen=unseen))

    def properties(self, model: str, crystal: CrystalLike) -> list[dict[str, Any]]:
        """Rows of one crystal, one per target, and one of its energy above the hull where the model is embedded.

        Raises:
            CrystalInputError: it cannot be predicted.
        """
        (result,) = self.results(model, [crystal])
        if "error" in result:
            raise CrystalInputError(result["error"])
        return self._rows(model, result)

    def _rows(self, model: str, result: dict[str, Any]) -> list[dict[str, Any]]:
        config = self.property_pipeline(model).model.config
        errors: dict[str, float | None] = {**measured_errors(model)}
        errors |= {name: result.get(f"{name}_standard_error", errors.get(name)) for name in config.target_names}
        targets = [
            (name, unit, result[name]) for name, unit in zip(config.target_names, config.target_units, strict=True)
        ]
        if model in embedded_checkpoints() and (above := self._above_hull(config, result)) is not None:
            name, distance = above
            targets.append((ABOVE_HULL, "eV/atom", distance))
            errors[ABOVE_HULL] = errors.get(name)
        return [
            {
                "formula": result["formula"],
                "atoms": result["num_atoms"],
                "property": name.replace("_", " "),
                "value": value,
                "unit": unit,
                "typical error": errors.get(name),
                "metal probability": result.get("metal_probability") if name == config.gap_target else None,
            }
            for name, unit, value in targets
        ]

    def _above_hull(self, config: Any, result: dict[str, Any]) -> tuple[str, float] | None:
        """The target that is an energy, and its distance from the hull; None where either is not known."""
        from ..stability import energy_target, load_reference

        try:
            name = energy_target(config)
            found = load_reference().stability(result["formula"], result[name])
        except ValueError:  # a model of other properties; an element that no known phase has
            return None
        return None if found.e_above_hull is None else (name, found.e_above_hull)

    def write_csv(self, found: Prediction) -> Path:
        """Rows and errors of a prediction as a CSV file in a folder of its own."""
        path = self._new_folder() / "predictions.csv"
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, _CSV_FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(found.rows)
            writer.writerows({"crystal": name, "error": reason} for name, reason in found.errors)
        return path

    # ----------------------------------------------------------------------------------------------------- generate

    def conditions(self) -> list[tuple[str, str]]:
        """Name and unit of the properties that can be asked for."""
        bins = self.generation_pipeline().tokenizer.property_bins
        return [(item.name, item.unit) for item in bins]

    def generate(
        self,
        composition: str,
        *,
        space_group: str | None = None,
        properties: dict[str, float] | None = None,
        num: int = 4,
        temperature: float = 1.0,
        seed: int | None = None,
        model: str | None = None,
    ) -> list[GeneratedCrystal]:
        """The distinct ones of the crystals that `draw` gives, judged, with predictions of `model`."""
        results = self.draw(
            composition, space_group=space_group, properties=properties, num=num, temperature=temperature, seed=seed
        )
        return [self._judge(result, model or self.property_models[0]) for result in group_candidates(results)]

    def draw(
        self,
        composition: str,
        *,
        space_group: str | int | None = None,
        properties: dict[str, float] | None = None,
        num: int = 4,
        temperature: float = 1.0,
        seed: int | None = None,
        candidates: str | None = None,
    ) -> list[dict[str, Any]]:
        """Crystals of a formula, the most probable first; with other conditions, of atoms of the primitive cell.

        Returns:
            Results of the pipeline "crystal-generation".

        Raises:
            ValueError: no crystal can fulfill what is asked for: an element or a space group that does not exist, or a
                number of atoms that the space group cannot hold.
        """
        if not 1 <= num <= MAX_GENERATED:
            raise ValueError(f"number of crystals is {num}; this page takes 1 to {MAX_GENERATED}")
        if len(composition) > MAX_COMPOSITION:
            raise ValueError(f"composition has {len(composition)} characters; accepted: at most {MAX_COMPOSITION}")
        pipe = self.generation_pipeline()
        with self._drawing:
            found: list[dict[str, Any]] = pipe(
                composition.strip() or None,
                space_group=None if space_group == "" else space_group,
                properties=properties or None,
                candidates=candidates or ("auto" if self.generator == DEFAULT_GENERATOR else None),
                num_return_sequences=num,
                temperature=temperature,
                seed=seed,
                rank=True,
            )
        return found

    def _judge(self, result: dict[str, Any], model: str) -> GeneratedCrystal:
        from ..crystals.elements import reduced_formula
        from ..evaluation.results import reduced_formula as integer_formula
        from ..evaluation.valid_crystals import structure_is_valid
        from ..mat2seq.validity import smact_accepts

        structure = result["structure"]
        try:
            neutral: bool | None = smact_accepts(integer_formula(structure.atomic_numbers))
        except ImportError:  # smact is optional
            neutral = None
        try:
            predicted = self.properties(model, structure)
        except CrystalInputError:  # atoms on top of one another: its mark says so
            predicted = []
        return GeneratedCrystal(
            structure=structure,
            cif=result["cif"],
            formula=reduced_formula(structure.atomic_numbers),
            space_group=result["space_group"],
            sequence=result["sequence"],
            log_likelihood=result["log_likelihood"],
            source=result["source"],
            structure_valid=structure_is_valid(structure),
            composition_valid=neutral,
            properties=predicted,
            warnings=result["warnings"],
            num_equal=result["num_equal"],
            probability=result["probability"],
            known_e_above_hull=result["known_e_above_hull"],
        )

    def are_equal(self, first: CrystalRecord, second: CrystalRecord) -> bool | None:
        """Whether `StructureMatcher` calls two crystals the same; None where one is disordered or no bulk crystal."""
        from ..evaluation import uniqueness

        found = uniqueness([first, second], bucket_by="formula").representative
        return None if None in found else found[1] == 0

    def write_zip(self, crystals: Sequence[GeneratedCrystal]) -> Path:
        """One CIF file per crystal, in a zip in a folder of its own."""
        path = self._new_folder() / "crystals.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for number, crystal in enumerate(crystals, 1):
                archive.writestr(f"{number:02d}_{crystal.file_name}", crystal.cif)
        return path

    # -------------------------------------------------------------------------------------------------- look inside

    def inspect(self, model: str, record: CrystalRecord) -> Any:
        """`EncoderView` of a crystal.

        Raises:
            ValueError: the crystal is too large to be shown, or disordered.
        """
        as_record(record)  # the reason where it is disordered
        if record.num_atoms > MAX_INSIDE_ATOMS:
            raise ValueError(f"{record.num_atoms} atoms; looking inside takes {MAX_INSIDE_ATOMS} on this page")
        from ..viz.inspection import inspect_encoder

        pipe = self.property_pipeline(model)
        with self._lock:
            return inspect_encoder(record, pipe.model, feature_extractor=pipe.feature_extractor)

    def retell(
        self,
        model: str,
        record: CrystalRecord,
        change: str | None = None,
        seed: int = 0,
        predicted: dict[str, float] | None = None,
    ) -> Insight:
        """Describe a crystal in other words, and encode and predict it anew.

        Args:
            model: property model.
            record: the crystal.
            change: a key of `hf_crystal.testing.DESCRIPTIONS`; None leaves it as it is.
            seed: of random rotations, shifts and the like.
            predicted: `values` of `inspect` where the crystal is the same, which saves predicting it again.

        Raises:
            ValueError: the crystal cannot be written as a sequence; disordered ones cannot.
        """
        as_record(record)
        from ..mat2seq.canonicalize import canonicalize
        from ..testing import DESCRIPTIONS, Crystal

        if change is not None:
            crystal = Crystal(record.atomic_numbers, record.positions, record.cell)
            told = DESCRIPTIONS[change](crystal, np.random.default_rng(seed))
            frac = told.positions @ np.linalg.inv(told.cell)
            record = CrystalRecord(told.atomic_numbers, frac, told.cell)
        if predicted is None:
            predicted = {row["property"]: row["value"] for row in self.properties(model, record)}
        target, value = next(iter(predicted.items()))
        unit = self.property_pipeline(model).model.config.target_units[0]
        sequence = canonicalize(record).to_text()
        return Insight(change or "as given", record, sequence, value, target.replace("_", " "), unit)


def _default_first(names: Sequence[str], default: str) -> list[str]:
    return sorted(names, key=lambda name: (name != default, name))
