"""Options of the commands that relax crystals, and what they add to a row."""

import warnings
from typing import Annotated, Any

import typer

from .progress import counter

RELAXED_COLUMNS = ["energy", "converged", "num_steps", "volume_change"]
RELAXED_TYPES = {"energy": "double", "converged": "bool", "num_steps": "int64", "volume_change": "double"}
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


def relax_with(
    calculator: Any, results: list[dict[str, Any]], *, keep_symmetry: bool, max_steps: int
) -> list[dict[str, Any]]:
    """`relax_candidates` with a bar."""
    from ..candidates import relax_candidates

    with counter(len(results), "crystal") as tell, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"chgnet\.")  # of its use of torch and pymatgen
        return relax_candidates(results, calculator, keep_symmetry=keep_symmetry, max_steps=max_steps, progress=tell)
