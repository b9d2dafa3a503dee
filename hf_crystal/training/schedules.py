"""Learning-rate schedule of Crystalformer and CrystalFramer."""

import math

import torch


class InverseSqrtSchedule(torch.optim.lr_scheduler.LRScheduler):
    r"""Inverse square-root decay without warm-up, `lr_t = lr * sqrt(T / (T + t))`.

    `t` counts finished optimiser steps, so the first step uses the full rate. From `freeze` on the rate stays where
    it is: the papers hold it constant while they average weights. The freeze is part of `state_dict`, so a resumed
    run keeps it. (The README of the release prints the formula inverted; its code does this.)

    Args:
        optimizer: Optimiser whose groups' `lr` is the rate at `t = 0`.
        decay_steps: `T`, in steps; the papers use 4000.
        last_epoch: Finished steps minus one; -1 for a new run.

    Raises:
        ValueError: If `decay_steps` is not positive.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, decay_steps: int = 4000, last_epoch: int = -1):
        if decay_steps <= 0:
            raise ValueError(f"decay_steps={decay_steps}: expected a positive number of steps")
        self.decay_steps = decay_steps
        self.frozen_at: int | None = None
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Rates of all parameter groups for the coming step."""
        finished = self.last_epoch if self.frozen_at is None else min(self.last_epoch, self.frozen_at)
        scale = math.sqrt(self.decay_steps / (self.decay_steps + finished))
        return [base * scale for base in self.base_lrs]

    def freeze(self) -> None:
        """Hold the current rate from now on; a second call changes nothing."""
        if self.frozen_at is None:
            self.frozen_at = self.last_epoch
