"""Triton kernels of periodic attention: one program per atom, all heads, one pass over the atom's edges.

For an atom i, a head h and an edge e to the image of atom j at distance r_e, with the radial basis b of
`ops_periodic_attention.radial_basis`,

    s_e = q_i·k_j / sqrt d - r_e² / 2 sigma_i²,   w_e = exp(s_e) / sum_e exp(s_e)
    mixed_i = sum_e w_e v_j  (d),                 expected_i = sum_e w_e b(r_e)  (K).

The output of attention is mixed + W^E expected: W^E acts once per atom and head, outside. A tile of edges holds its
basis values in registers, shared by all heads; the softmax is accumulated online (running maximum and sum), so that
nothing of size edges x K or edges x heads x d is ever stored. Backward, with G the gradients of the two outputs,

    g_e = Gm·v_j + Ge·b(r_e) (+ the gradient of w_e itself, where frames use it),   D = sum_e w_e g_e
    ds_e = w_e (g_e - D),   dq_i = sum_e ds_e k_j / sqrt d,   d(1/sigma_i²) = -sum_e ds_e r_e² / 2
    dk_j = sum_{e into j} ds_e q_i / sqrt d,                  dv_j = sum_{e into j} w_e Gm_i.

The last line is summed by key atom over the transposed list: no atomics, one fixed order.

Contractions over K or edges go through `tl.dot` (tensor cores); `PRECISION` says with which rounding. Everything is
accumulated in `ACCUMULATE` (float32; float64 in Triton's interpreter only). Names in capitals are compile-time
constants; BLOCK_x is x rounded up to a power of two.
"""

from __future__ import annotations

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("the Triton kernels need triton: pip install triton, or attention_kernel='eager'") from error

__all__ = ["attention_backward_keys", "attention_backward_rows", "attention_forward"]


