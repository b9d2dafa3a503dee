"""CrystalFramer: Crystalformer with angles of periodic images in local frames.

Ito et al., "Rethinking the role of frames for SE(3)-invariant crystal structure modeling", ICLR 2025
(arXiv 2503.02209). The logits are Crystalformer's; the value encoding gains, for each axis e_a of a frame,

    beta_ij = c_dist W^E <b_dist(|r|)> + c_angl sum_a W^a <b_angl(e_a·r / |r|)>,

<.> being the mean over images with the attention's weights. Frames are built for each atom, head and block from the
attention logits ("dynamic"), or once from the geometry ("static"); they are constants for the gradient.
Proper rotations change nothing. An improper one maps a crystal to its mirror image, which may be predicted
differently.
"""

from typing import Any

import torch
from torch import nn

from .configuration_crystalframer import CrystalFramerConfig
from .geometry import CrystalGeometry, ImageBlock
from .modeling_crystalformer import (
    CrystalformerAttention,
    CrystalformerForPropertyPrediction,
    CrystalformerLayer,
    CrystalformerModel,
    CrystalformerPreTrainedModel,
    init_value_weight,
)
from .ops_crystal_frames import (
    SELF_IMAGE_SQUARED_DISTANCE,
    eigen_axes,
    eigen_frames,
    lattice_axes,
    max_axes,
    max_frames,
)
from .ops_frame_features import axes_of_frames, frame_features, spread_axes
from .ops_periodic_attention import PeriodicAttentionOutput
from .ops_periodic_geometry import FrameAxes, NeighborLayout, plane_spacings, pure_translations

__all__ = ["CrystalFramerForPropertyPrediction", "CrystalFramerModel", "CrystalFramerPreTrainedModel"]

TRANSLATION_TOLERANCE = 1e-2  # Å: how exactly a translation inside the cell must map the crystal onto itself
MAX_ATOMS_FOR_TRANSLATIONS = 512  # the search is cubic in the worst case; larger cells are taken as they are given


class CrystalFramerAttention(CrystalformerAttention):
    """Crystalformer's attention with the angle part of the value encoding; `value_angular` is W^1..W^3."""

    config: CrystalFramerConfig

    def __init__(self, config: CrystalFramerConfig, layer_index: int):
        super().__init__(config, layer_index)
        self.has_angles = config.frame_method != "none"
        if not self.has_angles:
            self.value_angular = None
        else:
            shape = (3, self.num_heads, self.head_dim, config.num_angular_basis)
            self.value_angular = nn.Parameter(torch.empty(shape))

    def _radial_weight(self) -> torch.Tensor:
        weight = super()._radial_weight()
        # the released code ignores c_dist where there are no frames
        return weight if self.value_angular is None else weight * float(self.config.radial_gain)

    def _with_angles(
        self, result: PeriodicAttentionOutput, edge_mask: torch.Tensor | None, images: ImageBlock
    ) -> torch.Tensor:
        if self.value_angular is None:
            return result.output
        if images.unit_vectors is None:
            raise RuntimeError("frames need the directions of CrystalFramerModel's geometry")
        has_direction = images.layout.squared_distances > SELF_IMAGE_SQUARED_DISTANCE  # (T, M)
        axes = images.static_axes
        if axes is None:
            mask = images.layout.edge_mask[..., None] if edge_mask is None else edge_mask
            axes = self._dynamic_axes(result, mask & has_direction[..., None], images.layout, images.unit_vectors)
        weights = result.edge_weights * has_direction[..., None]
        if images.keeps_frames:
            images.frames = (axes, weights)
        features = frame_features(
            weights,
            images.unit_vectors,
            axes,
            self.config.num_angular_basis,
            float(self.config.angular_width_scale),
            reference=self.config.attention_kernel == "reference" or self.config.match_release,
            truncate=self.config.match_release,
        )
        return result.output + self._mix_features(features, self.value_angular)

    def _with_edge_angles(self, result: Any, geometry: CrystalGeometry) -> torch.Tensor:
        if self.value_angular is None:
            return result.output
        basis = (self.config.num_angular_basis, float(self.config.angular_width_scale))
        tolerance = float(self.config.frame_tie_tolerance)
        features = geometry.kernels.features_over_edges(result, geometry.edges, *basis, tolerance, draws=self.training)
        return result.output + self._mix_features(features, self.value_angular)

    def _mix_features(self, features: torch.Tensor, value_angular: torch.Tensor) -> torch.Tensor:
        """sum_a W^a <b_angl>, (T, H, 3, D) -> (T, H, d)."""
        weight = value_angular.to(features.dtype) * float(self.config.angular_gain)
        return torch.einsum("thak,ahdk->thd", features, weight)

    def _dynamic_axes(
        self,
        result: PeriodicAttentionOutput,
        candidates: torch.Tensor,
        layout: NeighborLayout,
        unit_vectors: torch.Tensor,
    ) -> FrameAxes:
        """Frames from the attention (`max`, `weighted_pca`), or from each head's box (released `max_static`)."""
        config = self.config
        tolerance = float(config.frame_tie_tolerance)
        if config.frame_method == "weighted_pca":
            vectors = layout.edge_vectors
            outer = (vectors[..., :, None] * vectors[..., None, :]).flatten(-2)
            weights = result.edge_weights.detach()
            tensors = torch.bmm(weights.transpose(1, 2), outer).unflatten(-1, (3, 3))  # (T, H, 3, 3)
            if self.training or config.match_release:
                is_release = config.match_release
                frames = eigen_frames(
                    tensors, random_signs=self.training and not is_release, identity_if_flat=is_release
                )
                return axes_of_frames(frames)
            return eigen_axes(tensors, tolerance)
        if config.frame_method == "max_static":  # released code only: the farthest image for the second axis
            squared = layout.squared_distances[..., None].expand_as(candidates)
            nearest = (-squared).masked_fill(~candidates, -torch.inf)
            return axes_of_frames(max_frames(nearest, unit_vectors, squared.masked_fill(~candidates, -torch.inf)))
        if config.frame_method != "max":
            raise ValueError(f"frame_method={config.frame_method!r} has no frames")
        scores = result.edge_logits.detach().masked_fill(~candidates, -torch.inf)
        if config.match_release:
            return axes_of_frames(max_frames(scores, unit_vectors))
        if self.training:
            return axes_of_frames(max_frames(scores, unit_vectors, tolerance=tolerance))
        return max_axes(scores, unit_vectors, tolerance)


