"""The order of training examples: a function of the seed and the epoch, and of nothing else."""

import itertools
from collections.abc import Iterator, Sequence
from itertools import chain, islice

import torch
from torch.utils.data import BatchSampler, Sampler


class EpochShuffleSampler(Sampler[int]):
    """Random permutation of a data set drawn from `(seed, epoch)`.

    Trainer's own samplers draw from the global generator or, resumed in the middle of an epoch on two processes,
    forget the epoch (`SkipBatchSampler` hides `BatchSamplerShard.sampler` from `DataLoaderShard.set_epoch`). With
    this one all processes, all resumes and the explicit Accelerate loop read the same rows in the same order.

    Args:
        num_rows: Rows of the data set.
        seed: Order seed.
        multiple_of: Keep only as many rows per epoch as fill batches of this global size; which rows are left out
            changes every epoch. 1 keeps all.

    Raises:
        ValueError: If not one full batch remains.
    """

    def __init__(self, num_rows: int, seed: int, multiple_of: int = 1):
        self.num_samples = num_rows // multiple_of * multiple_of
        if self.num_samples == 0:
            raise ValueError(
                f"the training split has {num_rows} rows, fewer than one batch of {multiple_of}; set a smaller "
                "training.batch_size or keep the last incomplete batch"
            )
        self.num_rows = num_rows
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from torch.randperm(self.num_rows, generator=generator)[: self.num_samples].tolist()

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of this epoch."""
        self.epoch = epoch


class EpochBatchSampler(BatchSampler):
    """Fixed-size batches over an `EpochShuffleSampler` that hands `set_epoch` down.

    Args:
        sampler: Order of the rows.
        batch_size: Rows per batch of one process.
    """

    def __init__(self, sampler: EpochShuffleSampler, batch_size: int):
        super().__init__(sampler, batch_size, drop_last=False)
        self.order = sampler

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of this epoch."""
        self.order.set_epoch(epoch)


class LengthBatchSampler(Sampler[list[int]]):
    """Batches of rows of like length, the same for any number of processes and accumulation steps.

    Rows are ordered by length with ties in random order and cut into global batches whose sizes differ by at most one.
    Each is given out in `parts` parts, one after the other, which is how accelerate deals batches to processes; their
    order is drawn from `(seed, epoch)` and nothing else.

    Args:
        lengths: Length of each row.
        batch_size: Most rows of a global batch.
        parts: Processes times accumulation steps.
        seed: Order seed.

    Raises:
        ValueError: If a global batch has fewer rows than parts.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, parts: int = 1, seed: int = 0):
        self.lengths = torch.as_tensor(lengths)
        self.num_batches = -(-len(lengths) // batch_size)
        smallest = len(lengths) // max(1, self.num_batches)
        if smallest < parts:
            raise ValueError(
                f"a batch of {smallest} rows cannot be shared by {parts} processes and accumulation steps"
            )
        self.parts = parts
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_batches * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        shuffled = torch.randperm(len(self.lengths), generator=generator)
        rows = shuffled[self.lengths[shuffled].argsort(stable=True)]
        for batch in torch.randperm(self.num_batches, generator=generator).tolist():
            start, end = (place * len(rows) // self.num_batches for place in (batch, batch + 1))
            cuts = [start + part * (end - start) // self.parts for part in range(self.parts + 1)]
            for first, last in itertools.pairwise(cuts):
                yield rows[first:last].tolist()

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch


def first_rows(batch_sampler: Sampler[list[int]], num_batches: int) -> list[int]:
    """Rows of the first `num_batches` batches of epoch 0, that is of the first global training batch."""
    batch_sampler.set_epoch(0)  # type: ignore[attr-defined]
    batches: Iterator[Sequence[int]] = islice(iter(batch_sampler), num_batches)
    return list(chain.from_iterable(batches))
