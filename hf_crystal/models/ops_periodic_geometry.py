"""Periodic geometry: cells, packed atoms, and the periodic images that an atom attends to.

The one crystal convention of this package: `cell[i]` is lattice vector i (rows), `positions = fractional @ cell`,
lengths in Å, reciprocal vectors in 1/Å including 2π. Axis letters: B crystals, N atoms (padded), T atoms (packed),
M periodic images per query atom (padded), P distinct key atoms per query atom (padded), H heads.
"""

import math
from dataclasses import dataclass

import torch

__all__ = [
    "NeighborLayout",
    "PackedAtoms",
    "build_layouts",
    "cell_volume",
    "cells_layouts",
    "dense_pair_layout",
    "pack_atoms",
    "plane_spacings",
    "pure_translations",
    "radius_edges",
    "radius_layouts",
    "reciprocal_cell",
    "unpack_atoms",
]

# Above this many atoms a crystal's neighbours are found with linked cells, O(N), instead of all pairs, O(N²).
LINKED_CELL_MIN_ATOMS = 128
# All-pairs search of a group of crystals is cut so that no distance table has more entries than this.
MAX_DISTANCE_ENTRIES = 8_000_000
# Atoms are dealt into at most this many layouts, each of at least so many rows.
MAX_LAYOUTS = 6
MIN_LAYOUT_ROWS = 64
# Å²; where a row of images is padded: far enough for a weight of exactly zero, so that sums over images need no mask
PADDING_SQUARED_DISTANCE = 1e12


def cell_volume(cell: torch.Tensor) -> torch.Tensor:
    """Unsigned volume of cells, Å³ (left-handed cells are as good as right-handed ones).

    Args:
        cell (`torch.Tensor` of shape `(..., 3, 3)`): lattice vectors as rows, Å.

    Returns:
        `torch.Tensor` of shape `(...)`.
    """
    return (torch.linalg.cross(cell[..., 0, :], cell[..., 1, :]) * cell[..., 2, :]).sum(-1).abs()


def reciprocal_cell(cell: torch.Tensor) -> torch.Tensor:
    """Reciprocal lattice vectors as rows, 1/Å, with `cell[i] · reciprocal[j] = 2π δ_ij`.

    Args:
        cell (`torch.Tensor` of shape `(..., 3, 3)`): lattice vectors as rows, Å.

    Returns:
        `torch.Tensor` of shape `(..., 3, 3)`.
    """
    return 2.0 * math.pi * torch.linalg.inv(cell).transpose(-1, -2)


def plane_spacings(cell: torch.Tensor) -> torch.Tensor:
    """Distances between neighbouring lattice planes along the three axes, V / |l_m x l_n|, Å.

    Args:
        cell (`torch.Tensor` of shape `(..., 3, 3)`): lattice vectors as rows, Å.

    Returns:
        `torch.Tensor` of shape `(..., 3)`.
    """
    return 1.0 / torch.linalg.inv(cell).transpose(-1, -2).norm(dim=-1)


@dataclass
class PackedAtoms:
    """Where the atoms of a padded batch live after packing.

    Attributes:
        crystal (`torch.Tensor` of shape `(T,)`): crystal of each packed atom.
        slot (`torch.Tensor` of shape `(T,)`): position of each packed atom inside its padded row.
        offsets (`torch.Tensor` of shape `(B,)`): packed index of the first atom of each crystal.
        sizes (`torch.Tensor` of shape `(B,)`): atoms per crystal.
        max_size (`int`): N of the padded batch.
    """

    crystal: torch.Tensor
    slot: torch.Tensor
    offsets: torch.Tensor
    sizes: torch.Tensor
    max_size: int


def pack_atoms(attention_mask: torch.Tensor) -> PackedAtoms:
    """Index of the real atoms of a padded batch; the mask may have holes.

    Args:
        attention_mask (`torch.Tensor` of shape `(B, N)`): nonzero for atoms, 0 for padding.
    """
    mask = attention_mask.bool()
    crystal, slot = mask.nonzero(as_tuple=True)
    sizes = mask.sum(dim=1)
    offsets = torch.cumsum(sizes, dim=0) - sizes
    return PackedAtoms(crystal, slot, offsets, sizes, attention_mask.shape[1])


