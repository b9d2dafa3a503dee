"""Local coordinate frames for SE(3)-invariant angles (Ito et al., ICLR 2025, arXiv 2503.02209).

A frame is right-handed, rows [e1, e2, e3]. The value term needs sum_a W^a <b(cos(e_a, r))> only, linear in functions
of one axis at a time, so the mean over several frames is a weighted list of axis directions (`FrameAxes`).

Why a list: the arg-max of the `max` frames ties exactly on symmetric sites (and always between +T and -T when the
chosen neighbour is an image of the atom itself), and eigenvectors have free signs and may be degenerate. Picking one
candidate by rounding or by noise makes predictions of symmetric crystals random. Here evaluation takes the mean over
the tied candidates with weights max(0, 1 - gap / tolerance): independent of orientation, atom order and run, equal to
the single frame where no tie is near, and continuous in between. Training draws one of them with the same weights
("stochastic frames"), so that evaluation is the expectation of training.

Axis letters as in `ops_periodic_geometry`; F listed directions.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from .ops_angular_basis import angular_sums, angular_sums_reference, isotropic_angular_basis

__all__ = [
    "SELF_IMAGE_SQUARED_DISTANCE",
    "FrameAxes",
    "axes_of_frames",
    "eigen_axes",
    "eigen_frames",
    "frame_features",
    "lattice_axes",
    "max_axes",
    "max_frames",
    "spread_axes",
]

SELF_IMAGE_SQUARED_DISTANCE = 1e-5  # Å²: closer than this an image is the atom itself and has no direction
COLLINEAR_COSINE = 0.9999  # a second axis this close to the first would leave the third undefined
MIN_PERPENDICULARITY = 1e-5  # lower bound inside log(1 - |cos|)
RING_POINTS = 48  # directions on half a circle; the trapezoid rule on a circle converges faster than any power
ROWS_PER_PART = 16_384


@dataclass
class FrameAxes:
    """Weighted directions of the frame axes of every atom and head.

    Attributes:
        row (`torch.Tensor` of shape `(F,)`): atom * H + head.
        axis (`torch.Tensor` of shape `(F,)`): 0, 1 or 2.
        direction (`torch.Tensor` of shape `(F, 3)`): unit vectors.
        weight (`torch.Tensor` of shape `(F,)`): weight of the direction.
        opposite (`torch.Tensor` of shape `(F,)`, *optional*): weight of the opposite direction, whose features are
            those of the direction in reverse order and cost nothing more. All weights of a row and axis sum to 1 (0
            where an axis does not exist).
        isotropic (`torch.Tensor` of shape `(T * H,)`, *optional*): weight of "any direction" for all three axes.
    """

    row: torch.Tensor
    axis: torch.Tensor
    direction: torch.Tensor
    weight: torch.Tensor
    opposite: torch.Tensor | None = None
    isotropic: torch.Tensor | None = None


def axes_of_frames(frames: torch.Tensor) -> FrameAxes:
    """One frame per atom and head.

    Args:
        frames (`torch.Tensor` of shape `(T, H, 3, 3)`): rows are axes.
    """
    count = frames.shape[0] * frames.shape[1]
    row = torch.arange(count, device=frames.device).repeat_interleave(3)
    axis = torch.arange(3, device=frames.device).repeat(count)
    return FrameAxes(row, axis, frames.reshape(-1, 3), frames.new_ones(3 * count))


def frame_features(
    edge_weights: torch.Tensor,
    unit_vectors: torch.Tensor,
    axes: FrameAxes,
    num_basis: int,
    width_scale: float,
    *,
    reference: bool = False,
    truncate: bool = False,
) -> torch.Tensor:
    """Expected angular basis sum_e w_e <b(cos(e_a, r_e))> for every axis, averaged over the listed directions.

    Args:
        edge_weights (`torch.Tensor` of shape `(T, M, H)`): attention weights of images, 0 where none has a direction.
        unit_vectors (`torch.Tensor` of shape `(T, M, 3)`): directions of images.
        axes (`FrameAxes`): for T atoms and H heads.
        num_basis, width_scale: D and s of `ops_angular_basis`.
        reference, truncate: form the basis plainly; cut it at four sigma as the released code does.

    Returns:
        `torch.Tensor` of shape `(T, H, 3, D)`.
    """
    num_atoms, _, num_heads = edge_weights.shape
    rows = edge_weights.transpose(1, 2).reshape(num_atoms * num_heads, -1)
    total = edge_weights.new_zeros((num_atoms * num_heads * 3, num_basis))
    for part in torch.split(torch.arange(axes.row.shape[0], device=axes.row.device), ROWS_PER_PART):
        row, axis = axes.row[part], axes.axis[part]
        cosines = torch.bmm(unit_vectors[row // num_heads], axes.direction[part][..., None])[..., 0].clamp(-1.0, 1.0)
        if reference:
            sums = angular_sums_reference(rows[row], cosines, num_basis, width_scale, truncate=truncate)
        else:
            sums = angular_sums(rows[row], cosines, num_basis, width_scale)
        weighted = sums * axes.weight[part][:, None]
        if axes.opposite is not None:
            weighted = weighted + sums.flip(-1) * axes.opposite[part][:, None]  # b_k(-c) = b_{D-1-k}(c)
        total = total.index_add(0, row * 3 + axis, weighted)
    features = total.view(num_atoms * num_heads, 3, num_basis)
    if axes.isotropic is not None:
        basis = isotropic_angular_basis(num_basis, width_scale, features)
        features = features + (axes.isotropic * rows.sum(1))[:, None, None] * basis
    return features.view(num_atoms, num_heads, 3, num_basis)


def _second_scores(scores: torch.Tensor, unit_vectors: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Score of the second axis, s + log max(1 - |cos|, 1e-5), -inf for images along the first axis.

    Args:
        scores (`torch.Tensor` of shape `(F, M)`).
        unit_vectors (`torch.Tensor` of shape `(F, M, 3)`).
        first (`torch.Tensor` of shape `(F, 3)`).
    """
    cosine = torch.bmm(unit_vectors, first[..., None])[..., 0].abs()
    perpendicular = (1.0 - cosine).clamp_min(MIN_PERPENDICULARITY).log()
    return (scores + perpendicular).masked_fill(cosine >= COLLINEAR_COSINE, -torch.inf)


