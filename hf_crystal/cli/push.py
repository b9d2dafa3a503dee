"""`hf-crystal push`: exported folders go to the Hub."""

import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from .progress import quiet_transformers

EXAMPLE = (
    "Example: HF_TOKEN=... hf-crystal push exported owner/crystalformer-mp20\n\n"
    "What would go where, of all embedded models: hf-crystal push --all owner --dry-run"
)


def push(
    source: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Folder that `hf-crystal export` wrote; with --all the owner.")
    ],
    repository: Annotated[
        str | None, typer.Argument(help="owner/name, or a name under your own account; not with --all.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Export and push every embedded model, as OWNER/its name.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go where, and send nothing.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make new repositories private.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files of existing repositories.")
    ] = False,
) -> None:
    """Upload model and card, and the evaluation figures as the data set REPOSITORY-results.

    The token is HF_TOKEN or that of `hf auth login`. An interrupted upload is taken up again; so is the same command.
    """
    if every == (repository is not None):
        wanted = "one owner, such as hf-crystal push --all owner" if every else "a repository beside the folder"
        raise typer.BadParameter(
            f"push {'with' if every else 'without'} --all takes {wanted}", param_hint="REPOSITORY"
        )
    quiet_transformers()
    from huggingface_hub.utils import disable_progress_bars, validate_repo_id

    validate_repo_id(f"{source}/crystalformer-mp" if every else repository)  # before anything is exported
    from ..hub import planned_push, push_folder

    disable_progress_bars()
    with tempfile.TemporaryDirectory() as scratch:
        for folder, name in _exported(source, Path(scratch)) if every else [(Path(source), str(repository))]:
            if dry_run:
                for target, files in planned_push(folder, name).items():
                    size = f"{len(files)} files, {sum(files.values()) / 1e6:.2f} MB"
                    print(f"{target}: {size}, {'private' if private else 'public'} where the repository is new")
                    print(textwrap.fill(", ".join(files), 100, initial_indent="  ", subsequent_indent="  "))
                continue
            pushed = push_folder(folder, name, private=private, overwrite=overwrite)
            print(f"model: {pushed.model}")
            if pushed.results is not None:
                print(f"evaluation results: {pushed.results}")


def _exported(owner: str, scratch: Path) -> Iterator[tuple[Path, str]]:
    """Every embedded model as an exported folder, one after the other, and the repository that it goes to."""
    from .. import hub
    from ..cards import shipped_hub_config
    from ..checkpoints import embedded_checkpoints, embedded_generators

    for name in (*embedded_checkpoints(), *embedded_generators()):
        hub.export_pretrained(name, scratch / name, hub_config=shipped_hub_config(name))
        yield scratch / name, f"{owner}/{name}"
