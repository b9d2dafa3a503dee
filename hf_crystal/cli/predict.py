"""`hf-crystal predict`: properties of crystals in files."""

import functools
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..checkpoints import DEFAULT_MODEL
from .options import DeviceName, OutputFile, PropertyModelName
from .progress import quiet_transformers, track
from .screening import Disorder, OnError, Shard, Tally, Unseen, columns_of, predict_rows
from .sources import FILES_HELP, count_crystals, find_sources, read_crystals
from .writers import Format, chosen_format, open_writer

EXAMPLE = (
    "Example: hf-crystal predict examples/*.cif --output-file energies.csv\n\n"
    "A million rows, one of 8 parts, goes on after an interruption: hf-crystal predict table.parquet "
    "--output-dir results --num-shards 8 --shard-index 0"
)


def predict(
    files: Annotated[
        list[str],
        typer.Argument(help=FILES_HELP),
    ],
    model: PropertyModelName = DEFAULT_MODEL,
    output: Annotated[
        Format | None,
        typer.Option(
            help="How results are written; by default as --output-file ends, parquet with --output-dir, else a table."
        ),
    ] = None,
    output_file: OutputFile = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Write numbered files here; the same call again goes on where it stopped.")
    ] = None,
    rows_per_file: Annotated[int, typer.Option(min=1, help="Crystals per file of --output-dir.")] = 10_000,
    batch_size: Annotated[int, typer.Option(help="Crystals per forward pass at most.")] = 64,
    max_batch_atoms: Annotated[int, typer.Option(min=1, help="Atoms per forward pass at most, with padding.")] = 4096,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read crystals while the model computes.")] = 0,
    on_error: Annotated[
        OnError, typer.Option(help="A crystal that cannot be read: a row with its reason, no row, or stop.")
    ] = "report",
    unseen: Annotated[
        Unseen, typer.Option(help="Elements, or two elements together, that no training crystal has: warn or refuse.")
    ] = "warn",
    disorder: Annotated[
        Disorder,
        typer.Option(help="Partly occupied sites: mixtures of elements, the mean over ordered crystals, or no value."),
    ] = "mix",
    device: DeviceName = None,
    stability: Annotated[
        bool, typer.Option("--stability", help="Add the energy above the hull of known phases, and the phases there.")
    ] = False,
    reference: Annotated[
        str | None,
        typer.Option(help="Known phases for --stability, a table; needed where the model is not an embedded one."),
    ] = None,
    num_shards: Annotated[int, typer.Option(help="Split the crystals into this many parts ...")] = 1,
    shard_index: Annotated[int, typer.Option(help="... and predict only this one, counted from 0.")] = 0,
) -> None:
    """Predict properties of crystals, one row each, in the order given.

    Exit code 0 if any crystal could be read, 1 if none.
    """
    _check_options(batch_size, num_shards, shard_index)
    chosen = _choose_format(output, output_file, output_dir)
    sources = find_sources(files)
    options: dict[str, Any] = {"batch_size": batch_size, "max_batch_atoms": max_batch_atoms, "num_workers": workers}
    options |= {"unseen": unseen, "disorder": disorder}
    tally = Tally(on_error)
    known_phases = _reference(model, reference) if stability else None
    if output_dir is None:
        number = count_crystals(sources)
        if not number:
            raise ValueError(f"no crystals in {', '.join(sources[:3])}" + " and more files" * (len(sources) > 3))
        total = len(range(shard_index, number, num_shards))
        from ..loading import model_digest

        pipe = _pipeline(model, device, stability)
        finish = _finish(pipe.model, known_phases)
        crystals = itertools.islice(read_crystals(sources), shard_index, None, num_shards)
        of_model = {"model": model, "model_digest": model_digest(model)}
        rows = track(predict_rows(pipe, of_model, crystals, finish, **options), total, "crystal")
        with open_writer(chosen, output_file, *columns_of(pipe.model, known_phases is not None, disorder)) as writer:
            tally.write(rows, writer)
    else:
        if chosen == "table":
            raise typer.BadParameter("table is for one screen; --output-dir takes files", param_hint="--output")
        shard = Shard(sources, output_dir, num_shards, shard_index, rows_per_file, chosen)
        shard.begin(model, on_error, known_phases, unseen, disorder)
        if shard.is_complete:
            print(f"hf-crystal: complete already: {shard.folder}", file=sys.stderr)
            shard.check_values()
            return
        resumed = shard.part(0).is_file()
        pipe = _pipeline(model, device, stability)
        shard.predict(pipe, tally, _finish(pipe.model, known_phases), **options)
        if resumed:
            print(f"hf-crystal: {tally.read} crystals were left for this call; its warnings follow", file=sys.stderr)
        _report(tally, complete=False)
        shard.check_values()
        return
    _report(tally)


