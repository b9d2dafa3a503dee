"""`hf-crystal push`: an exported folder goes to the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from .progress import quiet_transformers

EXAMPLE = "Example: HF_TOKEN=... hf-crystal push exported owner/crystalformer-mp20"


def push(
    folder: Annotated[Path, typer.Argument(help="Folder that `hf-crystal export` wrote.")],
    repository: Annotated[str, typer.Argument(help="owner/name, or a name under your own account.")],
    private: Annotated[bool, typer.Option("--private", help="Make new repositories private.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files of existing repositories.")
    ] = False,
) -> None:
    """Upload model and card, and the evaluation figures as the data set REPOSITORY-results.

    The token is HF_TOKEN or that of `hf auth login`. An interrupted upload is taken up again; so is the same command.
    """
    quiet_transformers()
    from huggingface_hub.utils import disable_progress_bars

    from ..hub import push_folder

    disable_progress_bars()
    pushed = push_folder(folder, repository, private=private, overwrite=overwrite)
    print(f"model: {pushed.model}")
    if pushed.results is not None:
        print(f"evaluation results: {pushed.results}")
