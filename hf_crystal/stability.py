"""Is a crystal stable? Distance of an energy from the convex hull of known phases, and what it decomposes into.

The hull at a composition is the lowest energy that a mixture of known phases has there: a small linear program over
the phases of the chemical system. `e_above_hull` is how far a crystal's formation energy lies above it.
"""

import functools
import itertools
import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .checkpoints import DEFAULT_MODEL
from .crystals.elements import CHEMICAL_SYMBOLS, SUBSCRIPTS, cell_formula, parse_composition, reduced_formula
from .crystals.formats import shortened

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedConfig

__all__ = [
    "ReferenceHull",
    "Stability",
    "add_stability",
    "energy_target",
    "has_phase",
    "height_doubts",
    "load_reference",
    "predict_stability",
    "predicted_energies",
    "read_energies",
]

REFERENCES = Path(__file__).parent / "references"
DEFAULT_REFERENCE = "matbench_mp_e_form"
ENERGY_COLUMNS = ("formation_energy", "energy")
_LARGEST_FORMATION_ENERGY = 10.0  # eV/atom; fluorides have about -4.5
_MOST_ATOMS = 100_000  # of a formula
_BELOW = -0.05  # eV/atom: docs/how_to/stability.md
_TOO_STABLE = (
    f"more than {-_BELOW:g} eV/atom below the hull of known phases: mostly the hull lacks a phase, or the "
    "prediction is wrong"
)
_MOST_ELEMENTS = 16  # each more doubles the chemical systems to look through
_PART = re.compile(r"([A-Z][a-z]?)(\d*)")
_Phase = tuple[tuple[int, int], ...]  # reduced: atomic numbers, ascending, with their counts


@dataclass(frozen=True)
class Stability:
    """Position of one composition, and of an energy at it, against known phases.

    Attributes:
        formula: Reduced formula.
        hull_energy: Formation energy of the hull at this composition, eV/atom.
        decomposition: The phases of the hull there, with their fractions of the atoms. One phase of this formula alone
            means that the reference knows a stable crystal of this composition.
        competing_energy: As `hull_energy`, without phases of this formula.
        competing_phases: As `decomposition`, without phases of this formula.
        energy: The crystal's formation energy, eV/atom; None where none was given.
    """

    formula: str
    hull_energy: float
    decomposition: dict[str, float]
    competing_energy: float
    competing_phases: dict[str, float]
    energy: float | None = None

    @property
    def e_above_hull(self) -> float | None:
        """Energy above the hull, eV/atom; negative below everything known."""
        return None if self.energy is None else self.energy - self.hull_energy

    @staticmethod
    def text_of(phases: Mapping[str, float]) -> str:
        """`0.67 Fe2O3 + 0.33 Li2O`: fractions of the atoms."""
        if len(phases) == 1:
            return next(iter(phases))
        return " + ".join(f"{x:.2f} {name}" if x >= 0.005 else f"{x:.1g} {name}" for name, x in phases.items())


