"""Periodic geometry: cells, packed atoms, and the periodic images that an atom attends to.

The one crystal convention of this package: `cell[i]` is lattice vector i (rows), `positions = fractional @ cell`,
lengths in Å, reciprocal vectors in 1/Å including 2π. Axis letters: B crystals, N atoms (padded), T atoms (packed),
M periodic images per query atom (padded), P distinct key atoms per query atom (padded), H heads.
"""

# Why a neighbor search of our own and not vesin or another library: with the reading of crystals included it is as
# fast as vesin, positions and cells get gradients through it, and it needs torch alone, so it travels to the Hub.

import math
from dataclasses import dataclass

import torch

__all__ = [
    "MAX_LAYOUT_IMAGES",
    "PADDING_SQUARED_DISTANCE",
    "EdgeList",
    "FrameAxes",
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
    "table_layout",
    "unpack_atoms",
]

# Above this many atoms a crystal's neighbors are found with linked cells, O(N), instead of all pairs, O(N²).
LINKED_CELL_MIN_ATOMS = 128
# All-pairs search of a group of crystals is cut so that no distance table has more entries than this.
MAX_DISTANCE_ENTRIES = 8_000_000
# Atoms are dealt into at most this many layouts, unless images are many, each of at least so many rows on average.
MAX_LAYOUTS = 6
MIN_LAYOUT_ROWS = 64
# On a CPU layouts of more images would fall out of cache.
MAX_LAYOUT_IMAGES = 60_000
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
    """Distances between neighboring lattice planes along the three axes, V / |l_m x l_n|, Å.

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


@dataclass
class EdgeList:
    """All images of a batch as one flat list: edges of a pair follow each other, and so do the pairs of a query.

    Attributes:
        pair_query, pair_key (`torch.Tensor` of shape `(P,)`): packed atoms of each pair; every atom occurs as a query,
            the pairs of one query are neighbors in the list and their keys ascend.
        pair_counts (`torch.Tensor` of shape `(P,)`): images of each pair, at least one.
        vectors (`torch.Tensor` of shape `(E, 3)`): from the query to each image of the key, Å.
    """

    pair_query: torch.Tensor
    pair_key: torch.Tensor
    pair_counts: torch.Tensor
    vectors: torch.Tensor


@dataclass
class FrameAxes:
    """Weighted directions of the frame axes of every atom and head.

    Attributes:
        atom (`torch.Tensor` of shape `(L,)`): atom of each line, ascending.
        direction (`torch.Tensor` of shape `(L, 3)`): unit vectors.
        weight (`torch.Tensor` of shape `(L, H, 3)`): weight of the direction in each head and axis.
        opposite (`torch.Tensor` of shape `(L, H, 3)`): weight of the opposite direction. Both, summed over the lines
            of an atom, are 1 for each head and axis (0 where an axis does not exist).
        isotropic (`torch.Tensor` of shape `(T, H)`, *optional*): weight of "any direction" for all three axes.
    """

    atom: torch.Tensor
    direction: torch.Tensor
    weight: torch.Tensor
    opposite: torch.Tensor
    isotropic: torch.Tensor | None = None


def build_layouts(
    edges: EdgeList, num_atoms: int, images: torch.Tensor | None = None, max_images: int = MAX_LAYOUT_IMAGES
) -> list[NeighborLayout]:
    """Padded rows of a flat list of edges, in layouts of similar width.

    All layouts are slices of one buffer, so that the edges are moved once.

    Args:
        edges (`EdgeList`): every atom is a query.
        num_atoms (`int`): number of packed atoms.
        images (`torch.Tensor` of shape `(E, 3)`, *optional*): lattice integers of the edges.
        max_images (`int`): of a layout, on a CPU.
    """
    device = edges.pair_query.device
    num_pairs, num_edges = edges.pair_query.shape[0], edges.vectors.shape[0]
    counts = torch.zeros(num_atoms, dtype=torch.long, device=device)
    counts.index_add_(0, edges.pair_query, edges.pair_counts)
    pair_counts = torch.bincount(edges.pair_query, minlength=num_atoms)
    is_first = torch.ones_like(edges.pair_query, dtype=torch.bool)
    is_first[1:] = edges.pair_query[1:] != edges.pair_query[:-1]
    first_pair = torch.empty_like(counts)
    first_pair[edges.pair_query[is_first]] = is_first.nonzero()[:, 0]
    pair_start = torch.cumsum(edges.pair_counts, 0) - edges.pair_counts

    num_layouts = max(1, min(MAX_LAYOUTS, num_atoms // MIN_LAYOUT_ROWS))
    if device.type == "cpu":
        num_layouts = min(num_atoms, max(num_layouts, math.ceil(num_edges / max_images)))
    layout_rows = _deal_rows(counts, num_layouts)
    edge_base, edge_widths = _row_starts(layout_rows, counts)
    pair_base, pair_widths = _row_starts(layout_rows, pair_counts)
    pair_column = torch.arange(num_pairs, device=device) - first_pair[edges.pair_query]
    pair_place = pair_base[edges.pair_query] + pair_column
    # how far each pair's edges move from the flat list to the rows
    move = edge_base[edges.pair_query] - pair_start[first_pair[edges.pair_query]]
    move, column = torch.repeat_interleave(torch.stack([move, pair_column], 1), edges.pair_counts, dim=0).unbind(1)
    place = move + torch.arange(num_edges, device=device)

    def padded(place: torch.Tensor, values: torch.Tensor, rows: int) -> torch.Tensor:
        empty = torch.zeros((rows, *values.shape[1:]), dtype=values.dtype, device=device)
        return empty.index_copy(0, place, values)

    sizes = [rows.shape[0] * width for rows, width in zip(layout_rows, edge_widths, strict=True)]
    pair_sizes = [rows.shape[0] * width for rows, width in zip(layout_rows, pair_widths, strict=True)]
    edge_vectors = padded(place, edges.vectors, sum(sizes)).split(sizes)
    edge_pair = padded(place, column, sum(sizes)).split(sizes)
    edge_images = [None] * len(layout_rows) if images is None else padded(place, images, sum(sizes)).split(sizes)
    pair_key = padded(pair_place, edges.pair_key, sum(pair_sizes)).split(pair_sizes)
    layouts = []
    for part, rows in enumerate(layout_rows):
        width, pair_width = edge_widths[part], pair_widths[part]
        edge_mask = torch.arange(width, device=device) < counts[rows][:, None]
        own_vectors, own_images = edge_vectors[part].view(-1, width, 3), edge_images[part]
        layouts.append(
            NeighborLayout(
                rows=rows,
                edge_vectors=own_vectors,
                squared_distances=_squared(own_vectors).masked_fill(~edge_mask, PADDING_SQUARED_DISTANCE),
                edge_mask=edge_mask,
                edge_pair=edge_pair[part].view(-1, width),
                pair_key=pair_key[part].view(-1, pair_width),
                pair_mask=torch.arange(pair_width, device=device) < pair_counts[rows][:, None],
                edge_images=None if own_images is None else own_images.view(-1, width, 3),
            )
        )
    return layouts


def _deal_rows(counts: torch.Tensor, num_layouts: int) -> tuple[torch.Tensor, ...]:
    """Atoms in order of their numbers of images, cut into parts of about equally many images, none empty."""
    order = torch.argsort(counts, stable=True)
    total = torch.cumsum(counts[order], 0)
    ends = torch.searchsorted(total, total[-1] * torch.arange(1, num_layouts, device=counts.device) // num_layouts)
    return tuple(part for part in torch.tensor_split(order, ends.cpu()) if part.numel())


def _row_starts(layout_rows: tuple[torch.Tensor, ...], counts: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """Start of each atom's padded row in a buffer of all layouts, and the widths of the layouts."""
    widths = torch.stack([counts[rows].max() for rows in layout_rows]).tolist()
    starts, offset = torch.empty_like(counts), 0
    for rows, width in zip(layout_rows, widths, strict=True):
        starts[rows] = offset + width * torch.arange(rows.shape[0], device=rows.device)
        offset += width * rows.shape[0]
    return starts, widths


