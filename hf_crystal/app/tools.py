"""What the servers offer to programs and assistants: typed requests, and what answers them. Needs pydantic."""

import difflib
import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator, model_validator

from ..candidates import nothing_found
from ..checkpoints import embedded_checkpoints
from ..crystals.record import CrystalRecord
from ..loading import model_digest
from ..stability import ReferenceHull, add_stability, energy_target, load_reference
from .reading import MAX_ATOMS, MAX_BYTES, cost_of, description_of
from .service import MAX_COMPOSITION, MAX_FILES, MAX_GENERATED, Service

__all__ = [
    "BatchRequest",
    "Crystal",
    "DescribeRequest",
    "GenerateRequest",
    "PredictRequest",
    "Refused",
    "Tools",
    "Unreadable",
    "faults_of",
    "pieces",
]

_MAX_CONDITIONS = 8
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Vector = Annotated[list[_Number], Field(min_length=3, max_length=3)]
_TEXT = "Content of a CIF, POSCAR, extended XYZ or JSON (pymatgen, JARVIS, OPTIMADE) file; never a path."
CrystalText = Annotated[str, Field(max_length=MAX_BYTES, description=_TEXT)]
Model = Annotated[str | None, Field(description="One of the models served (GET /health); by default the first.")]
WithStability = Annotated[
    bool,
    Field(description="Add `e_above_hull` (eV/atom) of the predicted energy, and `decomposes_to`, the phases there."),
]
Composition = Annotated[
    str, Field(max_length=MAX_COMPOSITION, description="Formula, such as TiO2; empty for any composition.")
]
SpaceGroup = Annotated[
    int | Annotated[str, Field(max_length=20)] | None, Field(description="Number 1 to 230, or symbol: P4_2/mnm.")
]
Conditions = Annotated[
    dict[Annotated[str, Field(max_length=40)], _Number] | None,
    Field(max_length=_MAX_CONDITIONS, description='Properties asked for, such as {"band_gap": 2.0}.'),
]
Count = Annotated[
    int, Field(strict=True, ge=1, le=MAX_GENERATED, description="Number of crystals; there may be fewer.")
]
Temperature = Annotated[
    float | None,
    Field(
        ge=0, le=10, description="Of sampling, 0 for greedy decoding; without `candidates`, the language model alone."
    ),
]
Seed = Annotated[
    int | None, Field(strict=True, ge=0, lt=2**53, description="Random seed; without one each call differs.")
]
Candidates = Annotated[
    Literal["auto", "prototypes", "model"] | None,
    Field(description="Known prototypes, the language model, or both; as `hf-crystal generate --candidates`."),
]


_ROCK_SALT = "NaCl\n1\n0 2.82 2.82\n2.82 0 2.82\n2.82 2.82 0\nNa Cl\n1 1\ndirect\n0 0 0\n0.5 0.5 0.5\n"


class Refused(ValueError):
    """A request that cannot be answered, with the reason."""


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Crystal(_Request):
    """One crystal: the text of a file, or its arrays."""

    name: str = Field(default="", max_length=200, description="Comes back as `source`; by default its place, from 0.")
    text: str | None = Field(default=None, max_length=MAX_BYTES, description=_TEXT)
    lattice: Annotated[list[_Vector], Field(min_length=3, max_length=3)] | None = Field(
        default=None, description="Lattice vectors in rows, Å."
    )
    frac_coords: list[_Vector] | None = Field(
        default=None, max_length=MAX_ATOMS, description="Fractional coordinates."
    )
    species: list[Annotated[str, Field(max_length=8)]] | None = Field(
        default=None, max_length=MAX_ATOMS, description="Element symbol of each atom."
    )

    @model_validator(mode="after")
    def _has_one_form(self) -> "Crystal":
        arrays = (self.lattice, self.frac_coords, self.species)
        if (self.text is None) == (arrays == (None, None, None)) or (self.text is None and None in arrays):
            raise ValueError("accepted: either text, or lattice, frac_coords and species")
        return self

    @property
    def content(self) -> str:
        """The crystal as text."""
        if self.text is not None:
            return self.text if "\n" in self.text else self.text + "\n"
        return json.dumps({"lattice": self.lattice, "frac_coords": self.frac_coords, "species": self.species})


