"""First token embeddings that know what tokens mean: like elements and near numbers begin near each other.

A small model sees few crystals of a rare element; with random embeddings it has to learn from them alone that Rb is
much like K. `docs/experiments.md` says what it buys.
"""

import math
import warnings
from typing import TYPE_CHECKING

import torch

from hf_crystal.typing import Generator

if TYPE_CHECKING:
    from hf_crystal.mat2seq.tokenization_mat2seq import Mat2SeqTokenizer

MEANING = 0.8  # length of the part that follows from the meaning, in units of the initialisation's standard deviation
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
    weight = model.get_input_embeddings().weight
    deviation = float(model.config.initializer_range)
    projections: dict[str, torch.Tensor] = {}
    for index, (kind, numbers) in sorted(token_features(tokenizer).items()):
        if kind not in projections:
            projections[kind] = torch.randn(len(numbers), weight.shape[1])
        meaning = torch.tensor(numbers) @ projections[kind]
        weight[index] = MEANING * deviation * meaning / meaning.std() + OWN * weight[index]