def _squared(vectors: torch.Tensor) -> torch.Tensor:
    """|v|² over the last axis of length 3, faster than a reduction over so short an axis."""
    x, y, z = vectors.unbind(-1)
    return x * x + y * y + z * z


def dense_pair_layout(atoms: PackedAtoms) -> tuple[torch.Tensor, torch.Tensor]:
    """All atoms of the query's own crystal as keys.

    Returns:
        `pair_key` and `pair_mask`, each of shape `(T, N)`, as in `NeighborLayout`.
    """
    columns = torch.arange(atoms.max_size, device=atoms.crystal.device)
    pair_mask = columns[None, :] < atoms.sizes[atoms.crystal][:, None]
    pair_key = (atoms.offsets[atoms.crystal][:, None] + columns[None, :]).where(pair_mask, 0)
    return pair_key, pair_mask


def radius_layouts(
    positions: torch.Tensor,
    cell: torch.Tensor,
    atoms: PackedAtoms,
    radius: float,
    max_images: int = MAX_LAYOUT_IMAGES,
) -> list[NeighborLayout]:
    """All images within `radius` of each atom, itself included (the `radius` rule).

    The set depends only on the crystal: not on the choice of unit cell, origin or atom order.

    Args:
        positions (`torch.Tensor` of shape `(T, 3)`): packed Cartesian positions, Å, wrapped or not.
        cell (`torch.Tensor` of shape `(B, 3, 3)`): lattice vectors as rows, Å.
        atoms (`PackedAtoms`): from `pack_atoms`.
        radius (`float`): cut-off, Å.
        max_images (`int`): of a layout, on a CPU.
    """
    return build_layouts(radius_edges(positions, cell, atoms, radius), positions.shape[0], max_images=max_images)


