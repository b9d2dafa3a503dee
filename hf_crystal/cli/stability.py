"""`hf-crystal stability`: hull of known phases at compositions, and how far energies lie above it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import ListFormat, OutputFile
from .writers import chosen_format, open_writer

if TYPE_CHECKING:
    from ..stability import ReferenceHull

EXAMPLE = (
    "Example: hf-crystal stability LiFePO4 BaTiO3\n\n"
    "Your own energies (columns formula and formation_energy, eV/atom): hf-crystal stability --energies mine.csv\n\n"
    "Of crystals in files, with predicted energies: hf-crystal predict examples/*.cif --stability"
)
_TYPES = dict.fromkeys(("hull_energy", "energy", "e_above_hull", "competing_energy"), "double")
_COLUMNS = ("formula", *_TYPES, "decomposition", "competing_phases", "error")


def stability(
    formulas: Annotated[list[str] | None, typer.Argument(help="Compositions, such as LiFePO4.")] = None,
    energies: Annotated[
        Path | None,
        typer.Option(help="CSV, JSON lines or parquet file with columns formula and formation_energy, eV/atom."),
    ] = None,
    reference: Annotated[
        str, typer.Option(help="Known phases: matbench_mp_e_form, or a table as --energies takes.")
    ] = "matbench_mp_e_form",
    output: ListFormat = None,
    output_file: OutputFile = None,
) -> None:
    """Show the hull of known phases at compositions, and how far energies lie above it.

    competing_phases is what the composition would decompose into if no phase of this formula were known. Numbers
    before phases are fractions of the atoms. Other columns of the table stay; one that has the name of a result is
    called NAME_given.
    """
    if bool(formulas) == (energies is not None):
        raise typer.BadParameter("give compositions, or a table with --energies", param_hint="FORMULAS")
    from ..crystals.elements import isotope_notes
    from ..stability import load_reference, read_energies

    hull = load_reference(reference)
    column = hull.energy_column
    asked: list[dict[str, Any]] = [{"formula": formula} for formula in formulas or ()]
    if energies is not None:
        asked = read_energies(energies, column)
    kept = [name for name in asked[0] if name not in ("formula", column)]
    names = {name: f"{name}_given" if name in _COLUMNS else name for name in kept}
    chosen = chosen_format(output, output_file)
    errors: list[str | None] = []
    with open_writer(chosen, output_file, [*names.values(), *_COLUMNS], _TYPES) as writer:
        for given in asked:
            row = {names[name]: None if given[name] is None else str(given[name]) for name in kept}
            row |= _result(hull, given["formula"], given.get(column))
            writer.write(row)
            errors.append(row.get("error"))
            for note in isotope_notes(given["formula"]):
                print(f"hf-crystal: warning: {given['formula']}: {note}", file=sys.stderr)
    if errors and all(errors):
        raise ValueError(f"no formula has a hull: {errors[0]}" + f" (and {len(errors) - 1} more)" * (len(errors) > 1))


def _result(hull: "ReferenceHull", formula: str, energy: float | None) -> dict[str, Any]:
    try:
        found = hull.stability(formula, energy)
    except ValueError as error:
        return {"formula": formula, "error": str(error)}
    return {
        **{name: getattr(found, name) for name in ("formula", *_TYPES)},
        "decomposition": found.text_of(found.decomposition),
        "competing_phases": found.text_of(found.competing_phases),
    }
