"""Edge lists for the kernel tests, the equations of the kernels in plain PyTorch, and where the kernels can run."""

import importlib.util
import os

import pytest
import torch

from hf_crystal.kernels.edges import SortedEdges, sorted_edges

INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"


def require_triton() -> None:
    """Skips without triton; fails instead where HF_CRYSTAL_REQUIRE_TRITON=1."""
    if importlib.util.find_spec("triton") is None:
        message = "triton is not installed: pip install triton==3.7.1 (the version that torch 2.13.0 names)"
        if os.environ.get("HF_CRYSTAL_REQUIRE_TRITON") == "1":
            pytest.fail(message)
        pytest.skip(message, allow_module_level=True)


def kernel_device() -> str:
    """`cuda` where there is a GPU, `cpu` in Triton's interpreter; otherwise the module is skipped."""
    require_triton()
    if INTERPRETS:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    return pytest.skip("no CUDA device: test_interpreter.py runs these tests on the CPU", allow_module_level=True)


def random_edges(counts: list[int], device: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> SortedEdges:
    """A list with the given numbers of edges per atom; the first edge of an atom is the atom itself."""
    generator = torch.Generator().manual_seed(seed)
    num_atoms = len(counts)
    query = torch.arange(num_atoms).repeat_interleave(torch.tensor(counts))
    key = torch.randint(0, num_atoms, query.shape, generator=generator)
    vectors = torch.randn((query.shape[0], 3), generator=generator, dtype=torch.float64) * 2.5
    is_first = torch.ones_like(query, dtype=torch.bool)
    is_first[1:] = query[1:] != query[:-1]
    key[is_first], vectors[is_first] = query[is_first], 0.0
    return sorted_edges(query.to(device), key.to(device), vectors.to(device, dtype), num_atoms)


# name -> edges of every atom
COUNTS = {
    "few neighbors": [1, 2, 3, 5, 17, 33],
    "rows without edges": [0, 40, 0, 0, 31, 0],
    "thousands of neighbors": [1500, 1, 64],
}


def random_inputs(
    edges: SortedEdges, heads: int, width: int, dtype: torch.dtype, seed: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key, value of `dtype` and 1/sigma² (in at least float32), as leaves that need gradients."""
    generator = torch.Generator().manual_seed(seed)
    shape = (edges.row_start.shape[0] - 1, heads, width)
    device = edges.key.device
    query, key, value = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()
        for _ in range(3)
    )
    variance = 0.3 + torch.rand(shape[:2], generator=generator, dtype=torch.float64)
    wide = torch.promote_types(dtype, torch.float32)
    return query, key, value, variance.to(device, wide).requires_grad_()


def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    inverse_variance: torch.Tensor,
    edges: SortedEdges,
    num_basis: int,
    cutoff: float,
    width_scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mixed values, expected basis, weights (H, E) and logits (H, E): the equations, one tensor per symbol."""
    i, j = edges.query.long(), edges.key.long()
    num_atoms, heads, width = query.shape
    logits = (query[i] * key[j]).sum(-1) / width**0.5 - 0.5 * edges.squared[:, None] * inverse_variance[i]
    weights = torch.zeros_like(logits)
    for atom in range(num_atoms):
        weights = torch.where(
            (i == atom)[:, None], logits.masked_fill((i != atom)[:, None], -1e30).softmax(0), weights
        )
    spacing = cutoff / max(1, num_basis)
    centers = spacing * torch.arange(1, num_basis + 1, device=query.device, dtype=logits.dtype)
    basis = torch.exp(-0.5 * ((edges.squared.sqrt()[:, None] - centers) / (spacing * width_scale)) ** 2)
    mixed = logits.new_zeros((num_atoms, heads, width)).index_add(0, i, weights[..., None] * value[j])
    expected = logits.new_zeros((num_atoms, heads, num_basis))
    expected = expected.index_add(0, i, weights[..., None] * basis[:, None, :])
    return mixed, expected, weights.T, logits.T


def plain_angular_sums(
    weights: torch.Tensor,
    edges: SortedEdges,
    entry_start: torch.Tensor,
    direction: torch.Tensor,
    share: torch.Tensor,
    opposite: torch.Tensor | None,
    num_basis: int,
    width_scale: float,
) -> torch.Tensor:
    """sum over listed directions of share * sum_e w_e b(c_e) + opposite * sum_e w_e b(-c_e), shape (T * H * 3, D)."""
    heads = weights.shape[0]
    spacing = 2.0 / (num_basis - 1)
    centers = -1.0 + spacing * torch.arange(num_basis, device=weights.device, dtype=weights.dtype)
    rows = []
    for slot in range(entry_start.shape[0] - 1):
        atom, head = slot // (3 * heads), (slot // 3) % heads
        edge = slice(int(edges.row_start[atom]), int(edges.row_start[atom + 1]))
        total = weights.new_zeros(num_basis)
        counts = weights[head, edge] * (edges.squared[edge] > 1e-5)
        for entry in range(int(entry_start[slot]), int(entry_start[slot + 1])):
            cosine = edges.units[edge] @ direction[entry]
            for sign, factor in ((1.0, share), (-1.0, opposite)):
                if factor is not None:
                    offset = (sign * cosine[:, None] - centers) / (width_scale * spacing)
                    total = total + factor[entry] * (counts[:, None] * torch.exp(-0.5 * offset**2)).sum(0)
        rows.append(total)
    return torch.stack(rows)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference in units of the largest wanted value."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