def unpack_atoms(values: torch.Tensor, atoms: PackedAtoms) -> torch.Tensor:
    """Padded `(B, N, ...)` form of packed values `(T, ...)`; padding is zero."""
    padded = values.new_zeros((atoms.sizes.shape[0], atoms.max_size, *values.shape[1:]))
    return padded.index_put((atoms.crystal, atoms.slot), values)


@dataclass
class NeighborLayout:
    """Periodic images around some query atoms, one padded row per query atom.

    The atoms of a batch are dealt into a few layouts of similar numbers of images, because in a mixed batch padding to
    the densest crystal doubles the work. In a layout, T stands for its own rows; keys are any packed atoms.

    Attributes:
        rows (`torch.Tensor` of shape `(T,)`): packed indices of the query atoms.
        edge_vectors (`torch.Tensor` of shape `(T, M, 3)`): p_j + n·cell - p_i, Å; zero where padded.
        squared_distances (`torch.Tensor` of shape `(T, M)`): |r|², Å²; `PADDING_SQUARED_DISTANCE` where padded.
        edge_mask (`torch.Tensor` of shape `(T, M)`): true for images, false for padding.
        edge_pair (`torch.Tensor` of shape `(T, M)`): column of the image's key atom in `pair_key`.
        pair_key (`torch.Tensor` of shape `(T, P)`): packed index of each distinct key atom of the query.
        pair_mask (`torch.Tensor` of shape `(T, P)`): true for keys, false for padding.
        edge_images (`torch.Tensor` of shape `(T, M, 3)`, *optional*): the integers n (`cells` rule only).
    """

    rows: torch.Tensor
    edge_vectors: torch.Tensor
    squared_distances: torch.Tensor
    edge_mask: torch.Tensor
    edge_pair: torch.Tensor
    pair_key: torch.Tensor
    pair_mask: torch.Tensor
    edge_images: torch.Tensor | None = None