def _pipeline(model: str, device: str | None, stability: bool) -> Any:
    quiet_transformers()
    from ..loading import load_property_pipeline, measured_errors

    pipe = load_property_pipeline(model, device)
    if not pipe.model.config.has_errors:  # no value has an error of its own
        units = dict(zip(pipe.model.config.target_names, pipe.model.config.target_units, strict=True))
        tested = measured_errors(model).items()
        errors = ", ".join(f"{target} {error:.3g} {units.get(target, '')}".strip() for target, error in tested)
        if errors:
            print(f"hf-crystal: mean absolute error when the model was tested: {errors}", file=sys.stderr)
            if stability:
                print(
                    f"hf-crystal: {model} may have learned crystals near the hull only, and put others too near to "
                    f"it; {DEFAULT_MODEL} learned both (docs/how_to/stability.md)",
                    file=sys.stderr,
                )
    return pipe


def _reference(model: str, reference: str | None) -> str:
    """Name of the known phases that the model's energies can be compared with."""
    from ..checkpoints import embedded_checkpoints
    from ..loading import check_property_model
    from ..stability import DEFAULT_REFERENCE, energy_target

    if reference is None and model not in embedded_checkpoints():
        if Path(model).is_dir():
            from transformers import AutoConfig

            energy_target(AutoConfig.from_pretrained(check_property_model(model)))  # raises where it has none
        raise typer.BadParameter(
            f"needed with --stability: formation energies of {model} may be of another kind than those of "
            f"{DEFAULT_REFERENCE} (Materials Project 2018, PBE). Name known phases of the same kind, or "
            f"{DEFAULT_REFERENCE} where they are",
            param_hint="--reference",
        )
    return reference or DEFAULT_REFERENCE


def _finish(model: Any, reference: str | None) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
    """What adds stability to a row."""
    if reference is None:
        return None
    from ..stability import add_stability, energy_target, load_reference

    return functools.partial(add_stability, target=energy_target(model.config), hull=load_reference(reference))


def _check_options(batch_size: int, num_shards: int, shard_index: int) -> None:
    if batch_size < 1:
        raise typer.BadParameter(f"{batch_size} is not positive", param_hint="--batch-size")
    if num_shards < 1:
        raise typer.BadParameter(f"{num_shards} is not positive", param_hint="--num-shards")
    if not 0 <= shard_index < num_shards:
        raise typer.BadParameter(f"{shard_index} is not in 0 … {num_shards - 1}", param_hint="--shard-index")


def _choose_format(output: Any, output_file: Path | None, output_dir: Path | None) -> Format:
    if output_file is not None and output_dir is not None:
        raise typer.BadParameter("give one of --output-file and --output-dir", param_hint="--output-dir")
    if output == "parquet" and output_file is None and output_dir is None:
        raise typer.BadParameter("parquet needs --output-file or --output-dir", param_hint="--output")
    return chosen_format(output, output_file) if output_dir is None else output or "parquet"


def _report(tally: Tally, *, complete: bool = True) -> None:
    """Name on standard error what could not be read and what is doubtful; `ValueError` where nothing was read.

    Args:
        tally: what was read in this call.
        complete: there was nothing before this call.
    """
    if tally.doubtful:
        _print_list(f"{tally.doubtful} of {tally.read} crystals have warnings", tally.doubts.lines)
    if not tally.failed:
        return
    if complete and tally.failed == tally.read:
        raise ValueError(f"no crystal could be read: {'; '.join(tally.reasons.lines)}")
    _print_list(f"{tally.failed} of {tally.read} crystals could not be read", tally.reasons.lines)


def _print_list(head: str, lines: list[str]) -> None:
    """Of a single line as one."""
    separator = " " if len(lines) == 1 else "\n  "
    print(f"hf-crystal: {head}:{separator}{separator.join(lines)}", file=sys.stderr)
