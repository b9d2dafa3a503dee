# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Steps of one token through a Llama model, for rows that grow together and leave one by one.

A small model spends most of a step on what surrounds its arithmetic: some thirty operations a layer, a cache that is
copied to take one more token, rows that have ended. `LlamaSteps` has the same weights and gives the same logits to
rounding, with a third of the operations (q, k and v as one product, gate and up as one), a cache with room to grow,
and rows that leave at once. Models that it does not know are for `generate` of transformers.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaModel, LlamaRMSNorm

__all__ = ["LlamaSteps", "has_llama_steps", "read_prompts"]

_ROOM = 8  # tokens that the cache grows by


def has_llama_steps(model: Any) -> bool:
    """Whether `LlamaSteps` can stand for the forward pass of a model: a Llama without adapters, hooks and biases."""
    if type(getattr(model, "model", None)) is not LlamaModel or type(model).forward is not LlamaForCausalLM.forward:
        return False
    config = model.config
    plain = config.rope_parameters["rope_type"] == "default" and config.hidden_act == "silu"
    projections = [m for name, m in model.named_modules() if name.endswith(("_proj", "lm_head"))]
    return (
        plain
        and all(type(module) is nn.Linear and module.bias is None for module in projections)
        and all(type(m) is LlamaRMSNorm for name, m in model.named_modules() if name.endswith("norm"))
        and not any(m._forward_hooks or m._forward_pre_hooks or hasattr(m, "_hf_hook") for m in model.modules())
        and not model.training
    )


def read_prompts(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> Any:
    """Cache of a causal language model after prompts that are padded in front, `ids` and `mask` `(n, L)`."""
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True).past_key_values


def _pairs_together(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows (heads · d, C) of a projection, the two components that turn together side by side.

    Products of queries and keys do not depend on the order of components, and neighbours are complex numbers.
    """
    return rows.view(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


class _Layer:
    """Weights of one layer; those that multiply the same states are one matrix."""

    def __init__(self, layer: Any, heads: int, key_heads: int):
        attention, mlp = layer.self_attn, layer.mlp
        query, key = (
            _pairs_together(attention.q_proj.weight, heads),
            _pairs_together(attention.k_proj.weight, key_heads),
        )
        self.query_key_value = torch.cat([query, key, attention.v_proj.weight])
        self.output = attention.o_proj.weight.t()
        self.gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        self.down = mlp.down_proj.weight.t()
        self.norms = (layer.input_layernorm.weight, layer.post_attention_layernorm.weight)


class LlamaSteps:
    """Reads prompts, then one token per row and call.  Keeps a second copy of the weights of the layers.

    Args:
        model: For which `has_llama_steps` holds.
    """

    def __init__(self, model: Any):
        config, core = model.config, model.model
        self._model = model
        self._heads, self._key_heads = config.num_attention_heads, config.num_key_value_heads
        self._width, self._eps = core.layers[0].self_attn.head_dim, config.rms_norm_eps
        self._layers = [_Layer(layer, self._heads, self._key_heads) for layer in core.layers]
        self._embedding, self._norm, self._head = core.embed_tokens.weight, core.norm.weight, model.lm_head.weight
        # half precision turns in float32, as in the model
        self._angle_dtype = torch.promote_types(model.dtype, torch.float32)
        self._frequencies = core.rotary_emb.inv_freq.to(self._angle_dtype)

    def read(self, ids: torch.Tensor, mask: torch.Tensor) -> None:
        """Begin with prompts.

        Args:
            ids: Prompts without their last token, shape (n, L), padded in front; L may be 0.
            mask: 0 for padding, shape (n, L).
        """
        self._length, self._place = ids.shape[1], mask.sum(dim=1)
        empty = self._embedding.new_empty(len(ids), self._key_heads, 0, self._width)
        self._keys, self._values = [empty] * len(self._layers), [empty] * len(self._layers)
        padding = (mask == 0)[:, None, None, :]
        self._bias = None
        if padding.any():
            self._bias = torch.zeros_like(padding, dtype=empty.dtype).masked_fill_(padding, -torch.inf)
        if self._length:
            layers = read_prompts(self._model, ids, mask).layers
            self._keys = [layer.keys.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2) for layer in layers]
            self._values = [layer.values for layer in layers]

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows, in this order; a row may be named many times.  `rows (m,)`."""
        self._keys = [keys.index_select(0, rows) for keys in self._keys]
        self._values = [values.index_select(0, rows) for values in self._values]
        self._place = self._place[rows]
        if self._bias is not None:
            self._bias = self._bias[rows]

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits `(m, V)` after one more token of each row.  `tokens (m,)`."""
        if self._length == self._keys[0].shape[2]:
            room = (0, 0, 0, _ROOM)
            self._keys = [functional.pad(keys, room) for keys in self._keys]
            self._values = [functional.pad(values, room) for values in self._values]
            if self._bias is not None:
                self._bias = functional.pad(self._bias, (0, _ROOM))
        angles = self._place[:, None].to(self._angle_dtype) * self._frequencies
        turn = torch.polar(torch.ones_like(angles), angles)[:, None]
        self._place = self._place + 1
        self._length += 1
        states = functional.embedding(tokens, self._embedding)
        for place, layer in enumerate(self._layers):
            mixed = self._attend(functional.rms_norm(states, states.shape[1:], layer.norms[0], self._eps), place, turn)
            states = torch.addmm(states, mixed, layer.output)
            normed = functional.rms_norm(states, states.shape[1:], layer.norms[1], self._eps)
            gate, up = functional.linear(normed, layer.gate_up).chunk(2, dim=-1)
            states = torch.addmm(states, functional.silu(gate).mul_(up), layer.down)
        return functional.linear(functional.rms_norm(states, states.shape[1:], self._norm, self._eps), self._head)

    def _attend(self, states: torch.Tensor, place: int, turn: torch.Tensor) -> torch.Tensor:
        """Attention of the new tokens `(m, C)` of one layer to all tokens of their rows."""
        rows, length, turning = len(states), self._length, self._heads + self._key_heads
        projected = functional.linear(states, self._layers[place].query_key_value).view(rows, -1, self._width)
        pairs = torch.view_as_complex(projected[:, :turning].to(self._angle_dtype).unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(pairs * turn).flatten(-2).to(states.dtype)
        keys, values = self._keys[place], self._values[place]
        keys[:, :, length - 1] = turned[:, self._heads :]
        values[:, :, length - 1] = projected[:, turning:]
        mixed = functional.scaled_dot_product_attention(
            turned[:, : self._heads, None],
            keys[:, :, :length],
            values[:, :, :length],
            attn_mask=None if self._bias is None else self._bias[..., :length],
            enable_gqa=self._heads != self._key_heads,
        )
        return mixed.view(rows, -1)
