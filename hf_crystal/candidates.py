"""What follows generation: equal candidates are grouped, relaxed, and their distance from the hull is found.

```python
generate = pipeline("crystal-generation")
crystals = generate("Cu2ZnSnS4", num_return_sequences=8)
shortlist(crystals)                                        # the model's distance, of unrelaxed crystals
shortlist(crystals, calculator=load_calculator("chgnet"))  # relaxed, the lowest first
likely_stable(generate(num_return_sequences=80), 20)       # of many compositions those that may be stable
```
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .crystals.elements import parse_composition
from .crystals.reading import as_record, record_to_structure
from .mat2seq.canonicalize import CanonicalSettings, canonicalize
from .mat2seq.space_groups import space_group_symbols
from .stability import ReferenceHull, Stability, height_doubts, load_reference, predict_stability

if TYPE_CHECKING:
    from typing import Unpack

    from ase.calculators.calculator import Calculator

    from .ase import RelaxOptions
    from .mat2seq.tokenization_mat2seq import DecodedCrystal
    from .prototypes import PrototypeIndex

__all__ = ["RelaxedHull", "equal_known", "group_candidates", "likely_stable", "relax_candidates", "shortlist"]

_AS_GIVEN = "as given"  # ends warnings of predictions about the cell and the places of atoms
_LARGE_CHANGE = 0.3  # of the volume, relaxed
DRAWS = 4  # crystals of many compositions that are drawn for each that is kept (docs/experiments.md)
_FINE = CanonicalSettings.preset("fine")  # lengths to 0.001 Å: relaxed crystals come from no sequence


def shortlist(
    results: Iterable[Mapping[str, Any]],
    *,
    calculator: "Calculator | None" = None,
    progress: Callable[[int], None] | None = None,
    **options: "Unpack[RelaxOptions]",
) -> list[dict[str, Any]]:
    """Candidates of generation without repeats, with their distance from the hull of known phases.

    Args:
        results: Results of the pipeline "crystal-generation".
        calculator: Relaxes the crystals, and the known phases that they are compared with. None: nothing is relaxed,
            and the energies are those that the default property model predicts.
        progress: Called with the number of crystals relaxed so far.
        **options: See `relax_candidates`.

    Returns:
        One result of each group of equal crystals, with what `group_candidates` and `predict_stability`, or
        `relax_candidates` and `RelaxedHull.judge`, add. Relaxed ones are ordered by `e_above_hull`, those without it
        last; others stay in the order given: energies of unrelaxed crystals are no ranking of stability.
    """
    groups = group_candidates(results)
    if calculator is None:
        return predict_stability(groups)
    relaxed = group_candidates(relax_candidates(groups, calculator, progress=progress, **options))
    judged = RelaxedHull(calculator, **options).judge(relaxed)
    return sorted(judged, key=lambda result: (result["e_above_hull"] is None, result["e_above_hull"] or 0.0))


def likely_stable(
    results: Iterable[Mapping[str, Any]], num: int, *, known: bool = True, index: "PrototypeIndex | None" = None
) -> list[dict[str, Any]]:
    """Of crystals of many compositions the distinct ones of the lowest predicted distance from the hull, lowest first.

    The distance is that of the crystal as generated, by the default property model. It tells compositions and
    structures that cannot be from those that may; relaxing what is kept tells the rest (`shortlist`).

    Args:
        results: Results of the pipeline "crystal-generation", `DRAWS` for each that is wanted, for instance.
        num: Crystals to keep at most. One without a predicted distance is never kept.
        known: False leaves out what equals a known crystal.
        index: The known crystals; by default the embedded index of the Materials Project.

    Returns:
        The crystals with what `group_candidates` and `predict_stability` add.

    Raises:
        ValueError: `num` is below 1; or see `group_candidates`.
    """
    if num < 1:
        raise ValueError(f"num is {num}; accepted: at least 1")
    groups = group_candidates(results)
    if not known:
        groups = [group for group in groups if equal_known(group, index) is None]
    judged = [result for result in predict_stability(groups) if result["e_above_hull"] is not None]
    return sorted(judged, key=lambda result: result["e_above_hull"])[:num]


def equal_known(crystal: Any, index: "PrototypeIndex | None" = None) -> str | None:
    """The known crystal that one equals by pymatgen's `StructureMatcher` (any volume), such as "known mp-149".

    Args:
        crystal: Of any form that `canonicalize` reads, such as a file; or a result of the pipeline of generation.
        index: The known crystals; by default the embedded index of the Materials Project.

    Returns:
        Where it comes from, as `source` has it; None where no known crystal equals it.
    """
    from .prototypes.index import equal_of
    from .prototypes.proposals import _default_index

    record = as_record(crystal["structure"] if isinstance(crystal, Mapping) and "structure" in crystal else crystal)
    unit = Counter(map(int, record.atomic_numbers))
    known = _known_of(_default_index() if index is None else index, tuple(sorted(unit.items())))
    equal = equal_of(record_to_structure(record), known)
    return None if equal is None else equal.source


@functools.lru_cache(maxsize=16)
def _known_of(index: "PrototypeIndex", unit: tuple[tuple[int, int], ...]) -> list["DecodedCrystal"]:
    """Known crystals of a composition; for SiO2 making them takes half a second."""
    return index.known_of(dict(unit))


def nothing_found(
    composition: str | None, candidates: str | None = None, limits: str = "", otherwise: str = "this prompt"
) -> str:
    """In words, that there is no crystal, and of a formula why, as far as that is known.

    Args:
        composition: The formula, if one was asked for.
        candidates: What was asked: "prototypes" or "model" alone, else both.
        limits: Options that crystals have to pass.
        otherwise: What was asked for in place of a formula.
    """
    from .prototypes.proposals import _default_index

    text = f"no crystal found for {composition or otherwise}" + f" with {limits}" * bool(limits)
    if not composition:
        return text
    if candidates != "model" and not _default_index().compositions(parse_composition(composition)):
        text += ": no known crystal has these counts of atoms"
        return text if candidates == "prototypes" else f"{text}, and the language model wrote none"
    return f"{text}: no known prototype fits" if candidates == "prototypes" else text


def group_candidates(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first of each group of crystals that pymatgen's `StructureMatcher` calls equal.

    `num_equal` is the number of crystals in the group. Results with an `error` are left out.

    Raises:
        ValueError: the results are those of several prompts, lists in a list.
    """
    from .evaluation import uniqueness

    results = list(results)
    if wrong := [type(result).__name__ for result in results if not isinstance(result, Mapping)]:
        raise ValueError(
            f"results holds a {wrong[0]}; accepted: results of the pipeline 'crystal-generation', those of several "
            "prompts one after the other"
        )
    given = [result for result in results if "error" not in result]
    if not given:
        return []
    first = uniqueness([result["structure"] for result in given], bucket_by="formula").representative
    sizes: Counter[int] = Counter()
    for place, result in enumerate(given):  # one that the matcher cannot read is alone
        sizes[first[place] if first[place] is not None else place] += result.get("num_equal", 1)  # type: ignore[index]
    return [{**given[place], "num_equal": size} for place, size in sorted(sizes.items())]


