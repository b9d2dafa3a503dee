"""Triton kernels of CrystalFramer: `max` frames, and sums of the angular basis over an atom's edges.

One program per atom and head (frames, backward) or per atom, head and axis (forward), over the edges of the atom.

Frames (training: one per atom and head, `ops_crystal_frames.max_frames`), with logits s_e and unit vectors u_e:

    e1 = u_e of the largest s_e;   f = u_e of the largest s_e + log max(1 - |u_e·e1|, 1e-5) with |u_e·e1| < 0.9999
    e2 = (f - (f·e1) e1) / |.|;    e3 = e1 x e2.

Candidates closer than a tolerance to the largest are drawn with the weights max(0, 1 - gap / tolerance): each carries
an exponential clock of that rate (Philox, counted by edge and head, so that a seed gives the same frames whatever the
tiling), and the first to ring is chosen.

Angular sums, for a list of directions a of each slot (an atom, a head and one of three axes), c_e = a·u_e:

    S_k = sum_e w_e b_k(c_e),   b_k(c) = exp(-(c - c_k)² / 2 w²),   b_{qa+b}(c) = U_a(c) E(c)^b C_ab

as in `ops_frame_features`: D/q + q exponentials and D products for each edge instead of D exponentials. No basis value
is stored. Backward recomputes them: dw_e = sum_slots sum_k G_k b_k(c_e), one program per atom and head, no atomics.

Names in capitals are compile-time constants; BLOCK_x is x rounded up to a power of two.
"""

from __future__ import annotations

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("the Triton kernels need triton: pip install triton, or attention_kernel='eager'") from error

__all__ = ["angular_backward", "angular_forward", "choose_max_frames"]


