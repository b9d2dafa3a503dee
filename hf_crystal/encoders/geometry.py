"""What all blocks of an encoder share about a batch: periodic images, their radial basis, reciprocal vectors."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.utils import logging

from .configuration_crystalformer import CrystalformerConfig
from .ops_periodic_attention import RadialBasis
from .ops_periodic_geometry import (
    MAX_LAYOUT_IMAGES,
    FrameAxes,
    NeighborLayout,
    PackedAtoms,
    cells_layouts,
    dense_pair_layout,
    pack_atoms,
    plane_spacings,
    radius_layouts,
    reciprocal_cell,
    table_layout,
)

__all__ = ["CrystalGeometry", "ImageBlock", "box_extents", "build_geometry", "reciprocal_vectors"]

logger = logging.get_logger(__name__)

BOX_MARGIN = 0.01  # Å, added to the adaptive radius of the `cells` rule by the released code


@dataclass
class ImageBlock:
    """Images of some atoms of a batch and what is known about them from geometry alone.

    Attributes:
        layout (`NeighborLayout`): the images; T below is its number of rows.
        radial (`torch.Tensor` of shape `(T, M, k)` or `RadialBasis`, *optional*): radial basis of every image, without
            the last functions if no image reaches them, or how to form it.
        unit_vectors (`torch.Tensor` of shape `(T, M, 3)`, *optional*): directions of images (CrystalFramer).
        static_axes (`FrameAxes`, *optional*): frames that depend on the geometry alone (CrystalFramer).
        keeps_frames (`bool`): whether each block of CrystalFramer leaves its frames here.
        frames (`tuple`, *optional*): `FrameAxes` of the block that ran last, and its weights `(T, M, H)` of images
            that have a direction.
    """

    layout: NeighborLayout
    radial: torch.Tensor | RadialBasis | None = None
    unit_vectors: torch.Tensor | None = None
    static_axes: FrameAxes | None = None
    keeps_frames: bool = False
    frames: tuple[FrameAxes, torch.Tensor] | None = None


@dataclass
class CrystalGeometry:
    """What all blocks share about a batch of crystals; computed once, in at least float32.

    Attributes:
        atoms (`PackedAtoms`): where packed atoms live in the padded batch.
        positions (`torch.Tensor` of shape `(T, 3)`), cell (`torch.Tensor` of shape `(B, 3, 3)`): Å.
        atomic_numbers (`torch.Tensor` of shape `(T,)`): elements.
        composition (`torch.Tensor` of shape `(T, 118)`, *optional*): occupancy of each element, column Z - 1, at each
            site, where some crystal of the batch is disordered.
        occupancy, log_occupancy (`torch.Tensor` of shape `(T,)`, *optional*): of whole sites; an empty one is far
            below rounding, not -inf, so that its own row stays finite.
        images (`list[ImageBlock]`): periodic images of all atoms (real-space blocks).
        kernels (module, *optional*): `hf_crystal.kernels.encoder`, where the Triton kernels run.
        edges (`hf_crystal.kernels.edges.SortedEdges`, *optional*): the same images as one list, instead of `images`,
            for the Triton kernels.
        order (`torch.Tensor` of shape `(T,)`, *optional*): place of each packed atom in the rows of all `images`.
        box_unit (`torch.Tensor` of shape `(B, 3)`, *optional*): 1 / plane spacing, for the `cells` rule's boxes.
        waves (`tuple`, *optional*): reciprocal vectors and multiplicities.
        pairs (`tuple`, *optional*): `dense_pair_layout` (reciprocal blocks).
    """

    atoms: PackedAtoms
    positions: torch.Tensor
    cell: torch.Tensor
    atomic_numbers: torch.Tensor
    composition: torch.Tensor | None = None
    occupancy: torch.Tensor | None = None
    log_occupancy: torch.Tensor | None = None
    images: list[ImageBlock] = field(default_factory=list)
    kernels: Any = None
    edges: Any = None
    order: torch.Tensor | None = None
    box_unit: torch.Tensor | None = None
    waves: tuple[torch.Tensor, torch.Tensor] | None = None
    pairs: tuple[torch.Tensor, torch.Tensor] | None = None


@torch.compiler.disable  # counts depend on the data
def build_geometry(
    config: CrystalformerConfig,
    atomic_numbers: torch.Tensor,
    positions: torch.Tensor,
    cell: torch.Tensor,
    attention_mask: torch.Tensor,
    occupancies: torch.Tensor | None = None,
) -> CrystalGeometry:
    """Images, radial basis and reciprocal vectors of a padded batch.

    Args:
        config (`CrystalformerConfig`): the model's configuration.
        atomic_numbers (`torch.Tensor` of shape `(B, N)`): elements.
        positions (`torch.Tensor` of shape `(B, N, 3)`), cell (`torch.Tensor` of shape `(B, 3, 3)`): Å.
        attention_mask (`torch.Tensor` of shape `(B, N)`): nonzero for atoms.
        occupancies (`torch.Tensor` of shape `(B, N, 118)`, *optional*): of each element, column Z - 1.
    """
    atoms = pack_atoms(attention_mask)
    empty = [] if torch.compiler.is_exporting() else (atoms.sizes == 0).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(f"attention_mask has no atom for the crystals at batch positions {empty}; at least one each.")
    packed = positions[atoms.crystal, atoms.slot]
    geometry = CrystalGeometry(atoms, packed, cell, atomic_numbers[atoms.crystal, atoms.slot])
    if occupancies is not None:
        geometry.composition = occupancies[atoms.crystal, atoms.slot].to(packed.dtype)
        geometry.occupancy = geometry.composition.sum(-1)
        geometry.log_occupancy = geometry.occupancy.clamp_min(torch.finfo(packed.dtype).tiny).log()
    if config.attention_kernel == "triton":
        geometry.kernels = _triton_kernels(
            config, packed, cell, "disordered crystals" if occupancies is not None else None
        )
    if geometry.kernels is not None:
        radius = float(config.cutoff_sigmas) * config.largest_real_sigma
        geometry.edges = geometry.kernels.batch_edges(packed, cell, atoms, radius)
    elif config.domain != "reciprocal":
        if config.image_selection == "radius":
            radius = float(config.cutoff_sigmas) * config.largest_real_sigma
            # In training the temporaries of layouts set the peak memory; frames cost time for each layout.
            is_small = torch.is_grad_enabled() and config.model_type == "crystalformer"
            max_images = MAX_LAYOUT_IMAGES // 4 if is_small else MAX_LAYOUT_IMAGES
            if torch.compiler.is_exporting():
                layouts = [table_layout(packed, cell, atoms, radius)]
            else:
                layouts = radius_layouts(packed, cell, atoms, radius, max_images)
        else:
            geometry.box_unit = 1.0 / plane_spacings(cell)
            largest = torch.full_like(cell[:, 0, 0], config.largest_real_sigma)
            layouts = cells_layouts(packed, cell, atoms, box_extents(config, largest, geometry.box_unit))
        geometry.images = [ImageBlock(layout, _radial(config, layout)) for layout in layouts]
        geometry.order = torch.argsort(torch.cat([layout.rows for layout in layouts]))
    if config.domain != "real":
        longest = float(config.cutoff_sigmas) / config.smallest_reciprocal_sigma
        by_radius = config.image_selection == "radius"
        geometry.waves = reciprocal_vectors(cell, config.cell_range, longest if by_radius else None)
        geometry.pairs = dense_pair_layout(atoms)
    return geometry


def reciprocal_vectors(
    cell: torch.Tensor, extent: int, largest: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half of the reciprocal lattice vectors of each crystal, the zero vector first.

    Args:
        cell (`torch.Tensor` of shape `(B, 3, 3)`): lattice vectors as rows, Å.
        extent (`int`): with `largest=None`, all integer triples with |m_k| ≤ extent (the papers' rule).
        largest (`float`, *optional*): all vectors no longer than this, 1/Å, instead: independent of the cell's choice.

    Returns:
        vectors of shape `(B, R, 3)` (1/Å) and multiplicities of shape `(B, R)`: 1 for zero, 2 for each ±m, 0 padding.
    """
    reciprocal = reciprocal_cell(cell)
    if largest is None:
        bounds = [extent] * 3
    else:
        # |m_k| = |w·l_k| / 2π ≤ |w| |l_k| / 2π
        bounds = torch.floor(largest * cell.norm(dim=-1) / (2 * math.pi) + 1e-6).long().amax(0).tolist()
    axes = [torch.arange(-bound, bound + 1, device=cell.device) for bound in bounds]
    grid = torch.cartesian_prod(*axes).reshape(-1, 3)
    half = grid[grid.shape[0] // 2 :]  # the grid is symmetric and sorted: its middle is zero, the rest one of each ±m
    vectors = half.to(cell.dtype) @ reciprocal
    multiplicity = torch.full(vectors.shape[:2], 2.0, dtype=cell.dtype, device=cell.device)
    multiplicity[:, 0] = 1.0
    if largest is not None:
        inside = vectors.square().sum(-1) <= largest * largest
        order = torch.argsort((~inside).to(torch.uint8), dim=1, stable=True)[:, : int(inside.sum(1).max())]
        multiplicity = (multiplicity * inside).gather(1, order)
        vectors = vectors.gather(1, order[..., None].expand(-1, -1, 3))
    return vectors, multiplicity


def _triton_kernels(
    config: CrystalformerConfig, positions: torch.Tensor, cell: torch.Tensor, foreign: str | None
) -> Any:
    """The module of the Triton kernels; none, with one line in the log for each reason, where they cannot run."""
    try:  # an exported model does not carry them
        from hf_crystal.kernels import encoder
    except ImportError:
        obstacle: str | None = "the kernels are part of the package hf_crystal, which is not installed"
    else:
        obstacle = foreign and f"the kernels do not have {foreign}"
        obstacle = obstacle or config.kernel_obstacle or encoder.device_obstacle(positions, cell)
        if obstacle is None:
            return encoder
    logger.warning_once(f"attention_kernel='triton' falls back to the eager operations: {obstacle}.")
    return None


def _radial(config: CrystalformerConfig, layout: NeighborLayout) -> torch.Tensor | RadialBasis | None:
    """Radial basis of every image; none in the simplified model."""
    if not config.num_radial_basis:
        return None
    squared = layout.squared_distances
    shape = (config.num_radial_basis, float(config.radial_cutoff), float(config.radial_width_scale))
    if config.truncates_bases or config.image_selection == "cells" or config.attention_kernel == "reference":
        return RadialBasis(*shape, truncate=config.truncates_bases)(squared)
    basis = RadialBasis(*shape, radius=float(config.cutoff_sigmas) * config.largest_real_sigma)
    # In training the table of all images would be the largest tensor: blocks form it for some atoms at a time.
    for_blocks = torch.is_grad_enabled() and not squared.requires_grad and not torch.compiler.is_exporting()
    return basis if for_blocks else basis(squared)


def box_extents(config: CrystalformerConfig, sigma: torch.Tensor, box_unit: torch.Tensor) -> torch.Tensor:
    """R_k = max(range, ceil((c sigma + 0.01 Å) / spacing_k)) of the `cells` rule, shape `(..., 3)`."""
    if config.adaptive_cutoff_sigmas is None:
        return torch.full_like(box_unit, config.cell_range).long()
    reach = (float(config.adaptive_cutoff_sigmas) * sigma + BOX_MARGIN)[..., None] * box_unit
    return torch.ceil(reach).clamp_min(config.cell_range).long()
