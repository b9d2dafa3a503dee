"""Infinitely connected attention: sums over all periodic images of a crystal.

Equations of Taniai et al., "Crystalformer", ICLR 2024 (arXiv 2403.11686), for a query atom i, a key atom j, lattice
images n and r_ijn = p_j - p_i + n·cell:

    alpha_ij = log sum_n exp(-|r_ijn|² / 2 sigma_i²)
    beta_ij  = W^E [ sum_n exp(-|r_ijn|² / 2 sigma_i² - alpha_ij) b(|r_ijn|) ]
    y_i      = sum_j softmax_j(q_i·k_j / sqrt d + alpha_ij) (v_j + beta_ij)

`periodic_attention_reference` is this text, term by term. `periodic_attention` is the same function arranged well:
exp(alpha_ij) cancels, so the weight of an image is one softmax over all images of all keys, and W^E is applied once
per atom instead of once per pair. Its backward is written out and forms the weights of images, and the radial basis
where it is given as a `RadialBasis`, once more: a block keeps nothing of the size of the images.
Both take the same arguments; a test compares values and gradients.

Other laws than the Gaussian are functions phi of |r|² / sigma_i² in its place (`ops_decay_laws`).

`reciprocal_log_weights` sums alpha_ij over waves instead, by Poisson summation (the paper's appendix).

Axis letters as in `ops_periodic_geometry`; d is the width of a head, K the number of radial basis functions, R of
reciprocal vectors.
Everything here is dtype-preserving; callers keep geometry in at least float32.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch

from .ops_decay_laws import HeadLaws, decay_log_weights, decay_slopes
from .ops_periodic_geometry import NeighborLayout, PackedAtoms, cell_volume

__all__ = [
    "PeriodicAttentionOutput",
    "RadialBasis",
    "gaussian_widths",
    "pair_attention_matrix",
    "periodic_attention",
    "periodic_attention_reference",
    "radial_basis",
    "reciprocal_attention",
    "reciprocal_log_weights",
    "segment_logsumexp",
]

# Tables of the radial basis that are formed and dropped have about this many numbers: what fits into a core's cache.
MAX_TABLE_ENTRIES = 500_000


@dataclass
class PeriodicAttentionOutput:
    """Result of one real-space attention.

    Attributes:
        output (`torch.Tensor` of shape `(T, H, d)`): sum_j A_ij (v_j + beta_ij).
        edge_weights (`torch.Tensor` of shape `(T, M, H)`): weight of every image, summing to 1 over images.
        pair_weights (`torch.Tensor` of shape `(T, P, H)`): A_ij, the same summed over the images of a key.
        edge_logits (`torch.Tensor` of shape `(T, M, H)`): q_i·k_j / sqrt d + phi_ijn; -inf, or of the order of -1e10,
            where masked.
        total (`torch.Tensor` of shape `(T, H)`, *optional*): log of the sum over images of exp(logit), on request.
        alpha (`torch.Tensor` of shape `(T, P, H)`, *optional*): alpha_ij (reference only).
        beta (`torch.Tensor` of shape `(T, P, H, d)`, *optional*): beta_ij (reference only).
    """

    output: torch.Tensor
    edge_weights: torch.Tensor
    pair_weights: torch.Tensor
    edge_logits: torch.Tensor
    total: torch.Tensor | None = None
    alpha: torch.Tensor | None = None
    beta: torch.Tensor | None = None


def gaussian_widths(
    query: torch.Tensor, width_query: torch.Tensor, shift_and_scale: torch.Tensor, slope: float, lower_bound: float
) -> torch.Tensor:
    """Query-dependent relative width rho_i = (1-b) ELU(a t_i / (1-b)) + 1, t_i = (q_i·w + shift) scale.

    rho lies in (b, inf) with rho(0) = 1, so that sigma_i² = r0² / rho_i is bounded by r0² / b in real space.

    Args:
        query (`torch.Tensor` of shape `(T, H, d)`): queries, not divided by sqrt d.
        width_query (`torch.Tensor` of shape `(H, d)`): w of each head.
        shift_and_scale (`torch.Tensor` of shape `(2,)`): calibrated [scale, shift] of t.
        slope (`float`): a.
        lower_bound (`float`): b, 0 < b < 1.

    Returns:
        `torch.Tensor` of shape `(T, H)`.
    """
    raw = (query * width_query).sum(-1)
    scaled = (raw + shift_and_scale[1]) * shift_and_scale[0]
    room = 1.0 - lower_bound
    return room * torch.nn.functional.elu(scaled * (slope / room)) + 1.0


def radial_basis(
    distances: torch.Tensor,
    num_basis: int,
    cutoff: float,
    width_scale: float,
    *,
    truncate: bool = False,
    radius: float | None = None,
) -> torch.Tensor:
    """Gaussian radial basis b_k(r) = exp(-(r - mu_k)² / 2 w²), mu_k = k cutoff / K, w = s cutoff / K, k = 1..K.

    Args:
        distances (`torch.Tensor` of shape `(...)`): r, Å.
        num_basis (`int`): K.
        cutoff (`float`): center of the last function, Å.
        width_scale (`float`): s.
        truncate (`bool`): zero all but the 8s + 1 functions nearest to r, as the released CrystalFramer does.
        radius (`float`, *optional*): largest distance, Å; the last functions are left out if they are below rounding
            up to there.

    Returns:
        `torch.Tensor` of shape `(..., k)`, k = K or less.
    """
    spacing = cutoff / num_basis
    width = spacing * width_scale
    number = num_basis
    if radius is not None:
        reach = width * math.sqrt(-2.0 * math.log(torch.finfo(distances.dtype).eps))
        number = min(num_basis, math.ceil((radius + reach) / spacing))
    index = torch.arange(number, device=distances.device, dtype=distances.dtype)
    # Gaussians far from r would be denormal numbers, on which a CPU is six times slower: they stop short of the
    # smallest normal one (at 1e-34 in float32).
    lowest = 0.9 * math.log(torch.finfo(distances.dtype).tiny)
    scaled = (distances[..., None] - (index + 1.0) * spacing).mul_(0.5**0.5 / width)
    if distances.requires_grad:
        basis = (-scaled.square()).clamp_min(lowest).exp()
    else:
        basis = scaled.square_().neg_().clamp_min_(lowest).exp_()
    if truncate:
        count = math.ceil(8 * width_scale + 1)
        first = torch.trunc((distances - 4 * width) / width - 1).clamp(0, num_basis - count)[..., None]
        basis = basis * ((index >= first) & (index < first + count))
    return basis


@dataclass(frozen=True)
class RadialBasis:
    """How to form the radial basis of images; the fields are arguments of `radial_basis`."""

    num_basis: int
    cutoff: float
    width_scale: float
    radius: float | None = None
    truncate: bool = False

    def __call__(self, squared_distances: torch.Tensor) -> torch.Tensor:
        """The table `(..., k)` of squared distances `(...)`, Å²."""
        # sqrt has no gradient at the atom itself; the lower bound is far below any distance
        distances = squared_distances.clamp_min(1e-24).sqrt()
        shape = (self.num_basis, self.cutoff, self.width_scale)
        return radial_basis(distances, *shape, truncate=self.truncate, radius=self.radius)


def _rows_of_keys(values: torch.Tensor, pair_key: torch.Tensor) -> torch.Tensor:
    """values[pair_key]; unlike that of indexing, its gradient is summed in a fixed order, also on several cores."""
    return values.index_select(0, pair_key.flatten()).view(*pair_key.shape, *values.shape[1:])


def _sum_to_keys(pair_values: torch.Tensor, pair_key: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Transpose of `_rows_of_keys`: sums (T, P, H, d) into the rows of the keys, shape of `like`."""
    return torch.zeros_like(like).index_add_(0, pair_key.flatten(), pair_values.flatten(0, 1))


