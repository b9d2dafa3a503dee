"""`hf-crystal embed`: vectors of crystals, and their nearest neighbors in a table."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..checkpoints import DEFAULT_MODEL
from .options import DeviceName, OutputFile, PropertyModelName
from .progress import quiet_transformers, track
from .sources import FILES_HELP, count_crystals, find_sources, read_crystals
from .writers import Format, chosen_format, open_writer

EXAMPLE = "Example: hf-crystal embed examples --output-file table.parquet"


def _vector_rows(name: str, result: Any, *, by_atom: bool, spread: bool) -> Iterator[dict[str, Any]]:
    """Rows of one crystal: one, or one per atom; `spread` gives every component a field of its own."""
    row: dict[str, Any] = {"source": name, "formula": result.formula}
    if result.error is not None:
        yield {"source": name, "error": result.error}
        return
    for atom, vector in enumerate(result.embedding if by_atom else [result.embedding]):
        values = vector.tolist()
        fields = {f"e{k}": value for k, value in enumerate(values)} if spread else {"embedding": values}
        yield {**row, **({"atom": atom} if by_atom else {}), **fields}


def _neighbor_rows(name: str, result: Any, table: Any, k: int, metric: Any) -> Iterator[dict[str, Any]]:
    if result.error is not None:
        yield {"source": name, "error": result.error}
        return
    for rank, neighbor in enumerate(table.nearest(result.embedding, k, metric=metric), 1):
        found = {"rank": rank, "neighbor": neighbor.name, "distance": neighbor.distance}
        yield {"source": name, "formula": result.formula, **found}


def _columns(model: Any, *, by_atom: bool, nearest: bool, spread: bool) -> tuple[list[str], dict[str, Any]]:
    """Fields of the output, and their Arrow types."""
    if nearest:
        return ["source", "formula", "rank", "neighbor", "distance", "error"], {"rank": "int64", "distance": "double"}
    import pyarrow

    width = model.config.hidden_size
    fields = [f"e{k}" for k in range(width)] if spread else ["embedding"]
    types = {"atom": "int64", "embedding": pyarrow.list_(pyarrow.float32(), width)}
    return ["source", "formula", *(["atom"] if by_atom else []), *fields, "error"], types


def embed(
    files: Annotated[
        list[str],
        typer.Argument(help=FILES_HELP),
    ],
    model: PropertyModelName = DEFAULT_MODEL,
    level: Annotated[
        Literal["crystal", "atom"], typer.Option(help="One vector per crystal, or one per atom.")
    ] = "crystal",
    nearest: Annotated[
        Path | None, typer.Option(help="Table that this command wrote as parquet: list its crystals nearest to each.")
    ] = None,
    num: Annotated[int, typer.Option(help="Neighbors per crystal, with --nearest.")] = 5,
    metric: Annotated[
        Literal["euclidean", "cosine"], typer.Option(help="Distance between vectors, with --nearest.")
    ] = "euclidean",
    output: Annotated[
        Format | None,
        typer.Option(
            help="How results are written; by default as --output-file ends, else table with --nearest, else csv."
        ),
    ] = None,
    output_file: OutputFile = None,
    batch_size: Annotated[int, typer.Option(help="Crystals per forward pass at most.")] = 16,
    device: DeviceName = None,
) -> None:
    """Write the vectors that a model has of crystals, or find similar crystals.

    A crystal that cannot be read gives a row with its reason. Exit code 1 if none can be read.
    """
    output = chosen_format(output, output_file, "csv" if nearest is None else "table")
    if output == "table" and nearest is None:
        raise typer.BadParameter(
            "table needs --nearest; vectors go to csv, json, jsonl or parquet", param_hint="--output"
        )
    if nearest is not None and level == "atom":
        raise typer.BadParameter("only level crystal can be searched", param_hint="--level")
    for name, value in (("--num", num), ("--batch-size", batch_size)):
        if value < 1:
            raise typer.BadParameter(f"{value} is not positive", param_hint=name)
    sources = find_sources(files)
    total = count_crystals(sources)
    from ..embeddings import EmbeddingTable, iterate_embeddings

    table = None if nearest is None else EmbeddingTable.load(nearest)
    if table is not None and table.model not in (None, model):
        raise ValueError(
            f"{nearest} was written with --model {table.model}, not {model}; accepted: vectors of one model"
        )
    quiet_transformers()
    from ..loading import load_property_model

    loaded, extractor = load_property_model(model, device=device)
    by_atom, spread = level == "atom", output == "csv"
    columns, types = _columns(loaded, by_atom=by_atom, nearest=table is not None, spread=spread)
    names: list[str] = []

    def crystals() -> Iterator[Any]:
        """Crystals whose names are written down as they pass."""
        for name, crystal in read_crystals(sources):
            names.append(name)
            yield crystal

    found = iterate_embeddings(crystals(), loaded, feature_extractor=extractor, level=level, batch_size=batch_size)
    failures: list[str] = []
    with open_writer(output, output_file, columns, types, {"model": model}) as writer:
        for index, result in enumerate(track(found, total, "crystal")):
            if result.error is not None:
                failures.append(f"{names[index]}: {result.error}")
            if table is None:
                rows = _vector_rows(names[index], result, by_atom=by_atom, spread=spread)
            else:
                rows = _neighbor_rows(names[index], result, table, num, metric)
            for row in rows:
                writer.write(row)
    if len(failures) == total:
        raise ValueError(f"no crystal could be read: {failures[0]}")
    if failures:
        print(
            f"hf-crystal: {len(failures)} of {total} crystals could not be read, the first: {failures[0][:200]}",
            file=sys.stderr,
        )
