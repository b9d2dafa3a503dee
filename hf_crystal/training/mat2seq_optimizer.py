"""Optimisers of generators: AdamW, or Muon for the matrices inside the layers."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from hf_crystal.training.optimizers import MuonWithAdamW

if TYPE_CHECKING:
    from hf_crystal.training.generator_recipe import GeneratorTrainingArguments

BETAS = (0.9, 0.98)


def build_optimizer(model: Any, training: "GeneratorTrainingArguments") -> torch.optim.Optimizer:
    """Optimiser of a recipe; vectors and, with Muon, embeddings have no weight decay.

    Args:
        model: Causal language model.
        training: Section of the recipe.
    """
    embeddings = {id(layer.weight) for layer in model.modules() if isinstance(layer, torch.nn.Embedding)}
    parameters = list(model.parameters())
    vectors = [p for p in parameters if p.ndim < 2]
    tables = [p for p in parameters if p.ndim >= 2 and id(p) in embeddings]
    matrices = [p for p in parameters if p.ndim >= 2 and id(p) not in embeddings]
    decay = training.weight_decay
    if training.optimizer == "adamw":
        return _adamw([(tables + matrices, decay), (vectors, 0.0)], training.learning_rate)
    muon = torch.optim.Muon(matrices, lr=training.muon_learning_rate, weight_decay=decay, momentum=0.95)
    return MuonWithAdamW(muon, _adamw([(tables, 0.0), (vectors, 0.0)], training.learning_rate))


def _adamw(groups: Iterable[tuple[list[torch.nn.Parameter], float]], learning_rate: float) -> torch.optim.AdamW:
    parts = [{"params": parameters, "weight_decay": decay} for parameters, decay in groups]
    return torch.optim.AdamW(parts, lr=learning_rate, betas=BETAS)