def pair_scores(query: torch.Tensor, key: torch.Tensor, pair_key: torch.Tensor) -> torch.Tensor:
    """q_i·k_j / sqrt d for the listed keys of each query.

    Args:
        query (`torch.Tensor` of shape `(T, H, d)`): of the rows.
        key (`torch.Tensor` of shape `(atoms, H, d)`): of all packed atoms.
        pair_key (`torch.Tensor` of shape `(T, P)`): packed index of the keys.

    Returns:
        `torch.Tensor` of shape `(T, P, H)`.
    """
    scores = (_rows_of_keys(key, pair_key) * query[:, None]).sum(-1)
    return scores / math.sqrt(query.shape[-1])


def mix_values(pair_weights: torch.Tensor, value: torch.Tensor, pair_key: torch.Tensor) -> torch.Tensor:
    """sum_j A_ij v_j.

    Args:
        pair_weights (`torch.Tensor` of shape `(T, P, H)`): A.
        value (`torch.Tensor` of shape `(atoms, H, d)`): of all packed atoms.
        pair_key (`torch.Tensor` of shape `(T, P)`): packed index of the keys.

    Returns:
        `torch.Tensor` of shape `(T, H, d)`.
    """
    return (_rows_of_keys(value, pair_key) * pair_weights[..., None]).sum(1)


