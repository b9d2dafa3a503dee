"""Options of the commands that relax crystals."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .progress import counter

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from ..ase import RelaxOptions

Relax = Annotated[
    bool, typer.Option("--relax", help="Relax atoms and cell with an interatomic potential; energies in eV/atom.")
]
CalculatorName = Annotated[
    str, typer.Option(help="The potential: chgnet (extra relax), or module:class of an ASE calculator.")
]
KeepSymmetry = Annotated[
    bool, typer.Option("--keep-symmetry", help="Keep the space group of each crystal while it is relaxed.")
]
MaxSteps = Annotated[int, typer.Option(min=1, help="Steps of a relaxation at most.")]


def chosen_calculator(relax: bool, name: str) -> "Calculator | None":
    """The potential of `--calculator`; None without `--relax`, where naming another one is an error."""
    if relax:
        from ..ase import load_calculator

        return load_calculator(name)
    if name != "chgnet":
        raise typer.BadParameter(f"{name} relaxes nothing without --relax", param_hint="--calculator")
    return None


def relax_with(
    calculator: "Calculator", results: list[dict[str, Any]], stability: bool, keep_symmetry: bool, max_steps: int
) -> list[dict[str, Any]]:
    """Relaxed results, with their distance from the hull where that is asked for."""
    from ..candidates import RelaxedHull, relax_candidates

    options: RelaxOptions = {"keep_symmetry": keep_symmetry, "max_steps": max_steps}
    with show_relaxation(len(results)) as tell:
        results = relax_candidates(results, calculator, progress=tell, **options)
        return RelaxedHull(calculator, **options).judge(results) if stability else results


@contextlib.contextmanager
def show_relaxation(total: int) -> Iterator[Callable[[int], None]]:
    """A bar, and no warnings of a potential's own code."""
    with counter(total, "crystal") as tell, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"chgnet\.")  # of its use of torch and pymatgen
        yield tell
