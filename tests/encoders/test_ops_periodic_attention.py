"""Attention over images: fast path against reference, gradients, and Poisson summation."""

import math

import numpy as np
import pytest
import torch
from tolerances import KERNEL, KERNEL_FLOAT32

from hf_crystal.encoders import ops_periodic_attention as ops
from hf_crystal.encoders.geometry import reciprocal_vectors
from hf_crystal.encoders.ops_periodic_geometry import dense_pair_layout, pack_atoms, radius_layouts
from hf_crystal.testing import Crystal, collate

HEADS, WIDTH, BASIS = 2, 3, 5
CRYSTALS = [
    Crystal(np.array([14, 8]), np.array([[0.1, 0.2, 0.3], [1.9, 0.7, 2.2]]), np.diag([3.1, 3.4, 4.0])),
    Crystal(np.array([29]), np.zeros((1, 3)), np.array([[0, 1.8, 1.8], [1.8, 0, 1.8], [1.8, 1.8, 0]])),
]


def setting(radius=5.0, dtype=torch.float64, seed=0):
    """Layout and random inputs of both crystals."""
    batch = collate(CRYSTALS, dtype=dtype)
    atoms = pack_atoms(batch["attention_mask"])
    positions = batch["positions"][atoms.crystal, atoms.slot]
    (layout,) = radius_layouts(positions, batch["cell"], atoms, radius)
    generator = torch.Generator().manual_seed(seed)
    count = len(positions)
    query, key, value = (
        torch.randn(count, HEADS, WIDTH, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)
    )
    inverse_variance = torch.rand(count, HEADS, generator=generator, dtype=torch.float64).to(dtype) + 0.3
    weight = torch.randn(HEADS, WIDTH, BASIS, generator=generator, dtype=torch.float64).to(dtype)
    radial = ops.radial_basis(layout.squared_distances.sqrt(), BASIS, radius, 1.0)
    return atoms, batch, layout, (query[layout.rows], key, value, inverse_variance), radial, weight


def test_paper_equations_by_explicit_loops():
    """alpha, beta, A and y of one head, summed image by image in Python."""
    _, batch, layout, (query, key, value, inverse_variance), radial, weight = setting()
    result = ops.periodic_attention_reference(query, key, value, inverse_variance, layout, None, radial, weight)
    row = int((layout.rows == 0).nonzero())
    i, head = 0, 1
    keys = [0, 1]
    alpha, beta = {}, {}
    for j in keys:
        terms = []
        for edge in range(layout.edge_mask.shape[1]):
            if layout.edge_mask[row, edge] and int(layout.pair_key[row, layout.edge_pair[row, edge]]) == j:
                distance = layout.edge_vectors[row, edge].norm()
                terms.append((torch.exp(-0.5 * distance**2 * inverse_variance[row, head]), radial[row, edge]))
        total = sum(term for term, _ in terms)
        alpha[j] = total.log()
        beta[j] = weight[head] @ (sum(term * basis for term, basis in terms) / total)
    logits = torch.stack([query[row, head] @ key[j, head] / math.sqrt(WIDTH) + alpha[j] for j in keys])
    attention = logits.softmax(0)
    expected = sum(attention[n] * (value[j, head] + beta[j]) for n, j in enumerate(keys))
    torch.testing.assert_close(result.output[row, head], expected, atol=1e-12, rtol=0)
    columns = {int(layout.pair_key[row, c]): c for c in range(2)}
    for n, j in enumerate(keys):
        torch.testing.assert_close(result.alpha[row, columns[j], head], alpha[j])
        torch.testing.assert_close(result.beta[row, columns[j], head], beta[j])
        torch.testing.assert_close(result.pair_weights[row, columns[j], head], attention[n])
    assert i == int(layout.rows[row])


