"""Batches stay within the atom budget, cover every row once, and depend on seed and epoch only."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_crystal.data import AtomBudgetBatchSampler

SIZES = np.random.default_rng(0).integers(1, 21, 500)


def flat(batches):
    return [row for batch in batches for row in batch]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=80),
    budget=st.integers(60, 400),
    limit=st.one_of(st.none(), st.integers(1, 8)),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
)
def test_every_row_once_within_the_budget(sizes, budget, limit, seed, epoch):
    sampler = AtomBudgetBatchSampler(sizes, budget, seed=seed, max_batch_size=limit)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sorted(flat(batches)) == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) * max(sizes[row] for row in batch) <= budget
        assert len(batch) <= (limit or len(sizes))


def test_order_depends_on_seed_and_epoch_only():
    def batches(seed, epoch):
        sampler = AtomBudgetBatchSampler(SIZES, 256, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(0, 0) == batches(0, 0)
    assert batches(0, 1) == batches(0, 1) != batches(0, 0)
    assert batches(1, 0) != batches(0, 0)
    # the count must not change, or schedules and resuming break
    assert len({len(batches(0, epoch)) for epoch in range(5)}) == 1
    # crystals of equal size meet others each epoch
    assert {tuple(sorted(b)) for b in batches(0, 0)} != {tuple(sorted(b)) for b in batches(0, 1)}


def test_padding_is_little():
    sampler = AtomBudgetBatchSampler(SIZES, 256)
    padded = sum(len(batch) * SIZES[batch].max() for batch in sampler)
    assert padded < 1.1 * SIZES.sum()


def test_without_shuffling_batches_come_by_size():
    batches = list(AtomBudgetBatchSampler(SIZES, 256, shuffle=False))
    largest = [SIZES[batch].max() for batch in batches]
    assert largest == sorted(largest)


@pytest.mark.parametrize("num_replicas", [2, 3])
def test_processes_share_the_batches_evenly(num_replicas):
    samplers = [AtomBudgetBatchSampler(SIZES, 256, num_replicas=num_replicas, rank=r) for r in range(num_replicas)]
    shares = [list(sampler) for sampler in samplers]
    assert {len(share) for share in shares} == {len(samplers[0])}
    assert sorted(row for share in shares for row in flat(share)) == list(range(len(SIZES)))


def test_accelerate_can_share_the_batches():
    from accelerate.data_loader import BatchSamplerShard

    sampler = AtomBudgetBatchSampler(SIZES, 300, multiple_of=2)
    shares = [list(BatchSamplerShard(sampler, 2, rank, even_batches=False)) for rank in range(2)]
    assert len(shares[0]) == len(shares[1]) == len(sampler) // 2
    assert sorted(flat(shares[0]) + flat(shares[1])) == list(range(len(SIZES)))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="row 1 has 90 atoms, more than max_atoms = 64"):
        AtomBudgetBatchSampler([3, 90], 64)
    with pytest.raises(ValueError, match="num_atoms is empty"):
        AtomBudgetBatchSampler([], 64)
    with pytest.raises(ValueError, match="rank is 2; accepted are 0 to 1"):
        AtomBudgetBatchSampler([1], 64, num_replicas=2, rank=2)
    with pytest.raises(ValueError, match="1 rows cannot fill a multiple of 2 batches"):
        AtomBudgetBatchSampler([1], 64, multiple_of=2)
