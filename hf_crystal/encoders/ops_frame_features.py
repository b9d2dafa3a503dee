"""Weighted directions of frame axes, and the angular features that they give.

The value term of CrystalFramer needs sum_a W^a <b(cos(e_a, r))> only, linear in functions of one axis at a time, so
the mean over several frames is a weighted list of axis directions. One list entry is a line through an atom, shared
by all heads and by the three axes, because heads often choose the same frame and tied frames share axes: the basis of
a line is computed once, and both its directions have the same cosines up to the sign.

The angular basis (first half of this file) is
b_k(c) = exp(-(c - c_k)² / 2 w²), c_k = -1 + 2k/(D-1), k = 0..D-1, w = 2s/(D-1), for the cosine c of the angle between
a frame axis and an image (Ito et al., "Rethinking the role of frames", ICLR 2025, arXiv 2503.02209).

What attention needs is only sum_e w_e b_k(c_e), for many weights w and the same cosines. A Gaussian of period p
somewhat above 2 is, on [-1, 1], the Gaussian itself and a short Fourier series (Poisson summation):

    b_k(c) = sum_n a_n cos(n f (c - c_k)),  f = 2π/p,  a_0 = w sqrt(2π) / p,  a_n = 2 a_0 exp(-(n f w)² / 2)

so that sums of cos(n f c) and sin(n f c), n ≤ N, give all b_k by one matrix product, to rounding. They follow from
cos(f c) and sin(f c) by the recurrence x_{n+q} = 2 cos(q f c) x_n - x_{n-q}: one multiplication per function instead
of one exponential. -c has the same cosines and opposite sines, so the opposite axis costs nothing.

Axis letters as in `ops_periodic_geometry`; L listed lines, F rows (lines through an atom), D angular basis functions,
N order of the series.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .ops_periodic_geometry import FrameAxes

__all__ = [
    "AngularSeries",
    "angular_basis",
    "angular_series",
    "axes_of_frames",
    "frame_features",
    "isotropic_angular_basis",
    "merge_axes",
    "spread_axes",
]

# Lines are processed in parts whose largest temporary has about this many numbers: a core's cache, or a GPU's memory.
PART_ENTRIES = 2_000_000
PART_ENTRIES_CUDA = 100_000_000


def _grid(num_basis: int, width_scale: float) -> tuple[float, float]:
    """Spacing and width of the basis."""
    spacing = 2.0 / (num_basis - 1)
    return spacing, width_scale * spacing


def angular_basis(
    cosines: torch.Tensor, num_basis: int, width_scale: float, *, truncate: bool = False
) -> torch.Tensor:
    """All basis functions of every cosine.

    Args:
        cosines (`torch.Tensor` of shape `(...)`): in [-1, 1].
        num_basis (`int`): D.
        width_scale (`float`): s.
        truncate (`bool`): zero all but the 8s + 1 functions nearest to c, as the released code does.

    Returns:
        `torch.Tensor` of shape `(..., D)`.
    """
    spacing, width = _grid(num_basis, width_scale)
    index = torch.arange(num_basis, device=cosines.device, dtype=cosines.dtype)
    basis = torch.exp(-0.5 * ((cosines[..., None] + 1.0 - index * spacing) / width) ** 2)
    count = math.ceil(8 * width_scale + 1)
    if truncate and num_basis - count > 8:
        end = (
            torch.trunc((cosines + 1.0 + 4.0 * width) / spacing + 1.0).clamp_max(num_basis).clamp_min(count)[..., None]
        )
        basis = basis * ((index >= end - count) & (index < end))
    return basis


def isotropic_angular_basis(num_basis: int, width_scale: float, like: torch.Tensor) -> torch.Tensor:
    """Mean of the basis over directions spread evenly on the sphere, ½ ∫ b_k(c) dc over [-1, 1], shape `(D,)`."""
    spacing, width = _grid(num_basis, width_scale)
    centers = -1.0 + torch.arange(num_basis, dtype=torch.float64) * spacing
    scale = width * math.sqrt(2.0)
    mean = 0.5 * scale * math.sqrt(math.pi) / 2 * (torch.erf((1 - centers) / scale) + torch.erf((1 + centers) / scale))
    return mean.to(device=like.device, dtype=like.dtype)


@dataclass(frozen=True)
class AngularSeries:
    """Fourier series of the basis (module docstring).

    Attributes:
        order (`int`): N.
        frequency (`float`): f.
        signs (`tuple[int]`): sign with which `functions` gives the functions of each order n.
        matrix (`torch.Tensor` of shape `(2 (N + 1), D)`): from sums of `functions` to sums of the basis, float64.
    """

    order: int
    frequency: float
    signs: tuple[int, ...]
    matrix: torch.Tensor

    def functions(self, cosines: torch.Tensor) -> torch.Tensor:
        """cos(n f c) for n = 0..N, then sin(n f c), up to `signs`.

        Args:
            cosines (`torch.Tensor` of shape `(F, M)`): c, in [-1, 1].

        Returns:
            `torch.Tensor` of shape `(F, 2 (N + 1), M)`.
        """
        values = cosines.new_empty((cosines.shape[0], 2, self.order + 1, cosines.shape[1]))
        phase = cosines * self.frequency
        values[:, 0, 0], values[:, 1, 0] = 1.0, 0.0
        torch.cos(phase, out=values[:, 0, 1])
        torch.sin(phase, out=values[:, 1, 1])
        for start, stop, step in _recurrence_steps(self.order):
            if start == 2 * step:  # a new q
                twice_cosine = (2.0 * self.signs[step] * values[:, 0, step])[:, None, None]
            sign = -self.signs[start - 2 * step] * self.signs[start - step]
            torch.addcmul(
                values[:, :, start - 2 * step : stop - 2 * step],
                values[:, :, start - step : stop - step],
                twice_cosine,
                value=sign,
                out=values[:, :, start:stop],
            )
        return values.flatten(1, 2)


def _recurrence_steps(order: int) -> list[tuple[int, int, int]]:
    """(start, stop, q): orders start..stop-1 follow from those q and 2q below; q doubles so that calls are few."""
    steps, start, step = [], 2, 1
    while start <= order:
        if start >= 4 * step:
            step *= 2
        stop = min(start + step, order + 1)
        steps.append((start, stop, step))
        start = stop
    return steps


@lru_cache(maxsize=16)
def angular_series(num_basis: int, width_scale: float, dtype: torch.dtype) -> AngularSeries:
    """The shortest series that gives the basis to the rounding of a dtype.

    Args:
        num_basis (`int`): D.
        width_scale (`float`): s.
        dtype (`torch.dtype`): of the sums.
    """
    spacing, width = _grid(num_basis, width_scale)
    # sigmas at which a Gaussian has fallen to the rounding of a sum: distance to the next period's, end of the series
    reach = math.sqrt(-2.0 * math.log(8.0 * torch.finfo(dtype).eps))
    period = 2.0 + reach * width
    frequency = 2.0 * math.pi / period
    order = max(1, math.ceil(reach / (frequency * width)))
    # x_n = 2 cos x_{n-q} - x_{n-2q} in one pass means to keep some x_n negated
    signs = [1, 1]
    for start, stop, step in _recurrence_steps(order):
        signs += [-sign for sign in signs[start - 2 * step : stop - 2 * step]]
    n = torch.arange(order + 1, dtype=torch.float64)
    amplitude = 2.0 * width * math.sqrt(2.0 * math.pi) / period * torch.exp(-0.5 * (n * frequency * width) ** 2)
    amplitude[0] *= 0.5
    amplitude *= torch.tensor(signs)
    centers = -1.0 + torch.arange(num_basis, dtype=torch.float64) * spacing
    angles = n[:, None] * frequency * centers
    matrix = torch.cat([amplitude[:, None] * angles.cos(), amplitude[:, None] * angles.sin()])
    return AngularSeries(order, frequency, tuple(signs), matrix)


def axes_of_frames(frames: torch.Tensor) -> FrameAxes:
    """One frame per atom and head.

    Args:
        frames (`torch.Tensor` of shape `(T, H, 3, 3)`): rows are axes, zero where they do not exist.
    """
    num_atoms, num_heads = frames.shape[:2]
    atom = torch.arange(num_atoms, device=frames.device).repeat_interleave(3 * num_heads)
    own = torch.eye(3 * num_heads, dtype=frames.dtype, device=frames.device).expand(num_atoms, -1, -1)
    weight = own.reshape(-1, num_heads, 3) * frames.flatten(0, 2).any(-1)[:, None, None]
    return merge_axes(FrameAxes(atom, frames.flatten(0, 2), weight, torch.zeros_like(weight)))


def merge_axes(axes: FrameAxes) -> FrameAxes:
    """List equal and opposite directions of an atom once, in the order of atoms: each line is a pass over the images.

    Directions are compared on a grid well above rounding (1e-10, in float32 2.5e-6). Two equal ones on either side of
    a grid line stay apart, which costs time only; two that differ by less than the grid may merge into their mean,
    which changes features by less than a hundredth of the grid. An exported model leaves all as they are.
    """
    if torch.compiler.is_exporting():
        return axes
    used = (axes.weight + axes.opposite).flatten(1).any(1)
    atom, direction, weight, opposite = (x[used] for x in (axes.atom, axes.direction, axes.weight, axes.opposite))
    # one of each two opposite directions: the one whose first component that is not about zero is positive
    is_nonzero = direction.abs() > 1e-6
    is_reversed = direction.gather(1, is_nonzero.to(torch.uint8).argmax(dim=1, keepdim=True)) < 0
    direction = torch.where(is_reversed, -direction, direction)
    is_reversed = is_reversed[..., None]
    weight, opposite = torch.where(is_reversed, opposite, weight), torch.where(is_reversed, weight, opposite)

    steps = 10_000_000_000 if direction.dtype == torch.float64 else 400_000
    line = atom
    for component in (torch.round(direction.double() * steps).long() + steps).unbind(1):
        _, line = torch.unique(line * (2 * steps + 1) + component, return_inverse=True)
    count = int(line.max()) + 1 if line.numel() else 0

    def summed(values: torch.Tensor) -> torch.Tensor:
        """Sums (L, ...) over equal lines."""
        return values.new_zeros((count, *values.shape[1:])).index_add_(0, line, values)

    # the weighted mean of the merged directions does not depend on their order
    mean = summed(direction * (weight + opposite).flatten(1).sum(1, keepdim=True))
    mean = mean / mean.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(mean.dtype).tiny)
    merged_atom = torch.zeros(count, dtype=torch.long, device=atom.device).scatter_(0, line, atom)
    return FrameAxes(merged_atom, mean, summed(weight), summed(opposite), axes.isotropic)


def spread_axes(axes: FrameAxes, source: torch.Tensor, num_heads: int) -> FrameAxes:
    """The same axes for all heads, and for all atoms of one source.

    Args:
        axes (`FrameAxes`): of sources (crystals, or atoms) instead of atoms, for one head, in the order of sources.
        source (`torch.Tensor` of shape `(T,)`): source of every atom.
        num_heads (`int`): H.
    """
    counts = torch.bincount(axes.atom, minlength=int(source.max()) + 1)
    starts = torch.cumsum(counts, 0) - counts
    atom = torch.arange(source.shape[0], device=source.device).repeat_interleave(counts[source])
    first = torch.cumsum(counts[source], 0) - counts[source]
    line = torch.arange(atom.shape[0], device=source.device) - first[atom] + starts[source[atom]]
    isotropic = None if axes.isotropic is None else axes.isotropic[source].expand(-1, num_heads)
    weight, opposite = (values[line].expand(-1, num_heads, -1) for values in (axes.weight, axes.opposite))
    return FrameAxes(atom, axes.direction[line], weight, opposite, isotropic)


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
    """Expected angular basis sum_e w_e b(cos(e_a, r_e)) for every axis, averaged over the listed directions.

    Differentiable (once) in the weights; the frames, and with them the cosines, are constants (paper, 3.2).
    Images that weigh less than rounding in every head are left out, also of the gradient, unless `reference`.

    Args:
        edge_weights (`torch.Tensor` of shape `(T, M, H)`): attention weights of images, 0 where none has a direction.
        unit_vectors (`torch.Tensor` of shape `(T, M, 3)`): directions of images.
        axes (`FrameAxes`): for T atoms and H heads.
        num_basis, width_scale: D and s of the module.
        reference, truncate: form the basis plainly; cut it at four sigma as the released code does.

    Returns:
        `torch.Tensor` of shape `(T, H, 3, D)`.
    """
    weights = edge_weights.transpose(1, 2)
    if reference or torch.compiler.is_exporting():
        features = _plain_features(weights, unit_vectors, axes, num_basis, width_scale, truncate)
    else:
        series = angular_series(num_basis, width_scale, weights.dtype)
        # of a line in both directions, cosines add and sines cancel
        signed = torch.stack([axes.weight + axes.opposite, axes.weight - axes.opposite], dim=2)  # (L, H, 2, 3)
        sums = _SeriesSums.apply(weights, unit_vectors.detach(), axes.atom, axes.direction, signed, series)
        features = sums.transpose(2, 3) @ series.matrix.to(sums)
    if axes.isotropic is not None:
        basis = isotropic_angular_basis(num_basis, width_scale, features)
        features = features + (axes.isotropic * weights.sum(-1))[:, :, None, None] * basis
    return features


def _cosines(unit_vectors: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """Cosines (L, M) of images (L, M, 3) and lines (L, 3)."""
    return torch.bmm(unit_vectors, direction[..., None])[..., 0].clamp_(-1.0, 1.0)


def _parts(num_lines: int, entries_per_line: int, device: torch.device) -> list[slice]:
    """Ranges of lines whose temporaries stay in cache; one where the number is not known, in export."""
    if torch.compiler.is_exporting():
        return [slice(None)]
    step = max(1, (PART_ENTRIES_CUDA if device.type == "cuda" else PART_ENTRIES) // entries_per_line)
    return [slice(start, start + step) for start in range(0, num_lines, step)]


def _plain_features(
    weights: torch.Tensor,
    unit_vectors: torch.Tensor,
    axes: FrameAxes,
    num_basis: int,
    width_scale: float,
    truncate: bool,
) -> torch.Tensor:
    """`frame_features` by forming the basis of every line; weights `(T, H, M)`."""
    total = weights.new_zeros((weights.shape[0], weights.shape[1], 3, num_basis))
    for sign, shares in ((1.0, axes.weight), (-1.0, axes.opposite)):
        lines = shares.flatten(1).any(1).nonzero()[:, 0]
        for part in _parts(lines.shape[0], weights.shape[2] * num_basis, weights.device):
            rows = lines[part]
            atom = axes.atom[rows]
            cosines = sign * _cosines(unit_vectors.index_select(0, atom), axes.direction[rows])
            basis = angular_basis(cosines, num_basis, width_scale, truncate=truncate)
            sums = torch.bmm(weights.index_select(0, atom), basis)[:, :, None]  # (L, H, 1, D)
            total = total.index_add(0, atom, sums * shares[rows][..., None])
    return total


def _images_that_count(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns `(T, m)` of the images of each atom that weigh more than rounding in some head, M where padded.

    Weights of a head sum to at most 1, and most images within the cut-off of the widest possible Gaussian weigh
    nothing in the actual one. The second result is their number, `(T,)`, at least 1.
    """
    num_atoms, _, num_images = weights.shape
    counts_image = weights.amax(1) > torch.finfo(weights.dtype).eps
    number = counts_image.sum(1)
    row, column = counts_image.nonzero(as_tuple=True)
    start = torch.cumsum(number, 0) - number
    width = max(1, int(number.max()))  # an atom alone has none
    columns = torch.full((num_atoms, width), num_images, device=weights.device)
    columns[row, torch.arange(row.shape[0], device=row.device) - start[row]] = column
    return columns, number.clamp_min_(1)


