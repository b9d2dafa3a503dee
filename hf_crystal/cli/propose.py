"""`hf-crystal propose`: candidates for a composition, or of any, from generation to the distance from the hull."""

import sys
from typing import Annotated, Any, Literal

import typer

from ..checkpoints import DEFAULT_GENERATOR
from .options import (
    ChemicalSystem,
    Composition,
    CrystalFolder,
    CrystalForm,
    DeviceName,
    GeneratorName,
    ListFormat,
    Novel,
    OutputFile,
    Seed,
    Smact,
    SpaceGroups,
    numbers_or_symbols,
)
from .progress import counter, quiet_transformers
from .relaxation import CalculatorName, KeepSymmetry, MaxSteps, Relax, chosen_calculator, show_relaxation
from .structure_files import crystal_files, folder_in_use, write_crystals
from .writers import chosen_format

EXAMPLE = (
    "Example: hf-crystal propose Cu2ZnSnS4 --num 8 --output-dir output\n\n"
    "Relaxed by a universal potential (pip install 'hf_crystal[relax]'): hf-crystal propose Cu2ZnSnS4 --relax\n\n"
    "New crystals of any composition: hf-crystal propose --num 20 --novel --output-dir output"
)


def propose(
    composition: Composition = None,
    chemical_system: ChemicalSystem = None,
    num: Annotated[
        int, typer.Option(min=1, help="Crystals generated, without a formula those kept; equal ones are one.")
    ] = 8,
    space_group: SpaceGroups = None,
    novel: Novel = False,
    smact: Smact = False,
    candidates: Annotated[
        Literal["auto", "prototypes", "model"], typer.Option(help="Where crystals come from, see generate.")
    ] = "auto",
    max_atoms: Annotated[int | None, typer.Option(min=1, help="Largest primitive cell.")] = None,
    relax: Relax = False,
    calculator: CalculatorName = "chgnet",
    keep_symmetry: KeepSymmetry = False,
    max_steps: MaxSteps = 500,
    output_dir: CrystalFolder = None,
    form: CrystalForm = "cif",
    output: ListFormat = None,
    output_file: OutputFile = None,
    seed: Seed = None,
    model: GeneratorName = DEFAULT_GENERATOR,
    device: DeviceName = None,
) -> None:
    """Propose crystals: generate, group equal ones, relax if asked for, find the distance to the hull.

    With --relax the crystals and the known phases that they would decompose into are relaxed with one potential, and
    the lowest comes first. Without, the distance is that of the energy which a model predicts for the crystals as
    generated, and the order is that of generation.

    Without a formula the language model draws four crystals for each that is wanted, and those of the lowest predicted
    distance are kept, lowest first.
    """
    if composition is None and candidates == "prototypes":
        raise typer.BadParameter("prototypes need a formula", param_hint="--candidates")
    if composition is not None and chemical_system is not None:
        raise typer.BadParameter(f"{chemical_system} beside the formula {composition}", param_hint="--chemical-system")
    if composition is not None and smact:  # of one formula all crystals are neutral, or none
        raise typer.BadParameter(f"chooses among formulas, and {composition} is given", param_hint="--smact")
    chosen = chosen_format(output, output_file)
    if output_dir is not None and (others := crystal_files(output_dir)):
        raise folder_in_use(output_dir, others, again=False)
    quiet_transformers()
    from ..candidates import DRAWS, likely_stable, nothing_found, shortlist
    from ..loading import load_generation_pipeline

    potential = chosen_calculator(relax, calculator)  # before anything is generated
    options: dict[str, Any] = {"keep_symmetry": keep_symmetry, "max_steps": max_steps} if relax else {}
    drawn = num if composition else num * DRAWS
    with counter(drawn, "crystal") as tell:
        results = load_generation_pipeline(model, device)(
            composition,
            chemical_system=chemical_system,
            space_group=numbers_or_symbols(space_group),
            candidates=candidates if composition else "model",
            num_return_sequences=drawn,
            max_atoms=max_atoms,
            seed=seed,
            progress=tell,
            **({"known": False} if novel and composition else {}),
            **({"smact": True} if smact else {}),
        )
    if not composition:
        drawn_crystals, results = results, likely_stable(results, num, known=not novel)
        if len(results) < num:
            print(f"hf-crystal: {len(results)} of {num} crystals: {_left_out(drawn_crystals, novel)}", file=sys.stderr)
    if not results:
        limits = f"--max-atoms {max_atoms}" if composition and max_atoms else ""
        raise ValueError(nothing_found(composition, candidates, limits, chemical_system or "any composition"))
    if composition or potential:
        generated = len(results)
        with show_relaxation(len(results)) as tell:
            results = shortlist(results, calculator=potential, progress=tell, **options)
        if len(results) < generated:
            few = f"{generated} crystals, {len(results)} of them distinct (num_equal); a larger --num finds more"
            print(f"hf-crystal: {few}", file=sys.stderr)
        if potential and calculator == "chgnet":
            print(
                "hf-crystal: CHGNet is off by about 0.04 eV/atom: closer candidates are not told apart",
                file=sys.stderr,
            )
    write_crystals(results, chosen, output_file, output_dir, form, novel=novel)


def _left_out(drawn: list[dict[str, Any]], novel: bool) -> str:
    """Why not all of the crystals drawn were kept."""
    from ..candidates import group_candidates
    from ..stability import predict_stability

    judged = predict_stability(group_candidates(drawn))
    far = [result["warnings"][-1] for result in judged if result["e_above_hull"] is None]
    counts = f"{len(drawn)} drawn, {len(judged)} of them distinct{', known ones left out' * novel}"
    return f"{counts}, {len(far)} without a distance from the hull ({far[0]})" if far else counts
