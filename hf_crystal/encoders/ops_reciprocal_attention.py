"""Attention with the sum over images taken over waves, by Poisson summation (Crystalformer's appendix).

Axis letters as in `ops_periodic_attention`; R is the number of reciprocal vectors.
"""

import math

import torch

from .ops_periodic_attention import mix_values, pair_scores
from .ops_periodic_geometry import PackedAtoms, cell_volume, reciprocal_cell

__all__ = ["reciprocal_attention", "reciprocal_log_weights", "reciprocal_vectors"]


def reciprocal_vectors(
    cell: torch.Tensor, extent: int, largest: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half of the reciprocal lattice vectors of each crystal, the zero vector first.

    Args:
        cell (`torch.Tensor` of shape `(B, 3, 3)`): lattice vectors as rows, Å.
        extent (`int`): with `largest=None`, all integer triples with |m_k| ≤ extent (the papers' rule).
        largest (`float`, *optional*): all vectors no longer than this, 1/Å, instead: independent of the cell's choice.

    Returns:
        vectors of shape `(B, R, 3)` (1/Å) and multiplicities of shape `(B, R)`: 1 for zero, 2 for each ±m, 0 padding.
    """
    reciprocal = reciprocal_cell(cell)
    if largest is None:
        bounds = [extent] * 3
    else:
        # |m_k| = |w·l_k| / 2π ≤ |w| |l_k| / 2π
        bounds = torch.floor(largest * cell.norm(dim=-1) / (2 * math.pi) + 1e-6).long().amax(0).tolist()
    axes = [torch.arange(-bound, bound + 1, device=cell.device) for bound in bounds]
    grid = torch.cartesian_prod(*axes).reshape(-1, 3)
    half = grid[grid.shape[0] // 2 :]  # the grid is symmetric and sorted: its middle is zero, the rest one of each ±m
    vectors = half.to(cell.dtype) @ reciprocal
    multiplicity = torch.full(vectors.shape[:2], 2.0, dtype=cell.dtype, device=cell.device)
    multiplicity[:, 0] = 1.0
    if largest is not None:
        inside = vectors.square().sum(-1) <= largest * largest
        order = torch.argsort((~inside).to(torch.uint8), dim=1, stable=True)[:, : int(inside.sum(1).max())]
        multiplicity = (multiplicity * inside).gather(1, order)
        vectors = vectors.gather(1, order[..., None].expand(-1, -1, 3))
    return vectors, multiplicity


def reciprocal_log_weights(
    positions: torch.Tensor,
    cell: torch.Tensor,
    atoms: PackedAtoms,
    variance: torch.Tensor,
    pair_key: torch.Tensor,
    vectors: torch.Tensor,
    multiplicity: torch.Tensor,
) -> torch.Tensor:
    """alpha_ij summed in reciprocal space (Poisson summation of the real-space sum), paper's appendix.

    alpha_ij = log max(1e-6, S_ij) + 1.5 log(2π sigma_i²) - log V,
    S_ij = sum_m exp(-sigma_i² |w_m|² / 2) cos(w_m·(p_j - p_i)).

    Args:
        positions (`torch.Tensor` of shape `(T, 3)`): Å.
        cell (`torch.Tensor` of shape `(B, 3, 3)`): Å.
        atoms (`PackedAtoms`): from `pack_atoms`.
        variance (`torch.Tensor` of shape `(T, H)`): sigma_i², Å².
        pair_key (`torch.Tensor` of shape `(T, P)`): keys of every query.
        vectors, multiplicity: from `reciprocal_vectors`.

    Returns:
        `torch.Tensor` of shape `(T, P, H)`.
    """
    waves, counts = vectors[atoms.crystal], multiplicity[atoms.crystal]  # (T, R, 3), (T, R)
    difference = positions[pair_key] - positions[:, None, :]
    cosines = torch.cos(difference @ waves.transpose(1, 2))  # (T, P, R)
    decay = torch.exp(-0.5 * variance[:, None, :] * waves.square().sum(-1)[..., None]) * counts[..., None]
    total = torch.bmm(cosines, decay)  # (T, P, H)
    log_volume = cell_volume(cell).log()[atoms.crystal][:, None, None]
    return total.clamp_min(1e-6).log() + 1.5 * (2 * math.pi * variance).log()[:, None, :] - log_volume


def reciprocal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_weights: torch.Tensor,
    pair_key: torch.Tensor,
    pair_mask: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention with alpha from `reciprocal_log_weights`; the reciprocal sum has no value encoding (beta = 0).

    Args:
        query, key, value (`torch.Tensor` of shape `(T, H, d)`).
        log_weights (`torch.Tensor` of shape `(T, P, H)`): with the logarithms of the keys' occupancies, if any.
        pair_key, pair_mask (`torch.Tensor` of shape `(T, P)`): from `dense_pair_layout`.

    Returns:
        output of shape `(T, H, d)`, A of shape `(T, P, H)`, and log of the sum of exp(logit) of shape `(T, H)`.
    """
    logits = pair_scores(query, key, pair_key) + log_weights
    logits = logits.masked_fill(~pair_mask[..., None], -torch.inf)
    weights = torch.softmax(logits, dim=1)
    return mix_values(weights, value, pair_key), weights, torch.logsumexp(logits, dim=1)
