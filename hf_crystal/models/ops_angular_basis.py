"""Angular Gaussian basis of CrystalFramer and its weighted sums over periodic images.

b_k(c) = exp(-(c - c_k)² / 2 w²), c_k = -1 + 2k/(D-1), k = 0..D-1, w = 2s/(D-1), for the cosine c of the angle between
a frame axis and an image (Ito et al., "Rethinking the role of frames", ICLR 2025, arXiv 2503.02209).

What attention needs is only sum_e w_e b_k(c_e). `angular_sums_reference` forms b and sums. `angular_sums` uses that
on a uniform grid b factorises, b_{qa+b}(c) = U_a(c) E(c)^b C_ab, so that 1 + D/q exponentials and one small matrix
product replace D exponentials per image, and nothing of size images x D is ever stored.

Axis letters: F rows (an atom, a head and an axis), M images, D angular basis functions.
"""

import math
from typing import Any

import torch

__all__ = ["angular_basis", "angular_sums", "angular_sums_reference", "isotropic_angular_basis"]

MAX_FINE_STEPS = 8  # q: D = 64 becomes 8 x 8
# Largest exponent inside E^b and inside C_ab: their product must not overflow float32 (e^88).
MAX_EXPONENT = 40.0
# Rows are processed in parts whose largest temporary has about this many numbers (fits a core's cache).
PART_ENTRIES = 262_144


def _grid(num_basis: int, width_scale: float) -> tuple[float, float]:
    """Spacing and width of the basis."""
    spacing = 2.0 / (num_basis - 1)
    return spacing, width_scale * spacing


def _fine_steps(num_basis: int, width_scale: float) -> int:
    """q: eight where the basis is smooth, fewer where E^b would overflow (narrow functions on a fine grid)."""
    spacing, width = _grid(num_basis, width_scale)
    return max(1, min(MAX_FINE_STEPS, num_basis, int(MAX_EXPONENT * width**2 / spacing) + 1))


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


def angular_sums_reference(
    weights: torch.Tensor, cosines: torch.Tensor, num_basis: int, width_scale: float, *, truncate: bool = False
) -> torch.Tensor:
    """sum_e w_e b_k(c_e), by forming b.

    Args:
        weights, cosines (`torch.Tensor` of shape `(F, M)`): weight (0 where an image does not count) and cosine.
        num_basis, width_scale, truncate: as in `angular_basis`.

    Returns:
        `torch.Tensor` of shape `(F, D)`.
    """
    step = max(1, 4 * PART_ENTRIES // (weights.shape[1] * num_basis))
    parts = [
        torch.bmm(w[:, None, :], angular_basis(c, num_basis, width_scale, truncate=truncate))[:, 0]
        for w, c in zip(torch.split(weights, step), torch.split(cosines, step), strict=True)
    ]
    return torch.cat(parts)


class _FactorizedSums(torch.autograd.Function):
    """`angular_sums` with its own backward: factors are recomputed, only weights and cosines are kept."""

    @staticmethod
    def forward(
        ctx: Any, weights: torch.Tensor, cosines: torch.Tensor, num_basis: int, width_scale: float
    ) -> torch.Tensor:
        ctx.save_for_backward(cosines)
        ctx.basis = (num_basis, width_scale)
        constants = _constants(num_basis, width_scale, cosines)
        sums = cosines.new_empty((cosines.shape[0], num_basis))
        for rows in _parts(cosines):
            coarse, fine = _factors(cosines[rows], num_basis, width_scale)
            coarse.mul_(weights[rows][:, None, :])
            product = torch.bmm(coarse, fine.transpose(1, 2)).mul_(constants)
            sums[rows] = product.flatten(1)[:, :num_basis]
        return sums

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        (cosines,) = ctx.saved_tensors
        num_basis, width_scale = ctx.basis
        constants = _constants(num_basis, width_scale, cosines)
        padded = torch.nn.functional.pad(grad_outputs[0], (0, constants.numel() - num_basis))
        inner = padded.view(-1, *constants.shape) * constants
        grad_weights = torch.empty_like(cosines)
        for rows in _parts(cosines):
            coarse, fine = _factors(cosines[rows], num_basis, width_scale)
            grad_weights[rows] = torch.bmm(inner[rows], fine).mul_(coarse).sum(1)
        return grad_weights, None, None, None


def _parts(cosines: torch.Tensor) -> list[slice]:
    """Row ranges whose factors stay in cache."""
    if cosines.is_cuda:
        step = max(1, 512 * PART_ENTRIES // (cosines.shape[1] * MAX_FINE_STEPS))
    else:
        step = max(1, PART_ENTRIES // (cosines.shape[1] * MAX_FINE_STEPS))
    return [slice(start, start + step) for start in range(0, cosines.shape[0], step)]


def _factors(cosines: torch.Tensor, num_basis: int, width_scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """U_a(c) of shape (F, ceil(D/q), M) and E(c)^b of shape (F, q, M)."""
    spacing, width = _grid(num_basis, width_scale)
    steps = _fine_steps(num_basis, width_scale)
    coarse_index = torch.arange(0, num_basis, steps, device=cosines.device, dtype=cosines.dtype)
    coarse = (cosines[:, None, :] + (1.0 - coarse_index * spacing)[:, None]).div_(width)
    # as in radial_basis: no denormal numbers
    coarse = coarse.square_().mul_(-0.5).clamp_min_(0.9 * math.log(torch.finfo(cosines.dtype).tiny)).exp_()
    fine = cosines.new_empty((cosines.shape[0], steps, cosines.shape[1]))
    fine[:, 0] = 1.0
    ratio = torch.exp(cosines * (spacing / width**2))
    for power in range(1, steps):
        torch.mul(fine[:, power - 1], ratio, out=fine[:, power])
    return coarse, fine


def _constants(num_basis: int, width_scale: float, like: torch.Tensor) -> torch.Tensor:
    """C_ab = exp(-(c_{qa} bΔ + (bΔ)²/2) / w²), shape (ceil(D/q), q)."""
    spacing, width = _grid(num_basis, width_scale)
    steps = _fine_steps(num_basis, width_scale)
    coarse_centers = -1.0 + torch.arange(0, num_basis, steps, dtype=torch.float64) * spacing
    offsets = torch.arange(steps, dtype=torch.float64) * spacing
    exponent = -(coarse_centers[:, None] * offsets + 0.5 * offsets**2) / width**2
    return exponent.exp().to(device=like.device, dtype=like.dtype)


def angular_sums(weights: torch.Tensor, cosines: torch.Tensor, num_basis: int, width_scale: float) -> torch.Tensor:
    """Same as `angular_sums_reference` without truncation, factorised (module docstring).

    Differentiable in `weights`; the frames, and with them the cosines, are constants for the gradient (paper, 3.2).
    """
    return _FactorizedSums.apply(weights, cosines.detach(), num_basis, width_scale)
