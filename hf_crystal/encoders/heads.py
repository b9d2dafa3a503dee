"""What encoders and property models return, heads from a crystal's embedding to properties and errors, losses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from .configuration_crystalformer import CrystalformerConfig

__all__ = ["CrystalEncoderOutput", "CrystalErrorHead", "CrystalPropertyHead", "CrystalPropertyOutput", "known_loss"]

LOSSES = {
    "l1": nn.functional.l1_loss,
    "mse": nn.functional.mse_loss,
    "smooth_l1": nn.functional.smooth_l1_loss,
}
_DISTORTION_SIZE = 64  # units between the inputs and the logit of a distortion


@dataclass
class CrystalEncoderOutput(ModelOutput):
    """Output of a crystal encoder.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(B, N, C)`): state of every atom; zero for padding.
        pooler_output (`torch.FloatTensor` of shape `(B, C)`): mean over the atoms of each crystal, weighted by
            occupancy where it is given.
        hidden_states (`tuple`, *optional*): embeddings and the output of each block, each `(B, N, C)`.
        attentions (`tuple`, *optional*): attention weights summed over images, per block `(B, H, N, N)`.
        summary (`torch.FloatTensor` of shape `(B, num_elements + (L + 1) C)`, *optional*): what an error head may
            read: 1 for each element that is there, else 0; the mean of the states before every block; `pooler_output`.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    summary: torch.Tensor | None = None


@dataclass
class CrystalPropertyOutput(ModelOutput):
    """Output of a property model.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*): mean loss over known labels, on scaled targets.
        logits (`torch.FloatTensor` of shape `(B, targets)`): predictions in `config.target_units`; in evaluation the
            gap (`config.gap_target`) is not below 0, and 0 where `metal_probability` is above 0.5: the median.
        hidden_states, attentions: as in [`CrystalEncoderOutput`].
        pooler_output (`torch.FloatTensor` of shape `(B, C)`): embedding of each crystal.
        standard_errors (`torch.FloatTensor` of shape `(B, targets)`, *optional*): scale of the error of each
            prediction, same units: 68 % of held-out errors are smaller. With an error head.
        interval_widths (`torch.FloatTensor` of shape `(B, targets)`, *optional*): half widths of 90 % intervals.
        metal_probability (`torch.FloatTensor` of shape `(B,)`, *optional*): that the gap is 0; with `gap_target`.
        strain (`torch.FloatTensor` of shape `(B,)`, *optional*): about how much longer the edges are than those of
            training crystals of this kind, as a logarithm; with `error_head_geometry`.
        distortion (`torch.FloatTensor` of shape `(B,)`, *optional*): logit, of crystals that do not look like one at
            rest above 0; with `error_head_geometry`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    pooler_output: torch.Tensor | None = None
    standard_errors: torch.Tensor | None = None
    interval_widths: torch.Tensor | None = None
    metal_probability: torch.Tensor | None = None
    strain: torch.Tensor | None = None
    distortion: torch.Tensor | None = None


class CrystalPropertyHead(nn.Module):
    """MLP from a crystal's embedding to scaled targets, and the affine map to physical units."""

    target_mean: torch.Tensor
    target_std: torch.Tensor

    def __init__(self, config: CrystalformerConfig):
        super().__init__()
        num_targets = len(config.target_names)
        self.dense = nn.Linear(config.hidden_size, config.head_hidden_size)
        self.out_proj = nn.Linear(config.head_hidden_size, num_targets)
        self.register_buffer("target_mean", torch.zeros(num_targets), persistent=True)
        self.register_buffer("target_std", torch.ones(num_targets), persistent=True)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Embeddings `(B, C)` to scaled targets `(B, targets)`."""
        return self.out_proj(torch.relu(self.dense(pooled)))

    def to_physical(self, scaled: torch.Tensor) -> torch.Tensor:
        """Y = scaled · std + mean, in at least float32."""
        dtype = torch.promote_types(scaled.dtype, self.target_mean.dtype)
        return scaled.to(dtype) * self.target_std + self.target_mean

    def to_scaled(self, labels: torch.Tensor) -> torch.Tensor:
        """(y - mean) / std."""
        return (labels - self.target_mean) / self.target_std

    @torch.no_grad()
    def copy_targets(self, other: "CrystalPropertyHead", rows: Sequence[int | None]) -> None:
        """Takes over the hidden layer of another head, and for each target the given row of it; None: stays new."""
        self.dense.load_state_dict(other.dense.state_dict())
        for own, row in enumerate(rows):
            if row is not None:
                for mine, theirs in (
                    (self.out_proj.weight, other.out_proj.weight),
                    (self.out_proj.bias, other.out_proj.bias),
                    (self.target_mean, other.target_mean),
                    (self.target_std, other.target_std),
                ):
                    mine[own] = theirs[row]


def in_doubt(metal_probability: Any) -> Any:
    """Whether neither metal nor no metal has nine tenths of the probability; of a tensor or an array."""
    return (metal_probability > 0.1) & (metal_probability < 0.9)


class CrystalErrorHead(nn.Module):
    """MLP to the scales of the errors, on scaled targets, and the logit of a metal.

    Its inputs are a crystal's embedding and the hidden layer of the property head and, with `error_head_states`, the
    mean states before every block and which elements are there: a linear function of all had a rank correlation with
    the errors of held-out crystals (formation energy) of 0.41, one of the first two of 0.32. It is fitted after
    training, on crystals that the encoder has not seen, and passes no gradient to the encoder.
    """

    interval_factor: torch.Tensor

    def __init__(self, config: CrystalformerConfig):
        super().__init__()
        num_targets = len(config.target_names)
        width = config.hidden_size + config.head_hidden_size
        if config.error_head_states:
            width += config.num_elements + config.num_hidden_layers * config.hidden_size
        self.dense = nn.Linear(width, config.error_head_size)
        self.out_proj = nn.Linear(config.error_head_size, num_targets)
        self.metal_proj = nn.Linear(config.error_head_size, 1)
        if config.error_head_geometry:
            self.strain_proj = nn.Linear(width, 1)
            self.distortion_dense = nn.Linear(width, _DISTORTION_SIZE)
            self.distortion_proj = nn.Linear(_DISTORTION_SIZE, 1)
        self.register_buffer("interval_factor", torch.ones(num_targets), persistent=True)
        self.bounds = config.error_scale_bounds
        if self.bounds is not None and [len(pair) for pair in self.bounds] != [2] * num_targets:
            raise ValueError(
                f"error_scale_bounds={self.bounds} must hold two numbers for each of {config.target_names}; other "
                "targets than those of the checkpoint need error_head_size=0, error_scale_bounds=None."
            )

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What `error_inputs` gives to logarithms of error scales `(B, targets)` and logits of a metal `(B,)`."""
        hidden = torch.relu(self.dense(inputs.detach()))
        scales = self.out_proj(hidden).float()
        if self.bounds is None:
            scales = scales.clamp(-8.0, 4.0)
        else:  # it is linear far from all crystals of the fit: diamond's gap would get a standard error of 40 eV
            smallest, largest = scales.new_tensor(self.bounds).unbind(1)
            scales = scales.clamp(smallest, largest)
        return scales, self.metal_proj(hidden).float()[:, 0]

    def geometry(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """What `error_inputs` gives to `strain` and `distortion` `(B,)`, with `error_head_geometry`.

        A linear function is enough for the former.
        """
        inputs = inputs.detach()
        distortion = self.distortion_proj(torch.relu(self.distortion_dense(inputs)))
        return {"strain": self.strain_proj(inputs).float()[:, 0], "distortion": distortion.float()[:, 0]}


def known_loss(name: str, predicted: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean loss over known labels, 0 where none is.

    Args:
        name (`str`): of `LOSSES`.
        predicted, labels (`torch.Tensor` of one shape): labels are NaN where unknown.
    """
    known = torch.isfinite(labels)
    losses = LOSSES[name](predicted, labels.where(known, predicted.detach()), reduction="none")
    return losses.sum() / known.sum().clamp_min(1)
