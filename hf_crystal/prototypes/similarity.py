"""How far elements are from each other as members of a prototype, learned from the index itself."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers.utils import logging

from .families import Family

__all__ = ["fit_distances", "fit_volumes"]

logger = logging.get_logger(__name__)

NUM_ELEMENTS = 119  # atomic numbers up to 118; 0 is not used
_DIMENSIONS = 24
_LARGEST = 1024  # crystals of a family in a step
_QUERIES = 128
_SHARPER = 1.5  # more crystals vote than while fitting; 77.4 % of 500 validation compositions, 75.4 with 1


def fit_distances(
    families: Sequence[Family], *, epochs: int = 6, rate: float = 0.03, decay: float = 1e-4, seed: int = 0
) -> np.ndarray:
    """Distances between elements under which crystals find their own prototype (neighborhood component analysis).

    Each crystal votes for the label of each other crystal of its family with weight exp(-distance), where the distance
    of two crystals is the mean over atoms of that of their elements. What is fitted are places of the elements, so
    that the share of the votes for the crystal's own label is as large as can be. Rare elements stay near the middle.

    Args:
        families: All families of the index.
        epochs: How often each crystal is asked.
        rate: Learning rate of Adam, falling to 0.
        decay: Weight decay of the places.
        seed: Random seed.

    Returns:
        (119, 119) by atomic number, symmetric, 0 on the diagonal.
    """
    generator = torch.Generator().manual_seed(seed)
    places = (torch.randn(NUM_ELEMENTS, _DIMENSIONS, generator=generator) * 0.3).requires_grad_()
    optimizer = torch.optim.Adam([places], lr=rate)
    asked = [family for family in families if _can_learn(family)]
    batches = [(f, start) for f in asked for start in range(0, len(f.rows), _QUERIES)]
    total, step = epochs * len(batches), 0
    for epoch in range(epochs):
        orders = {f.counts: torch.randperm(len(f.rows), generator=generator) for f in asked}
        losses, count = 0.0, 0
        for at in torch.randperm(len(batches), generator=generator).tolist():
            family, start = batches[at]
            order = orders[family.counts]
            known = order[torch.randperm(len(order), generator=generator)[:_LARGEST]]
            loss, answered = _loss(places, family, order[start : start + _QUERIES], known)
            step += 1
            if not answered:
                continue
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / (total + 1))
            optimizer.zero_grad()
            (loss / _QUERIES + decay * (places**2).sum()).backward()
            optimizer.step()
            losses, count = losses + loss.item(), count + answered
        logger.info(f"epoch {epoch + 1} of {epochs}: {losses / max(count, 1):.4f} nats for the label of a crystal")
    with torch.no_grad():
        distances = ((places[:, None] - places[None]) ** 2).sum(-1)
    return _with_unseen(np.round(_SHARPER * distances.numpy().astype(float), 2), families)


def _with_unseen(distances: np.ndarray, families: Sequence[Family]) -> np.ndarray:
    """Elements that never occur are as far from all others as any two are."""
    seen = {number for family in families for number in np.unique(family.elements).tolist()}
    unseen = [number for number in range(NUM_ELEMENTS) if number not in seen]
    distances[unseen] = distances[:, unseen] = np.delete(np.delete(distances, unseen, 0), unseen, 1).max(initial=0.0)
    np.fill_diagonal(distances, 0.0)
    return distances


def _can_learn(family: Family) -> bool:
    return len(family.rows) > 1 and len(np.unique(family.labels)) > 1


def _loss(
    places: torch.Tensor, family: Family, queries: torch.Tensor, known: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """Sum over the queries of -log of the share of votes for their own label, and how many have one elsewhere."""
    distances = ((places[:, None] - places[None]) ** 2).sum(-1)
    elements, labels = torch.from_numpy(family.elements), torch.from_numpy(family.labels)
    cost = torch.zeros(len(queries), len(known), len(family.permutations))
    for slot, share in enumerate(family.shares.tolist()):
        theirs = elements[known][:, torch.from_numpy(family.permutations[:, slot])]  # (R, P)
        cost = cost + share * distances[elements[queries, slot]][:, theirs]
    cost = cost.masked_fill((queries[:, None] == known)[..., None], torch.inf).flatten(1)
    right = labels[queries, 0][:, None] == labels[known].flatten()[None]
    possible = (right & cost.isfinite()).any(1)
    if not possible.any():
        return cost.new_zeros(()), 0
    votes = -cost[possible]
    own = votes.masked_fill(~right[possible], -torch.inf)
    return (votes.logsumexp(1) - own.logsumexp(1)).sum(), int(possible.sum())


def fit_volumes(compositions: Sequence[dict[int, int]], volumes: np.ndarray) -> np.ndarray:
    """Volume per atom of each element, Å³, so that their sum is the volume of a crystal: weighted least squares.

    Relative errors count; elements that never occur get the mean volume of an atom.

    Args:
        compositions: Atomic number → atoms in the primitive cell.
        volumes: Volume of each primitive cell, Å³.
    """
    from scipy.optimize import nnls

    amounts = np.zeros((len(compositions), NUM_ELEMENTS))
    for row, composition in enumerate(compositions):
        amounts[row, list(composition)] = list(composition.values())
    mean = float((volumes / amounts.sum(1)).mean())
    weighted = amounts / volumes[:, None]
    prior = np.eye(NUM_ELEMENTS) * 1e-2 / mean  # also keeps the volumes of rare elements near the mean
    targets = np.concatenate([np.ones(len(volumes)), np.diag(prior) * mean])
    table = np.column_stack([np.vstack([weighted, prior]), targets])
    triangle = np.asarray(np.linalg.qr(table, mode="r"))  # the same problem, of a few rows
    fitted, _ = nnls(triangle[:, :-1], triangle[:, -1])
    return np.round(np.maximum(fitted, 0.2 * mean), 2)