class ReferenceHull:
    """Known phases and their formation energies.

    Args:
        phases: Atomic number → count of each phase; of one formula the lowest energy counts.
        energies: eV/atom, of the kind that `energy_column` names. Phases above the hull matter, too: they may compete.
        name: What messages and results call it.
        energy_column: `formation_energy`, which is 0 for the elements, or `energy`: total energies of one potential,
            which become formation energies by the lowest energy of each element among the phases.

    Attributes:
        elements: Atomic numbers that phases have; others are refused.

    Raises:
        ValueError: there is no phase; an energy is not finite; of formation energies one is beyond 10 eV/atom, or that
            of an element is below 0; of total energies an element has none.
    """

    def __init__(
        self,
        phases: Iterable[Mapping[int, int]],
        energies: Iterable[float],
        *,
        name: str = "reference",
        energy_column: str = "formation_energy",
    ):
        if energy_column not in ENERGY_COLUMNS:
            raise ValueError(f"energy_column is {energy_column!r}; accepted: {' or '.join(ENERGY_COLUMNS)}")
        self.name, self.energy_column = name, energy_column
        lowest: dict[_Phase, float] = {}
        for counts, energy in zip(phases, energies, strict=True):
            phase = _reduced(counts)
            _check_energy(energy, f"{_formula(phase)} in {name}")
            self._check_size(phase, energy)
            lowest[phase] = min(energy, lowest.get(phase, math.inf))
        if not lowest:
            raise ValueError(f"{name} has no phases")
        self.elements = frozenset(z for phase in lowest for z, _ in phase)
        self._elemental = dict.fromkeys(range(1, len(CHEMICAL_SYMBOLS)), 0.0)
        if energy_column == "energy":
            self._elemental = {phase[0][0]: energy for phase, energy in lowest.items() if len(phase) == 1}
        self._systems: dict[frozenset[int], dict[_Phase, float]] = {}
        for phase, energy in lowest.items():
            system = self._systems.setdefault(frozenset(z for z, _ in phase), {})
            system[phase] = self._formation_energy(phase, energy) if len(phase) > 1 else 0.0
        self._candidates = functools.lru_cache(maxsize=4096)(self._find_candidates)
        self._hull = functools.lru_cache(maxsize=65536)(self._find_hull)  # a screening has many crystals of a formula

    def __len__(self) -> int:
        return sum(map(len, self._systems.values()))

    def _check_size(self, phase: _Phase, energy: float) -> None:
        """Refuse a formation energy that is none, such as a total energy."""
        if self.energy_column != "formation_energy":
            return
        if abs(energy) > _LARGEST_FORMATION_ENERGY or (len(phase) == 1 and energy < -0.05):
            raise ValueError(
                f"formation_energy of {_formula(phase)} is {energy:g} eV/atom; accepted: within "
                f"{_LARGEST_FORMATION_ENERGY:g}, and 0 or above for elements. Total energies go in a column energy"
            )

    def _formation_energy(self, phase: _Phase, energy: float) -> float:
        missing = [CHEMICAL_SYMBOLS[z] for z, _ in phase if z not in self._elemental]
        if missing:
            raise ValueError(
                f"{self.name} has no energy of the element {' and '.join(missing)}, which {_formula(phase)} needs; "
                "add a row for each element, or give formation energies in a column formation_energy"
            )
        return energy - sum(self._elemental[z] * n for z, n in phase) / sum(n for _, n in phase)

    def _find_candidates(self, elements: frozenset[int]) -> tuple[list[_Phase], np.ndarray, np.ndarray]:
        """Phases of a chemical system that can be on its hull, their fractions of each element, their energies."""
        phases: dict[_Phase, float] = {((z, 1),): 0.0 for z in elements}
        for size in range(2, len(elements) + 1):
            for system in itertools.combinations(sorted(elements), size):
                known = self._systems.get(frozenset(system), {})
                phases |= {phase: energy for phase, energy in known.items() if energy < 0}  # the elements are at 0
        fractions = np.zeros((len(phases), len(elements)))
        column = {z: index for index, z in enumerate(sorted(elements))}
        for row, phase in enumerate(phases):
            for z, count in phase:
                fractions[row, column[z]] = count
        return list(phases), fractions / fractions.sum(1, keepdims=True), np.array(list(phases.values()))

    def _find_hull(self, phase: _Phase, *, without: bool) -> tuple[float, dict[str, float]]:
        """Energy of the hull at a composition, and the fractions of its phases; `without` those of this formula."""
        phases, fractions, energies = self._candidates(frozenset(z for z, _ in phase))
        if len(phase) == 1:
            return 0.0, {_formula(phase): 1.0}
        from scipy.optimize import linprog

        used = np.array([not (without and candidate == phase) for candidate in phases])
        counts = np.array([count for _, count in phase], dtype=float)
        found = linprog(energies[used], A_eq=fractions[used].T, b_eq=counts / counts.sum(), method="highs")
        if not found.success:
            raise RuntimeError(f"hull of {_formula(phase)} in {self.name}: {found.message}")
        names = itertools.compress(phases, used)
        shares = {_formula(p): round(float(x), 6) for p, x in zip(names, found.x, strict=True) if x > 1e-6}
        return float(found.fun), dict(sorted(shares.items(), key=lambda item: -item[1]))

    def stability(self, composition: str | Mapping[Any, Any], energy: float | None = None) -> Stability:
        """Hull at a composition, and where an energy lies against it.

        Args:
            composition: Formula, also with decimals, or mapping of elements or atomic numbers to counts.
            energy: Energy of the crystal, eV/atom, of the kind of this reference's `energy_column`.

        Raises:
            ValueError: for a composition that cannot be read, more than 16 elements, an element that no phase has, and
                an energy that is not finite or no formation energy.
        """
        phase = _reduced(_counts(composition))
        if len(phase) > _MOST_ELEMENTS:
            raise ValueError(f"{_formula(phase)} has {len(phase)} elements; accepted: up to {_MOST_ELEMENTS}")
        foreign = [CHEMICAL_SYMBOLS[z] for z, _ in phase if z not in self.elements]
        if foreign:
            raise ValueError(f"{_formula(phase)}: no phase of {self.name} has {' or '.join(foreign)}")
        if energy is not None:
            _check_energy(energy, _formula(phase))
            if len(phase) > 1:
                self._check_size(phase, energy)
            energy = self._formation_energy(phase, energy)
        hull_energy, decomposition = self._hull(phase, without=False)
        competing = hull_energy, decomposition
        if _formula(phase) in decomposition and len(phase) > 1:
            competing = self._hull(phase, without=True)
        return Stability(_formula(phase), hull_energy, decomposition, *competing, energy)