@triton.jit
def attention_forward(
    query,  # (T, H, d)
    key,  # (T, H, d)
    value,  # (T, H, d)
    inverse_variance,  # (T, H)
    row_start,  # (T + 1,)
    edge_key,  # (E,)
    squared,  # (E,)
    mixed,  # (T, H, d), out
    expected,  # (T, H, K), out
    log_sum,  # (T, H), out: log sum_e exp(s_e)
    logits,  # (H, E), out, only with STORES_EDGES: s_e
    weights,  # (H, E), out, only with STORES_EDGES: w_e
    num_edges,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BASIS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_BASIS: tl.constexpr,
    BLOCK_EDGES: tl.constexpr,
    SCALE: tl.constexpr,  # 1 / sqrt d
    SPACING: tl.constexpr,  # of the radial functions, Å
    INVERSE_WIDTH: tl.constexpr,  # 1 / (sqrt 2 w), 1/Å
    STORES_EDGES: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Softmax, mixed values and expected basis of one atom."""
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(row_start + row)
    end = tl.load(row_start + row + 1)
    head = tl.arange(0, BLOCK_HEADS)
    width = tl.arange(0, BLOCK_WIDTH)
    basis = tl.arange(0, BLOCK_BASIS)
    has_head = head < HEADS
    inner = head[:, None] * WIDTH + width[None, :]
    has_inner = has_head[:, None] & (width < WIDTH)[None, :]
    centers = (basis + 1).to(ACCUMULATE) * SPACING
    q = tl.load(query + row * (HEADS * WIDTH) + inner, mask=has_inner, other=0.0).to(ACCUMULATE) * SCALE
    decay = 0.5 * tl.load(inverse_variance + row * HEADS + head, mask=has_head, other=0.0).to(ACCUMULATE)

    largest = tl.full((BLOCK_HEADS,), float("-inf"), ACCUMULATE)
    total = tl.zeros((BLOCK_HEADS,), ACCUMULATE)
    mixed_sum = tl.zeros((BLOCK_HEADS, BLOCK_WIDTH), ACCUMULATE)
    expected_sum = tl.zeros((BLOCK_BASIS, BLOCK_HEADS), ACCUMULATE)
    for first in range(start, end, BLOCK_EDGES):
        edge = first + tl.arange(0, BLOCK_EDGES)
        is_edge = edge < end
        j = tl.load(edge_key + edge, mask=is_edge, other=0).to(tl.int64)
        r_squared = tl.load(squared + edge, mask=is_edge, other=0.0).to(ACCUMULATE)
        neighbor = j[:, None, None] * (HEADS * WIDTH) + inner[None, :, :]
        loads = is_edge[:, None, None] & has_inner[None, :, :]
        k = tl.load(key + neighbor, mask=loads, other=0.0).to(ACCUMULATE)  # (edges, H, d)
        s = tl.sum(k * q[None, :, :], axis=2) - r_squared[:, None] * decay[None, :]  # (edges, H)
        if STORES_EDGES:
            place = head[None, :].to(tl.int64) * num_edges + edge[:, None]
            tl.store(logits + place, s, mask=is_edge[:, None] & has_head[None, :])
        s = tl.where(is_edge[:, None], s, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(s, axis=0))
        shrink = tl.exp(largest - new_largest)
        w = tl.exp(s - new_largest[None, :])
        v = tl.load(value + neighbor, mask=loads, other=0.0).to(ACCUMULATE)
        total = total * shrink + tl.sum(w, axis=0)
        mixed_sum = mixed_sum * shrink[:, None] + tl.sum(w[:, :, None] * v, axis=0)
        if BASIS > 0:
            offset = (tl.sqrt(r_squared)[None, :] - centers[:, None]) * INVERSE_WIDTH
            b = tl.exp(-offset * offset)  # (K, edges)
            expected_sum = tl.dot(
                b, w, expected_sum * shrink[None, :], input_precision=PRECISION, out_dtype=ACCUMULATE
            )
        largest = new_largest

    norm = tl.where(total > 0, total, 1.0)  # an atom without edges gets zeros
    log_total = tl.where(total > 0, largest + tl.log(norm), float("-inf"))
    tl.store(log_sum + row * HEADS + head, log_total, mask=has_head)
    tl.store(mixed + row * (HEADS * WIDTH) + inner, mixed_sum / norm[:, None], mask=has_inner)
    if BASIS > 0:
        of_row = row * (HEADS * BASIS) + head[None, :] * BASIS + basis[:, None]
        tl.store(expected + of_row, expected_sum / norm[None, :], mask=has_head[None, :] & (basis < BASIS)[:, None])
    if STORES_EDGES:
        tl.debug_barrier()  # the logits below were stored by other threads of this program
        for first in range(start, end, BLOCK_EDGES):
            edge = first + tl.arange(0, BLOCK_EDGES)
            place = head[None, :].to(tl.int64) * num_edges + edge[:, None]
            is_entry = (edge < end)[:, None] & has_head[None, :]
            s = tl.load(logits + place, mask=is_entry, other=float("-inf"))
            tl.store(weights + place, tl.exp(s - log_total[None, :]), mask=is_entry)


@triton.jit
def attention_backward_rows(
    query,  # (T, H, d)
    key,  # (T, H, d)
    value,  # (T, H, d)
    inverse_variance,  # (T, H)
    row_start,  # (T + 1,)
    edge_key,  # (E,)
    squared,  # (E,)
    log_sum,  # (T, H)
    grad_mixed,  # (T, H, d): Gm
    grad_expected,  # (T, H, K): Ge
    delta,  # (T, H): Gm·mixed + Ge·expected, the part of D without the gradients of weights
    weights,  # (H, E), only with HAS_WEIGHT_GRAD
    grad_weights,  # (H, E), only with HAS_WEIGHT_GRAD: gradients of w_e
    grad_query,  # (T, H, d), out
    grad_inverse_variance,  # (T, H), out
    edge_weights,  # (E, H), out: w_e, for the sums by key
    edge_grads,  # (E, H), out: ds_e
    num_edges,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BASIS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_BASIS: tl.constexpr,
    BLOCK_EDGES: tl.constexpr,
    SCALE: tl.constexpr,
    SPACING: tl.constexpr,
    INVERSE_WIDTH: tl.constexpr,
    HAS_WEIGHT_GRAD: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Gradients of one query atom, and w_e and ds_e of its edges."""
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(row_start + row)
    end = tl.load(row_start + row + 1)
    head = tl.arange(0, BLOCK_HEADS)
    width = tl.arange(0, BLOCK_WIDTH)
    basis = tl.arange(0, BLOCK_BASIS)
    has_head = head < HEADS
    inner = head[:, None] * WIDTH + width[None, :]
    has_inner = has_head[:, None] & (width < WIDTH)[None, :]
    centers = (basis + 1).to(ACCUMULATE) * SPACING
    q = tl.load(query + row * (HEADS * WIDTH) + inner, mask=has_inner, other=0.0).to(ACCUMULATE) * SCALE
    decay = 0.5 * tl.load(inverse_variance + row * HEADS + head, mask=has_head, other=0.0).to(ACCUMULATE)
    log_total = tl.load(log_sum + row * HEADS + head, mask=has_head, other=0.0)
    gm = tl.load(grad_mixed + row * (HEADS * WIDTH) + inner, mask=has_inner, other=0.0).to(ACCUMULATE)
    if BASIS > 0:
        has_basis = has_head[None, :] & (basis < BASIS)[:, None]
        of_row = row * (HEADS * BASIS) + head[None, :] * BASIS + basis[:, None]
        ge = tl.load(grad_expected + of_row, mask=has_basis, other=0.0).to(ACCUMULATE)  # (K, H)
    mean = tl.load(delta + row * HEADS + head, mask=has_head, other=0.0)
    if HAS_WEIGHT_GRAD:
        for first in range(start, end, BLOCK_EDGES):
            edge = first + tl.arange(0, BLOCK_EDGES)
            place = head[None, :].to(tl.int64) * num_edges + edge[:, None]
            is_entry = (edge < end)[:, None] & has_head[None, :]
            w = tl.load(weights + place, mask=is_entry, other=0.0)
            mean += tl.sum(w * tl.load(grad_weights + place, mask=is_entry, other=0.0), axis=0)

    gq = tl.zeros((BLOCK_HEADS, BLOCK_WIDTH), ACCUMULATE)
    g_variance = tl.zeros((BLOCK_HEADS,), ACCUMULATE)
    for first in range(start, end, BLOCK_EDGES):
        edge = first + tl.arange(0, BLOCK_EDGES)
        is_edge = edge < end
        is_entry = is_edge[:, None] & has_head[None, :]
        j = tl.load(edge_key + edge, mask=is_edge, other=0).to(tl.int64)
        r_squared = tl.load(squared + edge, mask=is_edge, other=0.0).to(ACCUMULATE)
        neighbor = j[:, None, None] * (HEADS * WIDTH) + inner[None, :, :]
        loads = is_edge[:, None, None] & has_inner[None, :, :]
        k = tl.load(key + neighbor, mask=loads, other=0.0).to(ACCUMULATE)
        v = tl.load(value + neighbor, mask=loads, other=0.0).to(ACCUMULATE)
        s = tl.sum(k * q[None, :, :], axis=2) - r_squared[:, None] * decay[None, :]
        w = tl.exp(tl.where(is_entry, s - log_total[None, :], float("-inf")))
        g = tl.sum(v * gm[None, :, :], axis=2)  # (edges, H)
        if BASIS > 0:
            offset = (tl.sqrt(r_squared)[:, None] - centers[None, :]) * INVERSE_WIDTH
            g = tl.dot(tl.exp(-offset * offset), ge, g, input_precision=PRECISION, out_dtype=ACCUMULATE)
        if HAS_WEIGHT_GRAD:
            place = head[None, :].to(tl.int64) * num_edges + edge[:, None]
            g += tl.load(grad_weights + place, mask=is_entry, other=0.0)
        ds = w * (g - mean[None, :])
        gq += tl.sum(ds[:, :, None] * k, axis=0)
        g_variance -= 0.5 * tl.sum(ds * r_squared[:, None], axis=0)
        by_edge = edge[:, None] * HEADS + head[None, :]
        tl.store(edge_weights + by_edge, w, mask=is_entry)
        tl.store(edge_grads + by_edge, ds, mask=is_entry)
    tl.store(grad_query + row * (HEADS * WIDTH) + inner, gq * SCALE, mask=has_inner)
    tl.store(grad_inverse_variance + row * HEADS + head, g_variance, mask=has_head)


@triton.jit
def attention_backward_keys(
    query,  # (T, H, d)
    grad_mixed,  # (T, H, d)
    key_start,  # (T + 1,)
    key_order,  # (E,)
    edge_query,  # (E,)
    edge_weights,  # (E, H)
    edge_grads,  # (E, H)
    grad_key,  # (T, H, d), out
    grad_value,  # (T, H, d), out
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_EDGES: tl.constexpr,
    SCALE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Gradients of one key atom, from the edges into it."""
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(key_start + row)
    end = tl.load(key_start + row + 1)
    head = tl.arange(0, BLOCK_HEADS)
    width = tl.arange(0, BLOCK_WIDTH)
    has_head = head < HEADS
    inner = head[:, None] * WIDTH + width[None, :]
    has_inner = has_head[:, None] & (width < WIDTH)[None, :]
    gk = tl.zeros((BLOCK_HEADS, BLOCK_WIDTH), ACCUMULATE)
    gv = tl.zeros((BLOCK_HEADS, BLOCK_WIDTH), ACCUMULATE)
    for first in range(start, end, BLOCK_EDGES):
        listed = first + tl.arange(0, BLOCK_EDGES)
        is_edge = listed < end
        edge = tl.load(key_order + listed, mask=is_edge, other=0).to(tl.int64)
        i = tl.load(edge_query + edge, mask=is_edge, other=0).to(tl.int64)
        neighbor = i[:, None, None] * (HEADS * WIDTH) + inner[None, :, :]
        loads = is_edge[:, None, None] & has_inner[None, :, :]
        place = edge[:, None] * HEADS + head[None, :]
        is_entry = is_edge[:, None] & has_head[None, :]
        ds = tl.load(edge_grads + place, mask=is_entry, other=0.0)
        q = tl.load(query + neighbor, mask=loads, other=0.0).to(ACCUMULATE)
        gk += tl.sum(ds[:, :, None] * q, axis=0)
        w = tl.load(edge_weights + place, mask=is_entry, other=0.0)
        gm = tl.load(grad_mixed + neighbor, mask=loads, other=0.0).to(ACCUMULATE)
        gv += tl.sum(w[:, :, None] * gm, axis=0)
    tl.store(grad_key + row * (HEADS * WIDTH) + inner, gk * SCALE, mask=has_inner)
    tl.store(grad_value + row * (HEADS * WIDTH) + inner, gv, mask=has_inner)
