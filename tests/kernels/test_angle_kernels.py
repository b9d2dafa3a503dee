"""Frames and angular sums of the kernels equal their equations; on a GPU, or in Triton's interpreter."""

import pytest
import tolerances
import torch
from kernel_cases import kernel_device, plain_angular_sums, random_edges, relative_error

from hf_crystal.kernels.angles import angular_edge_sums, fine_steps, max_edge_frames
from hf_crystal.kernels.edges import sorted_edges

DEVICE = kernel_device()
HEADS = 2
COUNTS = [1, 4, 0, 41]  # one atom that sees only itself, one row without edges
# name -> D, s: the published model, the light-weight one, a basis without factors, D that is no multiple of q
BASES = {"D=64": (64, 4.0), "D=16": (16, 1.0), "narrow": (8, 0.2), "D=11": (11, 2.0)}


def random_logits(edges, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((HEADS, edges.key.shape[0]), generator=generator, dtype=torch.float64).to(DEVICE)


def plain_max_frame(scores, units):
    """The frame of one atom and head: float64, first of the largest."""
    frame = units.new_zeros((3, 3))
    scores = scores.masked_fill(units.norm(dim=1) < 0.5, -torch.inf)
    if not (scores > -torch.inf).any():
        return frame
    frame[0] = units[scores.argmax()]
    cosine = (units @ frame[0]).abs()
    second = (scores + (1 - cosine).clamp_min(1e-5).log()).masked_fill(cosine >= 0.9999, -torch.inf)
    if (second > -torch.inf).any():
        other = units[second.argmax()]
        rest = other - (other @ frame[0]) * frame[0]
        frame[1] = rest / rest.norm()
        frame[2] = torch.linalg.cross(frame[0], frame[1])
    return frame


def seed_tensor(seed: int) -> torch.Tensor:
    return torch.tensor([seed], device=DEVICE)


def test_frames_equal_the_equations():
    edges = random_edges([1, 4, 0, 301, 2], DEVICE)
    logits = random_logits(edges)
    frames = max_edge_frames(logits, edges.units, edges.row_start, seed_tensor(0), 0.0)
    for atom in range(5):
        rows = slice(int(edges.row_start[atom]), int(edges.row_start[atom + 1]))
        for head in range(HEADS):
            wanted = plain_max_frame(logits[head, rows], edges.units[rows]) if rows.stop > rows.start else 0.0
            assert (frames[atom, head] - wanted).abs().max() < 1e-12
    assert not frames[[0, 2]].any()  # an atom that sees only itself, an atom without edges
    assert frames[4, :, 0].any() and not frames[4, :, 1:].any()  # one direction: no second axis


def octahedra(count: int):
    """Atoms with six equal neighbors along ±x, ±y, ±z, and themselves."""
    axes = torch.cat([torch.zeros(1, 3), torch.eye(3), -torch.eye(3)]).double().repeat(count, 1)
    atoms = torch.arange(count).repeat_interleave(7)
    return sorted_edges(atoms.to(DEVICE), atoms.to(DEVICE), axes.to(DEVICE) * 2.0, count)


def test_tied_frames_are_drawn_with_their_weights_and_repeat_with_the_seed():
    edges = octahedra(150)
    # +x and -x are the best (weight 1), +y is half a tolerance below (weight 1/2), the rest are no candidates
    scores = torch.tensor([[9.0, 0.0, -0.005, -1.0, 0.0, -1.0, -1.0]], dtype=torch.float64, device=DEVICE)
    logits = scores.repeat(1, 150)
    draws = max_edge_frames(logits, edges.units, edges.row_start, seed_tensor(0), 0.01)[:, 0]
    identity = torch.eye(3, device=DEVICE, dtype=torch.float64)
    torch.testing.assert_close(draws @ draws.transpose(-1, -2), identity.expand_as(draws))
    assert (torch.linalg.det(draws) > 0.999).all()
    directions = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    share = (draws[:, 0] @ directions.to(DEVICE).T > 0.9).double().mean(0).tolist()
    assert sum(share) == pytest.approx(1.0)
    assert share == pytest.approx([0.4, 0.4, 0.2], abs=0.12)
    few = octahedra(4)
    again = [max_edge_frames(scores.repeat(1, 4), few.units, few.row_start, seed_tensor(s), 0.01) for s in (0, 0, 1)]
    assert torch.equal(again[0], again[1]) and not torch.equal(again[0], again[2])
    assert torch.equal(again[0][:, 0], draws[:4])  # whatever else is in the batch


def listed_directions(num_slots: int, several: bool):
    """One direction per slot, or none to three with a weight for the opposite one too."""
    generator = torch.Generator().manual_seed(4)
    counts = torch.arange(num_slots) % 4 if several else torch.ones(num_slots, dtype=torch.long)
    entry_start = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    direction = torch.randn((int(counts.sum()), 3), generator=generator, dtype=torch.float64)
    direction = direction / direction.norm(dim=1, keepdim=True)
    share = torch.rand(direction.shape[0], generator=generator, dtype=torch.float64)
    opposite = torch.rand(direction.shape[0], generator=generator, dtype=torch.float64).to(DEVICE) if several else None
    return entry_start.to(DEVICE), direction.to(DEVICE), share.to(DEVICE), opposite


@pytest.mark.parametrize("several", [False, True], ids=["one direction", "several directions"])
@pytest.mark.parametrize(("num_basis", "width_scale"), BASES.values(), ids=BASES.keys())
def test_angular_sums_and_gradients_equal_the_equations(num_basis, width_scale, several):
    edges = random_edges(COUNTS, DEVICE)
    weights = random_logits(edges).exp().requires_grad_()
    listed = listed_directions(len(COUNTS) * HEADS * 3, several)
    found = angular_edge_sums(weights, edges.units, edges.row_start, *listed, num_basis, width_scale)
    wanted = plain_angular_sums(weights, edges, *listed, num_basis, width_scale)
    assert relative_error(found, wanted) < tolerances.KERNEL
    factors = torch.randn(found.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64).to(DEVICE)
    ours, theirs = (torch.autograd.grad((sums * factors).sum(), weights)[0] for sums in (found, wanted))
    assert relative_error(ours, theirs) < tolerances.KERNEL


def test_angular_sums_in_float32():
    edges = random_edges(COUNTS, DEVICE)
    weights = random_logits(edges).softmax(1)
    listed = listed_directions(len(COUNTS) * HEADS * 3, True)
    wanted = plain_angular_sums(weights, edges, *listed, 64, 4.0)
    lists = [None if x is None else x.float() if x.is_floating_point() else x for x in listed]
    narrow = random_edges(COUNTS, DEVICE, torch.float32)
    found = angular_edge_sums(weights.float(), narrow.units, edges.row_start, *lists, 64, 4.0)
    assert relative_error(found, wanted) < tolerances.KERNEL_FLOAT32


def test_factors_stay_in_range_for_any_basis():
    assert fine_steps(64, 4.0) == 8 and fine_steps(16, 1.0) == 4 and fine_steps(8, 0.2) == 1
    for num_basis in range(2, 200, 3):
        for width_scale in (0.05, 0.5, 1.0, 4.0, 20.0):
            spacing = 2.0 / (num_basis - 1)
            largest = (fine_steps(num_basis, width_scale) - 1) * spacing / (width_scale * spacing) ** 2
            assert largest <= 40.0


def test_operators_are_seen_by_autograd_and_compile():
    edges = random_edges([3, 12], DEVICE, torch.float32)
    logits = random_logits(edges).float()
    found = torch.library.opcheck(max_edge_frames, (logits, edges.units, edges.row_start, seed_tensor(1), 0.01))
    assert set(found.values()) == {"SUCCESS"}
    entry_start, direction, share, opposite = listed_directions(2 * HEADS * 3, True)
    lists = (entry_start, direction.float(), share.float(), opposite.float())
    weights = logits.exp().requires_grad_()
    found = torch.library.opcheck(angular_edge_sums, (weights, edges.units, edges.row_start, *lists, 16, 1.0))
    assert set(found.values()) == {"SUCCESS"}
