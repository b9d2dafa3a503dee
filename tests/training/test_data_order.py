import itertools

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard

from hf_crystal.training import EpochBatchSampler, EpochShuffleSampler
from hf_crystal.training.data_order import LengthBatchSampler, first_rows


def global_batches(batch_size, processes, epoch):
    """Rows of each global batch, as accelerate deals local batches out to processes."""
    batches = EpochBatchSampler(EpochShuffleSampler(23, seed=5, multiple_of=8), batch_size)
    batches.set_epoch(epoch)
    shards = [list(BatchSamplerShard(batches, processes, rank)) for rank in range(processes)]
    return [sorted(sum(parts, [])) for parts in zip(*shards, strict=True)]


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("epoch", [0, 3])
def test_global_batches_do_not_depend_on_the_number_of_processes(processes, epoch):
    assert global_batches(8 // processes, processes, epoch) == global_batches(8, 1, epoch)


def test_epochs_differ_and_repeat():
    order = EpochShuffleSampler(23, seed=5, multiple_of=8)
    epochs = []
    for epoch in (0, 1, 0):
        order.set_epoch(epoch)
        epochs.append(list(order))
    assert epochs[0] == epochs[2] != epochs[1]
    assert len(epochs[0]) == len(set(epochs[0])) == len(order) == 16


def test_all_rows_without_a_multiple():
    assert sorted(EpochShuffleSampler(23, seed=5)) == list(range(23))


def test_order_ignores_the_global_generator():
    order = EpochShuffleSampler(23, seed=5)
    torch.manual_seed(0)
    first = list(order)
    torch.manual_seed(1)
    assert list(order) == first


def test_first_rows_are_the_first_global_batch_of_epoch_zero():
    batches = EpochBatchSampler(EpochShuffleSampler(23, seed=5, multiple_of=8), 2)
    batches.set_epoch(9)
    assert sorted(first_rows(batches, 4)) == global_batches(8, 1, 0)[0]


def test_too_few_rows_say_so():
    with pytest.raises(ValueError, match="23 rows, fewer than one batch of 32"):
        EpochShuffleSampler(23, seed=5, multiple_of=32)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_batches_of_like_length_do_not_depend_on_processes_and_accumulation(processes):
    lengths = torch.randint(20, 90, (53,), generator=torch.Generator().manual_seed(0)).tolist()
    whole = LengthBatchSampler(lengths, 8, seed=5)
    shared = LengthBatchSampler(lengths, 8, parts=2 * processes, seed=5)
    for sampler in (whole, shared):
        sampler.set_epoch(3)
    shards = [list(BatchSamplerShard(shared, processes, rank)) for rank in range(processes)]
    steps = list(zip(*shards, strict=True))
    assert len(steps) == 2 * len(whole)
    for place, batch in enumerate(whole):
        parts = [part for step in steps[2 * place : 2 * place + 2] for part in step]
        assert all(parts)
        assert sorted(sum(parts, [])) == sorted(batch)
        assert 7 <= len(batch) <= 8
    spans = sorted((min(lengths[row] for row in batch), max(lengths[row] for row in batch)) for batch in whole)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))
    assert sorted(sum(whole, [])) == list(range(53))


def test_batches_too_small_to_share_are_refused():
    with pytest.raises(ValueError, match="a batch of 5 rows cannot be shared by 6 processes"):
        LengthBatchSampler([9] * 10, 5, parts=6)
