"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from .structure_files import StructureFormat
from .writers import Format

Composition = Annotated[str | None, typer.Argument(help="Formula, such as Cu2ZnSnS4; none: any.")]
ChemicalSystem = Annotated[str | None, typer.Option(help="Elements in place of a formula: Li-Fe-O.")]
SpaceGroups = Annotated[
    list[str] | None, typer.Option(help="Symbol such as Pm-3m, or number 1 to 230; may be repeated.")
]
Smact = Annotated[
    bool,
    typer.Option(
        "--smact",
        help="Leave out what SMACT (pip install smact) finds not charge-neutral. With a formula generate takes the "
        "model alone, and propose refuses it.",
    ),
]
Novel = Annotated[bool, typer.Option("--novel", help="Leave out what StructureMatcher takes for a known crystal.")]
Seed = Annotated[int | None, typer.Option(help="Random seed; without one each call gives other crystals.")]
GeneratorName = Annotated[str, typer.Option(help="Embedded generator, folder, or repository of the Hub.")]
PropertyModelName = Annotated[str, typer.Option(help="Embedded checkpoint, folder, or repository of the Hub.")]
DeviceName = Annotated[str | None, typer.Option(help="Torch device, such as cpu or cuda:0.")]
ListFormat = Annotated[
    Format | None, typer.Option(help="How the list is written; by default as --output-file ends, else a table.")
]
OutputFile = Annotated[Path | None, typer.Option(help="Write here instead of standard output.")]
CrystalFolder = Annotated[
    Path | None, typer.Option(help="Write one file per crystal here; a folder with other crystals is refused.")
]
CrystalForm = Annotated[StructureFormat, typer.Option("--format", help="Form of these files.")]


def numbers_or_symbols(given: list[str] | None) -> list[int | str] | None:
    """Space groups as the pipeline takes them; None for any."""
    return [int(word) if word.isdecimal() else word for word in given or []] or None
