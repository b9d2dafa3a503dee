"""`push_folder`: an exported folder as a model repository, its evaluation figures as a data set beside it."""

import json
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from transformers.utils import logging

from ..cards import figure_rows, load_metrics
from .generators import STOCK_TOKENIZER

logger = logging.get_logger(__name__)

ATTEMPTS = 3
_NEEDED = ("config.json", "model.safetensors", "README.md", "LICENSE")
# what an exported folder is made of; whatever else lies in it (keys, states of a training) is nobody's business
_PART_OF_AN_EXPORT = re.compile(
    r"LICENSE|NOTICE|README\.md|recipe\.yaml|metrics\.json|\w+\.py|model(-\d+-of-\d+)?\.safetensors"
    r"|(model\.safetensors\.index|config|generation_config|preprocessor_config|hub_config)\.json"
    rf"|({re.escape(STOCK_TOKENIZER)}/)?(tokenizer|tokenizer_config|special_tokens_map)\.json"
)
_CREATED_BY_THE_HUB = {".gitattributes"}
_RESULTS_FILES = {"README.md", "results.jsonl", "metrics.json"}
# HTTPError: of httpx or its successor, whichever this huggingface_hub is built on; covers lost connections as well
_HttpError: type[Exception] = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")


@dataclass(frozen=True)
class PushedRepositories:
    """Where a folder went.

    Attributes:
        model: Address of the model repository.
        results: Address of the data set with the evaluation figures, or None where the folder has none.
    """

    model: str
    results: str | None


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _may_pass(error: BaseException) -> bool:
    """Whether the same request can succeed later: a lost connection, or a fault on the server's side."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # huggingface_hub wraps what an upload raised
        error = error.__cause__
    status = _status(error)
    return isinstance(error, _HttpError) and (status is None or status >= 500)


def _user(api: HfApi) -> str:
    """Name of the account that the token belongs to."""
    try:
        return str(api.whoami()["name"])
    except HfHubHTTPError as error:
        if _status(error) != 401:
            raise
        raise ValueError(
            f"{api.endpoint} refuses the token (401); make one with write access under Settings, Access Tokens, and "
            "pass it as HF_TOKEN or by `hf auth login`"
        ) from error


def _check_new(api: HfApi, repository: str, kind: str, left_over: set[str]) -> None:
    """Raise `ValueError` where a repository holds other files than an interrupted push may have left."""
    if not api.repo_exists(repository, repo_type=kind):
        return
    held = sorted(set(api.list_repo_files(repository, repo_type=kind)) - _CREATED_BY_THE_HUB - left_over)
    if held:
        raise ValueError(
            f"{kind} repository {repository} exists already and holds {len(held)} files ({held[0]}, …); pass "
            "overwrite=True (--overwrite) to replace them by a new commit"
        )


def _files_to_push(folder: Path) -> list[str]:
    """Files of an exported folder that belong to an export, by name; the others are named in a warning.

    Raises:
        ValueError: a needed file is missing, or a link, whose target may lie anywhere.
    """
    found: list[str] = []
    others: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        linked = any(part.is_symlink() for part in (path, *path.parents[: name.count("/")]))
        if linked or path.is_file():
            (found if not linked and _PART_OF_AN_EXPORT.fullmatch(name) else others).append(name)
    missing = [name for name in _NEEDED if name not in found]
    if missing:
        raise ValueError(
            f"{folder} is no exported folder, it lacks {', '.join(missing)}; see hf-crystal export (no links)"
        )
    if others:
        logger.warning(f"{len(others)} files are no part of an export and are not uploaded: {', '.join(others[:8])}")
    return found


def _upload(api: HfApi, folder: Path, files: list[str], repository: str, kind: str, private: bool) -> str:
    """Create a repository and commit files of a folder to it; what did not get through is sent again.

    The commit comes last and holds every file, so readers see the old or the new state. Large files that have been
    uploaded before an interruption are found there and not sent again.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            url = api.create_repo(repository, repo_type=kind, private=private or None, exist_ok=True)
            api.upload_folder(
                repo_id=repository,
                repo_type=kind,
                folder_path=folder,
                allow_patterns=files,
                commit_message="Upload with hf-crystal push",
                delete_patterns="*",  # files of an earlier push that are no longer part of the folder
            )
            return str(url)
        except (_HttpError, RuntimeError) as error:
            if not _may_pass(error):
                raise
            if attempt == ATTEMPTS:
                raise ConnectionError(
                    f"upload to {repository} was interrupted {ATTEMPTS} times ({error}); run the same command again, "
                    "what is there already is not sent twice"
                ) from error
            logger.warning(f"upload to {repository} was interrupted ({error}); attempt {attempt + 1} of {ATTEMPTS}")
            time.sleep(attempt)
    raise AssertionError("unreachable")


