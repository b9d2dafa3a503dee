"""What the crystal encoders and property models return."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

__all__ = ["CrystalEncoderOutput", "CrystalPropertyOutput"]


@dataclass
class CrystalEncoderOutput(ModelOutput):
    """Output of a crystal encoder.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(B, N, C)`): state of every atom; zero for padding.
        pooler_output (`torch.FloatTensor` of shape `(B, C)`): mean over the atoms of each crystal.
        hidden_states (`tuple`, *optional*): embeddings and the output of each block, each `(B, N, C)`.
        attentions (`tuple`, *optional*): attention weights summed over images, per block `(B, H, N, N)`.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class CrystalPropertyOutput(ModelOutput):
    """Output of a property model.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*): mean loss over known labels, on scaled targets.
        logits (`torch.FloatTensor` of shape `(B, targets)`): predictions in `config.target_units`.
        hidden_states, attentions: as in [`CrystalEncoderOutput`].
        pooler_output (`torch.FloatTensor` of shape `(B, C)`): embedding of each crystal.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    pooler_output: torch.Tensor | None = None
