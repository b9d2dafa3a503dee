"""`hf-crystal index`: known crystals as an index of prototypes."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .._partial import partial_path
from .progress import counter
from .sources import count_crystals, find_sources, read_crystals

EXAMPLE = "Example: hf-crystal index known.parquet index.parquet"


def index(
    table: Annotated[str, typer.Argument(help="Parquet table, folder or file of known crystals.")],
    output: Annotated[Path, typer.Argument(help="Index to write, a parquet file.")],
    split: Annotated[
        str | None, typer.Option(help="Only rows of a table whose column 'split' is this, such as train.")
    ] = None,
    energy_column: Annotated[
        str | None, typer.Option(help="Column with formation energies, eV/atom; lower ones weigh more.")
    ] = None,
) -> None:
    """Index known crystals, from which candidates for other compositions are made.

    A crystal that cannot be read is left out with a warning.
    """
    from ..prototypes import PrototypeIndex

    if output.suffix != ".parquet":
        raise typer.BadParameter(f"{output} must end in .parquet", param_hint="OUTPUT")
    if not output.parent.is_dir():
        raise typer.BadParameter(f"folder {output.parent} does not exist", param_hint="OUTPUT")
    sources = find_sources([table])
    energies, chosen = _columns(sources, split, energy_column)
    total = count_crystals(sources) if chosen is None else len(chosen)
    with counter(total, "crystal") as count:
        known = ((name, crystal) for name, crystal in read_crystals(sources) if chosen is None or name in chosen)
        found = PrototypeIndex.build(known, energies=energies, progress=count)
    partial = partial_path(output)
    found.save(partial)
    partial.replace(output)
    size = f"{output.stat().st_size / 2**20:.2f} MB"
    print(f"hf-crystal: {len(found)} crystals, {total - len(found)} left out, {size}: {output}", file=sys.stderr)


def _columns(
    sources: list[str], split: str | None, energy_column: str | None
) -> tuple[dict[str, float], set[str] | None]:
    """Energies by name, and the names of a split."""
    if split is None and energy_column is None:
        return {}, None
    import pyarrow.parquet

    from ..data.columns import name_columns

    if len(sources) != 1 or not sources[0].endswith(".parquet"):
        raise ValueError("--split and --energy-column need one parquet table")
    have = pyarrow.parquet.read_schema(sources[0]).names
    label = next(iter(name_columns(tuple(have))), None)
    wanted = [column for column in ("split" if split else None, energy_column) if column]
    missing = [column for column in wanted if column not in have]
    if missing or label is None:
        raise ValueError(f"{sources[0]} lacks {missing or 'a column of names'}; it has {', '.join(have[:12])}")
    columns = pyarrow.parquet.read_table(sources[0], columns=[label, *wanted]).to_pydict()
    names = [str(name) for name in columns[label]]
    chosen = {n for n, part in zip(names, columns["split"], strict=True) if str(part) == split} if split else None
    if chosen is not None and not chosen:
        raise ValueError(f"split is {split!r}; {sources[0]} has {', '.join(sorted(set(map(str, columns['split']))))}")
    energies = zip(names, columns[energy_column], strict=True) if energy_column else ()
    return {name: energy for name, energy in energies if energy is not None}, chosen
