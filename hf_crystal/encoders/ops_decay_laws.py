"""Decay laws: how the weight of a periodic image falls with its distance, one law for each head.

With the length l_i of a query atom (`gaussian_widths`) and u = |r|² / l_i², a law is one function phi(u), the
logarithm of the weight, 0 at the atom itself:

    gaussian   exp(-r² / 2 l²)                                     phi = -u / 2
    yukawa     e^(-kappa s) / s,  s² = r² + 1/kappa²,  kappa = √2 / l    phi = 1 - s' - log s',  s' = √(2 u + 1)
    vdw        1 / (r⁶ + r0⁶),  r0 = √1.5 l                         phi = -log(1 + (u / 1.5)³)

so that every law has the mean squared distance 3 l² (yukawa: without its core), and differs in its tail. The core of
1/kappa keeps a Yukawa weight finite at the atom itself; from 3/kappa on it is the law without it to 2 %.

Heads are grouped by law: `HeadLaws` lists each law with its heads. Axis letters as in `ops_periodic_attention`.

A routed head sums in both spaces: its weight of a key j is g e^alpha_ij (real) + (1 - g) e^alpha_ij (reciprocal), with
a gate g of the head; alpha of both spaces is 0 for an atom far from all others.
"""

import math
from collections.abc import Callable

import torch

__all__ = ["DECAY_LAWS", "HeadLaws", "decay_log_weights", "decay_slopes", "heads_by_law", "real_shares", "tail_share"]

DECAY_LAWS = ("gaussian", "yukawa", "vdw")

HeadLaws = tuple[tuple[str, tuple[int, ...]], ...]
"""Each law with the heads that follow it."""

VDW_LENGTH_SQUARED = 1.5  # r0² / l²
# of the Yukawa law with its core, from 0 to infinity, in units of 4 pi / kappa³: the modified Bessel function K_1(1)
YUKAWA_TOTAL = 0.6019072301972346


def heads_by_law(laws: list[str]) -> HeadLaws | None:
    """Groups heads by their law.

    Args:
        laws (`list[str]`): law of each head.

    Returns:
        Laws and heads; none where all heads are Gaussian, for which attention has a shorter way.
    """
    if set(laws) <= {"gaussian"}:
        return None
    return tuple(
        (law, tuple(head for head, own in enumerate(laws) if own == law)) for law in DECAY_LAWS if law in laws
    )


def _log_weight(law: str, u: torch.Tensor) -> torch.Tensor:
    if law == "yukawa":
        root = (2.0 * u + 1.0).sqrt()
        return 1.0 - root - root.log()
    if law == "vdw":
        return -torch.log1p((u / VDW_LENGTH_SQUARED).pow(3))
    return -0.5 * u


def _slope(law: str, u: torch.Tensor) -> torch.Tensor:
    """Derivative of `_log_weight`."""
    if law == "yukawa":
        root = (2.0 * u + 1.0).sqrt()
        return -(1.0 + 1.0 / root) / root
    if law == "vdw":
        scaled = u / VDW_LENGTH_SQUARED
        return -3.0 / VDW_LENGTH_SQUARED / (scaled + scaled.pow(-2))  # the cube of a padded distance may overflow
    return torch.full_like(u, -0.5)


def decay_log_weights(u: torch.Tensor, laws: HeadLaws, dim: int) -> torch.Tensor:
    """phi(u) of every image and head.

    Args:
        u (`torch.Tensor`): |r|² / l² with heads along `dim`.
        laws (`HeadLaws`): from `heads_by_law`.
        dim (`int`): axis of the heads.
    """
    return _by_law(_log_weight, u, laws, dim)


def decay_slopes(u: torch.Tensor, laws: HeadLaws, dim: int) -> torch.Tensor:
    """Derivative of phi by u; arguments as in `decay_log_weights`."""
    return _by_law(_slope, u, laws, dim)


def _by_law(
    function: Callable[[str, torch.Tensor], torch.Tensor], u: torch.Tensor, laws: HeadLaws, dim: int
) -> torch.Tensor:
    if len(laws) == 1:
        return function(laws[0][0], u)
    order, sizes = [head for _, heads in laws for head in heads], [len(heads) for _, heads in laws]
    if order == sorted(order):  # heads of a law beside each other need not be moved
        return torch.cat([function(law, part) for (law, _), part in zip(laws, u.split(sizes, dim), strict=True)], dim)
    places = torch.tensor(order, device=u.device)
    parts = u.index_select(dim, places).split(sizes, dim)
    found = torch.cat([function(law, part) for (law, _), part in zip(laws, parts, strict=True)], dim)
    return found.index_select(dim, torch.argsort(places))


def tail_share(law: str, reach: float) -> float:
    """Share of a law's weight beyond `reach` lengths, in a crystal of even density: the error of the radius rule.

    Gaussian: erfc(x/√2) + √(2/π) x e^(-x²/2). Yukawa, as an upper bound: e^(-y) (1 + y) / K_1(1), y = √2 x. Van der
    Waals: 1 - 2/π arctan((x / √1.5)³).

    Args:
        law (`str`): one of `DECAY_LAWS`.
        reach (`float`): x, the radius in units of the length l.
    """
    if law == "yukawa":
        scaled = math.sqrt(2.0) * reach
        return math.exp(-scaled) * (1.0 + scaled) / YUKAWA_TOTAL
    if law == "vdw":
        return 2.0 / math.pi * math.atan((VDW_LENGTH_SQUARED**0.5 / reach) ** 3)
    return math.erfc(reach / math.sqrt(2.0)) + math.sqrt(2.0 / math.pi) * reach * math.exp(-0.5 * reach**2)


def real_shares(gate_logits: torch.Tensor, real_total: torch.Tensor, reciprocal_total: torch.Tensor) -> torch.Tensor:
    """Share of attention that each atom pays in real space, of heads that are routed between both spaces.

    With S the sum over keys of exp(q_i·k_j / sqrt d + alpha_ij) in one space, the share is
    g S_real / (g S_real + (1 - g) S_reciprocal): the softmax over the keys of both spaces, g being the gate.

    Args:
        gate_logits (`torch.Tensor` of shape `(H,)`): log(g / (1 - g)).
        real_total, reciprocal_total (`torch.Tensor` of shape `(T, H)`): log S of both spaces.

    Returns:
        `torch.Tensor` of shape `(T, H)`.
    """
    return torch.sigmoid(gate_logits + real_total - reciprocal_total)
