"""Angular Gaussian basis of CrystalFramer and its weighted sums over periodic images.

b_k(c) = exp(-(c - c_k)² / 2 w²), c_k = -1 + 2k/(D-1), k = 0..D-1, w = 2s/(D-1), for the cosine c of the angle between
a frame axis and an image (Ito et al., "Rethinking the role of frames", ICLR 2025, arXiv 2503.02209).

What attention needs is only sum_e w_e b_k(c_e), for many weights w and the same cosines. A Gaussian of period p
somewhat above 2 is, on [-1, 1], the Gaussian itself and a short Fourier series (Poisson summation):

    b_k(c) = sum_n a_n cos(n f (c - c_k)),  f = 2π/p,  a_0 = w sqrt(2π) / p,  a_n = 2 a_0 exp(-(n f w)² / 2)

so that sums of cos(n f c) and sin(n f c), n ≤ N, give all b_k by one matrix product, to rounding. They follow from
cos(f c) and sin(f c) by the recurrence x_{n+q} = 2 cos(q f c) x_n - x_{n-q}: one multiplication per function instead
of one exponential. -c has the same cosines and opposite sines, so the opposite axis costs nothing.

Axis letters: F rows (lines through an atom), M images, D angular basis functions, N order of the series.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

__all__ = ["AngularSeries", "angular_basis", "angular_series", "isotropic_angular_basis"]


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
