"""The parts of scripts/bench_gpu.py that need no GPU."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from kernel_cases import random_edges, random_inputs
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_crystal.kernels.angles import angular_edge_sums, max_edge_frames
from hf_crystal.kernels.attention import edge_attention, edge_attention_backward

HEADS, WIDTH, RADIAL, ANGULAR = 4, 8, 24, 16


@pytest.fixture(scope="module")
def bench_gpu():
    folder = str(Path(__file__).resolve().parents[2] / "scripts")
    sys.path.insert(0, folder)  # as `python scripts/bench_gpu.py` does
    yield importlib.import_module("bench_gpu")
    sys.path.remove(folder)


def bytes_of(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, torch.Tensor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bytes_are_those_of_the_operators_tensors(bench_gpu, dtype):
    """Inputs read once and outputs written once, as the operators' own shapes say."""
    edges = random_edges([3, 7, 0, 12], "cpu", torch.float32)
    num_atoms, num_edges = 4, 22
    counted = bench_gpu.kernel_bytes(num_atoms, num_edges, HEADS, WIDTH, RADIAL, ANGULAR, dtype.itemsize)
    with FakeTensorMode(allow_non_fake_inputs=True):
        query, key, value, variance = (tensor.detach() for tensor in random_inputs(edges, HEADS, WIDTH, dtype))
        rows = (edges.row_start, edges.key, edges.squared)
        transposed = (edges.key_start, edges.key_order, edges.query)
        inputs = (query, key, value, variance, *rows)
        mixed, expected, weights, log_sum, logits = edge_attention(*inputs, *transposed, RADIAL, 14.0, 1.0, True)
        forward = counted["attention forward"]
        assert forward["read"] == bytes_of(inputs)
        assert forward["written"] == bytes_of((mixed, expected, log_sum))
        kept = counted["attention forward, edges kept"]
        assert kept["written"] - forward["written"] == bytes_of((weights, logits))
        scratch = bytes_of((weights, weights))  # w_e and ds_e: written by the rows, read by the keys
        arguments = (*inputs, *transposed, log_sum, log_sum, mixed, expected, weights, None, RADIAL, 14.0, 1.0)
        grads = edge_attention_backward(*arguments)
        backward = counted["attention backward"]
        assert backward["written"] == bytes_of(grads) + scratch
        by_key = bytes_of((query, mixed, *transposed)) + scratch
        assert backward["read"] == bytes_of((*inputs, mixed, expected, log_sum, log_sum)) + by_key

        seed = torch.zeros(1, dtype=torch.long)
        frames = max_edge_frames(logits, edges.units, edges.row_start, seed, 0.01)
        assert counted["max frames"]["read"] == bytes_of((logits, edges.units, edges.row_start, seed))
        assert counted["max frames"]["written"] == bytes_of([frames])
        slots = num_atoms * HEADS * 3
        listed = (torch.arange(slots + 1), frames.reshape(-1, 3), torch.ones(slots))
        sums = angular_edge_sums(weights, edges.units, edges.row_start, *listed, None, ANGULAR, 1.0)
        angular = counted["angular sums forward"]
        assert angular["read"] == bytes_of((weights, edges.units, edges.row_start, *listed))
        assert angular["written"] == bytes_of([sums])
        angular = counted["angular sums backward"]
        assert angular["read"] == bytes_of((sums, edges.units, edges.row_start, *listed))
        assert angular["written"] == bytes_of([weights])


def test_every_kernel_that_is_timed_has_a_bound(bench_gpu):
    import hf_crystal

    config = hf_crystal.CrystalFramerConfig(num_attention_heads=HEADS, hidden_size=HEADS * WIDTH)
    edges = random_edges([3, 7, 0], "cpu", torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True):
        calls = bench_gpu.kernel_calls(config, edges, torch.float32)
        assert set(calls) == set(bench_gpu.kernel_bytes(3, 10, HEADS, WIDTH, 64, 64))
        for call in calls.values():
            call()


def test_crystals_of_the_batch_are_those_of_the_table(bench_gpu, shared_dir):
    batch = bench_gpu.load_batch(shared_dir, 5, "cpu")
    assert batch["atomic_numbers"].shape[0] == 5 and (batch["attention_mask"].sum(1) > 0).all()
    assert batch["positions"].dtype == torch.float32 and (torch.linalg.det(batch["cell"]).abs() > 1.0).all()


def test_difference_of_models_is_relative_to_the_largest_entry(bench_gpu):
    wanted = [torch.tensor([100.0, 1.0]), torch.tensor([1e-3])]
    assert bench_gpu.largest_error(wanted, wanted) == 0.0
    found = [torch.tensor([100.0, 1.5]), torch.tensor([0.1])]
    assert bench_gpu.largest_error(found, wanted) == pytest.approx(0.005)


def test_it_says_what_is_missing(bench_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "needs an NVIDIA GPU" in bench_gpu.obstacle()
