"""Language models of a generator recipe, with random weights."""

import dataclasses
from typing import Any

import torch

from hf_crystal.training.mat2seq_recipe import GeneratorModelArguments


def build_generator(shape: GeneratorModelArguments, tokenizer: Any) -> Any:
    """A language model with random weights: `Mat2SeqForCausalLM`, or stock `GPT2LMHeadModel`.

    Args:
        shape: Section of the recipe.
        tokenizer: Gives the vocabulary and the special tokens.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    from hf_crystal.models.generation_mat2seq import Mat2SeqForCausalLM, mat2seq_config

    fields = dataclasses.asdict(shape)
    model_type, dropout = fields.pop("model_type"), fields.pop("dropout")
    config = mat2seq_config("tiny", tokenizer, **fields, num_key_value_heads=shape.num_attention_heads)
    if model_type == "llama":
        model = Mat2SeqForCausalLM(config)
        if dropout:
            add_residual_dropout(model, dropout)
        return model
    special = {name: getattr(config, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=shape.max_position_embeddings,
            n_embd=shape.hidden_size,
            n_layer=shape.num_hidden_layers,
            n_head=shape.num_attention_heads,
            n_inner=shape.intermediate_size,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            **special,
        )
    )


def add_residual_dropout(model: Any, probability: float) -> None:
    """Drop entries of what each layer of a Llama model adds; hooks, since stock Llama has no such option.

    The saved model is stock Llama: the hooks act in training mode only and are not part of it.

    Args:
        model: `LlamaForCausalLM`.
        probability: Of an entry to be dropped.
    """

    def drop(module: torch.nn.Module, _: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # attention also returns its weights
            return (drop(module, _, output[0]), *output[1:])
        return torch.nn.functional.dropout(output, probability, module.training)

    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)