class RelaxedHull:
    """Known phases relaxed with the calculator that candidates are relaxed with, so that energies are comparable.

    Which phases compete at a composition is taken from a reference; their energies are those of the calculator alone.

    Args:
        calculator: ASE calculator with forces and stress.
        reference: Says which phases there are at a composition; the embedded one by default.
        index: Crystals of the phases, of each formula the lowest; by default the embedded one of the Materials
            Project.
        energies: Energies of phases by their formula, eV/atom of the same calculator and options, where some are
            known; others that are found are put in.
        **options: See `hf_crystal.ase.relax`.
    """

    def __init__(
        self,
        calculator: "Calculator",
        *,
        reference: ReferenceHull | None = None,
        index: "PrototypeIndex | None" = None,
        energies: dict[str, float] | None = None,
        **options: "Unpack[RelaxOptions]",
    ):
        from .prototypes.proposals import _default_index

        self.calculator, self.options = calculator, options
        self.reference = load_reference() if reference is None else reference
        self.index = _default_index() if index is None else index
        self.energies: dict[str, float] = {} if energies is None else energies

    def energy(self, composition: str | Mapping[Any, Any]) -> tuple[float, dict[str, float]]:
        """Energy of the hull at a composition, eV/atom of the calculator; its phases and their fractions of the atoms.

        Raises:
            ValueError: the reference has no such element; a phase is in no known crystal, or cannot be relaxed.
        """
        phases = self.reference.stability(composition).decomposition
        return sum(share * self._phase(formula) for formula, share in phases.items()), phases

    def judge(self, results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Relaxed candidates with `e_above_hull` (eV/atom), `decomposes_to` and whose energy it is (`energy_of`).

        Args:
            results: What `relax_candidates` gave with the same calculator and options. One without an energy has no
                distance. The `warnings` say why the hull is not known, and which known crystal a new one matches by
                `StructureMatcher`'s tolerances; energies tell whether it is the same.
        """
        name = type(self.calculator).__name__.removesuffix("Calculator")
        found = []
        for result in results:
            values: dict[str, Any] = {"e_above_hull": None, "decomposes_to": None}
            doubts = list(result["warnings"])
            if result["energy"] is not None:
                try:
                    energy, phases = self.energy(result["formula"])
                    values = {"e_above_hull": result["energy"] - energy, "decomposes_to": Stability.text_of(phases)}
                    doubts += height_doubts(values["e_above_hull"])
                except ValueError as error:
                    doubts.append(f"distance from the hull is not known: {error}")
                if not result["source"].startswith("known") and (equal := equal_known(result, self.index)):
                    doubts.append(f"{result['source']} of {result['space_group']}, relaxed, matches {equal} loosely")
            found.append({**result, **values, "energy_of": f"the relaxed crystal, by {name}", "warnings": doubts})
        return found

    def _phase(self, formula: str) -> float:
        """Energy of the lowest known crystal of a formula, relaxed, eV/atom."""
        if formula not in self.energies:
            from .ase import relax

            known = self.index.known_of(parse_composition(formula))
            if not known:
                raise ValueError(f"no crystal of the phase {formula} in the index of known crystals")
            # one that was calculated, if any was
            item = min(known, key=lambda one: math.inf if (e := one.known_e_above_hull) is None else e)
            relaxed = relax(item.structure, self.calculator, **self.options)[0]
            if relaxed.energy is None or not relaxed.converged:
                reason = relaxed.error or f"not converged after {relaxed.num_steps} steps"
                raise ValueError(f"the phase {formula} ({item.source}) was not relaxed: {reason}")
            self.energies[formula] = relaxed.energy
        return self.energies[formula]


def relax_candidates(
    results: Iterable[Mapping[str, Any]],
    calculator: "Calculator",
    *,
    progress: Callable[[int], None] | None = None,
    **options: "Unpack[RelaxOptions]",
) -> list[dict[str, Any]]:
    """Results of generation, relaxed.

    Args:
        results: Results of the pipeline "crystal-generation"; those with an `error` are returned as they are.
        calculator: ASE calculator with forces and stress.
        progress: Called with the number of crystals so far.
        **options: `max_force`, `max_steps`, `relax_cell`, `keep_symmetry` and `optimizer` of `hf_crystal.ase.relax`.

    Returns:
        The results with the relaxed `structure`, its `cif`, `space_group` and `sequence` (all to 0.001 Å, the preset
        "fine"), a `log_likelihood` of None, as no model wrote it, and no `e_above_hull_standard_error`; of a known
        crystal `known_e_above_hull` stays, which is that of the entry; `energy` and
        `initial_energy` (eV/atom of the calculator), `converged`, `num_steps` and `volume_change`. A crystal that
        cannot be relaxed stays what it was, with `energy` None and the reason among the `warnings`, where one that has
        not converged is named, too.
    """
    from .ase import RelaxedCrystal, relax

    kept = ("energy", "initial_energy", "converged", "num_steps", "volume_change")
    found = []
    for number, result in enumerate(results, 1):
        if "error" not in result:
            relaxed = relax(result["structure"], calculator, **options)[0]
            changes: dict[str, Any] = {}
            try:
                changes = {} if relaxed.error else _described(relaxed.structure)
            except ValueError as error:  # two atoms that moved into one, for instance
                relaxed = RelaxedCrystal(error=str(error))
            doubts = [f"not relaxed: {relaxed.error}"] if relaxed.error else []
            if not relaxed.error and not relaxed.converged:
                doubts.append(f"the relaxation has not converged after {relaxed.num_steps} steps")
            if relaxed.volume_change is not None and abs(relaxed.volume_change) > _LARGE_CHANGE:
                doubts.append(f"the relaxation changed the volume by {relaxed.volume_change:+.0%}: another crystal")
            values = {name: getattr(relaxed, name) for name in kept}
            earlier = ["before relaxation: " * text.endswith(_AS_GIVEN) + text for text in result["warnings"]]
            result = {**result, **changes, **values, "warnings": [*earlier, *doubts]}
            result.pop("e_above_hull_standard_error", None)  # of the model, for the crystal before
        found.append(dict(result))
        if progress is not None:
            progress(number)
    return found


def _described(structure: Any) -> dict[str, Any]:
    """Fields of a result that depend on the structure."""
    crystal = canonicalize(structure, settings=_FINE)
    symbol = space_group_symbols()[crystal.space_group - 1]
    return {
        "structure": structure,
        "cif": crystal.to_cif(),
        "space_group": symbol,
        "sequence": crystal.to_text(),
        "log_likelihood": None,
    }