class Unreadable(str):
    """Why an entry of a batch is no crystal."""


def _crystal_or_reason(entry: Any, check: Callable[[Any], Crystal]) -> "Crystal | Unreadable":
    """One wrong entry does not fail a batch."""
    try:
        return check(entry)
    except ValidationError as error:
        return Unreadable(faults_of(error.errors(), ""))


class _Options(_Request):
    model: Model = None
    stability: WithStability = False
    unseen: Literal["warn", "refuse"] = Field(
        default="warn", description="Elements, or two elements together, that no training crystal has: warn or refuse."
    )


class PredictRequest(_Options):
    """One crystal to be predicted."""

    crystal: Crystal


class BatchRequest(_Options):
    """Several crystals to be predicted."""

    crystals: list[Annotated[Crystal, WrapValidator(_crystal_or_reason)]] = Field(min_length=1, max_length=MAX_FILES)


class DescribeRequest(_Request):
    """One crystal to be described."""

    crystal: Crystal


class GenerateRequest(_Request):
    """Crystals to be generated."""

    composition: Composition = ""
    space_group: SpaceGroup = None
    properties: Conditions = None
    num: Count = 1
    temperature: Temperature = None
    seed: Seed = None
    candidates: Candidates = None


class Tools:
    """Predict, generate, describe, on the models of a `Service`; what is read is read in its guarded processes.

    Strangers know a model in a folder of this machine by the folder's name, not by its path.

    Args:
        service: the models; the embedded ones by default.
        reference: known phases of the served models' energies, see `hf_crystal.load_reference`; by default those that
            the embedded checkpoints were trained on, for these alone.

    Attributes:
        models: what requests call each property model → its name in the service; the first is the default.
        generator: what the generator is called; None where none is served.
    """

    def __init__(self, service: Service | None = None, reference: str | None = None):
        self.service, self._reference = service or Service(), reference
        self.models: dict[str, str] = {}
        for name in self.service.property_models:
            shown, copies = _public_name(name), 1
            while shown in self.models:
                copies += 1
                shown = f"{_public_name(name)}-{copies}"
            self.models[shown] = name
        self.generator = _public_name(self.service.generator) if self.service.generator else None

    @functools.cached_property
    def _hull(self) -> ReferenceHull:
        return load_reference() if self._reference is None else load_reference(self._reference)

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """What requests call each model → `model_digest` of it."""
        served = dict(self.models)
        if self.generator is not None:
            served[self.generator] = self.service.generator
        return {shown: model_digest(name) for shown, name in served.items()}

    def warm_up(self) -> None:
        """Load all models and start the processes that read: no request is a slow one, or finds a broken file."""
        self.digests  # noqa: B018  reads the files
        crystal = Crystal(text=_ROCK_SALT)
        records = self.read([crystal])
        for model in self.models:
            self.predict(records, model)
        self.read([crystal], description_of)
        if self.service.generator:
            self.generate(GenerateRequest(composition="Cs2NaNdI6"))  # not known: a model judges prototypes
        if self._reference is not None or not set(embedded_checkpoints()).isdisjoint(self.models.values()):
            self._hull  # noqa: B018  reads the table

    def read(
        self, crystals: Sequence[Crystal | Unreadable], then: Callable[[CrystalRecord], Any] | None = None
    ) -> list[Any]:
        """Of each crystal its record, or what `then` makes of it, or the reason (`str`) why there is none."""
        sources = [
            (f"crystal {place}", crystal.content)
            for place, crystal in enumerate(crystals)
            if isinstance(crystal, Crystal)
        ]
        results = self.service.readers.read(sources, then)
        return [next(results)[1] if isinstance(crystal, Crystal) else str(crystal) for crystal in crystals]

    def finish(self, model: str | None, stability: bool) -> tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """Name of the model in the service, and what completes its results.

        Raises:
            Refused: no such model is served, or stability of its energies is not known.
        """
        asked = next(iter(self.models)) if model is None else model
        if asked not in self.models:
            raise Refused(f"model: no such model is served; accepted: {', '.join(self.models)}")
        model = self.models[asked]
        if not stability:
            return model, dict
        if self._reference is None and model not in embedded_checkpoints():
            raise Refused("stability: known phases of this model's energies are not served (option --reference)")
        try:
            target = energy_target(self.service.property_pipeline(model).model.config)
        except ValueError as error:
            raise Refused(f"stability: {error}") from error
        return model, functools.partial(add_stability, target=target, hull=self._hull)

    def predict(
        self,
        records: Sequence[CrystalRecord | str],
        model: str | None = None,
        stability: bool = False,
        unseen: str = "warn",
    ) -> list[dict[str, Any]]:
        """One result per crystal, as `hf-crystal predict --output json` has them, with its model; a reason is `error`.

        Raises:
            Refused: see `finish`.
        """
        name, finish = self.finish(model, stability)
        good = [record for record in records if isinstance(record, CrystalRecord)]
        results = iter(self.service.results(name, good, unseen))
        asked = {"model": next(iter(self.models)) if model is None else model}
        return [{"error": record} if isinstance(record, str) else asked | finish(next(results)) for record in records]

    def generate(self, request: GenerateRequest) -> list[dict[str, Any]]:
        """Generated crystals, as `hf-crystal generate --output json` has them.

        Raises:
            Refused: no crystal can fulfill what is asked for.
        """
        if not self.service.generator:
            raise Refused("no generator is served")
        asked = request.model_dump()
        if asked["temperature"] is None:
            del asked["temperature"]
        elif asked["candidates"] is None:
            asked["candidates"] = "model"
        try:
            results = self.service.draw(asked.pop("composition"), **asked)
        except ValueError as error:
            raise Refused(str(error)) from error
        if not results:
            raise Refused(nothing_found(request.composition, request.candidates))
        return [
            {name: value for name, value in result.items() if name != "structure"}
            | {"num_atoms": len(result["structure"]), "volume": float(result["structure"].volume)}
            for result in results
        ]


