"""Periodic attention over an edge list as an operator of `torch.library` (see `library`).

The equations are in `attention_triton`. Axis letters as in `ops_periodic_geometry`; E edges, K radial
functions.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .library import NAMESPACE, accumulator, power_of_two, sum_in_float32

__all__ = ["attention_constants", "edge_attention"]

# numbers that a tile of keys may hold: 32 per thread of four warps
TILE_ENTRIES = 4096
# the constants that the sums by key atom need
KEY_CONSTANTS = ("HEADS", "WIDTH", "BLOCK_HEADS", "BLOCK_WIDTH", "BLOCK_EDGES", "SCALE")


def _precision(tensor: Tensor) -> str:
    """Rounding of contractions: TF32 is finer than bfloat16 inputs, three TF32 products are float32."""
    if not tensor.is_cuda:
        return "ieee"
    return "tf32x3" if tensor.dtype == torch.float32 else "tf32"


def attention_constants(query: Tensor, num_basis: int, cutoff: float, width_scale: float) -> dict[str, Any]:
    """Compile-time constants of the attention kernels, without those of the device.

    Args:
        query (`torch.Tensor` of shape `(T, H, d)`).
        num_basis, cutoff, width_scale: of `ops_periodic_attention.radial_basis`.
    """
    heads, width = query.shape[1:]
    block_heads, block_width = power_of_two(heads), power_of_two(width)
    spacing = cutoff / max(1, num_basis)
    return {
        "HEADS": heads,
        "WIDTH": width,
        "BASIS": num_basis,
        "BLOCK_HEADS": block_heads,
        "BLOCK_WIDTH": block_width,
        "BLOCK_BASIS": max(16, power_of_two(num_basis)),
        # contractions over edges need 16 of them
        "BLOCK_EDGES": max(16, min(32, TILE_ENTRIES // (block_heads * block_width))),
        "SCALE": 1.0 / math.sqrt(width),
        "SPACING": spacing,
        "INVERSE_WIDTH": math.sqrt(0.5) / (spacing * width_scale),
    }


def _attention_outputs(
    query: Tensor, edge_key: Tensor, num_basis: int, stores_edges: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Room for mixed, expected, weights, log-sums and logits."""
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    num_atoms, heads, width = query.shape
    num_edges = edge_key.shape[0] if stores_edges else 0
    return (
        query.new_empty((num_atoms, heads, width), dtype=dtype),
        query.new_empty((num_atoms, heads, num_basis), dtype=dtype),
        query.new_empty((heads, num_edges), dtype=dtype),
        query.new_empty((num_atoms, heads), dtype=dtype),
        query.new_empty((heads, num_edges), dtype=dtype),
    )


