# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""What the settings of a checkpoint say besides its architecture: their version, and the elements it was trained on.

The weights of a checkpoint are read by name; what its settings mean may change between versions of this package. Such
a change adds a function `update_v{n}_v{n+1}(values) -> values` to the list beside the class, and with it the version.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from .elements import CHEMICAL_SYMBOLS

__all__ = ["TrainingDomain", "training_domain", "update_checkpoint"]

_MOST_PAIRS = 5  # named in one warning
Update = Callable[[dict[str, Any]], dict[str, Any]]


def update_checkpoint(values: Mapping[str, Any], updates: Sequence[Update], what: str) -> dict[str, Any]:
    """Settings of a checkpoint in the newest version, `len(updates) + 1`.

    Args:
        values: Settings as saved. Without a `checkpoint_version` they are of version 1.
        updates: `update_v1_v2`, `update_v2_v3`, … in this order.
        what: What is loaded, for the error.

    Raises:
        ValueError: `checkpoint_version` is newer than this code, or no version at all.
    """
    version, newest = values.get("checkpoint_version", 1), len(updates) + 1
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"checkpoint_version={version!r} of {what}: accepted are the integers 1 to {newest}.")
    if version > newest:
        raise ValueError(
            f"checkpoint_version={version} of {what} is newer than this code, which reads 1 to {newest}: "
            "pip install --upgrade hf_crystal."
        )
    updated = dict(values)
    for update in updates[version - 1 :]:
        updated = update(updated)
    return {**updated, "checkpoint_version": newest}


def _presence(crystals: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    """Which elements each crystal has, bool, shape `(B, 119)`; 0 is padding."""
    counts = [len(numbers) for numbers in crystals]
    present = np.zeros((len(counts), len(CHEMICAL_SYMBOLS)), dtype=bool)
    if counts:
        present[np.repeat(np.arange(len(counts)), counts), np.concatenate([np.asarray(item) for item in crystals])] = 1
    present[:, 0] = False
    return present


def training_domain(blocks: Iterable[Sequence[Sequence[int]]]) -> dict[str, dict[str, Any]]:
    """Config fields that record the elements of training crystals.

    Args:
        blocks: the training crystals in blocks, each crystal as its atomic numbers (0 is skipped).

    Returns:
        `trained_elements`: symbol → number of crystals that hold it; `trained_pairs`: symbol → the symbols after it in
        the periodic table that occur beside it in a crystal, separated by spaces.
    """
    counts = np.zeros(len(CHEMICAL_SYMBOLS), dtype=np.int64)
    together = np.zeros((len(counts), len(counts)), dtype=bool)
    for block in blocks:
        present = _presence(block)
        counts += present.sum(axis=0)
        weights = present.astype(np.float32)
        together |= weights.T @ weights > 0
    seen, partners = np.flatnonzero(counts), np.triu(together, 1)
    return {
        "trained_elements": {CHEMICAL_SYMBOLS[number]: int(counts[number]) for number in seen},
        "trained_pairs": {
            CHEMICAL_SYMBOLS[number]: " ".join(CHEMICAL_SYMBOLS[other] for other in np.flatnonzero(partners[number]))
            for number in seen
            if partners[number].any()
        },
    }


class TrainingDomain:
    """Elements and pairs of elements that a model was trained on.

    Args:
        config: configuration of a model; where `trained_elements` is absent (older checkpoints) nothing is unseen.

    Attributes:
        num_elements (`int`): elements seen, 0 where the config does not record them.
    """

    def __init__(self, config: Any):
        elements = getattr(config, "trained_elements", None) or {}
        pairs = getattr(config, "trained_pairs", None)
        size = len(CHEMICAL_SYMBOLS)
        place = {symbol: number for number, symbol in enumerate(CHEMICAL_SYMBOLS)}
        seen = [place[symbol] for symbol in elements]
        self.num_elements = len(seen)
        self._foreign = np.ones(size, dtype=bool)  # elements never seen
        self._foreign[seen] = False
        self._apart = np.zeros((size, size), dtype=np.float32)  # pairs of seen elements never seen together
        if pairs is not None:
            self._apart[np.ix_(seen, seen)] = 1
            for symbol, others in pairs.items():
                self._apart[place[symbol], [place[other] for other in others.split()]] = 0
            self._apart = np.triu(self._apart, 1)
        name = PurePath(str(getattr(config, "_name_or_path", None) or "")).name
        self._name = name if name not in ("", "model") else "this model"

    def unseen(self, crystals: Sequence[Sequence[int] | np.ndarray]) -> list[list[str]]:
        """What `unseen_elements` and `unseen_pairs` give, per crystal."""
        both = zip(self.unseen_elements(crystals), self.unseen_pairs(crystals), strict=True)
        return [[*elements, *pairs] for elements, pairs in both]

    def unseen_elements(self, crystals: Sequence[Sequence[int] | np.ndarray]) -> list[list[str]]:
        """Warnings of each crystal about elements that no training crystal has.

        Args:
            crystals: atomic numbers of each; 0 is padding.
        """
        found: list[list[str]] = [[] for _ in crystals]
        if not self.num_elements:
            return found
        present = _presence(crystals)
        for row, number in np.argwhere(present & self._foreign):
            found[row].append(
                f"{CHEMICAL_SYMBOLS[number]}: not in the training data of {self._name} "
                f"({self.num_elements} elements); the result is an extrapolation"
            )
        return found

    def unseen_pairs(self, crystals: Sequence[Sequence[int] | np.ndarray]) -> list[list[str]]:
        """Warnings of each crystal about elements that were seen, but never together in a training crystal.

        Args:
            crystals: atomic numbers of each; 0 is padding.
        """
        found: list[list[str]] = [[] for _ in crystals]
        present = _presence(crystals)
        weights = present.astype(np.float32)
        for row in np.flatnonzero(((weights @ self._apart) * weights).any(axis=1)):
            own = np.flatnonzero(present[row])
            pairs = [
                f"{CHEMICAL_SYMBOLS[own[first]]} and {CHEMICAL_SYMBOLS[own[second]]}"
                for first, second in np.argwhere(self._apart[np.ix_(own, own)])
            ]
            more = f" and {len(pairs) - _MOST_PAIRS} more pairs" if len(pairs) > _MOST_PAIRS else ""
            found[row].append(
                f"{', '.join(pairs[:_MOST_PAIRS])}{more}: never together in one crystal of the training data of "
                f"{self._name}; the result is an extrapolation"
            )
        return found