_FIELDS = {"body"}.union(*(each.model_fields for each in (BatchRequest, Crystal, GenerateRequest, PredictRequest)))


def faults_of(errors: Sequence[Any], whole: str = "body") -> str:
    """Places and reasons of fields that do not have the form asked for, without what was sent there.

    Args:
        errors: `ValidationError.errors()`.
        whole: what was checked, where the places do not begin with it.
    """
    words = []
    for error in errors[:3]:
        known = [part for part in error["loc"] if isinstance(part, int) or part in _FIELDS]
        path, reason = ".".join(map(str, known)) or whole, error["msg"].removeprefix("Value error, ")
        if error["type"] == "json_invalid":
            path, reason = "body", f"no valid JSON, see its character {known[-1]}"
        elif error["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(error["loc"][-1]), _FIELDS - {"body"}, 1, 0.75)
            hint = f": is it {near[0]}?" if near else ": see /docs" if whole == "body" else ""
            reason = f"there is a field that is not accepted{hint}"
        elif error["type"] in ("model_attributes_type", "model_type"):
            reason = "an object is expected"
            if known == ["body"]:
                reason = "a JSON object is expected, with the header Content-Type: application/json"
        words.append(f"{path}: {reason}" if path else reason)
    more = f" (and {len(errors) - 3} more)" if len(errors) > 3 else ""
    return "; ".join(words) + more


def _public_name(name: str) -> str:
    """What others may know of a model's name: of a folder its last part."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def pieces(records: Sequence[CrystalRecord | str], atoms: float, size: int) -> list[list[CrystalRecord | str]]:
    """Records in order, in lists of up to `size` with up to `atoms` together (`cost_of`); a larger crystal alone."""
    found: list[list[CrystalRecord | str]] = []
    room = -math.inf
    for record in records:
        cost = 0.0 if isinstance(record, str) else cost_of(record)
        room -= cost
        if room < 0 or len(found[-1]) == size:
            found.append([])
            room = atoms - cost
        found[-1].append(record)
    return found
