"""Stochastic weight averaging over the last epochs, as a callback that survives a kill."""

# ruff: noqa: ARG002  (the signatures are those of TrainerCallback)

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_crystal.training.optimizers import InverseSqrtSchedule

SWA_STATE_NAME = "swa_state.safetensors"


class AveragedWeights:
    """Plain running mean of a model's parameters.

    The arithmetic is that of `torch.optim.swa_utils.AveragedModel` (parameters only, equal weights), but the mean
    is kept in float64: after n updates the increments are 1/n of the distance, and in float32 those below half a
    unit in the last place are lost, which for the papers' 10^4 averaged steps is up to 1e-3 of the value.

    Args:
        model: Model whose parameters are averaged; a reference is not kept.
    """

    def __init__(self, model: torch.nn.Module):
        self.count = 0
        self.mean = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """Add the model's present parameters to the mean."""
        self.count += 1
        for name, parameter in model.named_parameters():
            mean = self.mean[name]
            mean += (parameter.detach().to(torch.float64) - mean) / self.count

    @torch.no_grad()
    def copy_to(self, model: torch.nn.Module) -> None:
        """Write the mean into the model, rounded to the parameters' dtype."""
        for name, parameter in model.named_parameters():
            parameter.copy_(self.mean[name])

    @contextlib.contextmanager
    def applied_to(self, model: torch.nn.Module) -> Iterator[None]:
        """Within the context the model has the averaged parameters; afterwards its own, bit for bit."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(own[name])

    def save(self, path: Path, *, start_step: int) -> None:
        """Write mean and counters to one safetensors file, replacing it in one move."""
        partial = path.with_suffix(".partial")
        safetensors.torch.save_file(
            {name: mean.contiguous() for name, mean in self.mean.items()},
            partial,
            metadata={"count": str(self.count), "start_step": str(start_step)},
        )
        os.replace(partial, path)

    def load(self, path: Path) -> int:
        """Read what `save` wrote; returns the step at which averaging started.

        Raises:
            ValueError: If the file belongs to a model with other parameters.
        """
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata()
            names = set(stored.keys())
            if names != set(self.mean):
                raise ValueError(
                    f"{path}: averaged parameters do not fit the model; only in the file: "
                    f"{sorted(names - set(self.mean))}, only in the model: {sorted(set(self.mean) - names)}"
                )
            for name, mean in self.mean.items():
                mean.copy_(stored.get_tensor(name))
        self.count = int(metadata["count"])
        return int(metadata["start_step"])


class SWACallback(TrainerCallback):
    """Average the weights of the last epochs and end training with the average.

    After the last `swa_epochs` epochs have begun, an `InverseSqrtSchedule` is frozen and the mean is updated after
    every optimizer step. The mean is saved beside each checkpoint and read back on resume. When training ends the
    mean is copied into the model, so that evaluation and saving after `train()` see it; `CrystalTrainer` also
    evaluates with it while training runs. Under several processes each keeps its own copy of the same numbers.

    Args:
        swa_epochs: Number of last epochs to average; 0 switches averaging off.
        fraction_used: Share of an outer budget (wall clock) that is used up. When it reaches the share of epochs
            before averaging, averaging starts although steps remain, so a run that is cut short is still averaged.

    Attributes:
        averaged: The running mean, None before averaging starts.
        start_step: Finished steps when averaging started, None before.

    Raises:
        ValueError: If `swa_epochs` is negative or, when training begins, exceeds the epochs of the run.
    """

    def __init__(self, swa_epochs: int, *, fraction_used: Callable[[], float] | None = None):
        if swa_epochs < 0:
            raise ValueError(f"swa_epochs={swa_epochs}: expected 0 (off) or a positive number of epochs")
        self.swa_epochs = swa_epochs
        self.fraction_used = fraction_used
        self.resume_from: Path | None = None
        self.averaged: AveragedWeights | None = None
        self.start_step: int | None = None
        self._planned_start = 0
        self._start_fraction = 1.0

    @property
    def num_averaged(self) -> int:
        """Steps in the mean so far."""
        return 0 if self.averaged is None else self.averaged.count

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Plan the first averaged step and take up the mean of a resumed run."""
        if self.swa_epochs > state.num_train_epochs:
            raise ValueError(
                f"swa_epochs={self.swa_epochs} is more than num_train_epochs={state.num_train_epochs} of this run"
            )
        steps_per_epoch = -(-state.max_steps // state.num_train_epochs)
        self._planned_start = max(state.max_steps - self.swa_epochs * steps_per_epoch, 0)
        self._start_fraction = 1 - self.swa_epochs / state.num_train_epochs
        self.averaged, self.start_step = None, None
        if self.resume_from is not None and (self.resume_from / SWA_STATE_NAME).is_file():
            self.averaged = AveragedWeights(kwargs["model"])
            self.start_step = self.averaged.load(self.resume_from / SWA_STATE_NAME)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start averaging when its time has come; the rate of this step is already the frozen one."""
        if self.swa_epochs == 0 or self.averaged is not None:
            return
        budget_says_so = self.fraction_used is not None and self.fraction_used() >= self._start_fraction
        if state.global_step >= self._planned_start or budget_says_so:
            self.averaged = AveragedWeights(kwargs["model"])
            self.start_step = state.global_step
            schedule = kwargs["lr_scheduler"]
            if isinstance(schedule, InverseSqrtSchedule):
                schedule.freeze()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the weights after this optimizer step."""
        if self.averaged is not None:
            self.averaged.update(kwargs["model"])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Write the mean into the checkpoint that was just saved."""
        if self.averaged is not None and self.start_step is not None and state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            self.averaged.save(folder / SWA_STATE_NAME, start_step=self.start_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the model with the averaged weights."""
        if self.num_averaged and self.averaged is not None:
            self.averaged.copy_to(kwargs["model"])
