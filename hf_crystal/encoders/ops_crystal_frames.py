"""Local coordinate frames for SE(3)-invariant angles (Ito et al., ICLR 2025, arXiv 2503.02209).

A frame is right-handed, rows [e1, e2, e3]. Where several frames are equally good, what is wanted is the mean of the
features over them, and that is a weighted list of axis directions (`FrameAxes`).

Why a mean: the arg-max of the `max` frames ties exactly on symmetric sites (and always between +T and -T when the
chosen neighbor is an image of the atom itself), and eigenvectors have free signs and may be degenerate. Picking one
candidate by rounding or by noise makes predictions of symmetric crystals random. Here evaluation takes the mean over
the tied candidates with weights max(0, 1 - gap / tolerance): independent of orientation, atom order and run, equal to
the single frame where no tie is near, and continuous in between. Training draws one of them with the same weights
("stochastic frames"), so that evaluation is the expectation of training.

Axis letters as in `ops_periodic_geometry`; L listed directions.
"""

import math
from typing import Literal

import torch

from .ops_frame_features import merge_axes
from .ops_periodic_geometry import FrameAxes

__all__ = [
    "SELF_IMAGE_SQUARED_DISTANCE",
    "eigen_axes",
    "eigen_frames",
    "lattice_axes",
    "max_axes",
    "max_frames",
]

SELF_IMAGE_SQUARED_DISTANCE = 1e-5  # Å²: closer than this an image is the atom itself and has no direction
COLLINEAR_COSINE = 0.9999  # a second axis this close to the first would leave the third undefined
MIN_PERPENDICULARITY = 1e-5  # lower bound inside log(1 - |cos|)
RING_POINTS = 48  # directions on half a circle; the trapezoid rule on a circle converges faster than any power
# Rows of (heads x images) are processed in parts of about this many numbers.
PART_ENTRIES = 4_000_000


def _perpendicularity(cosines: torch.Tensor) -> torch.Tensor:
    """Addition to the score of a second axis, log max(1 - |cos|, 1e-5); -inf for images along the first axis."""
    cosines = cosines.abs()
    addition = (1.0 - cosines).clamp_min_(MIN_PERPENDICULARITY).log_()
    return addition.masked_fill_(cosines >= COLLINEAR_COSINE, -torch.inf)


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
    best, index = _choose(scores.transpose(1, 2), tolerance)
    first = unit_vectors.gather(1, index[..., None].expand(-1, -1, 3))  # (T, H, 3)
    addition = _perpendicularity(torch.bmm(first, unit_vectors.transpose(1, 2)))
    addition += (scores if second_scores is None else second_scores).transpose(1, 2)
    second_best, index = _choose(addition, tolerance)
    e2, e3 = _complete(first, unit_vectors.gather(1, index[..., None].expand(-1, -1, 3)))
    exists = torch.stack([best, second_best, second_best], dim=2) > -torch.inf
    return torch.stack([first, e2, e3], dim=2) * exists[..., None]


