"""`hf-crystal propose`: candidates for a composition, or of any, from generation to the distance from the hull."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..checkpoints import DEFAULT_GENERATOR
from .progress import counter, quiet_transformers
from .relaxation import CalculatorName, KeepSymmetry, MaxSteps, Relax, chosen_calculator, show_relaxation
from .structure_files import StructureFormat, crystal_files, folder_in_use, write_crystals
from .writers import Format, format_of_file

EXAMPLE = (
    "Example: hf-crystal propose Cu2ZnSnS4 --num 8 --output-dir output\n\n"
    "Relaxed by a universal potential (pip install 'hf_crystal[relax]'): hf-crystal propose Cu2ZnSnS4 --relax\n\n"
    "New crystals of any composition: hf-crystal propose --num 20 --novel --output-dir output"
)


def propose(
    composition: Annotated[str | None, typer.Argument(help="Formula, such as Cu2ZnSnS4; none: any.")] = None,
    chemical_system: Annotated[str | None, typer.Option(help="Elements in place of a formula: Li-Fe-O.")] = None,
    num: Annotated[
        int, typer.Option(min=1, help="Crystals generated, without a formula those kept; equal ones are one.")
    ] = 8,
    space_group: Annotated[
        list[str] | None, typer.Option(help="Symbol such as Pm-3m, or number 1 to 230; may be repeated.")
    ] = None,
    novel: Annotated[bool, typer.Option("--novel", help="Leave out known crystals.")] = False,
    candidates: Annotated[
        Literal["auto", "prototypes", "model"], typer.Option(help="Where crystals come from, see generate.")
    ] = "auto",
    max_atoms: Annotated[int | None, typer.Option(min=1, help="Largest primitive cell.")] = None,
    relax: Relax = False,
    calculator: CalculatorName = "chgnet",
    keep_symmetry: KeepSymmetry = False,
    max_steps: MaxSteps = 500,
    output_dir: Annotated[
        Path | None, typer.Option(help="Write one file per crystal here; a folder with crystals is refused.")
    ] = None,
    form: Annotated[StructureFormat, typer.Option("--format", help="Form of these files.")] = "cif",
    output: Annotated[
        Format | None, typer.Option(help="How the list is written; by default as --output-file ends, else a table.")
    ] = None,
    output_file: Annotated[Path | None, typer.Option(help="Write the list here, not to standard output.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed; without one each call gives other crystals.")] = None,
    model: Annotated[
        str, typer.Option(help="Embedded generator, folder, or repository of the Hub.")
    ] = DEFAULT_GENERATOR,
    device: Annotated[str | None, typer.Option(help="Torch device, such as cpu or cuda:0.")] = None,
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
    output = output or format_of_file(output_file) or "table"
    if output == "parquet" and output_file is None:
        raise typer.BadParameter("parquet needs --output-file", param_hint="--output")
    if output_dir is not None and (others := crystal_files(output_dir)):
        raise folder_in_use(output_dir, others, again=False)
    quiet_transformers()
    from ..candidates import DRAWS, likely_stable, shortlist
    from ..loading import load_generation_pipeline

    potential = chosen_calculator(relax, calculator)  # before anything is generated
    options: dict[str, Any] = {"keep_symmetry": keep_symmetry, "max_steps": max_steps} if relax else {}
    groups = [int(word) if word.isdecimal() else word for word in space_group or []] or None
    drawn = num if composition else num * DRAWS
    with counter(drawn, "crystal") as tell:
        results = load_generation_pipeline(model, device)(
            composition,
            chemical_system=chemical_system,
            space_group=groups,
            candidates=candidates if composition else "model",
            num_return_sequences=drawn,
            max_atoms=max_atoms,
            seed=seed,
            progress=tell,
            **({"known": False} if novel and composition else {}),
        )
    if not composition:
        drawn_crystals, results = results, likely_stable(results, num, known=not novel)
        if len(results) < num:
            print(f"hf-crystal: {len(results)} of {num} crystals: {_left_out(drawn_crystals, novel)}", file=sys.stderr)
    if not results:
        raise ValueError(f"no crystal found for {composition or chemical_system or 'any composition'}")
    if composition or potential:
        with show_relaxation(len(results)) as tell:
            results = shortlist(results, calculator=potential, progress=tell, **options)
    write_crystals(results, output, output_file, output_dir, form)


def _left_out(drawn: list[dict[str, Any]], novel: bool) -> str:
    """Why not all of the crystals drawn were kept."""
    from ..candidates import group_candidates
    from ..stability import predict_stability

    judged = predict_stability(group_candidates(drawn))
    far = [result["warnings"][-1] for result in judged if result["e_above_hull"] is None]
    counts = f"{len(drawn)} drawn, {len(judged)} of them distinct{', known ones left out' * novel}"
    return f"{counts}, {len(far)} without a distance from the hull ({far[0]})" if far else counts
