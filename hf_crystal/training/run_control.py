"""What makes a run end on time and restart from the right place."""

# ruff: noqa: ARG002  (the signatures are those of TrainerCallback)

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from hf_crystal.evaluation.run_files import CHECKPOINT_FOLDER

logger = logging.get_logger(__name__)

COMPLETE_MARKER_NAME = "checkpoint_complete.json"
BEGUN_WITH_NAME = "begun_with.yaml"
# of a recipe: what a run may be resumed with other values of; all else decides which step comes next
FREE_ON_RESUME = {
    "num_train_epochs",
    "swa_epochs",
    "gradient_accumulation_steps",
    "per_device_eval_batch_size",
    "eval_steps",
    "logging_steps",
    "save_total_limit",
}


def last_complete_checkpoint(folder: str | Path) -> Path | None:
    """Newest `checkpoint-N` in `folder` that was written to its end, None when there is none.

    A process killed while saving leaves a folder that `transformers` would take for the newest checkpoint; the
    marker file is written last, so a torn checkpoint has none and is passed over.
    """
    checkpoints = []
    for marker in Path(folder).glob(f"checkpoint-*/{COMPLETE_MARKER_NAME}"):
        match = re.fullmatch(r"checkpoint-(\d+)", marker.parent.name)
        if match:
            checkpoints.append((int(match.group(1)), marker.parent))
    return max(checkpoints)[1] if checkpoints else None


def open_run(output_dir: str | Path, recipe: Mapping[str, Any], *, resume: bool) -> tuple[Path, Path | None]:
    """Checkpoint folder of a run, and the checkpoint to resume from.

    A run that was killed before its first checkpoint was complete begins anew. Without a terminal the libraries'
    progress bars are switched off: one per saved checkpoint would fill a log file.

    Args:
        output_dir: Folder of the run.
        recipe: Values of the recipe, by section; those of a new run are kept beside its checkpoints.
        resume: Resume the run of that folder.

    Returns:
        Folder of the checkpoints, and the last complete one; None for a new run.

    Raises:
        ValueError: If there is no run to resume, or it was begun with another recipe (see `FREE_ON_RESUME`).
        FileExistsError: If the folder has checkpoints already and `resume` is False.
    """
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    checkpoints = Path(output_dir) / CHECKPOINT_FOLDER
    if not resume:
        if any(checkpoints.glob("checkpoint-*")):
            raise FileExistsError(f"{checkpoints} has checkpoints of another run: resume it or choose another folder")
        _keep_recipe(checkpoints, recipe)
        return checkpoints, None
    if not checkpoints.is_dir():
        raise ValueError(f"{checkpoints} does not exist: no complete checkpoint to resume from")
    last = last_complete_checkpoint(checkpoints)
    if last is None:
        logger.warning(f"{checkpoints} has no complete checkpoint: the run begins anew")
        _keep_recipe(checkpoints, recipe)
    else:
        _check_recipe(checkpoints / BEGUN_WITH_NAME, recipe)
        logger.warning(f"resuming {output_dir} after step {last.name.removeprefix('checkpoint-')}")
    return checkpoints, last