def _complete(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gram-Schmidt: e2 from a second direction, e3 = e1 x e2."""
    rest = second - (second * first).sum(-1, keepdim=True) * first
    e2 = rest / rest.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(rest.dtype).tiny)
    return e2, torch.linalg.cross(first, e2)


@torch.no_grad()
def max_frames(
    scores: torch.Tensor, unit_vectors: torch.Tensor, second_scores: torch.Tensor | None = None, tolerance: float = 0.0
) -> torch.Tensor:
    """One frame per atom and head: the strongest image, then the strongest off that axis (eq. 8 of the paper).

    Args:
        scores (`torch.Tensor` of shape `(T, M, H)`): attention logits of images, -inf for images without direction.
        unit_vectors (`torch.Tensor` of shape `(T, M, 3)`).
        second_scores (`torch.Tensor` of shape `(T, M, H)`, *optional*): other logits for the second axis.
        tolerance (`float`): candidates closer than this to the best are drawn at random, with the weights that
            `max_axes` gives them; 0 takes the first of the largest.

    Returns:
        `torch.Tensor` of shape `(T, H, 3, 3)`, rows are axes; zero where no two directions exist.
    """
    num_atoms, num_edges, num_heads = scores.shape
    flat = scores.transpose(1, 2).reshape(-1, num_edges)
    other = flat if second_scores is None else second_scores.transpose(1, 2).reshape(-1, num_edges)
    parts = []
    atom = torch.arange(num_atoms, device=scores.device).repeat_interleave(num_heads)
    for rows in torch.split(torch.arange(flat.shape[0], device=scores.device), ROWS_PER_PART):
        vectors = unit_vectors[atom[rows]]
        best, index = _choose(flat[rows], tolerance)
        first = _pick(vectors, index)
        second_best, index = _choose(_second_scores(other[rows], vectors, first), tolerance)
        e2, e3 = _complete(first, _pick(vectors, index))
        frame = torch.stack([first, e2, e3], dim=1)
        exists = torch.stack([best, second_best, second_best], dim=1) > -torch.inf
        parts.append(frame * exists[..., None])
    return torch.cat(parts).view(num_atoms, num_heads, 3, 3)


def _choose(scores: torch.Tensor, tolerance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Best score of each row, and the chosen candidate: the first of the best, or one drawn among near ties."""
    best, index = scores.max(dim=1)
    if tolerance > 0:
        # of independent exponential clocks with rates w, the first to ring is k with probability w_k
        clocks = torch.empty_like(scores).exponential_().clamp_min_(torch.finfo(scores.dtype).tiny)
        index = (_tie_weights(scores, tolerance) / clocks).argmax(dim=1)
    return best, index


def _pick(vectors: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return vectors.gather(1, index[:, None, None].expand(-1, 1, 3))[:, 0]


def _tie_weights(scores: torch.Tensor, tolerance: float) -> torch.Tensor:
    """max(0, 1 - gap / tolerance), normalised over the last axis; zero where there is no candidate."""
    best = scores.amax(dim=-1, keepdim=True)
    gap = best.clamp_min(torch.finfo(scores.dtype).min) - scores
    weights = (1.0 - gap / tolerance).clamp_min(0.0)
    return weights / weights.sum(dim=-1, keepdim=True).clamp_min(1.0)


@torch.no_grad()
def max_axes(scores: torch.Tensor, unit_vectors: torch.Tensor, tolerance: float) -> FrameAxes:
    """Mean over tied `max` frames (module docstring).

    Args:
        scores (`torch.Tensor` of shape `(T, M, H)`): attention logits of images, -inf for images without direction.
        unit_vectors (`torch.Tensor` of shape `(T, M, 3)`).
        tolerance (`float`): logits closer than this to the best share the choice.
    """
    _, num_edges, num_heads = scores.shape
    flat = scores.transpose(1, 2).reshape(-1, num_edges)
    first_weights = _tie_weights(flat, tolerance)
    row, edge = first_weights.nonzero(as_tuple=True)
    weight = first_weights[row, edge]
    first = unit_vectors[row // num_heads, edge]
    lists = [(row, torch.zeros_like(row), first, weight)]
    for part in torch.split(torch.arange(row.shape[0], device=row.device), ROWS_PER_PART):
        vectors = unit_vectors[row[part] // num_heads]
        seconds = _tie_weights(_second_scores(flat[row[part]], vectors, first[part]), tolerance)
        candidate, column = seconds.nonzero(as_tuple=True)
        share = weight[part][candidate] * seconds[candidate, column]
        e2, e3 = _complete(first[part][candidate], vectors[candidate, column])
        frame_row = row[part][candidate]
        lists.append((frame_row, torch.full_like(frame_row, 1), e2, share))
        lists.append((frame_row, torch.full_like(frame_row, 2), e3, share))
    row, axis, direction, share = (torch.cat([entry[k] for entry in lists]) for k in range(4))
    return _merge_equal(FrameAxes(row, axis, direction, share), 3 * flat.shape[0])


def _merge_equal(axes: FrameAxes, num_slots: int) -> FrameAxes:
    """List equal and opposite directions once: each listed direction costs a pass over the images.

    Tied frames share many axes, and on a site with inversion symmetry all of them point both ways.

    Directions are compared on a grid well above rounding (1e-10, in float32 2.5e-6). Two equal ones on either side of
    a grid line stay apart, which costs time only; two that differ by less than the grid may merge into their mean,
    which changes features by less than a hundredth of the grid.
    """
    slot = axes.row * 3 + axes.axis
    if slot.shape[0] <= num_slots:
        return axes
    # one of each two opposite directions: the one whose first component that is not about zero is positive
    is_nonzero = axes.direction.abs() > 1e-6
    leading = axes.direction.gather(1, is_nonzero.to(torch.uint8).argmax(dim=1, keepdim=True))[:, 0]
    is_reversed = leading < 0
    directions = torch.where(is_reversed[:, None], -axes.direction, axes.direction)
    steps = 10_000_000_000 if directions.dtype == torch.float64 else 400_000
    inverse = slot
    for component in (torch.round(directions.double() * steps).long() + steps).unbind(1):
        _, inverse = torch.unique(inverse * (2 * steps + 1) + component, return_inverse=True)
    count = int(inverse.max()) + 1
    zeros = axes.weight.new_zeros(count)
    weight = zeros.index_add(0, inverse, axes.weight * ~is_reversed)
    opposite = zeros.index_add(0, inverse, axes.weight * is_reversed)
    # the weighted mean of the merged directions does not depend on their order
    direction = axes.direction.new_zeros((count, 3)).index_add(0, inverse, directions * axes.weight[:, None])
    direction = direction / direction.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(direction.dtype).tiny)
    member = torch.zeros(count, dtype=torch.long, device=slot.device).scatter_(0, inverse, slot)
    return FrameAxes(member // 3, member % 3, direction, weight, opposite)


@torch.no_grad()
def eigen_frames(tensors: torch.Tensor, *, random_signs: bool, identity_if_flat: bool = False) -> torch.Tensor:
    """One right-handed frame per atom and head from the eigenvectors of a symmetric tensor, ascending.

    Args:
        tensors (`torch.Tensor` of shape `(T, H, 3, 3)`): weighted covariances, Å².
        random_signs (`bool`): draw the free signs (training); else the largest component of each vector is positive
            (the released code without its noise).
        identity_if_flat (`bool`): a tensor with determinant ≤ 1e-5 gives the identity, as the released code does.

    Returns:
        `torch.Tensor` of shape `(T, H, 3, 3)`, rows are axes.
    """
    vectors = torch.linalg.eigh(tensors.double())[1].transpose(-1, -2)
    if random_signs:
        signs = torch.randint(0, 2, vectors.shape[:-1], device=vectors.device).double() * 2.0 - 1.0
    else:
        largest = vectors.abs().argmax(dim=-1, keepdim=True)
        signs = vectors.gather(-1, largest)[..., 0].sign()
    vectors = vectors * signs[..., None]
    vectors = vectors * torch.linalg.det(vectors).sign()[..., None, None]
    if identity_if_flat:
        is_flat = torch.linalg.det(tensors.double()) <= 1e-5
        identity = torch.eye(3, dtype=vectors.dtype, device=vectors.device)
        vectors = torch.where(is_flat[..., None, None], identity, vectors)
    return vectors.to(tensors.dtype)


@torch.no_grad()
def eigen_axes(tensors: torch.Tensor, tolerance: float) -> FrameAxes:
    """Axes from the eigenvectors of a symmetric tensor, ascending, averaged over their free signs.

    The four right-handed choices of sign make every axis point both ways equally often. Where eigenvalues are closer
    than `tolerance` times the trace, the eigenvectors are arbitrary within a plane (or all space): the mean over
    all of them is taken, blended in linearly as the gap closes.

    Args:
        tensors (`torch.Tensor` of shape `(T, H, 3, 3)`): weighted covariances, Å².
        tolerance (`float`): relative gap of eigenvalues.
    """
    num_rows = tensors.shape[0] * tensors.shape[1]
    values, vectors = torch.linalg.eigh(tensors.reshape(num_rows, 3, 3).double())
    vectors = vectors.transpose(1, 2)  # rows are eigenvectors
    trace = values.sum(-1).clamp_min(1e-300)
    low, high = (1.0 - (values[:, 1:] - values[:, :-1]) / (tolerance * trace[:, None])).clamp_min(0.0).unbind(-1)
    everything = low * high
    plane_low, plane_high = low * (1.0 - high), high * (1.0 - low)  # axes 0, 1 (or 1, 2) are degenerate
    distinct = (1.0 - low) * (1.0 - high)

    rows = torch.arange(num_rows, device=tensors.device)
    lists = []
    for axis, weight in enumerate([distinct + plane_high, distinct, distinct + plane_low]):
        kept = weight > 0
        lists.append((rows[kept], torch.full_like(rows[kept], axis), vectors[kept, axis], weight[kept]))
    angles = torch.arange(RING_POINTS, device=tensors.device, dtype=torch.float64) * (math.pi / RING_POINTS)
    for weight, (first, second) in ((plane_low, (0, 1)), (plane_high, (1, 2))):
        kept = weight > 0
        ring = (
            vectors[kept, None, first] * angles.cos()[:, None] + vectors[kept, None, second] * angles.sin()[:, None]
        ).reshape(-1, 3)
        for axis in (first, second):
            row = rows[kept].repeat_interleave(RING_POINTS)
            share = (weight[kept] / RING_POINTS).repeat_interleave(RING_POINTS)
            lists.append((row, torch.full_like(row, axis), ring, share))
    row, axis_column, direction, share = (torch.cat([entry[k] for entry in lists]) for k in range(4))
    dtype = tensors.dtype
    half = 0.5 * share.to(dtype)
    return FrameAxes(row, axis_column, direction.to(dtype), half, half, everything.to(dtype))


def _tied(lengths: torch.Tensor, tolerance: float) -> list[tuple[int, float]]:
    """Indices of the nearly smallest lengths with their shares."""
    weights = _tie_weights(-lengths, tolerance)
    return [(index, float(weights[index])) for index in weights.nonzero()[:, 0].tolist()]


def _signs(first: torch.Tensor, second: torch.Tensor) -> list[float]:
    """Signs that make `second` lean towards `first`: both where they are perpendicular (a tie)."""
    cosine = float((first * second).sum())
    return [1.0, -1.0] if abs(cosine) < 1e-6 else [math.copysign(1.0, cosine)]


def _lattice_frames(vectors: torch.Tensor, tolerance: float) -> list[tuple[float, torch.Tensor]]:
    """All tied lattice frames of one crystal with their weights; axes are not orthogonal (spec 6.5)."""
    squared = vectors.square().sum(-1)
    units = vectors / squared.sqrt()[:, None]
    frames = []
    for i, share1 in _tied(squared, tolerance):
        e1 = units[i]
        off_axis = 1.0 - (units @ e1).abs() > MIN_PERPENDICULARITY
        for j, share2 in _tied(squared.masked_fill(~off_axis, torch.inf), tolerance):
            for sign2 in _signs(e1, units[j]):
                e2 = sign2 * units[j]
                normal = torch.linalg.cross(e1, e2)
                off_plane = (units @ normal).abs() > MIN_PERPENDICULARITY
                for k, share3 in _tied(squared.masked_fill(~off_plane, torch.inf), tolerance):
                    for sign3 in _signs(e1, units[k]):
                        e3 = sign3 * units[k]
                        hand = 1.0 if float((e3 * normal).sum()) > 0 else -1.0
                        share = share1 * share2 * share3 / len(_signs(e1, units[j])) / len(_signs(e1, units[k]))
                        frames.append((share, hand * torch.stack([e1, e2, e3])))
    return frames


def spread_axes(axes: FrameAxes, source: torch.Tensor, num_heads: int) -> FrameAxes:
    """The same axes for all heads, and for all atoms of one source.

    Args:
        axes (`FrameAxes`): one row per source (a crystal, or an atom), sorted or not.
        source (`torch.Tensor` of shape `(T,)`): source of every atom.
        num_heads (`int`): H.
    """
    device = source.device
    order = torch.argsort(axes.row, stable=True)
    counts = torch.bincount(axes.row, minlength=int(source.max()) + 1)
    starts = torch.cumsum(counts, 0) - counts
    row_source = source.repeat_interleave(num_heads)
    row = torch.arange(row_source.shape[0], device=device).repeat_interleave(counts[row_source])
    first = torch.cumsum(counts[row_source], 0) - counts[row_source]
    entry = order[torch.arange(row.shape[0], device=device) - first[row] + starts[row_source[row]]]
    isotropic = None if axes.isotropic is None else axes.isotropic[row_source]
    opposite = None if axes.opposite is None else axes.opposite[entry]
    return FrameAxes(row, axes.axis[entry], axes.direction[entry], axes.weight[entry], opposite, isotropic)


@torch.no_grad()
def lattice_axes(
    lattice_vectors: list[torch.Tensor], tolerance: float, *, choice: Literal["mean", "first", "random"] = "mean"
) -> FrameAxes:
    """Axes along the shortest lattice vectors, one row per crystal; tied choices averaged.

    Args:
        lattice_vectors (`list` of `torch.Tensor` of shape `(n, 3)`): nonzero lattice vectors of every crystal, Å.
        tolerance (`float`): squared lengths closer than this, Å², are a tie.
        choice (`str`): among tied frames take the mean, the first, or a random one.
    """
    device, dtype = lattice_vectors[0].device, lattice_vectors[0].dtype
    lists = []
    for crystal, vectors in enumerate(lattice_vectors):
        frames = _lattice_frames(vectors.double().cpu(), tolerance)
        weights = torch.tensor([share for share, _ in frames], dtype=torch.float64)
        if choice != "mean":
            chosen = int(torch.multinomial(weights, 1)) if choice == "random" else 0
            frames, weights = frames[chosen : chosen + 1], torch.ones(1, dtype=torch.float64)
        count = len(frames)
        listed = FrameAxes(
            torch.full((3 * count,), crystal),
            torch.arange(3).repeat(count),
            torch.stack([frame for _, frame in frames]).reshape(-1, 3),
            weights.repeat_interleave(3),
        )
        lists.append(_merge_equal(listed, 3))
    opposite = [torch.zeros_like(entry.weight) if entry.opposite is None else entry.opposite for entry in lists]
    return FrameAxes(
        torch.cat([entry.row for entry in lists]).to(device),
        torch.cat([entry.axis for entry in lists]).to(device),
        torch.cat([entry.direction for entry in lists]).to(device, dtype),
        torch.cat([entry.weight for entry in lists]).to(device, dtype),
        torch.cat(opposite).to(device, dtype),
    )
