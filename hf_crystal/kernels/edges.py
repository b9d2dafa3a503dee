"""The flat edge list that the GPU kernels walk: all periodic images of a batch, by query atom and by key atom.

Rows of `row_start` are the compressed rows (CSR) of the query atoms. Gradients of keys and values are sums over the
edges *into* an atom; `key_start` and `key_order` are the rows of the transposed list, so that every sum is taken by
one program in a fixed order, without atomic additions: results are the same bits in every run.

Axis letters as in `ops_periodic_geometry`; E edges (periodic images of all atoms of a batch, without padding).
"""

from dataclasses import dataclass

import torch

from ..encoders.ops_crystal_frames import SELF_IMAGE_SQUARED_DISTANCE

__all__ = ["SortedEdges", "sorted_edges"]


@dataclass
class SortedEdges:
    """Periodic images of packed atoms, sorted by query atom.

    Attributes:
        query, key (`torch.Tensor` of shape `(E,)`, int32): packed atom indices.
        squared (`torch.Tensor` of shape `(E,)`): |r|², Å².
        units (`torch.Tensor` of shape `(E, 3)`): r / |r|; zero for the atom itself, which has no direction.
        row_start (`torch.Tensor` of shape `(T + 1,)`, int64): edges of query i are row_start[i]..row_start[i+1]-1.
        key_start (`torch.Tensor` of shape `(T + 1,)`, int64): the same of the transposed list.
        key_order (`torch.Tensor` of shape `(E,)`, int32): edges sorted by key, those of one key by query.
    """

    query: torch.Tensor
    key: torch.Tensor
    squared: torch.Tensor
    units: torch.Tensor
    row_start: torch.Tensor
    key_start: torch.Tensor
    key_order: torch.Tensor


def _starts(atoms: torch.Tensor, num_atoms: int) -> torch.Tensor:
    """First edge of every atom, and the number of edges at the end."""
    counts = torch.bincount(atoms, minlength=num_atoms)
    return torch.nn.functional.pad(torch.cumsum(counts, 0), (1, 0))


def sorted_edges(query: torch.Tensor, key: torch.Tensor, vectors: torch.Tensor, num_atoms: int) -> SortedEdges:
    """Both orders of a list of edges.

    Args:
        query, key (`torch.Tensor` of shape `(E,)`): packed atom indices, in any order.
        vectors (`torch.Tensor` of shape `(E, 3)`): from the query to the image of the key, Å.
        num_atoms (`int`): T; atoms without any edge are allowed.
    """
    order = torch.argsort(query, stable=True)
    query, key, vectors = query[order], key[order], vectors[order]
    squared = vectors.square().sum(-1)
    has_direction = squared > SELF_IMAGE_SQUARED_DISTANCE
    units = torch.where(has_direction, squared, torch.inf).rsqrt()[:, None] * vectors
    return SortedEdges(
        query=query.int(),
        key=key.int(),
        squared=squared,
        units=units,
        row_start=_starts(query, num_atoms),
        key_start=_starts(key, num_atoms),
        key_order=torch.argsort(key, stable=True).int(),
    )
