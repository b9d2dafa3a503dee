"""`hf-crystal plot`: pictures in files."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..checkpoints import DEFAULT_MODEL
from .progress import quiet_transformers

ATTENTION_EXAMPLE = "Example: hf-crystal plot attention examples/SrTiO3.cif --output-file attention.png"
FRAMES_EXAMPLE = "Example: hf-crystal plot frames examples/LiFePO4.cif --atom 9 --output-file frames.png"
PARITY_EXAMPLE = (
    "Example: hf-crystal plot parity predictions.parquet --prediction formation_energy --label mb_e_form "
    "--output-file parity.png"
)
TRAINING_EXAMPLE = "Example: hf-crystal plot training runs/mp20 --output-file training.png"
SEQUENCE_EXAMPLE = "Example: hf-crystal plot sequence examples/NaCl.cif --output-file sequence.svg"
PERTURBATION_EXAMPLE = "Example: hf-crystal plot perturbation examples/NaCl.cif --output-file perturbation.png"
VIEW_EXAMPLE = "Example: hf-crystal plot view examples/SrTiO3.cif --output-file crystal.html"
_FORMATS = (".png", ".pdf", ".svg")

Crystal = Annotated[Path, typer.Argument(help="CIF, POSCAR, extended XYZ or JSON file.")]
Model = Annotated[str, typer.Option(help="Embedded checkpoint, folder, or repository of the Hub.")]
Atom = Annotated[int, typer.Option(help="Atom to look at, counted from 1 in the order of the file.")]
Output = Annotated[
    Path | None, typer.Option(help="Picture to write: .png, .pdf or .svg; by default SOURCE-KIND.png in this folder.")
]

app = typer.Typer(help="Draw crystals, models and results.", rich_markup_mode=None)


@contextlib.contextmanager
def _chosen(path: Path | None, source: Path, kind: str, formats: tuple[str, ...] = _FORMATS) -> Iterator[Path]:
    """The file to write; if none was given, one in this folder that is named after source and kind, and printed."""
    chosen = path or Path(f"{source.resolve().stem}-{kind}{formats[0]}")
    if chosen.suffix.lower() not in formats:
        raise typer.BadParameter(f"{chosen} must end in {', '.join(formats)}", param_hint="--output-file")
    if not chosen.parent.is_dir():
        raise ValueError(f"folder of --output-file does not exist: {chosen.parent}")
    yield chosen
    if path is None:
        print(chosen)


def _check_crystal(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"no such file: {path}")


def _place(number: int | None, option: str) -> int | None:
    """People count from 1, Python from 0."""
    if number is not None and number < 1:
        raise typer.BadParameter(f"{number} is not positive", param_hint=option)
    return None if number is None else number - 1


@app.command("attention", short_help="Attention between atoms.", epilog=ATTENTION_EXAMPLE)
def attention(
    crystal: Crystal,
    output_file: Output = None,
    model: Model = DEFAULT_MODEL,
    atom: Atom = 1,
    block: Annotated[int | None, typer.Option(help="One block, counted from 1; all by default.")] = None,
    head: Annotated[int | None, typer.Option(help="One head, counted from 1; the mean by default.")] = None,
) -> None:
    """Attention between the atoms of a crystal, and of one atom over shells of neighbors."""
    with _chosen(output_file, crystal, "attention") as file:
        _check_crystal(crystal)
        quiet_transformers()
        from ..viz import plot_attention

        options: dict[str, Any] = {"atom": _place(atom, "--atom"), "head": _place(head, "--head")}
        plot_attention(crystal, model, block=_place(block, "--block"), **options).savefig(file)


@app.command("frames", short_help="Frames of an atom, block after block.", epilog=FRAMES_EXAMPLE)
def frames(
    crystal: Crystal,
    output_file: Output = None,
    model: Model = "crystalframer-mp",
    atom: Atom = 1,
    head: Annotated[int, typer.Option(help="Head, counted from 1.")] = 1,
) -> None:
    """The local frame of an atom in every block of a CrystalFramer."""
    with _chosen(output_file, crystal, "frames") as file:
        _check_crystal(crystal)
        quiet_transformers()
        from ..viz import plot_frames

        places = {"atom": _place(atom, "--atom"), "head": _place(head, "--head")}
        plot_frames(crystal, model, **places).savefig(file)  # type: ignore[arg-type]


@app.command("parity", short_help="Predictions against labels.", epilog=PARITY_EXAMPLE)
def parity(
    table: Annotated[Path, typer.Argument(help="Parquet or CSV file with predictions and labels.")],
    prediction: Annotated[str, typer.Option(help="Column of the predictions.")],
    label: Annotated[str, typer.Option(help="Column of the labels.")],
    output_file: Output = None,
    unit: Annotated[str, typer.Option(help="Unit of labels and predictions.")] = "",
) -> None:
    """Predictions against labels, and the distribution of the errors."""
    with _chosen(output_file, table, "parity") as file:
        _check_crystal(table)
        import pandas

        rows = pandas.read_parquet(table) if table.suffix == ".parquet" else pandas.read_csv(table)
        missing = [name for name in (prediction, label) if name not in rows]
        if missing:
            raise ValueError(f"{table} has no column {', '.join(missing)}; it has {', '.join(map(str, rows.columns))}")
        from ..viz import plot_parity

        plot_parity(rows[prediction], rows[label], name=prediction, unit=unit).savefig(file)


@app.command("training", short_help="Loss and learning rate of a training.", epilog=TRAINING_EXAMPLE)
def training(
    source: Annotated[Path, typer.Argument(help="Folder of a run, metrics.json or trainer_state.json.")],
    output_file: Output = None,
) -> None:
    """Loss, validation error and learning rate of a training."""
    with _chosen(output_file, source, "training") as file:
        if not source.exists():
            raise ValueError(f"no such file or folder: {source}")
        from ..viz import plot_training

        plot_training(source).savefig(file)


@app.command("sequence", short_help="The sequence of a crystal.", epilog=SEQUENCE_EXAMPLE)
def sequence(crystal: Crystal, output_file: Output = None) -> None:
    """The canonical sequence of a crystal, word by word."""
    with _chosen(output_file, crystal, "sequence") as file:
        _check_crystal(crystal)
        from ..viz import plot_sequence

        plot_sequence(crystal).savefig(file)


@app.command("perturbation", short_help="Prediction under small displacements.", epilog=PERTURBATION_EXAMPLE)
def perturbation(
    crystal: Crystal,
    output_file: Output = None,
    model: Model = DEFAULT_MODEL,
    repeats: Annotated[int, typer.Option(help="Random directions.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the directions.")] = 0,
) -> None:
    """How far a prediction moves when the atoms are displaced at random."""
    with _chosen(output_file, crystal, "perturbation") as file:
        _check_crystal(crystal)
        quiet_transformers()
        from ..viz import plot_perturbation

        plot_perturbation(crystal, {model: model}, repeats=repeats, seed=seed).savefig(file)


@app.command("view", short_help="A crystal in 3-D, for any browser.", epilog=VIEW_EXAMPLE)
def view(
    crystal: Crystal,
    output_file: Annotated[
        Path | None,
        typer.Option(help="Page to write, .html; it needs no network; by default CRYSTAL-view.html in this folder."),
    ] = None,
    repeat: Annotated[tuple[int, int, int], typer.Option(help="Cells along the three axes.")] = (1, 1, 1),
) -> None:
    """The crystal in 3-D, as one page for any browser."""
    with _chosen(output_file, crystal, "view", (".html",)) as file:
        _check_crystal(crystal)
        from ..viz import view_3d

        view_3d(crystal, repeat=repeat).save(file)
