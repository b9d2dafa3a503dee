# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Batches limited by atoms instead of crystals."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

__all__ = ["AtomBudgetBatchSampler"]


class AtomBudgetBatchSampler(Sampler[list[int]]):
    """Batches of similar-sized crystals whose padded size, rows times largest crystal, stays within a budget.

    Rows are ordered by size with ties in random order, cut into batches, and the batches shuffled. Cuts depend on the
    sizes only, so every epoch has the same number of batches (which schedules and resuming rely on), while which
    crystals of equal size meet, and in which order batches come, changes with `(seed, epoch)` and nothing else.

    On several processes either let Accelerate share out the batches (pass `multiple_of=num_processes`, and set
    `even_batches=False` as batches have no fixed size), or pass `num_replicas` and `rank`; both give every process
    the same number of batches.

    Args:
        num_atoms: atoms of each row (the column `num_atoms`).
        max_atoms: padded atoms per batch at most; a larger crystal is an error.
        seed: seed of the order.
        shuffle: False keeps batches in order of size, for evaluation.
        max_batch_size: crystals per batch at most.
        num_replicas: processes that share the batches.
        rank: this process, 0 to `num_replicas - 1`.
        multiple_of: the number of batches is a multiple of this; large batches are split to reach it.

    Raises:
        ValueError: no rows, a crystal above the budget, or fewer rows than batches needed.
    """

    def __init__(
        self,
        num_atoms: Sequence[int],
        max_atoms: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        max_batch_size: int | None = None,
        num_replicas: int = 1,
        rank: int = 0,
        multiple_of: int = 1,
    ):
        self.num_atoms = np.asarray(num_atoms, dtype=np.int64)
        if not len(self.num_atoms):
            raise ValueError("num_atoms is empty: there are no rows to batch")
        if self.num_atoms.max() > max_atoms:
            row = int(self.num_atoms.argmax())
            raise ValueError(
                f"row {row} has {int(self.num_atoms[row])} atoms, more than max_atoms = {max_atoms}; raise the budget "
                "or filter the row"
            )
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank is {rank}; accepted are 0 to {num_replicas - 1}")
        self.max_atoms = max_atoms
        self.seed = seed
        self.shuffle = shuffle
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch = 0
        self._bounds = self._cut(max_batch_size, int(np.lcm(multiple_of, num_replicas)))

    def _cut(self, max_batch_size: int | None, multiple_of: int) -> list[tuple[int, int]]:
        """(start, end) of each batch in the order by size."""
        sizes = np.sort(self.num_atoms)
        limit = max_batch_size or len(sizes)
        bounds: list[tuple[int, int]] = []
        start = 0
        while start < len(sizes):
            # sizes ascend, so the last row of a batch sets its padded size
            last = start + 1
            while last < len(sizes) and last - start < limit and (last - start + 1) * sizes[last] <= self.max_atoms:
                last += 1
            bounds.append((start, last))
            start = last
        while len(bounds) % multiple_of:
            place = max(range(len(bounds)), key=lambda index: bounds[index][1] - bounds[index][0])
            first, end = bounds[place]
            if end - first < 2:
                raise ValueError(f"{len(sizes)} rows cannot fill a multiple of {multiple_of} batches")
            bounds[place : place + 1] = [(first, (first + end) // 2), ((first + end) // 2, end)]
        return bounds

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._bounds) // self.num_replicas

    def __iter__(self) -> Iterator[list[int]]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            shuffled = torch.randperm(len(self.num_atoms), generator=generator).numpy()
            batch_order = torch.randperm(len(self._bounds), generator=generator).tolist()
        else:
            shuffled = np.arange(len(self.num_atoms))
            batch_order = list(range(len(self._bounds)))
        order = shuffled[np.argsort(self.num_atoms[shuffled], kind="stable")]
        for place in batch_order[self.rank :: self.num_replicas]:
            start, end = self._bounds[place]
            yield order[start:end].tolist()