@torch.library.custom_op(f"{NAMESPACE}::edge_attention", mutates_args=())
def edge_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    inverse_variance: Tensor,
    row_start: Tensor,
    edge_key: Tensor,
    squared: Tensor,
    key_start: Tensor,
    key_order: Tensor,
    edge_query: Tensor,
    num_basis: int,
    cutoff: float,
    width_scale: float,
    stores_edges: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Softmax over all edges of an atom, mixed values and expected radial basis (equations in the kernels' file).

    Args:
        query, key, value (`torch.Tensor` of shape `(T, H, d)`): float32 or bfloat16 (float64 in the interpreter).
        inverse_variance (`torch.Tensor` of shape `(T, H)`): 1/sigma_i², Å⁻².
        row_start, edge_key, squared, key_start, key_order, edge_query: of an `SortedEdges`.
        num_basis, cutoff, width_scale: of `radial_basis`; num_basis=0: no radial part.
        stores_edges (`bool`): return weights and logits too (for frames).

    Returns:
        mixed `(T, H, d)`, expected `(T, H, K)`, weights `(H, E)`, all differentiable; log-sums `(T, H)` and logits
        `(H, E)`, not differentiable. Edge tensors have no column without `stores_edges`.
    """
    from .attention_triton import attention_forward

    del key_start, key_order, edge_query  # the gradient needs them
    outputs = _attention_outputs(query, edge_key, num_basis, stores_edges)
    mixed, expected, weights, log_sum, logits = outputs
    if query.shape[0]:
        attention_forward[(query.shape[0],)](
            *(query.contiguous(), key.contiguous(), value.contiguous(), inverse_variance.contiguous()),
            *(row_start, edge_key, squared, mixed, expected, log_sum, logits, weights, edge_key.shape[0]),
            **attention_constants(query, num_basis, cutoff, width_scale),
            STORES_EDGES=stores_edges,
            PRECISION=_precision(query),
            ACCUMULATE=accumulator(query),
        )
    return outputs


@edge_attention.register_fake
def _edge_attention_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _attention_outputs(arguments[0], arguments[5], arguments[10], arguments[13])


@torch.library.custom_op(f"{NAMESPACE}::edge_attention_backward", mutates_args=())
def edge_attention_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    inverse_variance: Tensor,
    row_start: Tensor,
    edge_key: Tensor,
    squared: Tensor,
    key_start: Tensor,
    key_order: Tensor,
    edge_query: Tensor,
    log_sum: Tensor,
    delta: Tensor,
    grad_mixed: Tensor,
    grad_expected: Tensor,
    weights: Tensor,
    grad_weights: Tensor | None,
    num_basis: int,
    cutoff: float,
    width_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `edge_attention` for query, key, value and inverse_variance; `delta` as in the kernels' file."""
    from .attention_triton import attention_backward_keys, attention_backward_rows

    num_atoms, heads, _ = query.shape
    num_edges = edge_key.shape[0]
    constants = attention_constants(query, num_basis, cutoff, width_scale)
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    grad_mixed, grad_expected = grad_mixed.contiguous(), grad_expected.contiguous()
    grads = [torch.empty_like(tensor) for tensor in (query, key, value, inverse_variance.contiguous())]
    edge_weights = log_sum.new_empty((num_edges, heads))
    edge_grads = torch.empty_like(edge_weights)
    if num_atoms:
        attention_backward_rows[(num_atoms,)](
            *(query, key, value, inverse_variance.contiguous(), row_start, edge_key, squared),
            *(log_sum, grad_mixed, grad_expected, delta.contiguous(), weights),
            weights if grad_weights is None else grad_weights.contiguous(),
            *(grads[0], grads[3], edge_weights, edge_grads, num_edges),
            **constants,
            HAS_WEIGHT_GRAD=grad_weights is not None,
            PRECISION=_precision(query),
            ACCUMULATE=accumulator(query),
        )
        by_key = {name: constants[name] for name in KEY_CONSTANTS}
        attention_backward_keys[(num_atoms,)](
            *(query, grad_mixed, key_start, key_order, edge_query, edge_weights, edge_grads, grads[1], grads[2]),
            **by_key,
            ACCUMULATE=accumulator(query),
        )
    return grads[0], grads[1], grads[2], grads[3]


@edge_attention_backward.register_fake
def _edge_attention_backward_fake(
    query: Tensor, key: Tensor, value: Tensor, inverse_variance: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(  # type: ignore[return-value]
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor in (query, key, value, inverse_variance)
    )


def _keep_for_attention(ctx: Any, inputs: tuple, output: tuple) -> None:
    mixed, expected, weights, log_sum, _ = output
    ctx.save_for_backward(*inputs[:10], mixed, expected, weights, log_sum)
    ctx.basis = inputs[10:13]
    ctx.stores_edges = inputs[13]
    ctx.set_materialize_grads(False)


def _attention_gradients(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, mixed, expected, weights, log_sum = ctx.saved_tensors
    grad_mixed = torch.zeros_like(mixed) if grad_outputs[0] is None else grad_outputs[0]
    grad_expected = torch.zeros_like(expected) if grad_outputs[1] is None else grad_outputs[1]
    delta = (grad_mixed * mixed).sum(-1) + (grad_expected * expected).sum(-1)
    grad_weights = grad_outputs[2] if ctx.stores_edges else None
    found = edge_attention_backward(
        *inputs, log_sum, delta, grad_mixed, grad_expected, weights, grad_weights, *ctx.basis
    )
    return (*found, *(None,) * 10)


edge_attention.register_autograd(_attention_gradients, setup_context=_keep_for_attention)
sum_in_float32("edge_attention")
sum_in_float32("edge_attention_backward")
