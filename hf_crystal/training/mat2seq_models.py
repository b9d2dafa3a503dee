"""Language models of a generator recipe, with random weights."""

from typing import TYPE_CHECKING, Any

import torch

from hf_crystal.training.mat2seq_init import initialize_by_meaning
from hf_crystal.training.mat2seq_recipe import GeneratorModelArguments

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from hf_crystal.mat2seq.tokenization_mat2seq import Mat2SeqTokenizer


def build_generator(shape: GeneratorModelArguments, tokenizer: "Mat2SeqTokenizer") -> Any:
    """A language model with random weights: `Mat2SeqForCausalLM`, or stock `GPT2LMHeadModel`.

    Args:
        shape: Section of the recipe.
        tokenizer: Gives the vocabulary and the special tokens.
    """
    model = _llama(shape, tokenizer) if shape.model_type == "llama" else _gpt2(shape, tokenizer)
    if shape.embedding_init == "meaning":
        initialize_by_meaning(model, tokenizer)
    return model


def _llama(shape: GeneratorModelArguments, tokenizer: Any) -> Any:
    from hf_crystal.mat2seq.modeling_mat2seq import Mat2SeqForCausalLM, mat2seq_config

    model = Mat2SeqForCausalLM(
        mat2seq_config(
            "tiny",
            tokenizer,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            num_key_value_heads=shape.num_attention_heads,
            intermediate_size=shape.intermediate_size,
            max_position_embeddings=shape.max_position_embeddings,
        )
    )
    if shape.dropout:
        add_residual_dropout(model, shape.dropout)
    return model


def _gpt2(shape: GeneratorModelArguments, tokenizer: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=shape.max_position_embeddings,
            n_embd=shape.hidden_size,
            n_layer=shape.num_hidden_layers,
            n_head=shape.num_attention_heads,
            n_inner=shape.intermediate_size,
            resid_pdrop=shape.dropout,
            embd_pdrop=shape.dropout,
            attn_pdrop=shape.dropout,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def add_residual_dropout(model: "LlamaForCausalLM", probability: float) -> None:
    """Drop entries of what each layer of a Llama model adds; hooks, since stock Llama has no such option.

    The saved model is stock Llama: the hooks act in training mode only and are not part of it.

    Args:
        model: `LlamaForCausalLM`.
        probability: Of an entry to be dropped.
    """

    def drop(module: torch.nn.Module, _: Any, output: Any) -> Any:
        """Hook: the output with dropout while training."""
        if isinstance(output, tuple):  # attention also returns its weights
            return (drop(module, _, output[0]), *output[1:])
        return torch.nn.functional.dropout(output, probability, module.training)

    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)
