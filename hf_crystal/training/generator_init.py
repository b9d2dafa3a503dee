"""First token embeddings that know what tokens mean: like elements and near numbers begin near each other.

A small model sees few crystals of a rare element; with random embeddings it has to learn from them alone that Rb is
much like K. `docs/experiments.md` says what it buys.
"""

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch

from hf_crystal.training.generator_recipe import GeneratorModelArguments
from hf_crystal.typing import Generator

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from hf_crystal.mat2seq.tokenization_mat2seq import Mat2SeqTokenizer

MEANING = 0.8  # length of the part that follows from the meaning, in units of the initialization's standard deviation
OWN = 0.6  # length of the random part that keeps tokens apart
LONGEST_SCALE = 32  # bins; those of one property are fewer


def _element_features(symbol: str) -> list[float]:
    """Group, period, electronegativity, radius and block of an element."""
    try:
        from pymatgen.core import Element
    except ImportError as error:
        raise ImportError("embedding_init='meaning' needs pymatgen: pip install pymatgen") from error

    element = Element(symbol)
    group, period = [0.0] * 18, [0.0] * 7
    group[element.group - 1], period[element.row - 1] = 1.5, 1.0
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # helium, for instance, has none
        electronegativity = 1.7 if math.isnan(element.X) else element.X
    radius = float(element.atomic_radius or 1.5)
    blocks = [float(element.is_lanthanoid), float(element.is_transition_metal)]
    return [*group, *period, 1.5 * (electronegativity - 1.8), 2 * (radius - 1.5), *blocks, 1.0]


def _waves(value: float, frequencies: int) -> list[float]:
    return [wave(k * value) for k in range(1, frequencies + 1) for wave in (math.cos, math.sin)]


def token_features(tokenizer: "Mat2SeqTokenizer") -> dict[int, tuple[str, list[float]]]:
    """What a token means, as (kind, numbers); tokens of one kind have equally many numbers, others have no entry."""
    from hf_crystal.crystals.elements import FORMULA_RANK
    from hf_crystal.crystals.record import CHEMICAL_SYMBOLS
    from hf_crystal.mat2seq.sequence_text import AXIS_TOKENS

    symbols = {CHEMICAL_SYMBOLS[number] for number in FORMULA_RANK}
    features: dict[int, tuple[str, list[float]]] = {}
    for token, index in tokenizer.get_vocab().items():
        digits = token.strip(".~")
        if token in symbols and token not in AXIS_TOKENS:
            features[index] = ("element", _element_features(token))
        elif token.startswith("<bin_"):
            features[index] = ("bin", [1.0, *_waves(math.pi * int(token[5:-1]) / LONGEST_SCALE, 4)])
        elif not digits.isdecimal():
            continue
        elif token.startswith("."):  # first digits of a coordinate: periodic
            features[index] = ("coordinate", [1.0, *_waves(2 * math.pi * int(digits) / 10 ** len(digits), 6)])
        elif token.startswith("~"):
            features[index] = (f"digits{len(digits)}", [1.0, *_waves(math.pi * int(digits) / 10 ** len(digits), 3)])
        elif token.endswith("."):
            features[index] = ("whole", [1.0, *_waves(math.log1p(int(digits)), 4)])
        else:
            count = int(digits)
            features[index] = (
                "count",
                [1.0, *_waves(math.log(count), 4), *(float(count % k == 0) for k in (2, 3, 4))],
            )
    return features


@torch.no_grad()
def initialize_by_meaning(model: Generator, tokenizer: "Mat2SeqTokenizer") -> None:
    """Set the embeddings of elements and numbers from their meaning plus a random part; others stay as they are.

    Args:
        model: Causal language model with random weights; the global generator is drawn from.
        tokenizer: Its tokenizer.
    """
    weight: Any = model.get_input_embeddings().weight
    deviation = float(model.config.initializer_range)
    projections: dict[str, torch.Tensor] = {}
    for index, (kind, numbers) in sorted(token_features(tokenizer).items()):
        if kind not in projections:
            projections[kind] = torch.randn(len(numbers), weight.shape[1])
        meaning = torch.tensor(numbers) @ projections[kind]
        weight[index] = MEANING * deviation * meaning / meaning.std() + OWN * weight[index]


def build_generator(shape: GeneratorModelArguments, tokenizer: "Mat2SeqTokenizer") -> Generator:
    """A language model with random weights: `Mat2SeqForCausalLM`, or stock `GPT2LMHeadModel`.

    Args:
        shape: Section of the recipe.
        tokenizer: Gives the vocabulary and the special tokens.
    """
    model = _llama(shape, tokenizer) if shape.model_type == "llama" else _gpt2(shape, tokenizer)
    if shape.embedding_init == "meaning":
        initialize_by_meaning(model, tokenizer)
    return model


def _llama(shape: GeneratorModelArguments, tokenizer: "Mat2SeqTokenizer") -> Generator:
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


def _gpt2(shape: GeneratorModelArguments, tokenizer: "Mat2SeqTokenizer") -> Generator:
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

    def drop(module: torch.nn.Module, _: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> Any:
        """Hook: the output with dropout while training."""
        if isinstance(output, tuple):  # attention also returns its weights
            return (drop(module, _, output[0]), *output[1:])
        return torch.nn.functional.dropout(output, probability, module.training)

    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)