def table_layout(positions: torch.Tensor, cell: torch.Tensor, atoms: PackedAtoms, radius: float) -> NeighborLayout:
    """The images of `radius_layouts` in one layout, a row for each atom and a column for each image of a whole box.

    Plain operations, few of whose sizes depend on the data: what `torch.export` can trace. They need more memory,
    because every image of a box is formed; arguments as in `radius_layouts`.
    """
    pair_key, pair_mask = dense_pair_layout(atoms)  # (T, N)
    cells = cell[atoms.crystal]
    # rows of the inverse, transposed, by cross products: ONNX has no matrix inverse
    a, b, c = cell.detach().unbind(1)
    normals = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], 1)
    normals = normals / (normals[:, 0] * a).sum(-1)[:, None, None]
    fractional = torch.einsum("tc,tkc->tk", positions.detach(), normals[atoms.crystal])
    home = torch.round(fractional[:, None] - fractional[pair_key])
    wrapped = positions[pair_key] - positions[:, None] + torch.einsum("tpk,tkc->tpc", home, cells)
    # +1e-6: an image must not be lost because R / spacing + 1/2 was rounded down across an integer
    reach = torch.floor(radius * normals.norm(dim=-1) + 0.5 + 1e-6).long().amax(0)
    axes = []
    for extent in reach:
        bound = extent.item()
        torch._check(bound >= 0)  # for the tracer
        axes.append(torch.arange(-bound, bound + 1, device=cell.device))
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3).to(cell.dtype)
    lattice = torch.einsum("ik,tkc->tic", grid, cells)  # (T, I, 3)
    vectors = (wrapped[:, :, None] + lattice[:, None]).flatten(1, 2)  # (T, N * I, 3)
    squared = _squared(vectors)
    columns = torch.arange(pair_key.shape[1], device=cell.device)[:, None].expand(-1, grid.shape[0]).flatten()
    in_reach = (squared <= radius * radius) & pair_mask[:, columns]
    squared = squared.masked_fill(~in_reach, PADDING_SQUARED_DISTANCE)
    width = in_reach.sum(1).max().item()
    torch._check(width >= 1)
    torch._check(width <= squared.shape[1])
    nearest = squared.argsort(1)[:, :width]
    edge_mask = in_reach.gather(1, nearest)
    return NeighborLayout(
        rows=torch.arange(positions.shape[0], device=cell.device),
        edge_vectors=vectors.gather(1, nearest[..., None].expand(-1, -1, 3)) * edge_mask[..., None],
        squared_distances=squared.gather(1, nearest),
        edge_mask=edge_mask,
        edge_pair=columns[nearest],
        pair_key=pair_key,
        pair_mask=pair_mask,
    )


