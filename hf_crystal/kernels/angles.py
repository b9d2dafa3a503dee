"""`max` frames and angular sums over an edge list as operators of `torch.library` (see `library`).

The equations are in `angles_triton`. Axis letters as in `ops_periodic_geometry`; E edges, D angular
functions, F listed directions.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ..encoders.ops_crystal_frames import COLLINEAR_COSINE, MIN_PERPENDICULARITY
from .library import NAMESPACE, accumulator, power_of_two, sum_in_float32

__all__ = ["angular_constants", "angular_edge_sums", "fine_steps", "max_edge_frames"]

MAX_FINE_STEPS = 8
MAX_EXPONENT = 40.0  # as in ops_frame_features: factors must not overflow float32
FRAME_EDGES = 128
ANGLE_EDGES = 16
ANGLE_WARPS = 2


def fine_steps(num_basis: int, width_scale: float) -> int:
    """Steps q of the factorised angular basis: a power of two up to 8, so small that no factor overflows."""
    spacing = 2.0 / (num_basis - 1)
    largest = min(MAX_FINE_STEPS, num_basis, int(MAX_EXPONENT * width_scale**2 * spacing) + 1)
    return 1 << (max(1, largest).bit_length() - 1)


def angular_constants(heads: int, num_basis: int, width_scale: float, has_opposite: bool) -> dict[str, Any]:
    """Compile-time constants of the angular kernels, without those of the device."""
    spacing = 2.0 / (num_basis - 1)
    fine = fine_steps(num_basis, width_scale)
    return {
        "HEADS": heads,
        "BASIS": num_basis,
        "FINE": fine,
        "BLOCK_COARSE": power_of_two(math.ceil(num_basis / fine)),
        "BLOCK_EDGES": ANGLE_EDGES,
        "SPACING": spacing,
        "INVERSE_WIDTH": 1.0 / (width_scale * spacing),
        "HAS_OPPOSITE": has_opposite,
    }


@torch.library.custom_op(f"{NAMESPACE}::max_edge_frames", mutates_args=())
def max_edge_frames(logits: Tensor, units: Tensor, row_start: Tensor, seed: Tensor, tolerance: float) -> Tensor:
    """One `max` frame per atom and head (`ops_crystal_frames.max_frames`).

    Args:
        logits (`torch.Tensor` of shape `(H, E)`): from `edge_attention`.
        units, row_start: of an `SortedEdges`.
        seed (`torch.Tensor` of shape `(1,)`, int64): of the draw among near ties.
        tolerance (`float`): candidates closer than this to the best are drawn; 0 takes the first of the largest.

    Returns:
        `torch.Tensor` of shape `(T, H, 3, 3)`, rows are axes; zero where they do not exist.
    """
    from .angles_triton import choose_max_frames

    heads, num_edges = logits.shape
    num_atoms = row_start.shape[0] - 1
    frames = logits.new_empty((num_atoms, heads, 3, 3))
    if num_atoms:
        choose_max_frames[(num_atoms * heads,)](
            *(logits, units, row_start, seed, frames, num_edges),
            HEADS=heads,
            TOLERANCE=tolerance,
            COLLINEAR=COLLINEAR_COSINE,
            PERPENDICULAR=MIN_PERPENDICULARITY,
            BLOCK_EDGES=FRAME_EDGES,
            ACCUMULATE=accumulator(logits),
        )
    return frames


@max_edge_frames.register_fake
def _max_edge_frames_fake(logits: Tensor, units: Tensor, row_start: Tensor, *_: Any) -> Tensor:
    del units
    return logits.new_empty((row_start.shape[0] - 1, logits.shape[0], 3, 3))


@torch.library.custom_op(f"{NAMESPACE}::angular_edge_sums", mutates_args=())
def angular_edge_sums(
    weights: Tensor,
    units: Tensor,
    row_start: Tensor,
    entry_start: Tensor,
    direction: Tensor,
    share: Tensor,
    opposite: Tensor | None,
    num_basis: int,
    width_scale: float,
) -> Tensor:
    """Angular basis summed over the edges of an atom with weights, for directions listed by slot.

    Args:
        weights (`torch.Tensor` of shape `(H, E)`): from `edge_attention`; differentiable, the rest is constant.
        units, row_start: of an `SortedEdges`; edges without direction do not count.
        entry_start (`torch.Tensor` of shape `(T * H * 3 + 1,)`, int64): first direction of every slot, numbered
            (atom * H + head) * 3 + axis.
        direction (`torch.Tensor` of shape `(F, 3)`), share, opposite (`(F,)`): as in `FrameAxes`.
        num_basis, width_scale: D and s of `ops_frame_features`.

    Returns:
        `torch.Tensor` of shape `(T * H * 3, D)`.
    """
    from .angles_triton import angular_forward

    heads, num_edges = weights.shape
    num_slots = entry_start.shape[0] - 1
    sums = weights.new_empty((num_slots, num_basis))
    backwards = sums if opposite is None else torch.empty_like(sums)
    if num_slots:
        angular_forward[(num_slots,)](
            *(weights.contiguous(), units, row_start, entry_start, direction, share),
            *(share if opposite is None else opposite, sums, backwards, num_edges),
            **angular_constants(heads, num_basis, width_scale, opposite is not None),
            ACCUMULATE=accumulator(weights),
            num_warps=ANGLE_WARPS,
        )
    return sums if opposite is None else sums + backwards.flip(-1)


@angular_edge_sums.register_fake
def _angular_edge_sums_fake(*arguments: Any) -> Tensor:
    weights, entry_start, num_basis = arguments[0], arguments[3], arguments[7]
    return weights.new_empty((entry_start.shape[0] - 1, num_basis))


@torch.library.custom_op(f"{NAMESPACE}::angular_edge_sums_backward", mutates_args=())
def angular_edge_sums_backward(
    grad_sums: Tensor,
    units: Tensor,
    row_start: Tensor,
    entry_start: Tensor,
    direction: Tensor,
    share: Tensor,
    opposite: Tensor | None,
    width_scale: float,
) -> Tensor:
    """Gradient of `angular_edge_sums` for the weights, shape `(H, E)`."""
    from .angles_triton import angular_backward

    num_atoms, num_edges = row_start.shape[0] - 1, units.shape[0]
    heads = (entry_start.shape[0] - 1) // (3 * max(1, num_atoms))
    grad_weights = grad_sums.new_empty((heads, num_edges))
    if num_edges:
        angular_backward[(num_atoms * heads,)](
            *(grad_sums.contiguous(), units, row_start, entry_start, direction, share),
            *(share if opposite is None else opposite, grad_weights, num_edges),
            **angular_constants(heads, grad_sums.shape[1], width_scale, opposite is not None),
            ACCUMULATE=accumulator(grad_sums),
            num_warps=ANGLE_WARPS,
        )
    return grad_weights


@angular_edge_sums_backward.register_fake
def _angular_edge_sums_backward_fake(
    grad_sums: Tensor, units: Tensor, row_start: Tensor, entry_start: Tensor, *_: Any
) -> Tensor:
    num_atoms = row_start.shape[0] - 1
    return grad_sums.new_empty(((entry_start.shape[0] - 1) // (3 * num_atoms), units.shape[0]))


def _keep_for_angles(ctx: Any, inputs: tuple, output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs[1:7])
    ctx.width_scale = inputs[8]


def _angular_gradients(ctx: Any, grad_sums: Tensor) -> tuple[Tensor | None, ...]:
    return (angular_edge_sums_backward(grad_sums, *ctx.saved_tensors, ctx.width_scale), *(None,) * 8)


angular_edge_sums.register_autograd(_angular_gradients, setup_context=_keep_for_angles)
sum_in_float32("angular_edge_sums")
sum_in_float32("angular_edge_sums_backward")
