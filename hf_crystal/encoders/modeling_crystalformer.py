"""Crystalformer: a Transformer encoder whose attention sums over all periodic images of a crystal.

Taniai et al., "Crystalformer: Infinitely Connected Attention for Periodic Structure Encoding", ICLR 2024
(arXiv 2403.11686). Read top to bottom: geometry once per batch, attention, feed-forward, block, encoder, head.
No layer normalization and no dropout: initialization follows T-Fixup (paper, section 4).

Inside the encoder atoms are packed, (T, ...), and images are padded rows per atom; see `ops_periodic_geometry`.
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import can_return_tuple, logging

from .configuration_crystalformer import CrystalformerConfig
from .geometry import CrystalGeometry, ImageBlock, box_extents, build_geometry
from .heads import (
    CrystalEncoderOutput,
    CrystalErrorHead,
    CrystalPropertyHead,
    CrystalPropertyOutput,
    in_doubt,
    known_loss,
)
from .ops_decay_laws import real_shares
from .ops_periodic_attention import (
    PeriodicAttentionOutput,
    gaussian_widths,
    pair_attention_matrix,
    periodic_attention,
    periodic_attention_reference,
    reciprocal_attention,
    reciprocal_log_weights,
)
from .ops_periodic_geometry import NeighborLayout, plane_spacings, unpack_atoms

__all__ = [
    "CrystalformerForPropertyPrediction",
    "CrystalformerModel",
    "CrystalformerPreTrainedModel",
]

logger = logging.get_logger(__name__)


class XavierLinear(nn.Linear):
    """Linear layer that knows its gain at initialization.

    The gain lives here because transformers skips modules without tensors of their own when it initializes code from
    outside its tree: a feed-forward module could not initialize its two layers.
    """

    def __init__(self, in_features: int, out_features: int, gain: float):
        super().__init__(in_features, out_features)
        self.gain = gain


GATE_LOGIT = 3.0

# output (T, H, d), matrix (B, H, N, N) on request, and, of routed heads, the log of the sum of weights (T, H)
SpaceOutput = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]


def fixup_gain(config: CrystalformerConfig) -> float:
    """0.67 L^-1/4, the scale of value, output and feed-forward weights (T-Fixup; paper, section 4)."""
    return 0.67 * config.num_hidden_layers**-0.25


class CrystalformerAttention(nn.Module):
    """Infinitely connected multi-head attention of one block.

    Paper symbols: `width_query` w (sigma_i), `width_calibration` its [scale, shift], `value_radial` W^E. A routed head
    sums in both spaces; `routing_gate` is the logit of the weight of real space.
    """

    width_calibration: torch.Tensor
    value_radial: nn.Parameter | None
    routing_gate: nn.Parameter | None
    has_angles = False

    def __init__(self, config: CrystalformerConfig, layer_index: int):
        super().__init__()
        self.config = config
        self.domain = config.layer_domain(layer_index)
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.is_routed = config.routing == "learned"
        real = self.num_heads if self.is_routed else self.num_heads // 2
        self.num_real_heads = {"real": self.num_heads, "reciprocal": 0, "multihead": real}[self.domain]
        self.q_proj = XavierLinear(config.hidden_size, config.hidden_size, 1.0)
        self.k_proj = XavierLinear(config.hidden_size, config.hidden_size, 1.0)
        self.v_proj = XavierLinear(config.hidden_size, config.hidden_size, fixup_gain(config))
        self.o_proj = XavierLinear(config.hidden_size, config.hidden_size, fixup_gain(config))
        self.width_query = nn.Parameter(torch.empty(self.num_heads, self.head_dim))
        self.register_buffer("width_calibration", torch.zeros(2), persistent=True)
        if config.num_radial_basis and self.num_real_heads:
            self.value_radial = nn.Parameter(torch.empty(self.num_real_heads, self.head_dim, config.num_radial_basis))
        else:
            self.value_radial = None
        self.routing_gate = nn.Parameter(torch.empty(self.num_heads)) if self.is_routed else None

    def _heads(self, projected: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return projected.view(-1, self.num_heads, self.head_dim).to(dtype)

    @torch.no_grad()
    def calibrate(self, hidden_states: torch.Tensor) -> None:
        """Sets scale = 1/std(t) and shift = -mean(t) over all atoms and heads (unbiased std).

        Args:
            hidden_states (`torch.Tensor` of shape `(T, C)`): input of this block.
        """
        query = self._heads(self.q_proj(hidden_states), self.width_query.dtype)
        raw = (query * self.width_query).sum(-1)
        self.width_calibration.copy_(torch.stack([1.0 / raw.std(), -raw.mean()]))

    def forward(
        self, hidden_states: torch.Tensor, geometry: CrystalGeometry, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention of packed states `(T, C)`; second result is `(B, H, N, N)` on request."""
        projected = [projection(hidden_states) for projection in (self.q_proj, self.k_proj, self.v_proj)]
        # the kernels read half precision and sum in float32; the eager operations are in the geometry's precision
        dtype = geometry.positions.dtype if geometry.edges is None else projected[0].dtype
        query, key, value = (self._heads(states, dtype) for states in projected)
        # exponentials of distances lose everything in half precision
        with torch.autocast(hidden_states.device.type, enabled=False):
            parts = []
            if self.num_real_heads:
                heads = slice(0, self.num_real_heads)
                parts.append(self._real_space(query, key, value, geometry, heads, output_attentions))
            if self.is_routed or self.num_real_heads < self.num_heads:
                heads = slice(0 if self.is_routed else self.num_real_heads, self.num_heads)
                parts.append(self._reciprocal_space(query, key, value, geometry, heads, output_attentions))
            if self.is_routed:
                context, attentions = self._route(parts[0], parts[1], geometry)
            else:
                context = torch.cat([output for output, _, _ in parts], dim=1)
                matrices = [matrix for _, matrix, _ in parts if matrix is not None]
                attentions = torch.cat(matrices, dim=1) if output_attentions else None
        return self.o_proj(context.flatten(1).to(hidden_states.dtype)), attentions

    def _route(
        self, real: SpaceOutput, reciprocal: SpaceOutput, geometry: CrystalGeometry
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Output and matrix of routed heads: the softmax over the keys of both spaces (`ops_decay_laws`)."""
        gate = cast(torch.Tensor, self.routing_gate).to(real[0].dtype)
        share = real_shares(gate, cast(torch.Tensor, real[2]), cast(torch.Tensor, reciprocal[2]))
        matrix = None
        if real[1] is not None and reciprocal[1] is not None:
            of_rows = unpack_atoms(share, geometry.atoms).transpose(1, 2)[..., None]
            matrix = reciprocal[1] + of_rows * (real[1] - reciprocal[1])
        share = share[..., None]
        return share * real[0] + (1.0 - share) * reciprocal[0], matrix

    def _widths(self, query: torch.Tensor, heads: slice, lower_bound: float) -> torch.Tensor:
        """rho_i of the given heads, shape `(T, heads)`."""
        query = query.to(torch.promote_types(query.dtype, torch.float32))
        width_query = self.width_query[heads].to(query.dtype)
        calibration = self.width_calibration.to(query.dtype)
        return gaussian_widths(query, width_query, calibration, float(self.config.width_slope), lower_bound)

    def _edge_mask(
        self, inverse_variance: torch.Tensor, layout: NeighborLayout, geometry: CrystalGeometry
    ) -> torch.Tensor | None:
        """Images that count: all found ones (none), or those in the box of each atom and head (`cells` rule)."""
        if layout.edge_images is None or geometry.box_unit is None or self.config.adaptive_cutoff_sigmas is None:
            return None
        box_unit = geometry.box_unit[geometry.atoms.crystal[layout.rows]][:, None, :]
        extents = box_extents(self.config, inverse_variance.detach().rsqrt(), box_unit)  # (T, H, 3)
        inside = (layout.edge_images.abs()[:, :, None, :] <= extents[:, None, :, :]).all(-1)
        return layout.edge_mask[..., None] & inside

    def _real_space(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        geometry: CrystalGeometry,
        heads: slice,
        output_attentions: bool,
    ) -> SpaceOutput:
        widths = self._widths(query[:, heads], heads, float(self.config.real_lower_bound))
        inverse_variance = widths / float(self.config.real_scale) ** 2
        if geometry.edges is not None:
            return self._over_edges(query, key, value, inverse_variance, geometry, output_attentions)
        kernel = periodic_attention_reference if self.config.attention_kernel == "reference" else periodic_attention
        radial_weight = None if self.value_radial is None else self._radial_weight().to(query.dtype)
        outputs, totals, matrix = [], [], None
        for images in geometry.images:
            layout = images.layout
            row_variance = inverse_variance.index_select(0, layout.rows)
            edge_mask = self._edge_mask(row_variance, layout, geometry)
            result = kernel(
                query[:, heads].index_select(0, layout.rows),
                key[:, heads],
                value[:, heads],
                row_variance,
                layout,
                edge_mask,
                images.radial,
                radial_weight,
                geometry.log_occupancy,
                self.config.head_laws,
                self.is_routed,
            )
            totals.append(result.total)
            outputs.append(self._with_angles(result, edge_mask, images))
            if output_attentions:
                part = pair_attention_matrix(
                    result.pair_weights, layout.rows, layout.pair_key, layout.pair_mask, geometry.atoms
                )
                matrix = part if matrix is None else matrix + part
        order = cast(torch.Tensor, geometry.order)
        total = torch.cat(cast(list[torch.Tensor], totals)).index_select(0, order) if self.is_routed else None
        return torch.cat(outputs).index_select(0, order), matrix, total

    def _over_edges(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        inverse_variance: torch.Tensor,
        geometry: CrystalGeometry,
        output_attentions: bool,
    ) -> SpaceOutput:
        """`_real_space` by the Triton kernels, for all atoms at once."""
        kernels, edges = geometry.kernels, geometry.edges
        result = kernels.attention_over_edges(
            query,
            key,
            value,
            inverse_variance,
            edges,
            None if self.value_radial is None else self._radial_weight().to(inverse_variance.dtype),
            float(self.config.radial_cutoff),
            float(self.config.radial_width_scale),
            stores_edges=output_attentions or self.has_angles,
        )
        matrix = kernels.edge_attention_matrix(result.weights, edges, geometry.atoms) if output_attentions else None
        return self._with_edge_angles(result, geometry), matrix, None

    def _with_edge_angles(self, result: Any, geometry: CrystalGeometry) -> torch.Tensor:
        """`_with_angles` for the Triton kernels; `result` is their `EdgeAttentionOutput`."""
        del geometry
        return result.output

    def _radial_weight(self) -> torch.Tensor:
        """W^E; frames scale it."""
        return cast(torch.Tensor, self.value_radial)

    def _with_angles(
        self, result: PeriodicAttentionOutput, edge_mask: torch.Tensor | None, images: ImageBlock
    ) -> torch.Tensor:
        """Hook of CrystalFramer: adds the angle part of the value encoding."""
        del edge_mask, images
        return result.output

    def _reciprocal_space(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        geometry: CrystalGeometry,
        heads: slice,
        output_attentions: bool,
    ) -> SpaceOutput:
        if geometry.waves is None or geometry.pairs is None:
            raise RuntimeError("reciprocal-space attention needs the waves of build_geometry")
        widths = self._widths(query[:, heads], heads, float(self.config.reciprocal_lower_bound))
        variance = float(self.config.reciprocal_scale) ** 2 * widths
        pair_key, pair_mask = geometry.pairs
        log_weights = reciprocal_log_weights(
            geometry.positions, geometry.cell, geometry.atoms, variance, pair_key, *geometry.waves
        )
        if geometry.log_occupancy is not None:
            log_weights = log_weights + geometry.log_occupancy[pair_key][..., None]
        output, weights, total = reciprocal_attention(
            query[:, heads], key[:, heads], value[:, heads], log_weights, pair_key, pair_mask
        )
        matrix = None
        if output_attentions:
            rows = torch.arange(weights.shape[0], device=weights.device)
            matrix = pair_attention_matrix(weights, rows, pair_key, pair_mask, geometry.atoms)
        return output, matrix, total


class CrystalformerMLP(nn.Module):
    """Feed-forward part of a block: W2 relu(W1 x + b1) + b2."""

    def __init__(self, config: CrystalformerConfig):
        super().__init__()
        self.fc1 = XavierLinear(config.hidden_size, config.intermediate_size, fixup_gain(config))
        self.fc2 = XavierLinear(config.intermediate_size, config.hidden_size, fixup_gain(config))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """States `(T, C)` to `(T, C)`."""
        return self.fc2(torch.relu(self.fc1(hidden_states)))


class CrystalformerLayer(GradientCheckpointingLayer):
    """One block: x + attention(x), then x + mlp(x); no normalization."""

    def __init__(self, config: CrystalformerConfig, layer_index: int):
        super().__init__()
        self.attention = CrystalformerAttention(config, layer_index)
        self.mlp = CrystalformerMLP(config)

    def forward(
        self, hidden_states: torch.Tensor, geometry: CrystalGeometry, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Packed states `(T, C)` to packed states and, on request, attention weights."""
        attended, attentions = self.attention(hidden_states, geometry, output_attentions)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(hidden_states), attentions


class CrystalformerPreTrainedModel(PreTrainedModel):
    """Initialization, loading and calibration shared by the models."""

    config: CrystalformerConfig
    config_class = CrystalformerConfig
    base_model_prefix = "encoder"
    main_input_name = "atomic_numbers"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over known labels: Trainer must divide by accumulation steps
    _no_split_modules = ["CrystalformerLayer", "CrystalFramerLayer"]
    # calibration and units must not be rounded when weights are loaded in half precision
    _keep_in_fp32_modules_strict = ["width_calibration", "target_mean", "target_std", "interval_factor"]
    _supports_sdpa = False
    _supports_flash_attn = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """T-Fixup (paper, section 4).

        | tensor | distribution |
        |---|---|
        | embedding | N(0, D^-1/2 (9 L)^-1/4) |
        | q, k | xavier uniform |
        | v, output, feed-forward | xavier uniform times 0.67 L^-1/4 |
        | width_query | N(0, d^-1/2) |
        | value_radial, value_angular | xavier uniform of the (H d, K) matrix times K^-1/2 |
        | property head | PyTorch's default of a linear layer |
        | routing gates | 3 (weight 0.95 of real space) in the first half of the heads, -3 in the others |
        | biases | 0 (property head: default) |
        """
        if isinstance(module, nn.Embedding):
            std = self.config.hidden_size**-0.5 * (9 * self.config.num_hidden_layers) ** -0.25
            init.normal_(module.weight, std=std)
        elif isinstance(module, XavierLinear):
            init.xavier_uniform_(module.weight, gain=module.gain)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, CrystalformerAttention):
            init.normal_(module.width_query, std=module.head_dim**-0.5)
            init.zeros_(module.width_calibration)
            if module.value_radial is not None:
                init_value_weight(module.value_radial, self.config.hidden_size)
            if module.routing_gate is not None:
                # near the fixed heads: with equal weights all would begin mostly in reciprocal space, whose widths are
                # larger (after 470 steps a validation error of 0.296 instead of 0.281 eV/atom, one seed)
                half = torch.ones(module.num_heads // 2, device=module.routing_gate.device)
                init.copy_(module.routing_gate, torch.cat([GATE_LOGIT * half, -GATE_LOGIT * half]))
        elif isinstance(module, CrystalPropertyHead):
            init.zeros_(module.target_mean)
            init.ones_(module.target_std)
        elif isinstance(module, CrystalErrorHead):
            init.ones_(module.interval_factor)

    @property
    def is_calibrated(self) -> bool:
        """Whether every block's Gaussian widths were calibrated (`calibrate`, or a loaded checkpoint)."""
        layers = [m for m in self.modules() if isinstance(m, CrystalformerAttention)]
        return all(bool(layer.width_calibration[0] != 0) for layer in layers)

    @property
    def routing_gates(self) -> torch.Tensor:
        """Weight of real space in every block and head `(L, H)`, 0 to 1; `ValueError` without `routing='learned'`."""
        gates = [m.routing_gate for m in self.modules() if isinstance(m, CrystalformerAttention)]
        if any(gate is None for gate in gates):
            raise ValueError(f"routing={self.config.routing!r}: heads have gates with routing='learned'.")
        return torch.stack([gate.detach().sigmoid() for gate in gates if gate is not None])


def init_value_weight(weight: torch.Tensor, rows: int) -> None:
    """Xavier uniform of a (rows, K) matrix with gain K^-1/2, whatever the tensor's own shape."""
    num_basis = weight.shape[-1]
    bound = num_basis**-0.5 * math.sqrt(6.0 / (rows + num_basis))
    init.uniform_(weight, -bound, bound)


class CrystalformerModel(CrystalformerPreTrainedModel):
    """The encoder: crystals in, states of atoms and an embedding of each crystal out."""

    layer_class: type[CrystalformerLayer] = CrystalformerLayer
    # the encoder of a property model is asked for, not its heads
    _keys_to_ignore_on_load_unexpected = [r"^head\.", r"^error_head\."]

    def __init__(self, config: CrystalformerConfig):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.num_elements, config.hidden_size)
        self.layers = nn.ModuleList([self.layer_class(config, index) for index in range(config.num_hidden_layers)])
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The element embedding; row Z - 1 belongs to element Z."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the element embedding."""
        self.embeddings = cast(nn.Embedding, value)

    def _geometry(
        self,
        atomic_numbers: torch.Tensor,
        positions: torch.Tensor,
        cell: torch.Tensor,
        attention_mask: torch.Tensor,
        occupancies: torch.Tensor | None = None,
    ) -> CrystalGeometry:
        """Geometry in the wider of float32, the input's and the weights' precision."""
        dtype = torch.promote_types(torch.promote_types(positions.dtype, torch.float32), self.embeddings.weight.dtype)
        with torch.autocast(positions.device.type, enabled=False):
            positions, cell = positions.to(dtype), cell.to(dtype)
            return build_geometry(self.config, atomic_numbers, positions, cell, attention_mask, occupancies)

    @torch.compiler.disable  # reads values, to give an error instead of a device assertion
    def _check_inputs(
        self, atomic_numbers: torch.Tensor, positions: torch.Tensor, cell: torch.Tensor, attention_mask: torch.Tensor
    ) -> None:
        shape = tuple(atomic_numbers.shape)
        if atomic_numbers.dim() != 2 or positions.shape != (*shape, 3) or cell.shape != (shape[0], 3, 3):
            raise ValueError(
                f"atomic_numbers {shape}, positions {tuple(positions.shape)} and cell {tuple(cell.shape)} must have "
                "shapes (B, N), (B, N, 3) and (B, 3, 3)."
            )
        if torch.compiler.is_exporting():  # values are read below
            return
        known = (atomic_numbers >= 1) & (atomic_numbers <= self.config.num_elements)
        wrong = (~known & attention_mask.bool()).nonzero()
        if wrong.numel():
            crystal, atom = wrong[0].tolist()
            raise ValueError(
                f"atomic_numbers[{crystal}, {atom}] is {int(atomic_numbers[crystal, atom])}; this model knows "
                f"elements 1 to {self.config.num_elements}."
            )

    def _start(
        self,
        atomic_numbers: torch.Tensor,
        positions: torch.Tensor,
        cell: torch.Tensor,
        mask: torch.Tensor | None,
        occupancies: torch.Tensor | None = None,
        pbc: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, CrystalGeometry]:
        """Embeddings of packed atoms `(T, C)` and the batch's geometry."""
        attention_mask = atomic_numbers.ne(0) if mask is None else mask
        self._check_inputs(atomic_numbers, positions, cell, attention_mask)
        if occupancies is not None:
            self._check_occupancies(occupancies, attention_mask)
        if pbc is not None:
            self._check_open_axes(positions, cell, attention_mask, pbc)
        geometry = self._geometry(atomic_numbers, positions, cell, attention_mask, occupancies)
        if geometry.composition is None or geometry.occupancy is None:
            return self.embeddings(geometry.atomic_numbers - 1), geometry
        # the mean over the elements of a site: an element alone, how little there is of it, keeps its embedding
        weight = self.embeddings.weight
        shares = (
            geometry.composition / geometry.occupancy.clamp_min(torch.finfo(geometry.occupancy.dtype).tiny)[:, None]
        )
        return shares[:, : weight.shape[0]].to(weight.dtype) @ weight, geometry

    @torch.compiler.disable  # reads values
    def _check_open_axes(
        self, positions: torch.Tensor, cell: torch.Tensor, attention_mask: torch.Tensor, pbc: torch.Tensor
    ) -> None:
        """No copy along an axis that is not periodic may be in reach: then copies are along the periodic ones only."""
        for crystal in (~pbc.bool().all(1)).nonzero()[:, 0].tolist():
            obstacle = self.config.open_axes_obstacle
            if obstacle is not None:
                raise ValueError(f"crystal {crystal} has pbc={pbc[crystal].tolist()}: this model has {obstacle}.")
            normals = torch.nn.functional.normalize(torch.linalg.inv(cell[crystal].double()).T, dim=-1)
            along = positions[crystal][attention_mask[crystal].bool()].double() @ normals.T
            gap = plane_spacings(cell[crystal].double()) - (along.amax(0) - along.amin(0))
            if bool((gap < float(self.config.neighbor_radius or 0.0))[~pbc[crystal].bool()].any()):
                raise ValueError(
                    f"crystal {crystal} has pbc={pbc[crystal].tolist()} and gaps of {gap.tolist()} Å along its axes; "
                    f"this model looks {self.config.neighbor_radius} Å far, and along the axes that are not periodic "
                    "no less is accepted (CrystalFeatureExtractor makes such cells)."
                )

    @torch.compiler.disable  # reads values
    def _check_occupancies(self, occupancies: torch.Tensor, attention_mask: torch.Tensor) -> None:
        expected = (*attention_mask.shape, 118)
        if tuple(occupancies.shape) != expected:
            raise ValueError(f"occupancies have shape {tuple(occupancies.shape)}; expected {expected}.")
        if torch.compiler.is_exporting():
            return
        foreign = (occupancies[..., self.config.num_elements :] != 0).any(-1) & attention_mask.bool()
        sums = occupancies.sum(-1)
        wrong = foreign | ~((occupancies >= 0).all(-1) & (sums <= 1 + 1e-5)) & attention_mask.bool()
        if wrong.any():
            crystal, site = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"occupancies[{crystal}, {site}] sum to {float(sums[crystal, site]):.4g}; accepted are 0 to 1 for "
                f"elements 1 to {self.config.num_elements}, and sums up to 1."
            )

    def _elements(self, geometry: CrystalGeometry) -> torch.Tensor:
        """Whether each element is in each crystal `(B, num_elements)`."""
        count = self.config.num_elements
        if geometry.composition is None:
            numbers = torch.arange(1, count + 1, device=geometry.atomic_numbers.device)
            found = geometry.atomic_numbers[:, None] == numbers
        else:
            found = geometry.composition[:, :count] > 0
        return unpack_atoms(found.to(geometry.positions.dtype), geometry.atoms).amax(dim=1)

    @torch.no_grad()
    def calibrate(self, batch: Mapping[str, Any] | None = None, **inputs: torch.Tensor) -> None:
        """Sets the data-dependent scale of the Gaussian widths from one batch, block after block.

        Call it once, on the first training batch. Each block is calibrated with the outputs of the calibrated blocks
        below it, in evaluation mode: the result does not depend on random frames. A model loaded from a checkpoint is
        calibrated already.

        Args:
            batch (`Mapping`): `atomic_numbers`, `positions`, `cell`, `attention_mask`, `occupancies`, `pbc`; other
                entries are ignored.
                They may be given as keywords instead.
        """
        given = {**(batch or {}), **inputs}
        was_training = self.training
        self.eval()
        hidden_states, geometry = self._start(
            given["atomic_numbers"],
            given["positions"],
            given["cell"],
            given.get("attention_mask"),
            given.get("occupancies"),
            given.get("pbc"),
        )
        for layer in cast(list[CrystalformerLayer], self.layers):
            layer.attention.calibrate(hidden_states)
            hidden_states, _ = layer(hidden_states, geometry)
        self.train(was_training)

    @can_return_tuple
    def forward(
        self,
        atomic_numbers: torch.Tensor,
        positions: torch.Tensor,
        cell: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        occupancies: torch.Tensor | None = None,
        pbc: torch.Tensor | None = None,
        output_summary: bool = False,
        **kwargs: object,
    ) -> CrystalEncoderOutput:
        """Encodes a padded batch.

        Args:
            atomic_numbers (`torch.LongTensor` of shape `(B, N)`): elements, 0 for padding.
            positions (`torch.FloatTensor` of shape `(B, N, 3)`): Cartesian positions, Å, wrapped or not.
            cell (`torch.FloatTensor` of shape `(B, 3, 3)`): lattice vectors as rows, Å.
            attention_mask (`torch.Tensor` of shape `(B, N)`, *optional*): nonzero for atoms.
            output_hidden_states, output_attentions (`bool`, *optional*): return them too.
            occupancies (`torch.FloatTensor` of shape `(B, N, 118)`, *optional*): of disordered crystals, how much of
                element Z a site holds in column Z - 1; the rest of 1 is vacancy. A site then has the mean of its
                elements' embeddings, and its weight as a key and in the mean over the crystal is its occupancy.
            pbc (`torch.BoolTensor` of shape `(B, 3)`, *optional*): axes along which crystals repeat. It is only read
                to refuse what the model cannot do: other cell vectors have to keep copies out of reach.
            output_summary (`bool`): return `summary`, too.
            **kwargs: ignored.

        Raises:
            ValueError: occupancies outside 0 to 1, copies in reach along an axis that is not periodic, shapes that do
                not fit, an element the model does not know, a crystal without atoms.
        """
        del kwargs
        wants_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        wants_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if self.training and not self.is_calibrated:
            logger.warning_once(
                "Training a model whose Gaussian widths are not calibrated: they stay constant. Call "
                "model.calibrate(batch) on the first training batch (CrystalTrainer does)."
            )
        hidden_states, geometry = self._start(atomic_numbers, positions, cell, attention_mask, occupancies, pbc)
        states, attentions = [hidden_states], []
        for layer in self.layers:
            hidden_states, weights = layer(hidden_states, geometry, bool(wants_attentions))
            states.append(hidden_states)
            attentions.append(weights)
        padded = unpack_atoms(hidden_states, geometry.atoms)
        pooled = _mean_of_atoms(padded, geometry)
        summary = None
        if output_summary:
            earlier = [_mean_of_atoms(unpack_atoms(state, geometry.atoms), geometry) for state in states[:-1]]
            summary = torch.cat([self._elements(geometry).to(pooled.dtype), *earlier, pooled], dim=1)
        return CrystalEncoderOutput(
            last_hidden_state=padded,
            pooler_output=pooled,
            summary=summary,
            hidden_states=tuple(unpack_atoms(state, geometry.atoms) for state in states) if wants_states else None,
            attentions=tuple(attentions) if wants_attentions else None,
        )


