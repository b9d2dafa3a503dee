"""What the encoders call where the Triton kernels run: attention and frames over the edge list of a batch.

Same functions as `ops_periodic_attention.periodic_attention`, `ops_crystal_frames` and
`ops_frame_features.frame_features`, for all atoms of a batch at once and without padding. `max_frames` in training is
a kernel too; the mean over tied frames in evaluation is listed by the eager `max_axes`, on padded logits.

Axis letters as in `ops_periodic_geometry`; E edges, K radial and D angular functions.
"""

import importlib.util
import os
from dataclasses import dataclass

import torch

from ..encoders.ops_crystal_frames import max_axes
from ..encoders.ops_periodic_geometry import FrameAxes, PackedAtoms, radius_edges
from .angles import angular_edge_sums, max_edge_frames
from .attention import edge_attention
from .edges import SortedEdges, sorted_edges

__all__ = [
    "EdgeAttentionOutput",
    "attention_over_edges",
    "batch_edges",
    "device_obstacle",
    "edge_attention_matrix",
    "features_over_edges",
]

SMALLEST_CAPABILITY = (8, 0)  # Ampere; what the kernels are compiled for in tests


def device_obstacle(positions: torch.Tensor, cell: torch.Tensor) -> str | None:
    """Why the kernels cannot run on a batch; none: they can.

    Args:
        positions, cell (`torch.Tensor`): geometry of the batch, in the precision of its sums.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    is_interpreted = positions.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if not is_interpreted:
        if positions.device.type != "cuda" or torch.version.hip:
            return f"the kernels are for NVIDIA GPUs, the input is on {positions.device.type}"
        if torch.cuda.get_device_capability(positions.device) < SMALLEST_CAPABILITY:
            return "the GPU is older than compute capability 8.0"
        if positions.dtype != torch.float32:
            return f"geometry is in {positions.dtype}, the kernels sum in float32"
    if torch.is_grad_enabled() and (positions.requires_grad or cell.requires_grad):
        return "gradients with respect to positions or cells are requested"
    return None


def batch_edges(positions: torch.Tensor, cell: torch.Tensor, atoms: PackedAtoms, radius: float) -> SortedEdges:
    """All images within a radius of every atom, as the list that the kernels walk.

    Args:
        positions (`torch.Tensor` of shape `(T, 3)`), cell (`torch.Tensor` of shape `(B, 3, 3)`): Å.
        atoms (`PackedAtoms`): from `pack_atoms`.
        radius (`float`): Å.
    """
    found = radius_edges(positions, cell, atoms, radius)
    pairs = torch.stack([found.pair_query, found.pair_key]).repeat_interleave(found.pair_counts, dim=1)
    return sorted_edges(pairs[0], pairs[1], found.vectors, positions.shape[0])


@dataclass
class EdgeAttentionOutput:
    """Result of one real-space attention over an edge list.

    Attributes:
        output (`torch.Tensor` of shape `(T, H, d)`): sum_j A_ij (v_j + beta_ij).
        weights (`torch.Tensor` of shape `(H, E)`): weight of every edge; differentiable. No column unless asked for.
        logits (`torch.Tensor` of shape `(H, E)`): q_i·k_j / sqrt d + phi_ijn, detached. No column unless asked for.
    """

    output: torch.Tensor
    weights: torch.Tensor
    logits: torch.Tensor


def attention_over_edges(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    inverse_variance: torch.Tensor,
    edges: SortedEdges,
    radial_weight: torch.Tensor | None,
    radial_cutoff: float,
    radial_width_scale: float,
    *,
    stores_edges: bool,
) -> EdgeAttentionOutput:
    """Crystalformer's attention (equations of `ops_periodic_attention`).

    Args:
        query, key, value (`torch.Tensor` of shape `(T, H, d)`): float32 or bfloat16.
        inverse_variance (`torch.Tensor` of shape `(T, H)`): 1/sigma_i², Å⁻².
        edges (`SortedEdges`): the images of all atoms.
        radial_weight (`torch.Tensor` of shape `(H, d, K)`, *optional*): W^E of each head; none: beta = 0.
        radial_cutoff, radial_width_scale: of `radial_basis`.
        stores_edges (`bool`): return weights and logits.
    """
    num_basis = 0 if radial_weight is None else radial_weight.shape[-1]
    lists = (edges.row_start, edges.key, edges.squared, edges.key_start, edges.key_order, edges.query)
    basis = (num_basis, radial_cutoff, radial_width_scale)
    mixed, expected, weights, _, logits = edge_attention(
        query, key, value, inverse_variance, *lists, *basis, stores_edges
    )
    if radial_weight is not None:
        mixed = mixed + torch.einsum("thk,hdk->thd", expected, radial_weight)
    return EdgeAttentionOutput(mixed, weights, logits.detach())


def features_over_edges(
    attention: EdgeAttentionOutput,
    edges: SortedEdges,
    num_basis: int,
    width_scale: float,
    tolerance: float,
    *,
    draws: bool,
) -> torch.Tensor:
    """Expected angular basis in the `max` frames of every atom and head (equations of `ops_crystal_frames`).

    Args:
        attention (`EdgeAttentionOutput`): with weights and logits.
        edges (`SortedEdges`): the images of all atoms.
        num_basis, width_scale: D and s of `ops_frame_features`.
        tolerance (`float`): logits closer than this to the best share the choice.
        draws (`bool`): draw one of near ties (training) instead of the mean over them.

    Returns:
        `torch.Tensor` of shape `(T, H, 3, D)`.
    """
    num_heads, num_atoms = attention.weights.shape[0], edges.row_start.shape[0] - 1
    opposite: torch.Tensor | None = None
    if draws:
        seed = torch.randint(2**62, (1,), device=attention.logits.device)
        frames = max_edge_frames(attention.logits, edges.units, edges.row_start, seed, tolerance)
        direction = frames.reshape(-1, 3)
        share = direction.any(-1).to(direction.dtype)  # an axis that does not exist counts nothing
        start = torch.arange(direction.shape[0] + 1, device=direction.device)
    else:
        scores = attention.logits.masked_fill(~edges.units.any(-1), -torch.inf).T
        axes = max_axes(_padded(scores, edges, -torch.inf), _padded(edges.units, edges, 0.0), tolerance)
        start, direction, share, opposite = _listed(axes, num_atoms)
    listed = (start, direction, share, opposite)
    sums = angular_edge_sums(attention.weights, edges.units, edges.row_start, *listed, num_basis, width_scale)
    return sums.view(num_atoms, num_heads, 3, num_basis)


def _padded(values: torch.Tensor, edges: SortedEdges, fill: float) -> torch.Tensor:
    """Rows per atom of values per edge: (E, ...) -> (T, M, ...)."""
    query = edges.query.long()
    counts = edges.row_start.diff()
    column = torch.arange(query.shape[0], device=query.device) - edges.row_start[query]
    padded = values.new_full((counts.shape[0], int(counts.max()), *values.shape[1:]), fill)
    return padded.index_put((query, column), values)


def _listed(axes: FrameAxes, num_atoms: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """First direction of every slot (atom, head, axis), and directions with their weights in order of slots."""
    num_heads = axes.weight.shape[1]
    total = axes.weight if axes.opposite is None else axes.weight + axes.opposite
    line, head, axis = (total > 0).nonzero(as_tuple=True)
    slot = (axes.atom[line] * num_heads + head) * 3 + axis
    order = torch.argsort(slot, stable=True)
    line, entry = line[order], (line[order], head[order], axis[order])
    counts = torch.bincount(slot, minlength=num_atoms * num_heads * 3)
    start = torch.nn.functional.pad(torch.cumsum(counts, 0), (1, 0))
    opposite = None if axes.opposite is None else axes.opposite[entry]
    return start, axes.direction[line], axes.weight[entry], opposite


def edge_attention_matrix(weights: torch.Tensor, edges: SortedEdges, atoms: PackedAtoms) -> torch.Tensor:
    """Weights summed over images as the padded matrix that transformers models return, shape `(B, H, N, N)`.

    Args:
        weights (`torch.Tensor` of shape `(H, E)`): of every edge.
        edges (`SortedEdges`): the images of all atoms.
        atoms (`PackedAtoms`): from `pack_atoms`.
    """
    query, key = edges.query.long(), edges.key.long()
    size = atoms.max_size
    matrix = weights.new_zeros((atoms.sizes.shape[0], size, size, weights.shape[0]))
    index = (atoms.crystal[query], atoms.slot[query], atoms.slot[key])
    return matrix.index_put(index, weights.T, accumulate=True).permute(0, 3, 1, 2)
