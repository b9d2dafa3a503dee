"""`hf-crystal predict`: properties of crystals in files."""

import itertools
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .models import DEFAULT_MODEL, load_property_pipeline
from .sources import count_crystals, find_sources, read_crystals
from .writers import Format, open_writer

EXAMPLE = "Example: hf-crystal predict examples/*.cif --output csv --output-file energies.csv"


def _check_numbers(batch_size: int, num_shards: int, shard_index: int) -> None:
    if batch_size < 1:
        raise typer.BadParameter(f"{batch_size} is not positive", param_hint="--batch-size")
    if num_shards < 1:
        raise typer.BadParameter(f"{num_shards} is not positive", param_hint="--num-shards")
    if not 0 <= shard_index < num_shards:
        raise typer.BadParameter(f"{shard_index} is not in 0 … {num_shards - 1}", param_hint="--shard-index")


def _columns(model: Any) -> tuple[list[str], dict[str, str]]:
    """Names of the output fields, and the Arrow types of those that are not text."""
    targets = model.config.target_names
    values = [column for name in targets for column in (name, f"{name}_unit")]
    types = {"num_atoms": "int64", **dict.fromkeys(targets, "double")}
    return ["source", "formula", "num_atoms", *values, "error"], types


def predict(
    files: Annotated[
        list[str],
        typer.Argument(
            help="CIF, POSCAR, extended XYZ, JSON or parquet files, globs, folders; - reads one from stdin."
        ),
    ],
    model: Annotated[str, typer.Option(help="Embedded checkpoint, folder, or repository of the Hub.")] = DEFAULT_MODEL,
    output: Annotated[Format, typer.Option(help="How results are written.")] = "table",
    output_file: Annotated[Path | None, typer.Option(help="Write here instead of standard output.")] = None,
    batch_size: Annotated[int, typer.Option(help="Crystals per forward pass at most.")] = 16,
    on_error: Annotated[
        Literal["report", "skip", "raise"],
        typer.Option(help="A crystal that cannot be read: a row with its reason, no row, or stop."),
    ] = "report",
    device: Annotated[str | None, typer.Option(help="Torch device, such as cpu or cuda:0.")] = None,
    num_shards: Annotated[int, typer.Option(help="Split the crystals into this many parts ...")] = 1,
    shard_index: Annotated[int, typer.Option(help="... and predict only this one, counted from 0.")] = 0,
) -> None:
    """Predict properties of crystals, one row each, in the order given.

    Exit code 0 if any crystal could be read, 1 if none.
    """
    _check_numbers(batch_size, num_shards, shard_index)
    if output == "parquet" and output_file is None:
        raise typer.BadParameter("parquet needs --output-file", param_hint="--output")
    sources = find_sources(files)
    total = len(range(shard_index, count_crystals(sources), num_shards))
    pipe = load_property_pipeline(model, device)
    from tqdm import tqdm

    names: deque[str] = deque()

    def crystals() -> Iterator[Any]:
        for name, crystal in itertools.islice(read_crystals(sources), shard_index, None, num_shards):
            names.append(name)  # results come back in this order
            yield crystal

    failures: list[str] = []
    columns, types = _columns(pipe.model)
    results = tqdm(pipe(crystals(), batch_size=batch_size), total=total, unit="crystal", disable=None, file=sys.stderr)
    with open_writer(output, output_file, columns, types) as writer:
        for result in results:
            name = names.popleft()
            if "error" in result:
                failures.append(f"{name}: {result['error']}")
                if on_error == "raise":
                    raise ValueError(failures[0])
                if on_error == "skip":
                    continue
            writer.write({"source": name, **result})
    if failures and len(failures) == total:
        more = f" (and {total - 1} more)" if total > 1 else ""
        raise ValueError(f"no crystal could be read: {failures[0]}{more}")
    if failures:
        first = failures[0] if len(failures[0]) <= 200 else failures[0][:199] + "…"
        print(
            f"hf-crystal: {len(failures)} of {total} crystals could not be read, the first: {first}", file=sys.stderr
        )