def build_layouts(
    query: torch.Tensor,
    key: torch.Tensor,
    vectors: torch.Tensor,
    num_atoms: int,
    images: torch.Tensor | None = None,
) -> list[NeighborLayout]:
    """Padded rows from a flat list of edges that is sorted by (query, key), in layouts of similar width.

    Args:
        query, key (`torch.Tensor` of shape `(E,)`): packed atom indices; every atom occurs as a query.
        vectors (`torch.Tensor` of shape `(E, 3)`): from query to the image of the key, Å.
        num_atoms (`int`): number of packed atoms.
        images (`torch.Tensor` of shape `(E, 3)`, *optional*): lattice integers of the images.
    """
    counts = torch.bincount(query, minlength=num_atoms)
    order = torch.argsort(counts, stable=True)
    num_layouts = max(1, min(MAX_LAYOUTS, num_atoms // MIN_LAYOUT_ROWS))
    layouts = []
    for rows in torch.tensor_split(order, num_layouts):
        place = torch.full_like(counts, -1)
        place[rows] = torch.arange(rows.shape[0], device=rows.device)
        local = place[query]
        kept = local >= 0
        by_row = torch.argsort(local[kept], stable=True)
        chosen = kept.nonzero()[:, 0][by_row]
        part_images = None if images is None else images[chosen]
        layouts.append(_padded_layout(rows, local[chosen], key[chosen], vectors[chosen], part_images))
    return layouts


def _padded_layout(
    rows: torch.Tensor, query: torch.Tensor, key: torch.Tensor, vectors: torch.Tensor, images: torch.Tensor | None
) -> NeighborLayout:
    """One layout; `query` counts its rows from 0 and is sorted."""
    device, num_rows = query.device, rows.shape[0]
    counts = torch.bincount(query, minlength=num_rows)
    starts = torch.cumsum(counts, 0) - counts
    column = torch.arange(query.shape[0], device=device) - starts[query]
    width = int(counts.max())

    is_new_pair = torch.ones_like(query, dtype=torch.bool)
    is_new_pair[1:] = (query[1:] != query[:-1]) | (key[1:] != key[:-1])
    pair_number = torch.cumsum(is_new_pair, 0) - 1
    pair_query, pair_keys = query[is_new_pair], key[is_new_pair]
    pair_counts = torch.bincount(pair_query, minlength=num_rows)
    pair_starts = torch.cumsum(pair_counts, 0) - pair_counts
    pair_column = torch.arange(pair_query.shape[0], device=device) - pair_starts[pair_query]
    pair_width = int(pair_counts.max())

    def padded(columns: int, trailing: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        return torch.zeros((num_rows, columns, *trailing), dtype=like.dtype, device=device)

    edge_mask = padded(width, (), is_new_pair).index_put((query, column), torch.ones_like(is_new_pair))
    edge_pair = padded(width, (), query).index_put((query, column), pair_column[pair_number])
    edge_vectors = padded(width, (3,), vectors).index_put((query, column), vectors)
    squared_distances = torch.where(edge_mask, edge_vectors.square().sum(-1), PADDING_SQUARED_DISTANCE)
    edge_images = None if images is None else padded(width, (3,), images).index_put((query, column), images)
    pair_mask = padded(pair_width, (), is_new_pair).index_put(
        (pair_query, pair_column), torch.ones_like(pair_query, dtype=torch.bool)
    )
    pair_key = padded(pair_width, (), query).index_put((pair_query, pair_column), pair_keys)
    return NeighborLayout(
        rows, edge_vectors, squared_distances, edge_mask, edge_pair, pair_key, pair_mask, edge_images
    )


def dense_pair_layout(atoms: PackedAtoms) -> tuple[torch.Tensor, torch.Tensor]:
    """All atoms of the query's own crystal as keys.

    Returns:
        `pair_key` and `pair_mask`, each of shape `(T, N)`, as in `NeighborLayout`.
    """
    columns = torch.arange(int(atoms.sizes.max()), device=atoms.crystal.device)
    pair_mask = columns[None, :] < atoms.sizes[atoms.crystal][:, None]
    pair_key = (atoms.offsets[atoms.crystal][:, None] + columns[None, :]).where(pair_mask, 0)
    return pair_key, pair_mask


def radius_layouts(
    positions: torch.Tensor, cell: torch.Tensor, atoms: PackedAtoms, radius: float
) -> list[NeighborLayout]:
    """All images within `radius` of each atom, itself included (the `radius` rule).

    The set depends only on the crystal: not on the choice of unit cell, origin or atom order.

    Args:
        positions (`torch.Tensor` of shape `(T, 3)`): packed Cartesian positions, Å, wrapped or not.
        cell (`torch.Tensor` of shape `(B, 3, 3)`): lattice vectors as rows, Å.
        atoms (`PackedAtoms`): from `pack_atoms`.
        radius (`float`): cut-off, Å.
    """
    with torch.no_grad():
        query, key, images = radius_edges(positions, cell, atoms, radius)
    shifts = torch.einsum("ek,ekc->ec", images.to(positions.dtype), cell[atoms.crystal[query]])
    vectors = positions[key] - positions[query] + shifts
    return build_layouts(query, key, vectors, positions.shape[0])


@torch.compiler.disable  # sizes depend on the data: a graph break is right here, and only here
def radius_edges(
    positions: torch.Tensor, cell: torch.Tensor, atoms: PackedAtoms, radius: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Edge list of `radius_layouts`, sorted by (query, key): `query (E,)`, `key (E,)`, `images (E, 3)`."""
    fractional = torch.einsum("tc,tck->tk", positions, torch.linalg.inv(cell)[atoms.crystal])
    # +1e-6: an image must not be lost because R / spacing + 1/2 was rounded down across an integer
    reach = torch.floor(radius / plane_spacings(cell) + 0.5 + 1e-6).long()
    parts = []
    is_large = atoms.sizes > LINKED_CELL_MIN_ATOMS
    for crystal in is_large.nonzero()[:, 0].tolist():
        rows = slice(int(atoms.offsets[crystal]), int(atoms.offsets[crystal] + atoms.sizes[crystal]))
        query, key, images = _linked_cell_edges(fractional[rows], cell[crystal], radius)
        parts.append((query + rows.start, key + rows.start, images))
    small = (~is_large).nonzero()[:, 0]
    if small.numel():
        # crystals that need the same number of images along each axis share one distance table
        kinds, kind = torch.unique(reach[small], dim=0, return_inverse=True)
        for number, extent in enumerate(kinds.tolist()):
            parts.extend(_all_pairs_edges(fractional, cell, atoms, small[kind == number], extent, radius))
    query = torch.cat([part[0] for part in parts])
    key = torch.cat([part[1] for part in parts])
    images = torch.cat([part[2] for part in parts])
    order = torch.argsort(query * positions.shape[0] + key, stable=True)
    return query[order], key[order], images[order]


def _image_grid(extent: list[int], device: torch.device) -> torch.Tensor:
    """All integer triples with |n_k| ≤ extent[k], in lexicographic order, shape (I, 3)."""
    axes = [torch.arange(-bound, bound + 1, device=device) for bound in extent]
    return torch.cartesian_prod(*axes).reshape(-1, 3)


def _all_pairs_edges(
    fractional: torch.Tensor,
    cell: torch.Tensor,
    atoms: PackedAtoms,
    crystals: torch.Tensor,
    extent: list[int],
    radius: float,
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Edges of crystals that share one grid of images: every pair times every image, cut into affordable parts."""
    grid = _image_grid(extent, fractional.device)
    width = int(atoms.sizes[crystals].max())
    per_crystal = width * width * grid.shape[0]
    step = max(1, MAX_DISTANCE_ENTRIES // per_crystal)
    return [
        _all_pairs_part(fractional, cell, atoms, part, width, grid, radius) for part in torch.split(crystals, step)
    ]


def _all_pairs_part(
    fractional: torch.Tensor,
    cell: torch.Tensor,
    atoms: PackedAtoms,
    crystals: torch.Tensor,
    width: int,
    grid: torch.Tensor,
    radius: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    columns = torch.arange(width, device=fractional.device)
    exists = columns[None, :] < atoms.sizes[crystals][:, None]  # (b, n)
    index = (atoms.offsets[crystals][:, None] + columns[None, :]).where(exists, 0)
    local = fractional[index]  # (b, n, 3)
    difference = local[:, None, :, :] - local[:, :, None, :]  # (b, i, j, 3)
    home = -torch.round(difference)
    cells = cell[crystals]
    wrapped = (difference + home).flatten(1, 2) @ cells  # (b, n², 3)
    shifts = grid.to(cell.dtype) @ cells  # (b, I, 3)
    squared = torch.baddbmm(wrapped.square().sum(-1)[:, :, None], wrapped, shifts.transpose(1, 2), alpha=2.0)
    squared = squared + shifts.square().sum(-1)[:, None, :]
    pair_exists = (exists[:, :, None] & exists[:, None, :]).flatten(1, 2)
    crystal, pair, image = ((squared <= radius * radius) & pair_exists[:, :, None]).nonzero(as_tuple=True)
    row, column = pair // width, pair % width
    images = grid[image] + home.flatten(1, 2)[crystal, pair].long()
    return index[crystal, row], index[crystal, column], images


def _linked_cell_edges(
    fractional: torch.Tensor, cell: torch.Tensor, radius: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Edges of one large crystal by linked cells: bins one radius wide or more, whole axes where they are short."""
    device = fractional.device
    home = torch.floor(fractional)
    wrapped = fractional - home
    spacing = plane_spacings(cell)
    bins = torch.clamp(torch.floor(spacing / radius), min=1.0)
    reach = torch.ceil(radius * bins / spacing + 1e-6).long().tolist()
    bins = bins.long()
    place = torch.minimum((wrapped * bins).long(), bins - 1)  # (N, 3)
    strides = torch.stack([bins[1] * bins[2], bins[2], torch.ones_like(bins[0])])
    number = (place * strides).sum(-1)
    order = torch.argsort(number)
    counts = torch.bincount(number, minlength=int(bins.prod()))
    starts = torch.cumsum(counts, 0) - counts
    columns = torch.arange(int(counts.max()), device=device)
    members = order[torch.clamp(starts[:, None] + columns, max=order.numel() - 1)]  # (bins, capacity)
    is_member = columns[None, :] < counts[:, None]
    parts = []
    for offset in _image_grid(reach, device):
        target = place + offset
        shift = torch.div(target, bins, rounding_mode="floor")
        neighbor = ((target - shift * bins) * strides).sum(-1)
        candidates = members[neighbor]  # (N, capacity)
        difference = (wrapped[candidates] - wrapped[:, None, :] + shift[:, None, :]) @ cell
        found = (difference.square().sum(-1) <= radius * radius) & is_member[neighbor]
        query, column = found.nonzero(as_tuple=True)
        key = candidates[query, column]
        images = shift[query] + home[query].long() - home[key].long()
        parts.append((query, key, images))
    return tuple(torch.cat([part[k] for part in parts]) for k in range(3))  # type: ignore[return-value]


def pure_translations(
    positions: torch.Tensor, atomic_numbers: torch.Tensor, cell: torch.Tensor, tolerance: float
) -> torch.Tensor:
    """Translations, other than lattice vectors of `cell`, that map a crystal onto itself: a supercell has some.

    Args:
        positions (`torch.Tensor` of shape `(N, 3)`): of one crystal, Å.
        atomic_numbers (`torch.Tensor` of shape `(N,)`).
        cell (`torch.Tensor` of shape `(3, 3)`): Å.
        tolerance (`float`): how far an atom may end from the atom that it replaces, Å.

    Returns:
        `torch.Tensor` of shape `(S, 3)`, Å, zero included.
    """
    _, kind, counts = torch.unique(atomic_numbers, return_inverse=True, return_counts=True)
    members = (kind == counts.argmin()).nonzero()[:, 0]
    inverse = torch.linalg.inv(cell)
    fractional = positions @ inverse
    same = kind[:, None] == kind[None, :]
    found = []
    for candidate in fractional[members] - fractional[members[0]]:
        difference = fractional[None, :, :] + candidate - fractional[:, None, :]
        distance = ((difference - torch.round(difference)) @ cell).norm(dim=-1)
        if bool(((distance <= tolerance) & same).any(dim=0).all()):
            found.append(candidate)
    return torch.stack(found) @ cell


def cells_layouts(
    positions: torch.Tensor, cell: torch.Tensor, atoms: PackedAtoms, extents: torch.Tensor
) -> list[NeighborLayout]:
    """All images of a box of lattice integers, centred on the raw p_j - p_i (the `cells` rule of the papers' code).

    Args:
        positions (`torch.Tensor` of shape `(T, 3)`): packed Cartesian positions, Å.
        cell (`torch.Tensor` of shape `(B, 3, 3)`): lattice vectors as rows, Å.
        atoms (`PackedAtoms`): from `pack_atoms`.
        extents (`torch.Tensor` of shape `(B, 3)`): largest |n_k| per crystal and axis.
    """
    queries, keys, image_parts = [], [], []
    for crystal, extent in enumerate(extents.tolist()):
        size, offset = int(atoms.sizes[crystal]), int(atoms.offsets[crystal])
        grid = _image_grid(extent, positions.device)
        index = torch.arange(offset, offset + size, device=positions.device)
        queries.append(index.repeat_interleave(size * grid.shape[0]))
        keys.append(index.repeat_interleave(grid.shape[0]).repeat(size))
        image_parts.append(grid.repeat(size * size, 1))
    query, key, images = torch.cat(queries), torch.cat(keys), torch.cat(image_parts)
    shifts = torch.einsum("ek,ekc->ec", images.to(positions.dtype), cell[atoms.crystal[query]])
    vectors = positions[key] - positions[query] + shifts
    return build_layouts(query, key, vectors, positions.shape[0], images)