@torch.compiler.disable  # sizes depend on the data: a graph break is right here, and only here
def radius_edges(positions: torch.Tensor, cell: torch.Tensor, atoms: PackedAtoms, radius: float) -> EdgeList:
    """Flat list of the edges of `radius_layouts`; gradients of the vectors reach `positions` and `cell`."""
    fractional = torch.einsum("tc,tck->tk", positions.detach(), torch.linalg.inv(cell.detach())[atoms.crystal])
    is_large = atoms.sizes > LINKED_CELL_MIN_ATOMS
    parts = []
    for crystal in is_large.nonzero()[:, 0].tolist():
        rows = slice(int(atoms.offsets[crystal]), int(atoms.offsets[crystal] + atoms.sizes[crystal]))
        with torch.no_grad():
            query, key, images = _linked_cell_edges(fractional[rows], cell[crystal], radius)
            order = torch.argsort(query * fractional.shape[0] + key, stable=True)
            query, key = query[order] + rows.start, key[order] + rows.start
            pairs, counts = torch.unique_consecutive(query * fractional.shape[0] + key, return_counts=True)
        vectors = positions[key] - positions[query] + images[order].to(cell.dtype) @ cell[crystal]
        parts.append(EdgeList(pairs // fractional.shape[0], pairs % fractional.shape[0], counts, vectors))
    small = (~is_large).nonzero()[:, 0]
    if small.numel():
        parts.append(_all_pairs_edges(positions, fractional, cell, atoms, small, radius))
    if len(parts) == 1:
        return parts[0]
    return EdgeList(*(torch.cat([getattr(part, name) for part in parts]) for name in EdgeList.__annotations__))


def _image_grid(extent: list[int], device: torch.device) -> torch.Tensor:
    """All integer triples with |n_k| ≤ extent[k], in lexicographic order, shape (I, 3)."""
    axes = [torch.arange(-bound, bound + 1, device=device) for bound in extent]
    return torch.cartesian_prod(*axes).reshape(-1, 3)


def _all_pairs_edges(
    positions: torch.Tensor,
    fractional: torch.Tensor,
    cell: torch.Tensor,
    atoms: PackedAtoms,
    crystals: torch.Tensor,
    radius: float,
) -> EdgeList:
    """Edges of small crystals: every pair of atoms, brought to its nearest cell, times every image in reach.

    |w + s|² <= R² for a pair vector w and a lattice vector s is a product of (w, |w|², 1) with (2 s, 1, |s|² - R²),
    so that one matrix product per group of similar crystals gives the table of what is in reach.
    """
    device = positions.device
    sizes = atoms.sizes[crystals]
    num_pairs = sizes * sizes
    pair_start = torch.cumsum(num_pairs, 0) - num_pairs
    place = torch.repeat_interleave(torch.arange(crystals.shape[0], device=device), num_pairs)
    local = torch.arange(place.shape[0], device=device) - pair_start[place]
    first = atoms.offsets[crystals][place]
    query = first + local // sizes[place]
    key = first + local % sizes[place]
    home = torch.round(fractional[query] - fractional[key])
    cells = cell[crystals]
    wrapped = positions[key] - positions[query] + torch.einsum("pk,pkc->pc", home, cells[place])
    with torch.no_grad():
        squared = _squared(wrapped)[:, None]
        terms = torch.cat([wrapped, squared, torch.ones_like(squared)], 1)
        # the last row stands for pairs that padding adds: never in reach
        terms = torch.cat([terms, terms.new_tensor([[0.0, 0.0, 0.0, 1e30, 0.0]])])
        # +1e-6: an image must not be lost because R / spacing + 1/2 was rounded down across an integer
        reach = torch.floor(radius / plane_spacings(cells) + 0.5 + 1e-6).long()
        # lattice vectors in an order of falling reach, so that fewer kinds of crystals differ
        reach, order = torch.sort(reach, dim=1, descending=True)
    pair_parts, lattice_parts, lattice_vectors, num_lattice = [], [], [], 0
    turned = cells.gather(1, order[:, :, None].expand(-1, -1, 3))
    for group, extent in _similar_crystals(sizes, reach):
        grid = _image_grid(extent, device)
        lattice = grid.to(cell.dtype) @ turned[group]  # (b, I, 3)
        with torch.no_grad():
            pairs, images = _in_reach(terms, pair_start[group], sizes[group], lattice, radius)
        pair_parts.append(pairs)
        lattice_parts.append(images + num_lattice)
        lattice_vectors.append(lattice.flatten(0, 1))
        num_lattice += lattice_vectors[-1].shape[0]
    pair = torch.cat(pair_parts)
    vectors = wrapped.index_select(0, pair) + torch.cat(lattice_vectors).index_select(0, torch.cat(lattice_parts))
    found, counts = torch.unique_consecutive(pair, return_counts=True)
    return EdgeList(query[found], key[found], counts, vectors)


def _similar_crystals(sizes: torch.Tensor, reach: torch.Tensor) -> list[tuple[torch.Tensor, list[int]]]:
    """Groups of crystals of one reach and of almost one size, none with too large a table; and their reach."""
    steps = torch.where(sizes <= 8, 2, 4)
    rounded = torch.div(sizes + steps - 1, steps, rounding_mode="floor") * steps
    kinds, kind = torch.unique(torch.cat([reach, rounded[:, None]], 1), dim=0, return_inverse=True)
    members = torch.argsort(kind, stable=True).split(torch.bincount(kind).tolist())
    groups = []
    for (*extent, width), group in zip(kinds.tolist(), members, strict=True):
        table = width * width * math.prod(2 * bound + 1 for bound in extent)
        groups += [(part, extent) for part in group.split(max(1, MAX_DISTANCE_ENTRIES // table))]
    return groups


def _in_reach(
    terms: torch.Tensor, pair_start: torch.Tensor, sizes: torch.Tensor, lattice: torch.Tensor, radius: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs and lattice vectors of some crystals whose sum is within the radius.

    Args:
        terms (`torch.Tensor` of shape `(P + 1, 5)`): of all pairs; the last row is never in reach.
        pair_start, sizes (`torch.Tensor` of shape `(b,)`): place of each crystal's pairs in `terms`, and its atoms.
        lattice (`torch.Tensor` of shape `(b, I, 3)`): Å.
        radius (`float`): Å.

    Returns:
        Rows of `terms` and rows of `lattice` (flattened) of every edge, sorted by query, key and image.
    """
    columns = torch.arange(int(sizes.max()), device=terms.device)
    exists = columns < sizes[:, None]  # (b, n)
    pair = pair_start[:, None, None] + columns[:, None] * sizes[:, None, None] + columns  # (b, n, n)
    pair = torch.where(exists[:, :, None] & exists[:, None, :], pair, terms.shape[0] - 1).flatten(1)
    squared = _squared(lattice)[:, :, None]
    factors = torch.cat([2.0 * lattice, torch.ones_like(squared), squared - radius * radius], 2)
    table = torch.bmm(terms[pair], factors.transpose(1, 2))  # (b, n², I)
    found, image = (table <= 0.0).flatten(0, 1).nonzero(as_tuple=True)
    first = torch.arange(lattice.shape[0], device=terms.device) * lattice.shape[1]
    return pair.flatten()[found], image + first.repeat_interleave(pair.shape[1])[found]


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
    """All images of a box of lattice integers, centered on the raw p_j - p_i (the `cells` rule of the papers' code).

    Args:
        positions (`torch.Tensor` of shape `(T, 3)`): packed Cartesian positions, Å.
        cell (`torch.Tensor` of shape `(B, 3, 3)`): lattice vectors as rows, Å.
        atoms (`PackedAtoms`): from `pack_atoms`.
        extents (`torch.Tensor` of shape `(B, 3)`): largest |n_k| per crystal and axis.
    """
    queries, keys, counts, image_parts = [], [], [], []
    for crystal, extent in enumerate(extents.tolist()):
        size, offset = int(atoms.sizes[crystal]), int(atoms.offsets[crystal])
        grid = _image_grid(extent, positions.device)
        index = torch.arange(offset, offset + size, device=positions.device)
        queries.append(index.repeat_interleave(size))
        keys.append(index.repeat(size))
        counts.append(torch.full((size * size,), grid.shape[0], device=positions.device))
        image_parts.append(grid.repeat(size * size, 1))
    query, key, pair_counts, images = torch.cat(queries), torch.cat(keys), torch.cat(counts), torch.cat(image_parts)
    number = torch.repeat_interleave(torch.arange(query.shape[0], device=query.device), pair_counts)
    shifts = torch.einsum("ek,ekc->ec", images.to(positions.dtype), cell[atoms.crystal[query[number]]])
    vectors = (positions[key] - positions[query])[number] + shifts
    return build_layouts(EdgeList(query, key, pair_counts, vectors), positions.shape[0], images)