@pytest.mark.parametrize("forms_basis", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fast_path_has_the_values_and_gradients_of_the_reference(dtype, forms_basis, monkeypatch):
    _, _, layout, inputs, radial, weight = setting(dtype=dtype)
    monkeypatch.setattr(ops, "MAX_TABLE_ENTRIES", 2 * BASIS * layout.edge_mask.shape[1])  # three rows in two parts
    results, gradients = [], []
    for kernel in (ops.periodic_attention_reference, ops.periodic_attention):
        leaves = [tensor.clone().requires_grad_() for tensor in (*inputs, weight)]
        is_fast = kernel is ops.periodic_attention
        given = ops.RadialBasis(BASIS, 5.0, 1.0) if is_fast and forms_basis else radial
        output = kernel(*leaves[:4], layout, None, given, leaves[4])
        loss = (output.output * torch.arange(output.output.numel(), dtype=dtype).view_as(output.output).sin()).sum()
        gradients.append(torch.autograd.grad(loss, leaves))
        results.append(output)
    tolerance = KERNEL if dtype == torch.float64 else KERNEL_FLOAT32
    for name in ("output", "edge_weights", "pair_weights"):
        reference, fast = (getattr(result, name).detach() for result in results)
        assert (reference - fast).abs().max() <= tolerance * reference.abs().max()
    for reference, fast in zip(*gradients, strict=True):
        assert (reference - fast).abs().max() <= tolerance * reference.abs().max()


@pytest.mark.parametrize("kernel", [ops.periodic_attention_reference, ops.periodic_attention])
def test_real_space_gradients_by_finite_differences(kernel):
    _, _, layout, inputs, radial, weight = setting(radius=3.6)
    leaves = [tensor.clone().requires_grad_() for tensor in (*inputs, weight)]

    def function(query, key, value, inverse_variance, radial_weight):
        return kernel(query, key, value, inverse_variance, layout, None, radial, radial_weight).output

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("forms_basis", [False, True])
def test_gradient_with_respect_to_positions_by_finite_differences(forms_basis):
    batch = collate(CRYSTALS)
    atoms = pack_atoms(batch["attention_mask"])
    _, _, _, (query, key, value, inverse_variance), _, weight = setting()

    def function(positions, cell):
        (layout,) = radius_layouts(positions, cell, atoms, 5.0)
        basis = ops.RadialBasis(BASIS, 5.0, 1.0)
        radial = basis if forms_basis else basis(layout.squared_distances)
        return ops.periodic_attention(query, key, value, inverse_variance, layout, None, radial, weight).output

    positions = batch["positions"][atoms.crystal, atoms.slot].requires_grad_()
    # off the cubic symmetry: at a tie of distances the cut-off would make finite differences meaningless
    cell = batch["cell"] + 0.01 * torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1)).double()
    assert torch.autograd.gradcheck(function, (positions, cell.requires_grad_()))


def test_reciprocal_gradients_by_finite_differences():
    atoms, batch, _, (query, key, value, inverse_variance), _, _ = setting()
    pair_key, pair_mask = dense_pair_layout(atoms)
    waves = reciprocal_vectors(batch["cell"], 1)

    def function(query, key, value, variance):
        positions = batch["positions"][atoms.crystal, atoms.slot]
        log_weights = ops.reciprocal_log_weights(positions, batch["cell"], atoms, variance, pair_key, *waves)
        return ops.reciprocal_attention(query, key, value, log_weights, pair_key, pair_mask)[0]

    leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value, inverse_variance)]
    assert torch.autograd.gradcheck(function, leaves)


def test_width_gradients_by_finite_differences_and_bounds():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(4, HEADS, WIDTH, generator=generator, dtype=torch.float64)
    width_query = torch.randn(HEADS, WIDTH, generator=generator, dtype=torch.float64)
    calibration = torch.tensor([26.0, 0.01], dtype=torch.float64)
    widths = ops.gaussian_widths(query, width_query, calibration, 0.1, 0.5)
    assert (widths > 0.5).all()
    at_zero = ops.gaussian_widths(torch.zeros_like(query), width_query, torch.zeros(2).double(), 0.1, 0.5)
    assert (at_zero == 1).all()
    leaves = (query.requires_grad_(), width_query.requires_grad_())
    assert torch.autograd.gradcheck(lambda q, w: ops.gaussian_widths(q, w, calibration, 0.1, 0.5), leaves)


