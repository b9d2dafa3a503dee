# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Which crystals are kept while they are drawn: those that pass the filters, are new and have no colliding atoms."""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping

from ..crystals.doubts import TrainingDomain
from .prompts import PreparedPrompt
from .tokenization_mat2seq import DecodedCrystal
from .validity import atoms_are_apart, atoms_collide, check_min_distance, load_smact, smact_accepts

__all__ = ["CrystalSelection", "crystal_filter", "log_likelihood_of"]

_DRAWS = 16  # at a time, where few of the crystals of a prompt pass
_FILTERED = "the crystals of greedy or beam search were left out by min_distance, smact, unseen or colliding atoms"
_COLLIDING = "two atoms are closer than half the sum of their covalent radii; no crystal without was drawn"


def log_likelihood_of(item: DecodedCrystal) -> float:
    """Its log-likelihood, −∞ where no model wrote it."""
    return -math.inf if item.log_likelihood is None else item.log_likelihood


def crystal_filter(
    min_distance: float | None, smact: bool, domain: TrainingDomain | None
) -> Callable[[DecodedCrystal], bool] | None:
    """Which crystals are kept; None for all.

    Args:
        min_distance: Å; crystals with two atoms nearer than this are left out.
        smact: Leave out compositions that SMACT finds not charge-neutral.
        domain: Leave out elements and pairs that are not in this domain.

    Raises:
        ValueError: for a distance out of range.
        ImportError: if smact is asked for and missing.
    """
    check_min_distance(min_distance)
    if smact:
        load_smact()  # fail before anything is sampled
    if min_distance is None and not smact and domain is None:
        return None

    def keeps(item: DecodedCrystal) -> bool:
        """Whether a crystal passes the filters."""
        if min_distance is not None and not atoms_are_apart(item.structure, min_distance):
            return False
        if domain is not None and domain.unseen([[*item.canonical.composition]])[0]:  # type: ignore[union-attr]
            return False
        return not smact or smact_accepts(tuple(sorted(item.canonical.composition.items())))  # type: ignore[union-attr]

    return keeps


class CrystalSelection:
    """Crystals of each prompt, as they are drawn.

    Args:
        prompts: Key → prompt.
        domain: What the model was trained on; crystals outside get a warning.
        num_return: Crystals of each prompt.
        unique: Leave out repeated sequences of a prompt.
        keeps: Which crystals pass, see `crystal_filter`; None for all.
        collisions: Whether crystals with two atoms closer than half the sum of their covalent radii are kept at once;
            otherwise only where nothing else is found.
        progress: Called with the number of crystals so far, whenever there are more.

    Attributes:
        kept: Key → crystals.
        drawn: Key → number of crystals that were drawn.
    """

    def __init__(
        self,
        prompts: Mapping[int, PreparedPrompt],
        domain: TrainingDomain,
        *,
        num_return: int,
        unique: bool,
        keeps: Callable[[DecodedCrystal], bool] | None,
        collisions: bool,
        progress: Callable[[int], None] | None,
    ):
        self.kept: dict[int, list[DecodedCrystal]] = {key: [] for key in prompts}
        self.drawn: Counter[int] = Counter()
        self._prompts, self._domain, self._progress = prompts, domain, progress
        self._num_return, self._unique, self._keeps, self._collisions = num_return, unique, keeps, collisions
        self._seen: dict[int, set[str]] = {key: set() for key in prompts}
        self._colliding: dict[int, list[DecodedCrystal]] = defaultdict(list)
        self._count = 0

    @property
    def replaces(self) -> bool:
        """Whether crystals may be left out, so that others are drawn in their place."""
        return self._keeps is not None or not self._collisions

    def missing(self, turn: int = 0) -> dict[int, int]:
        """Key → how many to draw, where crystals are missing; more in later turns, as few of them pass."""
        lacking = {key: self._num_return - len(found) for key, found in self.kept.items()}
        return {key: max(count, min(_DRAWS, count * 4**turn)) for key, count in lacking.items() if count > 0}

    def none(self) -> list[int]:
        """Prompts without a crystal."""
        return [key for key, found in self.kept.items() if not found]

    def add(
        self, drawn: Iterable[tuple[int, DecodedCrystal]], *, is_beam: bool = False, note: str | None = None
    ) -> None:
        """Keep what passes, up to `num_return`.

        Args:
            drawn: Keys and crystals.
            is_beam: They come best beam first, and a warning names those that replace a better one.
            note: How else they were found, a further warning.
        """
        refused: set[int] = set()
        for key, item in drawn:
            self.drawn[key] += 1
            repeated = self._unique and item.sequence in self._seen[key]
            self._seen[key].add(item.sequence)
            if self._keeps is not None and not self._keeps(item):
                refused.add(key)
            elif not self._collisions and atoms_collide(item):
                refused.add(key)
                if not repeated:
                    self._colliding[key].append(item)
            elif not repeated and len(self.kept[key]) < self._num_return:
                replaced = f"{_FILTERED}; this is one of the next beams" if is_beam and key in refused else None
                self._keep(key, item, note or replaced)

    def add_sampled(self, drawn: Iterable[tuple[int, DecodedCrystal]], temperature: float) -> None:
        """Keep the likeliest samples, in place of those that greedy or beam search found."""
        ordered = sorted(drawn, key=lambda pair: -log_likelihood_of(pair[1]))
        self.add(ordered, note=f"{_FILTERED}; this one is sampled at temperature {temperature:g}")

    def add_colliding(self) -> None:
        """Fill up with crystals that were left out for colliding atoms only: a doubtful answer is better than none."""
        for key, count in self.missing().items():
            for item in sorted(self._colliding[key], key=log_likelihood_of, reverse=True)[:count]:
                self._keep(key, item, _COLLIDING)

    def _keep(self, key: int, item: DecodedCrystal, note: str | None) -> None:
        composition = [*item.canonical.composition]  # type: ignore[union-attr]
        warnings = (*self._prompts[key].warnings, *self._domain.unseen([composition])[0], *([note] if note else []))
        self.kept[key].append(dataclasses.replace(item, warnings=warnings))
        self._count += 1
        if self._progress is not None:
            self._progress(self._count)