@triton.jit
def _best_candidate(
    logits,
    units,
    start,
    end,
    first_x,
    first_y,
    first_z,
    seed,
    counter,  # random numbers are counted from here
    IS_SECOND: tl.constexpr,
    TOLERANCE: tl.constexpr,
    COLLINEAR: tl.constexpr,
    PERPENDICULAR: tl.constexpr,
    BLOCK_EDGES: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Index of the chosen edge, -1 where no edge is a candidate; two passes: the largest score, then the draw."""
    best = tl.full((), float("-inf"), ACCUMULATE)
    chosen = tl.full((), -1, tl.int64)
    winner = tl.full((), -1.0, ACCUMULATE)
    for sweep in tl.static_range(2):
        for first in range(start, end, BLOCK_EDGES):
            edge = first + tl.arange(0, BLOCK_EDGES)
            is_edge = edge < end
            x = tl.load(units + edge * 3, mask=is_edge, other=0.0).to(ACCUMULATE)
            y = tl.load(units + edge * 3 + 1, mask=is_edge, other=0.0).to(ACCUMULATE)
            z = tl.load(units + edge * 3 + 2, mask=is_edge, other=0.0).to(ACCUMULATE)
            score = tl.load(logits + edge, mask=is_edge, other=float("-inf"))
            is_candidate = is_edge & (x * x + y * y + z * z > 0.5)
            if IS_SECOND:
                cosine = tl.abs(x * first_x + y * first_y + z * first_z)
                is_candidate = is_candidate & (cosine < COLLINEAR)
                score += tl.log(tl.maximum(1.0 - cosine, PERPENDICULAR))
            score = tl.where(is_candidate, score, float("-inf"))
            if sweep == 0:
                best = tl.maximum(best, tl.max(score, axis=0))
            else:
                if TOLERANCE > 0:
                    share = tl.where(is_candidate, 1.0 - (best - score) / TOLERANCE, 0.0)
                    clock = -tl.log(tl.maximum(tl.rand(seed, counter + (edge - start)), 1e-30))
                    rate = tl.where(share > 0, share / tl.maximum(clock, 1e-30), -1.0).to(ACCUMULATE)
                else:
                    rate = tl.where(is_candidate & (score == best), 1.0, -1.0).to(ACCUMULATE)
                top, place = tl.max(rate, axis=0, return_indices=True)
                chosen = tl.where(top > winner, first + place, chosen)
                winner = tl.maximum(winner, top)
    return chosen


@triton.jit
def choose_max_frames(
    logits,  # (H, E): s_e
    units,  # (E, 3)
    row_start,  # (T + 1,)
    seed,  # (1,) int64
    frames,  # (T, H, 3, 3), out: rows are axes; zero where they do not exist
    num_edges,
    HEADS: tl.constexpr,
    TOLERANCE: tl.constexpr,
    COLLINEAR: tl.constexpr,
    PERPENDICULAR: tl.constexpr,
    BLOCK_EDGES: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """The frame of one atom and head."""
    program = tl.program_id(0).to(tl.int64)
    atom, head = program // HEADS, program % HEADS
    start = tl.load(row_start + atom)
    end = tl.load(row_start + atom + 1)
    state = tl.load(seed)
    of_head = logits + head * num_edges
    counter = start * HEADS + head * (end - start)  # disjoint for every atom and head
    zero = tl.zeros((), ACCUMULATE)
    e = _best_candidate(
        of_head, units, start, end, zero, zero, zero, state, counter,
        False, TOLERANCE, COLLINEAR, PERPENDICULAR, BLOCK_EDGES, ACCUMULATE,
    )  # fmt: skip
    exists = e >= 0
    x1 = tl.load(units + e * 3, mask=exists, other=0.0).to(ACCUMULATE)
    y1 = tl.load(units + e * 3 + 1, mask=exists, other=0.0).to(ACCUMULATE)
    z1 = tl.load(units + e * 3 + 2, mask=exists, other=0.0).to(ACCUMULATE)
    e = _best_candidate(
        of_head, units, start, end, x1, y1, z1, state + 1, counter,
        True, TOLERANCE, COLLINEAR, PERPENDICULAR, BLOCK_EDGES, ACCUMULATE,
    )  # fmt: skip
    exists = e >= 0
    x = tl.load(units + e * 3, mask=exists, other=0.0).to(ACCUMULATE)
    y = tl.load(units + e * 3 + 1, mask=exists, other=0.0).to(ACCUMULATE)
    z = tl.load(units + e * 3 + 2, mask=exists, other=0.0).to(ACCUMULATE)
    along = x * x1 + y * y1 + z * z1
    x -= along * x1
    y -= along * y1
    z -= along * z1
    norm = tl.sqrt(x * x + y * y + z * z)
    norm = tl.where(norm > 0, norm, 1.0)
    x2, y2, z2 = x / norm, y / norm, z / norm
    frame = frames + program * 9
    tl.store(frame, x1)
    tl.store(frame + 1, y1)
    tl.store(frame + 2, z1)
    tl.store(frame + 3, x2)
    tl.store(frame + 4, y2)
    tl.store(frame + 5, z2)
    tl.store(frame + 6, y1 * z2 - z1 * y2)
    tl.store(frame + 7, z1 * x2 - x1 * z2)
    tl.store(frame + 8, x1 * y2 - y1 * x2)


@triton.jit
def _factors(
    units,
    edge,
    is_edge,
    x,
    y,
    z,
    FINE: tl.constexpr,
    BLOCK_COARSE: tl.constexpr,
    SPACING: tl.constexpr,
    INVERSE_WIDTH: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """U_a (edges, D/q), E^b (edges, q), and whether an edge has a direction."""
    ux = tl.load(units + edge * 3, mask=is_edge, other=0.0).to(ACCUMULATE)
    uy = tl.load(units + edge * 3 + 1, mask=is_edge, other=0.0).to(ACCUMULATE)
    uz = tl.load(units + edge * 3 + 2, mask=is_edge, other=0.0).to(ACCUMULATE)
    has_direction = ux * ux + uy * uy + uz * uz > 0.5
    cosine = tl.minimum(tl.maximum(ux * x + uy * y + uz * z, -1.0), 1.0)
    centers = tl.arange(0, BLOCK_COARSE).to(ACCUMULATE) * (FINE * SPACING) - 1.0
    offset = (cosine[:, None] - centers[None, :]) * INVERSE_WIDTH
    coarse = tl.exp(-0.5 * offset * offset)
    power = tl.arange(0, FINE).to(ACCUMULATE) * (SPACING * INVERSE_WIDTH * INVERSE_WIDTH)
    fine = tl.exp(cosine[:, None] * power[None, :])
    return coarse, fine, has_direction


@triton.jit
def _constants(
    FINE: tl.constexpr,
    BLOCK_COARSE: tl.constexpr,
    SPACING: tl.constexpr,
    INVERSE_WIDTH: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """C_ab = exp(-(c_{qa} bΔ + (bΔ)²/2) / w²)."""
    centers = tl.arange(0, BLOCK_COARSE).to(ACCUMULATE) * (FINE * SPACING) - 1.0
    shift = tl.arange(0, FINE).to(ACCUMULATE) * SPACING
    exponent = centers[:, None] * shift[None, :] + 0.5 * (shift * shift)[None, :]
    return tl.exp(-exponent * (INVERSE_WIDTH * INVERSE_WIDTH))


@triton.jit
def angular_forward(
    weights,  # (H, E): w_e
    units,  # (E, 3)
    row_start,  # (T + 1,)
    entry_start,  # (T * H * 3 + 1,): directions of every slot
    direction,  # (F, 3)
    share,  # (F,): weight of a direction
    opposite,  # (F,): weight of the opposite direction, only with HAS_OPPOSITE
    sums,  # (T * H * 3, D), out: sum over directions of share * S
    reversed_sums,  # (T * H * 3, D), out, only with HAS_OPPOSITE: the same with `opposite`
    num_edges,
    HEADS: tl.constexpr,
    BASIS: tl.constexpr,
    FINE: tl.constexpr,  # q, a power of two
    BLOCK_COARSE: tl.constexpr,
    BLOCK_EDGES: tl.constexpr,
    SPACING: tl.constexpr,
    INVERSE_WIDTH: tl.constexpr,
    HAS_OPPOSITE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Sums of one slot: an atom, a head and an axis."""
    slot = tl.program_id(0).to(tl.int64)
    atom, head = slot // (3 * HEADS), (slot // 3) % HEADS
    start = tl.load(row_start + atom)
    end = tl.load(row_start + atom + 1)
    plus = tl.zeros((BLOCK_EDGES, BLOCK_COARSE, FINE), ACCUMULATE)
    minus = tl.zeros((BLOCK_EDGES, BLOCK_COARSE, FINE), ACCUMULATE)
    for entry in range(tl.load(entry_start + slot), tl.load(entry_start + slot + 1)):
        x = tl.load(direction + entry * 3).to(ACCUMULATE)
        y = tl.load(direction + entry * 3 + 1).to(ACCUMULATE)
        z = tl.load(direction + entry * 3 + 2).to(ACCUMULATE)
        plus_share = tl.load(share + entry).to(ACCUMULATE)
        if HAS_OPPOSITE:
            minus_share = tl.load(opposite + entry).to(ACCUMULATE)
        for first in range(start, end, BLOCK_EDGES):
            edge = first + tl.arange(0, BLOCK_EDGES)
            is_edge = edge < end
            coarse, fine, has_direction = _factors(
                units, edge, is_edge, x, y, z, FINE, BLOCK_COARSE, SPACING, INVERSE_WIDTH, ACCUMULATE
            )
            w = tl.load(weights + head * num_edges + edge, mask=is_edge & has_direction, other=0.0)
            product = (w[:, None] * coarse)[:, :, None] * fine[:, None, :]
            plus += product * plus_share
            if HAS_OPPOSITE:
                minus += product * minus_share
    constants = _constants(FINE, BLOCK_COARSE, SPACING, INVERSE_WIDTH, ACCUMULATE)
    index = tl.arange(0, BLOCK_COARSE)[:, None] * FINE + tl.arange(0, FINE)[None, :]
    tl.store(sums + slot * BASIS + index, tl.sum(plus, axis=0) * constants, mask=index < BASIS)
    if HAS_OPPOSITE:
        tl.store(reversed_sums + slot * BASIS + index, tl.sum(minus, axis=0) * constants, mask=index < BASIS)


@triton.jit
def angular_backward(
    grad_sums,  # (T * H * 3, D): G
    units,  # (E, 3)
    row_start,  # (T + 1,)
    entry_start,  # (T * H * 3 + 1,)
    direction,  # (F, 3)
    share,  # (F,)
    opposite,  # (F,), only with HAS_OPPOSITE
    grad_weights,  # (H, E), out
    num_edges,
    HEADS: tl.constexpr,
    BASIS: tl.constexpr,
    FINE: tl.constexpr,
    BLOCK_COARSE: tl.constexpr,
    BLOCK_EDGES: tl.constexpr,
    SPACING: tl.constexpr,
    INVERSE_WIDTH: tl.constexpr,
    HAS_OPPOSITE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Gradients of the weights of one atom and head."""
    program = tl.program_id(0).to(tl.int64)
    atom, head = program // HEADS, program % HEADS
    start = tl.load(row_start + atom)
    end = tl.load(row_start + atom + 1)
    constants = _constants(FINE, BLOCK_COARSE, SPACING, INVERSE_WIDTH, ACCUMULATE)
    index = tl.arange(0, BLOCK_COARSE)[:, None] * FINE + tl.arange(0, FINE)[None, :]
    for first in range(start, end, BLOCK_EDGES):
        edge = first + tl.arange(0, BLOCK_EDGES)
        is_edge = edge < end
        total = tl.zeros((BLOCK_EDGES,), ACCUMULATE)
        for axis in range(3):
            slot = program * 3 + axis
            g = tl.load(grad_sums + slot * BASIS + index, mask=index < BASIS, other=0.0).to(ACCUMULATE)
            if HAS_OPPOSITE:
                # b_k(-c) = b_{D-1-k}(c)
                flipped = grad_sums + slot * BASIS + (BASIS - 1 - index)
                g_opposite = tl.load(flipped, mask=index < BASIS, other=0.0).to(ACCUMULATE)
            for entry in range(tl.load(entry_start + slot), tl.load(entry_start + slot + 1)):
                x = tl.load(direction + entry * 3).to(ACCUMULATE)
                y = tl.load(direction + entry * 3 + 1).to(ACCUMULATE)
                z = tl.load(direction + entry * 3 + 2).to(ACCUMULATE)
                inner = g * tl.load(share + entry).to(ACCUMULATE)
                if HAS_OPPOSITE:
                    inner += g_opposite * tl.load(opposite + entry).to(ACCUMULATE)
                coarse, fine, has_direction = _factors(
                    units, edge, is_edge, x, y, z, FINE, BLOCK_COARSE, SPACING, INVERSE_WIDTH, ACCUMULATE
                )
                rows = tl.sum((inner * constants)[None, :, :] * fine[:, None, :], axis=2)  # (edges, D/q)
                total += tl.where(has_direction, tl.sum(rows * coarse, axis=1), 0.0)
        tl.store(grad_weights + head * num_edges + edge, total, mask=is_edge)