def load_reference(name: str | Path = DEFAULT_REFERENCE) -> ReferenceHull:
    """A reference of this package, or of a user's table.

    Args:
        name: `matbench_mp_e_form` (the lowest phase of each formula of 132,752 entries of the Materials Project,
            release 2018, PBE and PBE+U with corrections), or a CSV, JSON lines or parquet file with a column `formula`
            and one of `formation_energy` and `energy`, eV/atom.

    Raises:
        ValueError: there is no such reference, or a row cannot be used: file, row and column are named.
    """
    if (REFERENCES / f"{name}.parquet").is_file():
        return _embedded_reference(str(name))
    column, rows = _read_table(Path(name))
    phases = []
    for number, row in enumerate(rows, 1):
        try:
            phases.append(_counts(row["formula"]))
            _check_energy(row[column], row["formula"])
        except ValueError as error:
            raise ValueError(f"{Path(name).name}, row {number}: {error}") from error
    return ReferenceHull(phases, [row[column] for row in rows], name=Path(name).name, energy_column=column)


@functools.lru_cache(maxsize=1)
def _embedded_reference(name: str) -> ReferenceHull:
    import pandas as pd

    table = pd.read_parquet(REFERENCES / f"{name}.parquet")
    return ReferenceHull(map(_parts, table["formula"]), table["formation_energy"], name=name)


def has_phase(composition: str | Mapping[Any, Any]) -> bool:
    """Whether the default reference has a phase of a formula; far cheaper than loading it."""
    phase = _reduced(_counts(composition))
    return cell_formula([z for z, count in phase for _ in range(count)]) in _default_formulas()  # as the file has it


@functools.lru_cache(maxsize=1)
def _default_formulas() -> frozenset[str]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(REFERENCES / f"{DEFAULT_REFERENCE}.parquet")
    return frozenset(file.read(columns=["formula"]).column(0).to_pylist())


def read_energies(path: Path, energy_column: str) -> list[dict[str, Any]]:
    """Rows of a user's table with a `formula` and, under `energy_column`, an energy; other columns as they are.

    Raises:
        ValueError: the table cannot be read, or its energies are of another kind than those of the reference.
    """
    column, rows = _read_table(path)
    if column != energy_column:
        raise ValueError(
            f"{path.name} has the column {column}, the reference has {energy_column}: energies of another kind or "
            "potential need a reference of their own (a table with the elements and the known phases)"
        )
    return rows


def _number(value: Any) -> Any:
    """Number of a cell, also with a decimal comma; NaN of an empty one; what is none stays as it is."""
    if value in ("", None):
        return math.nan
    try:
        return float(value.replace(",", ".") if isinstance(value, str) else value)
    except (TypeError, ValueError):
        return value


def _check_energy(energy: Any, whose: str) -> None:
    if not isinstance(energy, numbers.Real) or not math.isfinite(energy):
        raise ValueError(f"energy of {whose} is {shortened(energy, 40)}; accepted: a number, eV/atom")