def test_reciprocal_sum_is_the_real_sum_by_poisson():
    """Two independent ways to the same number: images in real space, waves in reciprocal space."""
    atoms, batch, _, _, _, _ = setting()
    positions = batch["positions"][atoms.crystal, atoms.slot]
    variance = torch.tensor([[1.2, 2.0]] * 3, dtype=torch.float64)
    pair_key, pair_mask = dense_pair_layout(atoms)
    waves = reciprocal_vectors(batch["cell"], 0, largest=9.0)
    reciprocal = ops.reciprocal_log_weights(positions, batch["cell"], atoms, variance, pair_key, *waves)
    (layout,) = radius_layouts(positions, batch["cell"], atoms, 13.0)
    phi = -0.5 * layout.squared_distances[..., None] / variance[layout.rows][:, None]
    phi = phi.masked_fill(~layout.edge_mask[..., None], -torch.inf)
    real = ops.segment_logsumexp(phi, layout.edge_pair, layout.pair_key.shape[1])
    for row, atom in enumerate(layout.rows.tolist()):
        for column in layout.pair_mask[row].nonzero()[:, 0].tolist():
            dense = int((pair_key[atom] == layout.pair_key[row, column]).nonzero()[0])
            assert pair_mask[atom, dense]
            torch.testing.assert_close(real[row, column], reciprocal[atom, dense], atol=1e-9, rtol=0)


def test_reciprocal_vectors_by_range_and_by_length_are_complete():
    cell = torch.stack([torch.eye(3).double() * 4.0, torch.eye(3).double() * 7.0])
    vectors, counts = reciprocal_vectors(cell, 2)
    assert vectors.shape == (2, 63, 3)
    assert counts.sum(1).tolist() == [125.0, 125.0]
    largest = 2 * math.pi / 4.0 * 1.5  # (1,0,0) and (1,1,0) of the small cell
    vectors, counts = reciprocal_vectors(cell, 2, largest)
    assert counts[0].sum() == 1 + 6 + 12
    assert (vectors.norm(dim=-1)[counts > 0] <= largest).all()


def test_radial_basis_is_the_formula_and_truncates_far_functions():
    distances = torch.tensor([0.0, 2.5, 8.9], dtype=torch.float64)
    basis = ops.radial_basis(distances, 64, 14.0, 1.0)
    centers = torch.arange(1, 65).double() * 14 / 64
    expected = torch.exp(-0.5 * ((distances[:, None] - centers) / (14 / 64)) ** 2)
    torch.testing.assert_close(basis, expected, atol=1e-30, rtol=1e-12)
    truncated = ops.radial_basis(distances, 64, 14.0, 1.0, truncate=True)
    assert (truncated.count_nonzero(dim=-1) <= 9).all()
    assert (basis - truncated).abs().max() <= math.exp(-8)


@pytest.mark.parametrize(("radius", "width_scale", "kept"), [(8.9, 1.0, 50), (8.9, 4.0, 64), (30.0, 1.0, 64)])
def test_radial_functions_that_are_left_out_are_below_rounding(radius, width_scale, kept):
    distances = torch.linspace(0, radius, 200, dtype=torch.float64)
    every = ops.radial_basis(distances, 64, 14.0, width_scale)
    near = ops.radial_basis(distances, 64, 14.0, width_scale, radius=radius)
    assert near.shape == (200, kept)
    assert torch.equal(near, every[:, :kept])
    assert not (every[:, kept:] > torch.finfo(torch.float64).eps).any()


def test_attention_leaves_out_the_functions_that_no_image_reaches():
    _, _, layout, inputs, _, _ = setting()
    weight = torch.randn(HEADS, WIDTH, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    results = []
    for radius in (None, 5.0):
        leaf = weight.clone().requires_grad_()
        basis = ops.RadialBasis(64, 14.0, 1.0, radius)
        output = ops.periodic_attention(*inputs, layout, None, basis, leaf).output
        results.append((output, *torch.autograd.grad(output.square().sum(), leaf)))
    for every, near in zip(*results, strict=True):
        assert (every - near).abs().max() <= KERNEL * every.abs().max()


def test_float32_radial_basis_holds_no_denormal_numbers():
    basis = ops.radial_basis(torch.tensor([0.0, 8.9]), 64, 14.0, 1.0)
    assert basis.min() >= torch.finfo(torch.float32).tiny