@dataclass
class _LineGroup:
    """Atoms with about the same number of lines.

    Attributes:
        atoms (`torch.Tensor` of shape `(A,)`).
        lines (`torch.Tensor` of shape `(A, l)`): their lines, L where padded.
        num_images (`int`): largest number of images that count.
    """

    atoms: torch.Tensor
    lines: torch.Tensor
    num_images: int


def _line_groups(atom: torch.Tensor, num_images: torch.Tensor, num_functions: int) -> list[_LineGroup]:
    """Groups in which one product of matrices serves all lines of an atom, much faster than one for each line.

    Args:
        atom (`torch.Tensor` of shape `(L,)`): atom of each line, ascending.
        num_images (`torch.Tensor` of shape `(T,)`): images that count.
        num_functions (`int`): of each line and image; groups are cut so that this temporary stays in cache.
    """
    counts = torch.bincount(atom, minlength=num_images.shape[0])
    first_line = torch.cumsum(counts, 0) - counts
    largest = PART_ENTRIES_CUDA if atom.is_cuda else PART_ENTRIES
    # steps of an eighth of the count: few groups, little padding
    step = 2 ** (torch.log2(counts.clamp_min(4).double()).long() - 2)
    widths, width_of_atom = torch.unique((counts + step - 1) // step * step, return_inverse=True)
    order = torch.argsort(width_of_atom * (int(num_images.max()) + 1) + num_images)
    images = num_images[order].tolist()
    groups, stop = [], 0
    for width, number in zip(widths.tolist(), torch.bincount(width_of_atom).tolist(), strict=True):
        start, stop = stop, stop + number
        if not width:
            continue
        column = torch.arange(width, device=atom.device)
        size = max(1, largest // (images[stop - 1] * num_functions * width))
        for begin in range(start, stop, size):
            end = min(begin + size, stop)
            atoms = order[begin:end]
            lines = torch.where(column < counts[atoms, None], first_line[atoms, None] + column, atom.shape[0])
            groups.append(_LineGroup(atoms, lines, images[end - 1]))
    return groups


class _SeriesSums(torch.autograd.Function):
    """Sums over images of the functions of `AngularSeries`, mixed into heads and axes: `(T, H, 2 (N + 1), 3)`.

    Functions are recomputed in the backward pass; nothing of size lines x images is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weights: torch.Tensor,
        unit_vectors: torch.Tensor,
        atom: torch.Tensor,
        direction: torch.Tensor,
        signed: torch.Tensor,
        series: AngularSeries,
    ) -> torch.Tensor:
        """The sums of weights (T, H, M), unit vectors (T, M, 3) and lines (L, 3) with shares (L, H, 2, 3)."""
        half = series.order + 1
        columns, num_images = _images_that_count(weights)
        groups = _line_groups(atom, num_images, 2 * half)
        # a last image without weight, and a last line without direction and weight, for padding
        padded = nn.functional.pad(weights, (0, 1))
        near_weights = padded.gather(2, columns[:, None].expand(-1, weights.shape[1], -1))
        units = nn.functional.pad(unit_vectors, (0, 0, 0, 1)).gather(1, columns[..., None].expand(-1, -1, 3))
        direction, signed = (nn.functional.pad(x, (0, 0) * (x.dim() - 1) + (0, 1)) for x in (direction, signed))
        ctx.save_for_backward(units, direction, signed, columns)
        ctx.series, ctx.groups, ctx.num_images = series, groups, weights.shape[2]
        total = weights.new_zeros((*weights.shape[:2], 2, half, 3))
        for group in groups:
            functions = _series_of_lines(series, units, direction, group)
            own = near_weights[:, :, : group.num_images].index_select(0, group.atoms)
            sums = torch.bmm(own, functions.transpose(1, 2)).view(*own.shape[:2], 2, half, -1)
            total.index_copy_(0, group.atoms, sums @ signed[group.lines].permute(0, 2, 3, 1, 4))
        return total.flatten(2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradient of the weights alone: frames are constants."""
        units, direction, signed, columns = ctx.saved_tensors
        grad_total = grad_outputs[0].unflatten(2, (2, -1))
        num_atoms, num_heads = grad_total.shape[:2]
        grad_near = grad_total.new_zeros((num_atoms, num_heads, columns.shape[1]))
        for group in ctx.groups:
            functions = _series_of_lines(ctx.series, units, direction, group)
            grad_sums = grad_total.index_select(0, group.atoms) @ signed[group.lines].permute(0, 2, 3, 4, 1)
            grad_near[group.atoms, :, : group.num_images] = torch.bmm(grad_sums.flatten(2), functions)
        grad_weights = grad_total.new_zeros((num_atoms, num_heads, ctx.num_images + 1))
        grad_weights.scatter_(2, columns[:, None].expand_as(grad_near), grad_near)
        return grad_weights[..., :-1], None, None, None, None, None


def _series_of_lines(
    series: AngularSeries, units: torch.Tensor, direction: torch.Tensor, group: _LineGroup
) -> torch.Tensor:
    """Functions `(A, 2 (N + 1) l, m)` of the lines of a group and the images of its atoms, `(T, m, 3)`."""
    own = units[:, : group.num_images].index_select(0, group.atoms)
    cosines = torch.bmm(direction[group.lines], own.transpose(1, 2)).clamp_(-1.0, 1.0)
    return series.functions(cosines.flatten(1)).view(cosines.shape[0], -1, cosines.shape[2])