def _read_csv(path: Path) -> "pd.DataFrame":
    """Cells of a CSV as text, as NaN is a formula and 007 an id; delimiters as `load_crystal_dataset` knows them."""
    import pandas as pd

    from .data.sources import delimiter_of, open_text

    with open_text(path) as stream:
        header = stream.readline()
    with open_text(path) as stream:
        return pd.read_csv(stream, sep=delimiter_of(header), dtype=str, keep_default_na=False)


def _read_table(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """Name of the energy column, and the rows of a file."""
    import pandas as pd

    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        ".csv": _read_csv,
        ".jsonl": functools.partial(pd.read_json, lines=True, dtype=False, convert_dates=False),
        ".parquet": pd.read_parquet,
    }
    if not path.is_file() or path.suffix not in readers:
        known = ", ".join(sorted(file.stem for file in REFERENCES.glob("*.parquet")))
        what = "has another ending than" if path.is_file() else "does not exist; accepted is a file"
        raise ValueError(f"table {path} {what} .csv, .jsonl or .parquet; embedded references: {known}")
    if not path.stat().st_size:
        raise ValueError(f"{path.name} is empty")
    try:
        table = readers[path.suffix](path)
    except ValueError as error:
        raise ValueError(f"{path.name} is no table: {error}") from error
    names = [str(column).strip() for column in table.columns]
    needed = ("formula", *ENERGY_COLUMNS)
    table.columns = [name.lower() if name.lower() in needed else name for name in names]
    if not len(table):
        raise ValueError(f"{path.name} has no rows")
    columns = [column for column in ENERGY_COLUMNS if column in table.columns]
    if "formula" not in table.columns or len(columns) != 1 or not table.columns.is_unique:
        raise ValueError(
            f"{path.name} has the columns {', '.join(names)}; needed are formula and one of "
            f"{' and '.join(ENERGY_COLUMNS)}, each name once"
        )
    table["formula"] = table["formula"].astype(str)
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return columns[0], [{**row, columns[0]: _number(row[columns[0]])} for row in rows]


def energy_target(config: "PreTrainedConfig") -> str:
    """Name of the target of a property model that is a formation energy in eV/atom.

    Raises:
        ValueError: it has none, or several.
    """
    pairs = zip(config.target_names, config.target_units, strict=True)
    found = [name for name, unit in pairs if name.startswith("formation_energy") and unit == "eV/atom"]
    if len(found) != 1:
        raise ValueError(f"stability needs one target formation_energy… in eV/atom; the model has {found or 'none'}")
    return found[0]


def height_doubts(e_above_hull: float | None) -> list[str]:
    """Warnings of a distance from the hull, eV/atom, that can hardly be true."""
    return [_TOO_STABLE] if e_above_hull is not None and e_above_hull < _BELOW else []


def add_stability(result: dict[str, Any], target: str, hull: ReferenceHull) -> dict[str, Any]:
    """A result of the pipeline "crystal-property-prediction" with `e_above_hull` (eV/atom) and `decomposes_to`.

    A distance below -0.05 eV/atom is among the `warnings`. Where the energy has a standard error, that is the
    distance's, too: `e_above_hull_standard_error`, and the ends of its interval, less the energy of the hull, are
    `e_above_hull_low` and `e_above_hull_high`. `decomposes_to` holds the phases of the hull at the crystal's
    composition (that of its orderings, if the energy is theirs), with their fractions of the atoms. Where the
    reference cannot tell, such as for an element that it lacks, both are None and `warnings` has the reason.
    """
    if "error" in result:
        return result
    try:
        found = hull.stability(result.get("ordering_formula") or result["formula"], result[target])
    except ValueError as error:
        doubts = [*result.get("warnings", ()), str(error)]
        return {**result, "e_above_hull": None, "decomposes_to": None, "warnings": doubts}
    errors = {}
    if f"{target}_standard_error" in result:
        errors["e_above_hull_standard_error"] = result[f"{target}_standard_error"]
        ends = {end: result[f"{target}_{end}"] for end in ("low", "high")}
        errors |= {f"e_above_hull_{end}": found.e_above_hull + value - result[target] for end, value in ends.items()}
    decomposition = found.text_of(found.decomposition)
    distance: dict[str, Any] = {"e_above_hull": found.e_above_hull, "e_above_hull_unit": "eV/atom"}
    if doubts := height_doubts(found.e_above_hull):
        distance["warnings"] = [*result.get("warnings", ()), *doubts]
    return {**result, **distance, **errors, "decomposes_to": decomposition}