def _mean_of_atoms(padded: torch.Tensor, geometry: CrystalGeometry) -> torch.Tensor:
    """Mean of states `(B, N, C)` over the atoms of each crystal, weighted by occupancy where it is given."""
    if geometry.occupancy is None:
        return padded.sum(dim=1) / geometry.atoms.sizes[:, None].to(padded.dtype)
    share = unpack_atoms(geometry.occupancy, geometry.atoms).to(padded.dtype)[..., None]
    return (padded * share).sum(dim=1) / share.sum(dim=1)


def _saved_settings(location: Any, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Saved configuration of a model with a head; none where no head is saved."""
    if location is None:
        return None
    places = ("cache_dir", "local_files_only", "token", "revision", "subfolder")
    try:
        values, _ = CrystalformerConfig.get_config_dict(
            location, **{name: options[name] for name in places if options.get(name) is not None}
        )
    except OSError:  # no config.json: transformers takes the one that it is given, or has its own error
        return None
    has_head = any("ForPropertyPrediction" in name for name in values.get("architectures") or [])
    return values if has_head and values.get("target_names") is not None else None


def _wanted_targets(
    saved: Mapping[str, str], names: Sequence[str] | None, units: Sequence[str] | None
) -> dict[str, str]:
    """Names and units to load; what is not given is as saved. Raises `ValueError` for another unit of a saved name."""
    names = list(saved if names is None else names)
    if units is None or (list(units) == list(saved.values()) and len(units) != len(names)):
        return {name: saved.get(name, "") for name in names}  # an Auto class fills in the saved units
    if len(units) != len(names) or len(set(names)) != len(names):
        raise ValueError(
            f"target_names={names} and target_units={list(units)} must be one unit for each of the names."
        )
    for name, unit in zip(names, units, strict=True):
        if saved.get(name) and unit != saved[name]:
            raise ValueError(
                f"target_units={list(units)}: {name} of target_names={names} is in {saved[name]!r} in the checkpoint, "
                f"not in {unit!r}; accepted is the saved unit."
            )
    return dict(zip(names, units, strict=True))


class CrystalformerForPropertyPrediction(CrystalformerPreTrainedModel):
    """The encoder with a head for one or several properties, in physical units."""

    encoder_class: type[CrystalformerModel] = CrystalformerModel
    _scaling_is_judged = False

    def __init__(self, config: CrystalformerConfig):
        super().__init__(config)
        self.encoder = self.encoder_class(config)
        self.head = CrystalPropertyHead(config)
        self.error_head = CrystalErrorHead(config) if config.error_head_size else None
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, config: Any = None, **kwargs: Any
    ) -> Any:
        """Loads a model; targets are matched with the saved ones by name.

        Args:
            pretrained_model_name_or_path: folder or repository.
            *model_args: passed on.
            config: configuration in place of the saved one.
            **kwargs: as transformers has them. `target_names`, `target_units` (or those of `config`) may be the saved
                ones in another order, or some of them: the head's rows, their scaling and units go with the names. A
                name that is not saved gets a new row, and a new head where none is saved, if
                `ignore_mismatched_sizes=True` says so.

        Raises:
            ValueError: a name that is not saved, without `ignore_mismatched_sizes=True`, or another unit than the
                saved one.
        """
        values = _saved_settings(pretrained_model_name_or_path, kwargs)
        if values is None:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        names = values["target_names"]
        saved = dict(zip(names, values.get("target_units") or [""] * len(names), strict=True))
        changed = {name: kwargs.pop(name) for name in ("target_names", "target_units") if name in kwargs}
        if isinstance(config, CrystalformerConfig):
            changed = {"target_names": config.target_names, "target_units": config.target_units, **changed}
            config = deepcopy(config)
            config.target_names, config.target_units = list(saved), list(saved.values())
        wanted = _wanted_targets(saved, changed.get("target_names"), changed.get("target_units"))
        unknown = [name for name in wanted if name not in saved]
        if unknown and not kwargs.get("ignore_mismatched_sizes"):
            raise ValueError(
                f"target_names={list(wanted)}: {unknown} are none of the targets of {pretrained_model_name_or_path}, "
                f"which predicts {list(saved)}; ignore_mismatched_sizes=True gives them new weights, to be trained."
            )
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if list(wanted) != list(saved):
            model._replace_head(saved, wanted)
        model.config.target_units = list(wanted.values())
        if model.config.has_errors and (other := model.config.changed_settings(values)):
            logger.warning(f"Settings {other} are not those saved: the model gives no standard errors.")
            model.config.error_head_outdated = True
        return loaded

    def _replace_head(self, saved: Mapping[str, str], wanted: Mapping[str, str]) -> None:
        """A head for other targets, with the rows of the saved ones among them; no error head beside new ones."""
        old, self.config.target_names = self.head, list(wanted)
        self.head = CrystalPropertyHead(self.config).to(old.out_proj.weight.device, old.out_proj.weight.dtype)
        for name in ("target_mean", "target_std"):  # these stay in float32
            buffer = getattr(self.head, name)
            setattr(self.head, name, buffer.to(getattr(old, name).dtype))
        positions = {name: row for row, name in enumerate(saved)}
        rows = [positions.get(name) for name in wanted]
        if any(row is not None for row in rows):
            self.head.copy_targets(old, rows)
        new = [name for name in wanted if name not in saved]
        if new:
            self.drop_error_head()
            logger.warning_once(f"The weights of the targets {new} are new; train the model before it predicts them.")
        elif self.error_head is not None:
            errors, place = self.error_head, cast(list[int], rows)
            errors.out_proj.weight = nn.Parameter(errors.out_proj.weight[place].detach().clone())
            errors.out_proj.bias = nn.Parameter(errors.out_proj.bias[place].detach().clone())
            errors.out_proj.out_features = len(place)
            errors.interval_factor = errors.interval_factor[place].clone()
            if errors.bounds is not None:
                self.config.error_scale_bounds = errors.bounds = [errors.bounds[row] for row in place]
        self.head.train(self.training)

    @property
    def _reads_states(self) -> bool:
        """Whether there is an error head that reads the summary of the encoder."""
        return self.config.has_errors and self.config.error_head_states

    def error_inputs(self, pooled: torch.Tensor) -> torch.Tensor:
        """Inputs of the error head: embeddings `(B, C)`, or summaries, and the hidden layer of the property head."""
        return torch.cat([pooled, torch.relu(self.head.dense(pooled[:, -self.config.hidden_size :]))], dim=1)

    def drop_error_head(self) -> None:
        """Removes the error head: after any training of the encoder its errors are those of another model."""
        self.error_head, self.config.error_head_size, self.config.error_scale_bounds = None, 0, None
        self.config.error_head_states = self.config.error_head_geometry = self.config.error_head_outdated = False

    def _begin_training(self) -> None:
        """Marks the error head as outdated, and warns once of a head whose scaling was never set."""
        if self.config.has_errors:  # only marked: optimizers, replicas and adapters hold its weights
            logger.warning_once("Training changes what standard errors were fitted to: the model gives none from now.")
            self.config.error_head_outdated = True
        if not self._scaling_is_judged:
            self._scaling_is_judged = True
            if bool((self.head.target_mean == 0).all() & (self.head.target_std == 1).all()):
                logger.warning_once(
                    "Training a head without a scale: model.set_target_scaling(mean, std) of the training labels "
                    "gives them mean 0 and standard deviation 1."
                )

    def calibrate(self, batch: Mapping[str, Any] | None = None, **inputs: torch.Tensor) -> None:
        """See [`CrystalformerModel.calibrate`]."""
        self.encoder.calibrate(batch, **inputs)

    @torch.no_grad()
    def set_target_scaling(self, mean: Sequence[float] | torch.Tensor, std: Sequence[float] | torch.Tensor) -> None:
        """Stores mean and standard deviation of the training targets, in physical units, one per target.

        Raises:
            ValueError: a wrong number of values, or a standard deviation that is not positive and finite.
        """
        self._scaling_is_judged = True
        for name, values in (("target_mean", mean), ("target_std", std)):
            buffer = getattr(self.head, name)
            tensor = torch.as_tensor(values, dtype=torch.float64).reshape(-1)
            if tensor.shape != buffer.shape:
                raise ValueError(
                    f"{name} has {tensor.numel()} values; the model predicts {self.config.target_names}, one each."
                )
            if not torch.isfinite(tensor).all() or (name == "target_std" and (tensor <= 0).any()):
                raise ValueError(
                    f"{name}={tensor.tolist()} must be finite{', and positive' * (name == 'target_std')}."
                )
            buffer.copy_(tensor)

    @can_return_tuple
    def forward(
        self,
        atomic_numbers: torch.Tensor,
        positions: torch.Tensor,
        cell: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        occupancies: torch.Tensor | None = None,
        pbc: torch.Tensor | None = None,
        **kwargs: object,
    ) -> CrystalPropertyOutput:
        """Predicts properties, and the loss where labels are given.

        Args:
            atomic_numbers, positions, cell, attention_mask, output_hidden_states, output_attentions, occupancies, pbc:
                as in [`CrystalformerModel.forward`].
            labels (`torch.FloatTensor` of shape `(B, targets)` or `(B,)` for one target, *optional*): physical
                units, NaN where unknown; the loss is the mean over known labels. After training with labels
                there are no standard errors: the error head is of the weights before.
            **kwargs: ignored.

        Raises:
            ValueError: as the encoder, and for labels of a wrong shape.
        """
        del kwargs
        if labels is not None and self.training and torch.is_grad_enabled():
            self._begin_training()
        encoded = self.encoder(
            atomic_numbers=atomic_numbers,
            positions=positions,
            cell=cell,
            attention_mask=attention_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            occupancies=occupancies,
            pbc=pbc,
            output_summary=self._reads_states,
            return_dict=True,
        )
        scaled = self.head(encoded.pooler_output)
        loss = None if labels is None else self._loss(scaled, labels)
        return CrystalPropertyOutput(
            loss=loss,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            pooler_output=encoded.pooler_output,
            **self._physical(scaled, encoded.summary if self._reads_states else encoded.pooler_output),
        )

    def _physical(self, scaled: torch.Tensor, pooled: torch.Tensor) -> dict[str, torch.Tensor]:
        """Outputs in physical units; in training a gap may be negative, for it would have no gradient at 0."""
        values, gap = self.head.to_physical(scaled), self.config.gap_index
        found: dict[str, torch.Tensor] = {}
        if self.error_head is not None and self.config.has_errors:
            inputs = self.error_inputs(pooled)
            logarithms, metal = self.error_head(inputs)
            if self.config.error_head_geometry:
                found |= self.error_head.geometry(inputs)
            found["standard_errors"] = logarithms.exp() * self.head.target_std
            found["interval_widths"] = found["standard_errors"] * self.error_head.interval_factor
            if gap is not None:
                found["metal_probability"] = metal.sigmoid()
        if gap is not None and not self.training:
            gaps = values[:, gap : gap + 1].clamp_min(0)
            if "metal_probability" in found:
                probability, widths = found["metal_probability"][:, None], found["interval_widths"]
                is_metal, length = probability > 0.5, widths[:, gap : gap + 1]
                # nine of ten are in neither case alone: the interval holds zero and the gap
                both = torch.where(is_metal, gaps + length, torch.maximum(gaps, length))
                length = torch.where(in_doubt(probability), both, length)
                found["interval_widths"] = torch.cat([widths[:, :gap], length, widths[:, gap + 1 :]], dim=1)
                gaps = gaps.masked_fill(is_metal, 0.0)
            values = torch.cat([values[:, :gap], gaps, values[:, gap + 1 :]], dim=1)
        return {"logits": values, **found}

    def _loss(self, scaled: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if labels.dim() == 1 and scaled.shape[1] == 1:
            labels = labels[:, None]
        if labels.shape != scaled.shape:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}; expected {tuple(scaled.shape)}: one column for each of "
                f"{self.config.target_names}."
            )
        scaled = scaled.to(torch.promote_types(scaled.dtype, torch.float32))
        return known_loss(self.config.loss_function, scaled, self.head.to_scaled(labels.to(scaled.dtype)))