def write_results(metrics: dict[str, Any], card: ModelCard, model_repository: str, folder: Path) -> None:
    """Write the data set of a model's evaluation: one row per figure, the whole evaluation file, and a card.

    Args:
        metrics: evaluation JSON.
        card: the model's card; license and title are taken from it.
        model_repository: repository of the model.
        folder: existing folder to write to.
    """
    rows = [{"model": model_repository, **row} for row in figure_rows(metrics)]
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    (folder / "results.jsonl").write_text(lines, encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    title = f"Evaluation of {model_repository}"
    data = DatasetCardData(
        license=card.data.get("license"),
        pretty_name=title,
        tags=["crystal", "materials-science", "evaluation"],
        configs=[{"config_name": "default", "data_files": "results.jsonl"}],
    )
    text = (
        f"---\n{data.to_yaml()}\n---\n# {title}\n\n`results.jsonl`: one row per figure with its unit, 95 % interval, "
        "number of samples and protocol. `metrics.json`: the evaluation file as the training and the evaluation "
        f"scripts wrote it, with recipe, commit and versions. The model: `{model_repository}`.\n"
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def planned_push(folder: str | Path, repository: str) -> dict[str, dict[str, int]]:
    """What `push_folder` would send: each repository with its files and their sizes in bytes. Nothing is sent.

    Raises:
        ValueError: the folder is no export.
    """
    folder = Path(folder)
    files = _files_to_push(folder)
    plan = {repository: {name: (folder / name).stat().st_size for name in files}}
    if "metrics.json" in files:
        with tempfile.TemporaryDirectory() as scratch:
            metrics = load_metrics(folder / "metrics.json")
            write_results(metrics, ModelCard.load(folder / "README.md"), repository, Path(scratch))
            plan[f"{repository}-results"] = {
                path.name: path.stat().st_size for path in sorted(Path(scratch).iterdir())
            }
    return plan


def push_folder(
    folder: str | Path,
    repository: str,
    *,
    token: str | None = None,
    private: bool = False,
    overwrite: bool = False,
    endpoint: str | None = None,
) -> PushedRepositories:
    """Upload an exported folder, no other files and no links, and its figures as the data set `REPOSITORY-results`.

    Args:
        folder: what `export_pretrained` wrote.
        repository: `owner/name`, or a name under the account of the token.
        token: access token; by default HF_TOKEN, or that of `hf auth login`.
        private: make new repositories private.
        overwrite: replace the files of repositories that exist already, by a new commit.
        endpoint: address of the Hub; by default HF_ENDPOINT, or huggingface.co.

    Returns:
        Addresses of both repositories.

    Raises:
        ValueError: the folder is no export, the token is wrong, or a repository has files already.
        ConnectionError: the upload was interrupted again and again; another run resumes it.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses for another reason, such as missing rights.
    """
    folder = Path(folder)
    files = _files_to_push(folder)
    api = HfApi(endpoint=endpoint, token=token)
    user = _user(api)
    repository = repository if "/" in repository else f"{user}/{repository}"
    metrics = load_metrics(folder / "metrics.json") if "metrics.json" in files else None
    results = None if metrics is None else f"{repository}-results"
    if not overwrite:
        _check_new(api, repository, "model", set())
        if results is not None:
            _check_new(api, results, "dataset", _RESULTS_FILES)
    results_url = None
    if metrics is not None and results is not None:
        with tempfile.TemporaryDirectory() as scratch:
            write_results(metrics, ModelCard.load(folder / "README.md"), repository, Path(scratch))
            results_url = _upload(api, Path(scratch), sorted(_RESULTS_FILES), results, "dataset", private)
    # the model comes last: once it is there, everything is
    return PushedRepositories(_upload(api, folder, files, repository, "model", private), results_url)