def predict_stability(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Generated crystals with the distance of their energy, as the default property model predicts it, from the hull.

    The model was trained on relaxed crystals. A generated crystal is not relaxed, and its energy not the lowest that
    it may reach: the distance is a hint for each crystal, and no ranking of several.

    Args:
        results: Results of the pipeline "crystal-generation"; those with an `error` are returned as they are.

    Returns:
        The results with `e_above_hull` (eV/atom) and `decomposes_to`, see `add_stability`; the standard error of the
        energy as `e_above_hull_standard_error`; whose energy it is as `energy_of`; and what is doubtful about the
        prediction among the `warnings`.
    """
    given = [dict(result) for result in results]
    pipe, target = _default_predictor()
    predicted = iter(pipe([result["structure"] for result in given if "error" not in result]))
    found = []
    for result in given:
        if "error" not in result:
            values = next(predicted)
            values = {"warnings": [values["error"]]} if "error" in values else add_stability(values, target, _hull())
            result |= {
                "e_above_hull": values.get("e_above_hull"),
                "e_above_hull_standard_error": values.get("e_above_hull_standard_error"),
                "decomposes_to": values.get("decomposes_to"),
                "energy_of": f"the unrelaxed crystal, by {DEFAULT_MODEL}",
                "warnings": list(dict.fromkeys([*result["warnings"], *values["warnings"]])),
            }
        found.append(result)
    return found


def predicted_energies(structures: list[Any]) -> list[float | None]:
    """Formation energies by the default property model, eV/atom; None of what it cannot read, or does not know.

    Args:
        structures: Crystals as pipelines read them.
    """
    pipe, target = _default_predictor()
    return [result.get(target) for result in pipe(structures, unseen="refuse")] if structures else []


def _hull() -> ReferenceHull:
    return _embedded_reference(DEFAULT_REFERENCE)


@functools.lru_cache(maxsize=1)
def _default_predictor() -> tuple[Any, str]:
    """Pipeline of the default property model, and its target that is an energy."""
    from .loading import load_property_pipeline

    pipe = load_property_pipeline()
    return pipe, energy_target(pipe.model.config)


def _counts(composition: str | Mapping[Any, Any]) -> dict[int, int]:
    """Counts of a composition; decimals of a formula (`Li0.5CoO2`) become whole numbers."""
    composition = composition.translate(SUBSCRIPTS) if isinstance(composition, str) else composition
    if isinstance(composition, str) and "." in composition:
        from fractions import Fraction

        from pymatgen.core import Composition

        try:
            amounts = {
                element.symbol: Fraction(n).limit_denominator(1000) for element, n in Composition(composition).items()
            }
        except ValueError as error:
            raise ValueError(f"composition is {composition!r}; accepted: a formula such as 'Li0.5CoO2'") from error
        whole = math.lcm(*(amount.denominator for amount in amounts.values()))
        total = sum(amounts.values())
        if whole * total > _MOST_ATOMS:  # occupancies of four decimals: three will do for a hull
            whole = max(1, min(1000, int(_MOST_ATOMS / total)))
        composition = {symbol: max(1, round(amount * whole)) for symbol, amount in amounts.items()}
    counts = parse_composition(composition)
    if sum(counts.values()) > _MOST_ATOMS:
        raise ValueError(f"composition has {sum(counts.values()):.3g} atoms; accepted: up to {_MOST_ATOMS:,}")
    return counts


def _parts(formula: str) -> dict[int, int]:
    """Counts of a formula that this package wrote."""
    return {CHEMICAL_SYMBOLS.index(symbol): int(count or 1) for symbol, count in _PART.findall(formula)}


def _reduced(counts: Mapping[int, int]) -> _Phase:
    unit = math.gcd(*counts.values())
    return tuple((z, counts[z] // unit) for z in sorted(counts))


@functools.lru_cache(maxsize=65536)
def _formula(phase: _Phase) -> str:
    return reduced_formula([z for z, count in phase for _ in range(count)])