def _gather_pairs(pair_values: torch.Tensor, edge_pair: torch.Tensor) -> torch.Tensor:
    """Value of the pair of every image: (T, P, H) -> (T, M, H)."""
    return pair_values.gather(1, edge_pair[..., None].expand(-1, -1, pair_values.shape[-1]))


def _sum_to_pairs(edge_values: torch.Tensor, edge_pair: torch.Tensor, num_pairs: int) -> torch.Tensor:
    """Sum over the images of each pair: (T, M, H) -> (T, P, H)."""
    zeros = edge_values.new_zeros((edge_values.shape[0], num_pairs, edge_values.shape[-1]))
    return zeros.scatter_add(1, edge_pair[..., None].expand_as(edge_values), edge_values)


def segment_logsumexp(edge_values: torch.Tensor, edge_pair: torch.Tensor, num_pairs: int) -> torch.Tensor:
    """Log sum_n exp over the images of each pair, -inf for pairs without images.

    Args:
        edge_values (`torch.Tensor` of shape `(T, M, H)`): -inf where masked.
        edge_pair (`torch.Tensor` of shape `(T, M)`): pair of every image.
        num_pairs (`int`): P.

    Returns:
        `torch.Tensor` of shape `(T, P, H)`.
    """
    index = edge_pair[..., None].expand_as(edge_values)
    lowest = torch.finfo(edge_values.dtype).min
    largest = edge_values.new_full((edge_values.shape[0], num_pairs, edge_values.shape[-1]), lowest)
    largest = largest.scatter_reduce(1, index, edge_values.detach(), "amax", include_self=True)
    total = _sum_to_pairs(torch.exp(edge_values - _gather_pairs(largest, edge_pair)), edge_pair, num_pairs)
    return torch.where(total > 0, total.clamp_min(torch.finfo(total.dtype).tiny).log() + largest, -torch.inf)


def periodic_attention_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    inverse_variance: torch.Tensor,
    layout: NeighborLayout,
    edge_mask: torch.Tensor | None = None,
    radial: torch.Tensor | RadialBasis | None = None,
    radial_weight: torch.Tensor | None = None,
    log_occupancy: torch.Tensor | None = None,
    laws: HeadLaws | None = None,
    wants_total: bool = False,
) -> PeriodicAttentionOutput:
    """Real-space attention exactly as written in the paper (module docstring), one tensor per symbol.

    Args:
        query (`torch.Tensor` of shape `(T, H, d)`): of the layout's rows.
        key, value (`torch.Tensor` of shape `(atoms, H, d)`): of all packed atoms.
        inverse_variance (`torch.Tensor` of shape `(T, H)`): 1/sigma_i², Å⁻².
        layout (`NeighborLayout`): the images of the rows.
        edge_mask (`torch.Tensor` of shape `(T, M, H)`, *optional*): the images that count; none: all of the layout.
        radial (`torch.Tensor` of shape `(T, M, K)` or `RadialBasis`, *optional*): b(|r|) of every image, or how to
            form it; none: beta = 0.
        radial_weight (`torch.Tensor` of shape `(H, d, K)`, *optional*): W^E of each head.
        log_occupancy (`torch.Tensor` of shape `(atoms,)`, *optional*): added to alpha_ij of a key j, so that a site
            counts as much as it is occupied; none: all sites are full.
        laws (`HeadLaws`, *optional*): decay law of each head; none: all are Gaussian.
        wants_total (`bool`): also the log of the sum over images, for `mix_spaces`.
    """
    if isinstance(radial, RadialBasis):
        radial = radial(layout.squared_distances)
    num_pairs = layout.pair_key.shape[1]
    if laws is None:
        phi = -0.5 * layout.squared_distances[..., None] * inverse_variance[:, None, :]
    else:
        phi = decay_log_weights(layout.squared_distances[..., None] * inverse_variance[:, None, :], laws, 2)
    phi = phi.masked_fill(~(layout.edge_mask[..., None] if edge_mask is None else edge_mask), -torch.inf)
    alpha = segment_logsumexp(phi, layout.edge_pair, num_pairs)
    scores = pair_scores(query, key, layout.pair_key)
    if log_occupancy is not None:
        scores = scores + log_occupancy[layout.pair_key][..., None]
    attention = torch.softmax(scores + alpha, dim=1)
    image_weights = torch.exp(phi - _gather_pairs(alpha.clamp_min(torch.finfo(alpha.dtype).min), layout.edge_pair))
    output = mix_values(attention, value, layout.pair_key)
    beta = None
    if radial is not None and radial_weight is not None:
        index = layout.edge_pair[:, :, None, None]
        expected = radial.new_zeros((radial.shape[0], num_pairs, image_weights.shape[-1], radial.shape[-1]))
        per_image = image_weights[..., None] * radial[:, :, None, :]  # (T, M, H, K)
        expected = expected.scatter_add(1, index.expand_as(per_image), per_image)
        beta = torch.einsum("tphk,hdk->tphd", expected, radial_weight)
        output = output + torch.einsum("tph,tphd->thd", attention, beta)
    edge_weights = image_weights * _gather_pairs(attention, layout.edge_pair)
    logits = phi + _gather_pairs(scores, layout.edge_pair)
    total = torch.logsumexp(scores + alpha, dim=1) if wants_total else None
    return PeriodicAttentionOutput(output, edge_weights, attention, logits, total, alpha, beta)