def _choose(scores: torch.Tensor, tolerance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Best score of each row, and the chosen candidate: the first of the best, or one drawn among near ties."""
    best, index = scores.max(dim=-1)
    if tolerance > 0:
        lowest = best.clamp_min(torch.finfo(best.dtype).min)[..., None] - tolerance
        cumulative = (scores - lowest).clamp_min_(0.0).cumsum(dim=-1)
        # strictly below the sum, also after rounding: the candidate found has a positive weight
        draw = torch.rand_like(lowest) * (1.0 - 1e-6) * cumulative[..., -1:]
        index = torch.searchsorted(cumulative, draw, right=True)[..., 0].clamp_max(scores.shape[-1] - 1)
    return best, index


def _near_ties(scores: torch.Tensor, tolerance: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Candidates that are tied in some head: rows (n,), columns (n,) and shares (n, H).

    Shares are max(0, 1 - gap / tolerance), normalized over the candidates of a row and head.

    Args:
        scores (`torch.Tensor` of shape `(R, H, M)`): -inf where there is no candidate.
        tolerance (`float`): largest gap to the best.
    """
    best = scores.amax(dim=-1, keepdim=True).clamp_min_(torch.finfo(scores.dtype).min)
    row, column = ((scores - best).amax(dim=1) > -tolerance).nonzero(as_tuple=True)
    if torch.compiler.is_exporting():
        torch._check(row.shape[0] < 2**31)  # sums of unbounded sizes overflow ONNX's integers
    share = (1.0 - (best[row, :, 0] - scores[row, :, column]) / tolerance).clamp_min_(0.0)
    total = torch.zeros_like(best[..., 0]).index_add_(0, row, share)
    return row, column, share / total.clamp_min_(1.0)[row]


def _axis_entries(
    atom: torch.Tensor, direction: torch.Tensor, axis: int, weight: torch.Tensor, opposite: torch.Tensor | None = None
) -> FrameAxes:
    """Directions of one of the three axes, with weights `(L, H)`."""
    listed = weight.new_zeros((2, *weight.shape, 3))
    listed[0, ..., axis] = weight
    if opposite is not None:
        listed[1, ..., axis] = opposite
    return FrameAxes(atom, direction, listed[0], listed[1])


def _joined(lists: list[FrameAxes]) -> FrameAxes:
    """All entries of several lists, merged."""
    names = ("atom", "direction", "weight", "opposite")
    return merge_axes(FrameAxes(*(torch.cat([getattr(entry, name) for entry in lists]) for name in names)))


@torch.no_grad()
def max_axes(scores: torch.Tensor, unit_vectors: torch.Tensor, tolerance: float) -> FrameAxes:
    """Mean over tied `max` frames (module docstring).

    Args:
        scores (`torch.Tensor` of shape `(T, M, H)`): attention logits of images, -inf for images without direction.
        unit_vectors (`torch.Tensor` of shape `(T, M, 3)`).
        tolerance (`float`): logits closer than this to the best share the choice.
    """
    _, num_edges, num_heads = scores.shape
    scores = scores.transpose(1, 2)
    atom, edge, share = _near_ties(scores, tolerance)
    # merged: both directions of a first axis have the same second axes, and opposite third ones
    first = merge_axes(_axis_entries(atom, unit_vectors[atom, edge], 0, share))
    lists = [first]
    lines = torch.arange(first.atom.shape[0], device=scores.device)
    step = max(1, PART_ENTRIES // (num_edges * num_heads))
    for part in (lines,) if torch.compiler.is_exporting() else lines.split(step):
        atom, direction = first.atom[part], first.direction[part]
        addition = _perpendicularity(torch.bmm(unit_vectors.index_select(0, atom), direction[..., None])[..., 0])
        line, edge, share = _near_ties(scores.index_select(0, atom).add_(addition[:, None, :]), tolerance)
        e2, e3 = _complete(direction[line], unit_vectors[atom[line], edge])
        forward, backward = share * first.weight[part, :, 0][line], share * first.opposite[part, :, 0][line]
        lists.append(_axis_entries(atom[line], e2, 1, forward + backward))
        lists.append(_axis_entries(atom[line], e3, 2, forward, backward))
    return _joined(lists)


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
    num_atoms, num_heads = tensors.shape[:2]
    num_rows = num_atoms * num_heads
    values, vectors = torch.linalg.eigh(tensors.reshape(num_rows, 3, 3).double())
    vectors = vectors.transpose(1, 2)  # rows are eigenvectors
    trace = values.sum(-1).clamp_min(1e-300)
    low, high = (1.0 - (values[:, 1:] - values[:, :-1]) / (tolerance * trace[:, None])).clamp_min(0.0).unbind(-1)
    everything = low * high
    plane_low, plane_high = low * (1.0 - high), high * (1.0 - low)  # axes 0, 1 (or 1, 2) are degenerate
    distinct = (1.0 - low) * (1.0 - high)

    rows = torch.arange(num_rows, device=tensors.device)
    lists = []

    def add(row: torch.Tensor, axis: int, direction: torch.Tensor, share: torch.Tensor) -> None:
        """One axis of some rows, half a share for each of its two directions."""
        half = share.new_zeros((row.shape[0], num_heads))
        half[torch.arange(row.shape[0], device=row.device), row % num_heads] = 0.5 * share
        half = half.to(tensors.dtype)
        lists.append(_axis_entries(row // num_heads, direction.to(tensors.dtype), axis, half, half))

    for axis, weight in enumerate([distinct + plane_high, distinct, distinct + plane_low]):
        kept = weight > 0
        add(rows[kept], axis, vectors[kept, axis], weight[kept])
    angles = torch.arange(RING_POINTS, device=tensors.device, dtype=torch.float64) * (math.pi / RING_POINTS)
    for weight, (first, second) in ((plane_low, (0, 1)), (plane_high, (1, 2))):
        kept = weight > 0
        ring = (
            vectors[kept, None, first] * angles.cos()[:, None] + vectors[kept, None, second] * angles.sin()[:, None]
        ).reshape(-1, 3)
        row = rows[kept].repeat_interleave(RING_POINTS)
        share = (weight[kept] / RING_POINTS).repeat_interleave(RING_POINTS)
        for axis in (first, second):
            add(row, axis, ring, share)
    axes = _joined(lists)
    axes.isotropic = everything.to(tensors.dtype).view(num_atoms, num_heads)
    return axes


def _tied(lengths: torch.Tensor, tolerance: float) -> list[tuple[int, float]]:
    """Indices of the nearly smallest lengths with their shares."""
    _, index, share = _near_ties(-lengths[None, None, :], tolerance)
    return list(zip(index.tolist(), share[:, 0].tolist(), strict=True))


def _signs(first: torch.Tensor, second: torch.Tensor) -> list[float]:
    """Signs that make `second` lean towards `first`: both where they are perpendicular (a tie)."""
    cosine = float((first * second).sum())
    return [1.0, -1.0] if abs(cosine) < 1e-6 else [math.copysign(1.0, cosine)]


def _lattice_frames(vectors: torch.Tensor, tolerance: float) -> list[tuple[float, torch.Tensor]]:
    """All tied lattice frames of one crystal with their weights; axes are not orthogonal."""
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


@torch.no_grad()
def lattice_axes(
    lattice_vectors: list[torch.Tensor], tolerance: float, *, choice: Literal["mean", "first", "random"] = "mean"
) -> FrameAxes:
    """Axes along the shortest lattice vectors, of crystals instead of atoms and for one head; tied choices averaged.

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
        source = torch.full((len(frames),), crystal)
        directions = torch.stack([frame for _, frame in frames])
        lists += [_axis_entries(source, directions[:, axis], axis, weights[:, None]) for axis in range(3)]
    axes = _joined(lists)
    moved = (values.to(device, dtype) for values in (axes.direction, axes.weight, axes.opposite))
    return FrameAxes(axes.atom.to(device), *moved)