class CrystalFramerLayer(CrystalformerLayer):
    """One block of CrystalFramer."""

    def __init__(self, config: CrystalFramerConfig, layer_index: int):
        super().__init__(config, layer_index)
        self.attention = CrystalFramerAttention(config, layer_index)


class CrystalFramerPreTrainedModel(CrystalformerPreTrainedModel):
    """Initialization shared by the CrystalFramer models."""

    config: CrystalFramerConfig
    config_class = CrystalFramerConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CrystalFramerAttention) and module.value_angular is not None:
            init_value_weight(module.value_angular, self.config.hidden_size)


class CrystalFramerModel(CrystalFramerPreTrainedModel, CrystalformerModel):
    """The encoder with frames: crystals in, states of atoms and an embedding of each crystal out."""

    layer_class = CrystalFramerLayer

    def _geometry(
        self,
        atomic_numbers: torch.Tensor,
        positions: torch.Tensor,
        cell: torch.Tensor,
        attention_mask: torch.Tensor,
        occupancies: torch.Tensor | None = None,
    ) -> CrystalGeometry:
        geometry = super()._geometry(atomic_numbers, positions, cell, attention_mask, occupancies)
        if self.config.frame_method != "none":
            with torch.autocast(positions.device.type, enabled=False):
                self._add_frames(geometry)
        return geometry

    @torch.compiler.disable  # the number of tied frames depends on the data
    @torch.no_grad()
    def _add_frames(self, geometry: CrystalGeometry) -> None:
        """Directions of images, and the frames where they depend on the geometry alone."""
        config = self.config
        shared: FrameAxes | None = None  # axes of whole crystals
        if config.frame_method == "lattice":
            shared = self._lattice_axes(geometry)
        elif config.frame_method == "pca":
            shared = self._pca_axes(geometry)
        for images in geometry.images:
            layout = images.layout
            distances = layout.squared_distances.clamp_min(1e-12).sqrt()
            images.unit_vectors = layout.edge_vectors / distances[..., None]
            if shared is not None:
                source = geometry.atoms.crystal[layout.rows]
                images.static_axes = spread_axes(shared, source, config.num_attention_heads)
            elif config.frame_method == "max_static" and not config.match_release:
                images.static_axes = self._static_max_axes(layout, images.unit_vectors, geometry.log_occupancy)

    def _static_max_axes(
        self, layout: NeighborLayout, unit_vectors: torch.Tensor, log_occupancy: torch.Tensor | None
    ) -> FrameAxes:
        """Nearest image, then the nearest off that axis (paper: weights exp(-r²), here times the occupancy)."""
        squared, num_heads = layout.squared_distances, self.config.num_attention_heads
        tolerance = float(self.config.frame_tie_tolerance)
        candidates = layout.edge_mask & (squared > SELF_IMAGE_SQUARED_DISTANCE)
        nearness = -squared
        if log_occupancy is not None:
            nearness = nearness + log_occupancy[layout.pair_key.gather(1, layout.edge_pair)]
        scores = nearness.masked_fill(~candidates, -torch.inf)[..., None]
        if self.training:
            return axes_of_frames(max_frames(scores.expand(-1, -1, num_heads), unit_vectors, tolerance=tolerance))
        everyone = torch.arange(squared.shape[0], device=squared.device)
        return spread_axes(max_axes(scores, unit_vectors, tolerance), everyone, num_heads)

    def _lattice_axes(self, geometry: CrystalGeometry) -> FrameAxes:
        """Shortest lattice vectors of each crystal, one row per crystal."""
        vectors = self._lattice_vectors(geometry)
        if self.config.match_release:
            return lattice_axes(vectors, 1e-9, choice="first")
        tolerance = float(self.config.frame_tie_tolerance)
        return lattice_axes(vectors, tolerance, choice="random" if self.training else "mean")

    def _lattice_vectors(self, geometry: CrystalGeometry) -> list[torch.Tensor]:
        """Nonzero lattice vectors of each crystal: a box of the given cell (released code), or all short ones.

        Translations inside the cell count as lattice vectors, so that a supercell has the frames of its unit cell.
        """
        found = []
        for crystal, cell in enumerate(geometry.cell):
            longest = cell.norm(dim=-1).max()
            inner = torch.zeros_like(cell[:1])
            if self.config.match_release:
                bounds = [self.config.cell_range] * 3
            else:
                # one more cell on each side reaches every sum of a lattice vector and an inner translation
                bounds = (torch.floor(longest / plane_spacings(cell) + 1e-6).long() + 1).tolist()
                atoms = geometry.atoms.crystal == crystal
                if int(atoms.sum()) <= MAX_ATOMS_FOR_TRANSLATIONS:
                    kinds = geometry.atomic_numbers[atoms]
                    if geometry.composition is not None:
                        kinds = torch.unique(geometry.composition[atoms], dim=0, return_inverse=True)[1]
                    inner = pure_translations(geometry.positions[atoms], kinds, cell, TRANSLATION_TOLERANCE)
            axes = [torch.arange(-bound, bound + 1, device=cell.device) for bound in bounds]
            grid = torch.cartesian_prod(*axes).reshape(-1, 3).to(cell.dtype) @ cell
            vectors = (grid[:, None, :] + inner[None, :, :]).reshape(-1, 3)
            squared = vectors.square().sum(-1)
            keep = squared > SELF_IMAGE_SQUARED_DISTANCE
            if not self.config.match_release:
                keep &= squared <= longest.square() + float(self.config.frame_tie_tolerance)
            found.append(vectors[keep])
        return found

    def _pca_axes(self, geometry: CrystalGeometry) -> FrameAxes:
        """Principal axes of each crystal, one row per crystal.

        The released code takes the covariance of the atoms of the unit cell, which changes when an atom is moved by a
        lattice vector. Here it is that of all image vectors with static weights exp(-|r|² / 2 r0²), averaged over
        atoms: the same for every description of a crystal, supercells included.
        """
        config, atoms = self.config, geometry.atoms
        num_crystals = geometry.cell.shape[0]
        tensors = geometry.positions.new_zeros((num_crystals, 3, 3))
        if config.match_release:
            sizes = atoms.sizes[:, None].to(tensors.dtype)
            mean = tensors[:, 0].index_add(0, atoms.crystal, geometry.positions) / sizes
            centered = geometry.positions - mean[atoms.crystal]
            tensors = tensors.index_add(0, atoms.crystal, centered[:, :, None] * centered[:, None, :])
        else:
            for layout in (images.layout for images in geometry.images):
                weights = torch.exp(-0.5 * layout.squared_distances / float(config.real_scale) ** 2)
                if geometry.occupancy is not None:
                    weights = weights * geometry.occupancy[layout.pair_key.gather(1, layout.edge_pair)]
                    weights = weights * geometry.occupancy[layout.rows][:, None]
                vectors = layout.edge_vectors * (weights * layout.edge_mask).sqrt()[..., None]
                tensors = tensors.index_add(0, atoms.crystal[layout.rows], vectors.transpose(1, 2) @ vectors)
            count = atoms.sizes.to(tensors.dtype)
            if geometry.occupancy is not None:
                count = torch.zeros_like(count).index_add(0, atoms.crystal, geometry.occupancy)
            tensors = tensors / count[:, None, None]
        if self.training or config.match_release:
            random_signs = self.training and not config.match_release
            return axes_of_frames(eigen_frames(tensors[:, None], random_signs=random_signs))
        return eigen_axes(tensors[:, None], float(config.frame_tie_tolerance))


class CrystalFramerForPropertyPrediction(CrystalFramerPreTrainedModel, CrystalformerForPropertyPrediction):
    """CrystalFramer with a head for one or several properties, in physical units."""

    encoder_class = CrystalFramerModel
