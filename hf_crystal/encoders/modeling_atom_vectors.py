"""Vectors of atoms, such as forces, by inverse frame mapping (Ito et al., ICLR 2025, arXiv 2503.02209, outlook).

An invariant encoder gives numbers that no rotation changes. Read as components along the axes of a frame that turns
with the crystal they are a vector that turns with it, v_i = F_i^T c_i. Here for every atom i and head h

    v_i = sum_h < sum_a e_a [ u_iha + z_iha · W^a_h <b_angl(e_a·r / |r|)>_images ] >_frames,

with u and z from the state of the atom, the angular basis and the weights of images of the last block, and the mean
over tied frames with the weights of the scalar path. The bracket depends on the axis, not on the atom alone: a frame
often ties with its opposite (the nearest image is one of the atom itself; eigenvectors), and coefficients that are
equal for both would cancel.

Frames are right-handed, so that this much is equivariant to proper rotations only. In evaluation v is half the
difference between the crystal and its inverted image, in training the crystals of a batch are inverted at random:
the vector is a polar one, and every operation of a site's symmetry, mirrors and the inversion included, maps it to
itself. At an inversion center it is zero.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_crystalframer import CrystalFramerConfig
from .geometry import CrystalGeometry, ImageBlock
from .heads import known_loss
from .modeling_crystalframer import CrystalFramerModel, CrystalFramerPreTrainedModel
from .ops_frame_features import angular_basis
from .ops_periodic_geometry import FrameAxes, unpack_atoms

__all__ = ["AtomVectorHead", "AtomVectorOutput", "CrystalFramerForAtomVectors"]

# the basis of this many lines x images x functions is formed at once
PART_ENTRIES = 2_000_000


@dataclass
class AtomVectorOutput(ModelOutput):
    """Output of a model of vectors.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*): mean loss over known components, on scaled targets.
        logits (`torch.FloatTensor` of shape `(B, N, 3)`): vector of every atom in `config.target_units`; zero for
            padding.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class AtomVectorHead(nn.Module):
    """Coefficients along the axes of frames, and the vectors that they are; see the module's text."""

    target_std: torch.Tensor

    def __init__(self, config: CrystalFramerConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.dense = nn.Linear(config.hidden_size, config.head_hidden_size)
        self.out_proj = nn.Linear(config.head_hidden_size, self.num_heads * 3 * (self.head_dim + 1))
        self.value_angular = nn.Parameter(torch.empty(self.num_heads, 3, self.head_dim, config.num_angular_basis))
        self.register_buffer("target_std", torch.ones(1), persistent=True)

    def forward(
        self, hidden_states: torch.Tensor, axes: FrameAxes, weights: torch.Tensor, unit_vectors: torch.Tensor
    ) -> torch.Tensor:
        """Scaled vectors of some atoms.

        Args:
            hidden_states (`torch.Tensor` of shape `(T, C)`): their states.
            axes (`FrameAxes`): their frames.
            weights (`torch.Tensor` of shape `(T, M, H)`): attention weights of images, 0 where none has a direction.
            unit_vectors (`torch.Tensor` of shape `(T, M, 3)`): directions of images.

        Returns:
            `torch.Tensor` of shape `(T, 3)`.
        """
        coefficients = self.out_proj(torch.relu(self.dense(hidden_states))).to(unit_vectors.dtype)
        coefficients = coefficients.view(-1, self.num_heads, 3, self.head_dim + 1)
        vectors = unit_vectors.new_zeros((hidden_states.shape[0], 3))
        per_line = weights.shape[1] * self.config.num_angular_basis
        for part in torch.arange(axes.atom.shape[0], device=weights.device).split(max(1, PART_ENTRIES // per_line)):
            atom = axes.atom[part]
            lengths = self._along(coefficients[atom], axes, part, weights[atom], unit_vectors[atom])
            vectors = vectors.index_add(0, atom, lengths[:, None] * axes.direction[part])
        return vectors

    def _along(
        self,
        coefficients: torch.Tensor,
        axes: FrameAxes,
        part: torch.Tensor,
        weights: torch.Tensor,
        unit_vectors: torch.Tensor,
    ) -> torch.Tensor:
        """Lengths `(L,)` along the lines of a part, from what belongs to the atom of each line."""
        cosines = torch.bmm(unit_vectors, axes.direction[part][..., None])[..., 0].clamp(-1.0, 1.0)
        basis = angular_basis(cosines, self.config.num_angular_basis, float(self.config.angular_width_scale))
        features = torch.bmm(weights.transpose(1, 2), basis)  # (L, H, D)
        weight = self.value_angular.to(features.dtype)
        forward = torch.einsum("lhk,hadk->lhad", features, weight)
        # centers lie symmetrically about 0: the opposite axis has the same features in reverse
        backward = torch.einsum("lhk,hadk->lhad", features.flip(-1), weight)
        share, opposite = axes.weight[part], axes.opposite[part]  # (L, H, 3)
        seen = share[..., None] * forward - opposite[..., None] * backward
        constant, factors = coefficients[..., 0], coefficients[..., 1:]
        return ((share - opposite) * constant + (seen * factors).sum(-1)).flatten(1).sum(1)


class CrystalFramerForAtomVectors(CrystalFramerPreTrainedModel):
    """CrystalFramer with a vector for every atom, such as the force on it; `config.target_names` has one name.

    Equivariant to rotations, reflections, permutations and the choice of cell and images. Vectors are learned as they
    are: they are no derivative of an energy, and those of a crystal need not sum to zero. Evaluation costs two passes
    of the encoder (module's text).
    """

    supports_gradient_checkpointing = False  # the last block's frames leave it on a side road

    def __init__(self, config: CrystalFramerConfig):
        super().__init__(config)
        _check_config(config)
        self.encoder = CrystalFramerModel(config)
        self.head = AtomVectorHead(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the encoder; head: PyTorch's default of a linear layer, D^-1/2 for the angular weights."""
        super()._init_weights(module)
        if isinstance(module, AtomVectorHead):
            bound = self.config.num_angular_basis**-0.5
            init.uniform_(module.value_angular, -bound, bound)
            init.ones_(module.target_std)

    def calibrate(self, batch: dict[str, torch.Tensor] | None = None, **inputs: torch.Tensor) -> None:
        """See [`CrystalformerModel.calibrate`]."""
        self.encoder.calibrate(batch, **inputs)

    @torch.no_grad()
    def set_target_scaling(self, std: float) -> None:
        """Stores the standard deviation of the components of training vectors, in physical units.

        Raises:
            ValueError: it is not positive and finite.
        """
        if not 0 < float(std) < float("inf"):
            raise ValueError(f"std={std} must be positive and finite.")
        self.head.target_std.fill_(float(std))

    @can_return_tuple
    def forward(
        self,
        atomic_numbers: torch.Tensor,
        positions: torch.Tensor,
        cell: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        occupancies: torch.Tensor | None = None,
        pbc: torch.Tensor | None = None,
        **kwargs: object,
    ) -> AtomVectorOutput:
        """Predicts vectors, and the loss where labels are given.

        Args:
            atomic_numbers, positions, cell, attention_mask, occupancies, pbc: as in [`CrystalformerModel.forward`].
            labels (`torch.FloatTensor` of shape `(B, N, 3)`, *optional*): vectors in physical units, NaN where
                unknown and for padding; the loss is the mean over known components.
            **kwargs: ignored.

        Raises:
            ValueError: as the encoder, and for labels of a wrong shape.
        """
        del kwargs
        mask = atomic_numbers.ne(0) if attention_mask is None else attention_mask
        if labels is not None and labels.shape != positions.shape:
            raise ValueError(f"labels have shape {tuple(labels.shape)}; expected {tuple(positions.shape)}.")
        if self.training:
            sign = torch.randint(0, 2, (positions.shape[0], 1, 1), device=positions.device).to(positions.dtype) * 2 - 1
            scaled = sign * self._vectors(atomic_numbers, sign * positions, sign * cell, mask, occupancies, pbc)
        else:
            rest = (mask, occupancies, pbc)
            upright = self._vectors(atomic_numbers, positions, cell, *rest)
            scaled = 0.5 * (upright - self._vectors(atomic_numbers, -positions, -cell, *rest))
        std = self.head.target_std.to(torch.promote_types(scaled.dtype, self.head.target_std.dtype))
        loss = None
        if labels is not None:
            known = labels.to(std.dtype).masked_fill(~mask.bool()[..., None], torch.nan)
            loss = known_loss(self.config.loss_function, scaled, known / std)
        return AtomVectorOutput(loss=loss, logits=scaled * std)

    def _vectors(
        self,
        atomic_numbers: torch.Tensor,
        positions: torch.Tensor,
        cell: torch.Tensor,
        mask: torch.Tensor,
        occupancies: torch.Tensor | None,
        pbc: torch.Tensor | None,
    ) -> torch.Tensor:
        """Scaled vectors `(B, N, 3)` of crystals as they are, one hand."""
        hidden_states, geometry = self.encoder._start(atomic_numbers, positions, cell, mask, occupancies, pbc)
        for images in geometry.images:
            images.keeps_frames = True
        for layer in self.encoder.layers:
            hidden_states, _ = layer(hidden_states, geometry)
        with torch.autocast(positions.device.type, enabled=False):
            return unpack_atoms(self._read_out(hidden_states, geometry), geometry.atoms)

    def _read_out(self, hidden_states: torch.Tensor, geometry: CrystalGeometry) -> torch.Tensor:
        """Scaled vectors `(T, 3)` of packed atoms."""
        parts = [self._of_images(hidden_states, images) for images in geometry.images]
        return torch.cat(parts)[geometry.order]

    def _of_images(self, hidden_states: torch.Tensor, images: ImageBlock) -> torch.Tensor:
        """The same for the atoms of one block of images, in its order."""
        if images.frames is None or images.unit_vectors is None:
            raise RuntimeError("the last block has left no frames")
        return self.head(hidden_states[images.layout.rows], *images.frames, images.unit_vectors)


def _check_config(config: CrystalFramerConfig) -> None:
    """Frames have to exist, turn with the crystal, and reach the head; raises `ValueError` naming field and value."""
    if config.frame_method == "none":
        raise ValueError("frame_method='none': vectors need frames.")
    if config.match_release:
        raise ValueError("match_release=True: its frames depend on rounding where candidates tie; use False.")
    if config.attention_kernel == "triton":
        raise ValueError("attention_kernel='triton': the kernels keep no frames; use 'eager'.")
    if len(config.target_names) != 1:
        raise ValueError(f"target_names={config.target_names} must be one name, of the vector.")
