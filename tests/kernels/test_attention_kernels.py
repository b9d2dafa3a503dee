"""The attention kernels equal their equations, values and gradients; on a GPU, or in Triton's interpreter."""

import pytest
import tolerances
import torch
from kernel_cases import COUNTS, kernel_device, plain_attention, random_edges, random_inputs, relative_error
from torch.utils._python_dispatch import TorchDispatchMode

from hf_crystal.kernels.attention import edge_attention

DEVICE = kernel_device()
# Triton multiplies float64 in its interpreter only; the models use the eager ops in float64
EXACT = torch.float64 if DEVICE == "cpu" else torch.float32
TOLERANCE = {
    torch.float64: tolerances.KERNEL,
    torch.float32: tolerances.KERNEL_FLOAT32,
    # inputs are compared after rounding; on a GPU contractions over the basis are in TF32
    torch.bfloat16: 2e-3,
}
SIZES = {"published heads": (8, 16, 64), "odd sizes": (3, 6, 10), "no basis": (2, 8, 0)}


def run(inputs, edges, num_basis, stores_edges=True):
    lists = (edges.row_start, edges.key, edges.squared, edges.key_start, edges.key_order, edges.query)
    return edge_attention(*inputs, *lists, num_basis, 14.0, 1.0, stores_edges)


def gradients(outputs, inputs):
    generator = torch.Generator().manual_seed(5)
    total = sum(
        (out.double() * torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.device)).sum()
        for out in outputs
    )
    return torch.autograd.grad(total, inputs)


CASES = [(name, EXACT) for name in COUNTS] + [("few neighbors", torch.float32), ("few neighbors", torch.bfloat16)]


@pytest.mark.parametrize(("name", "dtype"), dict.fromkeys(CASES), ids=str)
def test_values_and_gradients_equal_the_equations(name, dtype):
    counts = COUNTS[name]
    edges = random_edges(counts, DEVICE, torch.promote_types(dtype, torch.float32))
    inputs = random_inputs(edges, 2, 8, dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    found = run(inputs, edges, 12)
    wanted = plain_attention(*exact, random_edges(counts, DEVICE), 12, 14.0, 1.0)
    for ours, theirs in zip((*found[:3], found[4]), wanted, strict=True):
        assert relative_error(ours, theirs) < TOLERANCE[dtype]
    for ours, theirs in zip(gradients(found[:3], inputs), gradients(wanted[:3], exact), strict=True):
        # gradients of bfloat16 inputs are rounded to bfloat16
        assert relative_error(ours, theirs) < (5e-3 if dtype == torch.bfloat16 else TOLERANCE[dtype])


@pytest.mark.parametrize(("heads", "width", "num_basis"), SIZES.values(), ids=SIZES.keys())
def test_sizes_need_not_be_powers_of_two(heads, width, num_basis):
    counts = [3, 0, 37]
    edges = random_edges(counts, DEVICE, EXACT)
    inputs = random_inputs(edges, heads, width, EXACT)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    found = run(inputs, edges, num_basis, stores_edges=False)
    wanted = plain_attention(*exact, random_edges(counts, DEVICE), num_basis, 14.0, 1.0)
    used = 2 if num_basis else 1
    for ours, theirs in zip(found[:used], wanted[:used], strict=True):
        assert relative_error(ours, theirs) < TOLERANCE[EXACT]
    for ours, theirs in zip(gradients(found[:used], inputs), gradients(wanted[:used], exact), strict=True):
        assert relative_error(ours, theirs) < TOLERANCE[EXACT]


def test_atoms_without_edges_get_zeros():
    edges = random_edges([0, 4, 0], DEVICE, torch.float32)
    inputs = random_inputs(edges, 2, 8, torch.float32)
    mixed, expected, *_ = run(inputs, edges, 12)
    assert not mixed[[0, 2]].any() and not expected[[0, 2]].any()
    grads = gradients((mixed, expected), inputs)
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert not grads[0][[0, 2]].any() and not grads[3][[0, 2]].any()


def test_no_edges_at_all():
    edges = random_edges([0, 0], DEVICE, torch.float32)
    inputs = random_inputs(edges, 2, 8, torch.float32)
    outputs = run(inputs, edges, 12)
    assert not outputs[0].any() and outputs[2].shape == (2, 0)
    assert not any(grad.any() for grad in gradients(outputs[:2], inputs))


def test_large_logits_do_not_overflow():
    edges = random_edges([50, 3], DEVICE, torch.float32)
    query, key, value, variance = (tensor.detach() for tensor in random_inputs(edges, 2, 8, torch.float32))
    inputs = [tensor.requires_grad_() for tensor in (query * 100, key * 100, value, variance)]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    found = run(inputs, edges, 12)
    wanted = plain_attention(*exact, random_edges([50, 3], DEVICE), 12, 14.0, 1.0)
    assert float(found[4].detach().max()) > 1000  # exp of it is not a float32 number
    assert relative_error(found[0], wanted[0]) < 1e-2  # logits of 10,000 keep three digits behind the point
    assert all(torch.isfinite(grad).all() for grad in gradients(found[:3], inputs))


def test_results_are_the_same_bits_in_every_run():
    edges = random_edges([70, 150, 3, 0, 90], DEVICE, torch.float32)
    inputs = random_inputs(edges, 4, 16, torch.float32)

    def results():
        outputs = run(inputs, edges, 16)
        return [*(output.detach() for output in outputs), *gradients(outputs[:3], inputs)]

    assert all(torch.equal(first, second) for first, second in zip(results(), results(), strict=True))


def test_nothing_of_edges_times_basis_or_head_width_is_stored():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, torch.Tensor):
                    self.numel = max(self.numel, tensor.numel())
            return out

    edges = random_edges([400] * 3, DEVICE, torch.float32)
    heads, width, num_basis = 2, 16, 32
    inputs = random_inputs(edges, heads, width, torch.float32)
    with Largest() as largest:
        outputs = run(inputs, edges, num_basis)
        (outputs[0].sum() + outputs[1].sum() + outputs[2].sum()).backward()
    assert largest.numel == heads * 1200  # one number per edge and head; basis and head width never appear


