"""What follows generation: candidates are relaxed with an interatomic potential."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .mat2seq.canonicalize import CanonicalSettings, canonicalize
from .mat2seq.space_groups import space_group_symbols

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

__all__ = ["relax_candidates"]

_FINE = CanonicalSettings.preset("fine")  # lengths to 0.001 Å: relaxed crystals come from no sequence


def relax_candidates(
    results: Iterable[Mapping[str, Any]],
    calculator: "Calculator",
    *,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Results of generation, relaxed.

    Args:
        results: Results of the pipeline "crystal-generation"; those with an `error` are returned as they are.
        calculator: ASE calculator with forces and stress.
        progress: Called with the number of crystals so far.
        **options: `max_force`, `max_steps`, `relax_cell`, `keep_symmetry` and `optimizer` of `hf_crystal.ase.relax`.

    Returns:
        The results with the relaxed `structure`, its `cif` and `space_group`; `energy` and `initial_energy` (eV/atom
        of the calculator), `converged`, `num_steps` and `volume_change`. `sequence` and `log_likelihood` stay those of
        the crystal before. A crystal that cannot be relaxed stays what it was, with `energy` None and the reason
        among the `warnings`, where one that has not converged is named, too.
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
            values = {name: getattr(relaxed, name) for name in kept}
            result = {**result, **changes, **values, "warnings": [*result["warnings"], *doubts]}
        found.append(dict(result))
        if progress is not None:
            progress(number)
    return found


def _described(structure: Any) -> dict[str, Any]:
    """Fields of a result that depend on the structure."""
    crystal = canonicalize(structure, settings=_FINE)
    symbol = space_group_symbols()[crystal.space_group - 1]
    return {"structure": structure, "cif": crystal.to_cif(), "space_group": symbol}