def _image_logits(
    scores: torch.Tensor,
    inverse_variance: torch.Tensor,
    squared_distances: torch.Tensor,
    edge_pair: torch.Tensor,
    edge_mask: torch.Tensor | None,
    laws: HeadLaws | None,
) -> torch.Tensor:
    """Logits (T, H, M) of images from the scores (T, H, P) of their pairs."""
    logits = scores.gather(2, edge_pair[:, None, :].expand(-1, scores.shape[1], -1))
    if laws is None:
        logits.addcmul_(inverse_variance[:, :, None], squared_distances[:, None, :], value=-0.5)
    else:
        logits += decay_log_weights(inverse_variance[:, :, None] * squared_distances[:, None, :], laws, 1)
    return logits if edge_mask is None else logits.masked_fill_(~edge_mask.transpose(1, 2), -torch.inf)


def _radial_tables(
    radial: torch.Tensor | None, basis: RadialBasis | None, squared_distances: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows and their tables (rows, M, k): the given table of all rows, or formed for a few rows at a time."""
    if basis is None:
        yield slice(None), cast(torch.Tensor, radial)
        return
    num_rows, width = squared_distances.shape
    step = max(1, MAX_TABLE_ENTRIES // (width * basis.num_basis))
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        yield rows, basis(squared_distances[rows])


def _image_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    inverse_variance: torch.Tensor,
    squared_distances: torch.Tensor,
    radial: torch.Tensor | None,
    radial_weight: torch.Tensor | None,
    basis: RadialBasis | None,
    edge_pair: torch.Tensor,
    pair_key: torch.Tensor,
    edge_mask: torch.Tensor | None,
    log_occupancy: torch.Tensor | None,
    laws: HeadLaws | None,
    wants_total: bool,
) -> tuple[torch.Tensor | None, ...]:
    """Output (T, H, d), weights (T, H, M), pair weights (T, H, P), logits, total (T, H), and scores (T, H, P)."""
    scores = pair_scores(query, key, pair_key).transpose(1, 2).contiguous()
    if log_occupancy is not None:
        scores += log_occupancy[pair_key][:, None, :]
    logits = _image_logits(scores, inverse_variance, squared_distances, edge_pair, edge_mask, laws)
    weights = torch.softmax(logits, dim=-1)
    pair_of_image = edge_pair[:, None, :].expand_as(weights)
    pair_weights = torch.zeros_like(scores).scatter_add_(2, pair_of_image, weights)
    output = mix_values(pair_weights.transpose(1, 2), value, pair_key)
    if (radial is not None or basis is not None) and radial_weight is not None:
        tables = _radial_tables(radial, basis, squared_distances)
        expected = torch.cat([torch.bmm(weights[rows], table) for rows, table in tables])  # (T, H, k)
        output += torch.einsum("thk,hdk->thd", expected, radial_weight[..., : expected.shape[-1]])
    total = torch.logsumexp(logits, -1) if wants_total else None
    return output, weights, pair_weights, logits, total, scores


class _ImageAttention(torch.autograd.Function):
    """`periodic_attention` with images along the last axis, (T, H, M), where sums over them are contiguous."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[torch.Tensor | None, ...]:
        """The first five of `_image_attention`."""
        *outputs, scores = _image_attention(*arguments)
        ctx.mark_non_differentiable(outputs[3])
        ctx.set_materialize_grads(False)
        ctx.basis, ctx.laws, ctx.wants_total = arguments[7], *arguments[12:]
        ctx.save_for_backward(*arguments[:7], *arguments[8:12], scores, outputs[2])
        return tuple(outputs)

    @staticmethod
    def _differentiable_backward(
        ctx: Any, inputs: tuple[Any, ...], constants: tuple[Any, ...], given: tuple[torch.Tensor | None, ...]
    ) -> tuple[torch.Tensor | None, ...]:
        """`backward` with a graph of its own (`create_graph=True`), for losses of forces."""
        # aliases: the radial basis depends on the distances, and its part of their gradient is not this function's
        inputs = tuple(x if x is None else x.view_as(x) for x in inputs)
        arguments: list[Any] = [*inputs, ctx.basis, *constants, ctx.laws, ctx.wants_total]
        outputs = cast(tuple[torch.Tensor, ...], _image_attention(*arguments))
        used = [(output, grad) for output, grad in zip(outputs, given, strict=False) if grad is not None]
        wanted = [place for place in range(7) if ctx.needs_input_grad[place]]
        found = torch.autograd.grad(
            [output for output, _ in used],
            [inputs[place] for place in wanted],
            [grad for _, grad in used],
            create_graph=True,
            allow_unused=True,
        )
        gradients = dict(zip(wanted, found, strict=True))
        return *(gradients.get(place) for place in range(7)), None, None, None, None, None, None, None

    @staticmethod
    def backward(
        ctx: Any,
        grad_output: torch.Tensor | None,
        grad_weights: torch.Tensor | None,
        grad_pair_weights: torch.Tensor | None,
        grad_logits: torch.Tensor | None,
        grad_total: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the first seven arguments, where they are asked for."""
        saved = ctx.saved_tensors  # read once: gradient checkpointing allows no more
        if torch.is_grad_enabled():
            given = (grad_output, grad_weights, grad_pair_weights, None, grad_total)
            return _ImageAttention._differentiable_backward(ctx, saved[:7], saved[7:11], given)
        query, key, value, inverse_variance, squared_distances, radial, radial_weight = saved[:7]
        edge_pair, pair_key, edge_mask, _, scores, pair_weights = saved[7:]
        # one number per image and head and block would be most of the memory of a training step
        logits = _image_logits(scores, inverse_variance, squared_distances, edge_pair, edge_mask, ctx.laws)
        weights = torch.softmax(logits, dim=-1)
        pair_of_image = edge_pair[:, None, :].expand_as(weights)
        if grad_output is None:
            grad_output = torch.zeros_like(query)

        # output = sum_j A_ij v_j + W^E expected
        grad_pairs = _rows_of_keys(value, pair_key).mul_(grad_output[:, None]).sum(-1).transpose(1, 2)  # (T, H, P)
        if grad_pair_weights is not None:
            grad_pairs = grad_pairs + grad_pair_weights
        by_pair = pair_weights.transpose(1, 2).contiguous()[..., None]
        grad_value = _sum_to_keys(by_pair * grad_output[:, None], pair_key, value)
        grad_edges = grad_pairs.contiguous().gather(2, pair_of_image)
        if grad_weights is not None:
            grad_edges += grad_weights
        grad_radial = grad_radial_weight = None
        if (radial is not None or ctx.basis is not None) and radial_weight is not None:
            grad_radial_weight = torch.zeros_like(radial_weight)
            for rows, table in _radial_tables(radial, ctx.basis, squared_distances):
                used = slice(table.shape[-1])
                grad_expected = torch.einsum("thd,hdk->thk", grad_output[rows], radial_weight[..., used])
                expected = torch.bmm(weights[rows], table)
                grad_radial_weight[..., used] += torch.einsum("thd,thk->hdk", grad_output[rows], expected)
                grad_edges[rows].baddbmm_(grad_expected, table.transpose(1, 2))
                if ctx.needs_input_grad[5]:  # a given table, of all rows
                    grad_radial = torch.bmm(weights.transpose(1, 2), grad_expected)

        # softmax, then logits = q_i·k_j / sqrt d + phi(|r|² / sigma_i²)
        mean = torch.linalg.vecdot(weights, grad_edges)
        if grad_total is not None:
            mean = mean - grad_total
        grad_logits = grad_edges.sub_(mean[..., None]).mul_(weights)
        grad_phi, slope = grad_logits, -0.5
        if ctx.laws is not None:
            u = inverse_variance[:, :, None] * squared_distances[:, None, :]
            grad_phi, slope = grad_logits * decay_slopes(u, ctx.laws, 1), 1.0
        grad_variance = slope * torch.bmm(grad_phi, squared_distances[..., None])[..., 0]
        grad_squared = None
        if ctx.needs_input_grad[4]:
            grad_squared = slope * torch.bmm(inverse_variance[:, None, :], grad_phi)[:, 0]
        grad_scores = torch.zeros_like(pair_weights).scatter_add_(2, pair_of_image, grad_logits)
        grad_scores = grad_scores.transpose(1, 2).contiguous()[..., None] / math.sqrt(query.shape[-1])  # (T, P, H, 1)
        grad_query = _rows_of_keys(key, pair_key).mul_(grad_scores).sum(1)
        grad_key = _sum_to_keys(query[:, None] * grad_scores, pair_key, key)
        gradients = (grad_query, grad_key, grad_value, grad_variance, grad_squared, grad_radial, grad_radial_weight)
        return *gradients, None, None, None, None, None, None, None


def periodic_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    inverse_variance: torch.Tensor,
    layout: NeighborLayout,
    edge_mask: torch.Tensor | None = None,
    radial: torch.Tensor | RadialBasis | None = None,
    radial_weight: torch.Tensor | None = None,
    log_occupancy: torch.Tensor | None = None,
    laws: HeadLaws | None = None,
    wants_total: bool = False,
) -> PeriodicAttentionOutput:
    """Same function and arguments as `periodic_attention_reference`, as one softmax over images.

    A_ij exp(phi_ijn - alpha_ij) = softmax_{j,n}(q_i·k_j / sqrt d + phi_ijn), and
    sum_j A_ij beta_ij = W^E [ sum_{j,n} (that weight) b(|r_ijn|) ]: no tensor of size pairs x images x K is made.
    Differentiable twice, the second time at the price of the plain operations; edge logits are returned without
    gradient. `radial` may lack the last functions of W^E. A `RadialBasis` is evaluated in forward and backward: slower
    than a table that all blocks share, but nothing is kept.
    """
    basis = None
    if isinstance(radial, RadialBasis):
        if layout.squared_distances.requires_grad:
            radial = radial(layout.squared_distances)
        else:
            basis, radial = radial, None
    output, weights, pair_weights, logits, total = _ImageAttention.apply(
        query,
        key,
        value,
        inverse_variance,
        layout.squared_distances,
        radial,
        radial_weight,
        basis,
        layout.edge_pair,
        layout.pair_key,
        edge_mask,
        log_occupancy,
        laws,
        wants_total,
    )
    return PeriodicAttentionOutput(
        output, weights.transpose(1, 2), pair_weights.transpose(1, 2), logits.transpose(1, 2), total
    )


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


def pair_attention_matrix(
    pair_weights: torch.Tensor,
    rows: torch.Tensor,
    pair_key: torch.Tensor,
    pair_mask: torch.Tensor,
    atoms: PackedAtoms,
) -> torch.Tensor:
    """Attention weights as the padded matrix that transformers models return, shape `(B, H, N, N)`.

    Args:
        pair_weights (`torch.Tensor` of shape `(T, P, H)`).
        rows (`torch.Tensor` of shape `(T,)`): packed indices of the queries; other rows of the matrix are zero.
        pair_key, pair_mask (`torch.Tensor` of shape `(T, P)`).
        atoms (`PackedAtoms`): from `pack_atoms`.
    """
    size = atoms.max_size
    matrix = pair_weights.new_zeros((atoms.sizes.shape[0], size, size, pair_weights.shape[-1]))
    row, column = pair_mask.nonzero(as_tuple=True)
    query, key = rows[row], pair_key[row, column]
    index = (atoms.crystal[query], atoms.slot[query], atoms.slot[key])
    return matrix.index_put(index, pair_weights[row, column]).permute(0, 3, 1, 2)