def test_autocast_keeps_sums_of_exponentials_in_float32():
    edges = random_edges([20, 7], DEVICE, torch.float32)
    inputs = random_inputs(edges, 2, 8, torch.bfloat16)
    wide = [tensor.detach().float() for tensor in inputs]
    with torch.autocast(DEVICE, torch.bfloat16):
        found = run(inputs, edges, 12)
    assert all(tensor.dtype == torch.float32 for tensor in found)
    assert torch.equal(found[0], run(wide, edges, 12)[0])


def test_operator_is_seen_by_autograd_compile_and_export():
    edges = random_edges([5, 0, 20], DEVICE, torch.float32)
    inputs = random_inputs(edges, 2, 8, torch.float32)
    lists = (edges.row_start, edges.key, edges.squared, edges.key_start, edges.key_order, edges.query)
    torch.library.opcheck(edge_attention, (*inputs, *lists, 12, 14.0, 1.0, True))

    class Encoding(torch.nn.Module):
        def forward(self, query, key, value, inverse_variance):
            outputs = edge_attention(query, key, value, inverse_variance, *lists, 12, 14.0, 1.0, False)
            return torch.cat([outputs[0], outputs[1]], dim=-1).sin()

    module = Encoding()
    wanted = module(*inputs)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)(*inputs)
    torch.testing.assert_close(compiled, wanted)
    for ours, theirs in zip(gradients([compiled], inputs), gradients([wanted], inputs), strict=True):
        torch.testing.assert_close(ours, theirs)
    exported = torch.export.export(module, inputs)
    assert "hf_crystal.edge_attention" in exported.graph_module.code
    torch.testing.assert_close(exported.module()(*inputs), wanted)