def _deciding(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a recipe, by dotted name, that a resumed run must share with the run."""
    sections = {name: recipe.get(name, {}) for name in ("model", "data", "training")}
    values = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
    return {name: value for name, value in values.items() if name.rpartition(".")[2] not in FREE_ON_RESUME}


def _keep_recipe(checkpoints: Path, recipe: Mapping[str, Any]) -> None:
    checkpoints.mkdir(parents=True, exist_ok=True)
    partial = checkpoints / f".{BEGUN_WITH_NAME}.{os.getpid()}"  # every process of a run writes the same
    partial.write_text(yaml.safe_dump(_deciding(recipe), allow_unicode=True), encoding="utf-8")
    os.replace(partial, checkpoints / BEGUN_WITH_NAME)


def _check_recipe(file: Path, recipe: Mapping[str, Any]) -> None:
    if not file.is_file():  # begun by an earlier version
        return
    earlier, now = yaml.safe_load(file.read_text(encoding="utf-8")), _deciding(recipe)
    names = [name for name in sorted({*earlier, *now}) if earlier.get(name) != now.get(name)]
    if names:
        changed = "; ".join(f"{name} was {earlier.get(name)!r} and is {now.get(name)!r}" for name in names)
        raise ValueError(
            f"{file.parent.parent} cannot be resumed with another recipe: {changed}. Resume it with its own, or begin "
            "a new run from its weights (model.pretrained)"
        )


def _git_commit() -> str | None:
    """Commit of the checkout this file lies in, with "-dirty" for local changes; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        state = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("-dirty" if state.stdout.strip() else "")


def environment_record() -> dict[str, Any]:
    """Versions, commit and machine, for a run's record."""
    packages = ["torch", "transformers", "accelerate", "datasets", "numpy", "pymatgen"]
    return {
        "git_commit": _git_commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})",
        "num_threads": torch.get_num_threads(),
        "num_processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def _agree_on(value: float, device: torch.device) -> float:
    """Process 0's value on every process, so that all take the same branch."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.broadcast(shared, src=0)
    return float(shared)


class WallBudgetCallback(TrainerCallback):
    """Stop training cleanly, with a checkpoint and an evaluation, when its wall time is used up.

    The time of earlier parts of a resumed run counts. Without a budget the callback only keeps the time.

    Args:
        max_hours: Wall hours for training and the evaluations in it; None means no limit.

    Raises:
        ValueError: If `max_hours` is not positive.
    """

    def __init__(self, max_hours: float | None):
        if max_hours is not None and max_hours <= 0:
            raise ValueError(f"max_hours={max_hours}: expected a positive number of hours")
        self.max_seconds = None if max_hours is None else 3600 * max_hours
        self.seconds_before = 0.0
        self.resume_from: Path | None = None
        self._started: float | None = None
        self._step_fraction = 0.0

    @property
    def seconds_used(self) -> float:
        """Seconds since training began, earlier parts included, on this process's clock."""
        return self.seconds_before + (0.0 if self._started is None else time.monotonic() - self._started)

    def fraction_used(self) -> float:
        """Share of the budget used when the present step began; the same on all processes, 0 without a budget."""
        return self._step_fraction

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Start the clock, after the time stored with the checkpoint."""
        if self.resume_from is not None:
            self.seconds_before = json.loads((self.resume_from / COMPLETE_MARKER_NAME).read_text())["seconds_used"]
        self._started = time.monotonic()
        self._step_fraction = self._agreed_fraction(args)

    def _agreed_fraction(self, args: TrainingArguments) -> float:
        if self.max_seconds is None:
            return 0.0
        return _agree_on(self.seconds_used / self.max_seconds, args.device)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Ask the Trainer to stop, save and evaluate once the budget is used."""
        self._step_fraction = self._agreed_fraction(args)
        if self._step_fraction >= 1:
            control.should_training_stop = True
            # with the "epoch" strategies the Trainer does both anyway when it leaves the epoch
            control.should_save |= args.save_strategy == "steps"
            control.should_evaluate |= args.eval_strategy == "steps"


class CompleteCheckpointCallback(TrainerCallback):
    """Mark a checkpoint as complete when every process and every other callback has written its part.

    Args:
        clock: Callback whose time is stored with the checkpoint.
    """

    def __init__(self, clock: WallBudgetCallback):
        self.clock = clock

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Write the marker; must run after the other callbacks' `on_save`."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
        if not state.is_world_process_zero:
            return
        marker = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / COMPLETE_MARKER_NAME
        partial = marker.with_suffix(".partial")
        partial.write_text(json.dumps({"global_step": state.global_step, "seconds_used": self.clock.seconds_used}))
        os.replace(partial, marker)
