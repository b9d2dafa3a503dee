"""Optimisers of generators: AdamW, or Muon for the matrices inside the layers."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from hf_crystal.training.mat2seq_recipe import GeneratorTrainingArguments

BETAS = (0.9, 0.98)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for some parameters and AdamW for the others, as one optimiser with one `state_dict`.

    Muon (K. Jordan et al., 2024) makes the update of a matrix orthogonal; it is defined for matrices only, and
    embeddings are better left to AdamW. Schedulers see the groups of both.

    Args:
        muon: Optimiser of the matrices.
        adamw: Optimiser of everything else.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW):
        self.parts: list[torch.optim.Optimizer] = [muon, adamw]
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """States of both."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read what `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        # loading replaces the groups; the schedulers have to see the new ones
        self.param_groups = [group for part in self.parts for group in part.param_groups]


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
