# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""What a generated crystal must be, and which compositions can be: the part of the grammar in front of the cell."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..crystals.elements import FORMULA_RANK
from .canonical_crystal import CanonicalSite
from .grammar_feasibility import Counts, can_finish, primitive_multiplicities
from .sequence_text import SequenceLayout, composition_tokens
from .space_groups import space_group, space_group_symbols
from .vocabulary import MAX_COUNT

__all__ = ["CompositionRules", "PromptConstraint", "subtract_sites"]

_ALL_GROUPS = frozenset(range(1, 231))
_HEADER = 40  # begin, end, separators, space group and a triclinic cell, with room


@dataclass(frozen=True)
class PromptConstraint:
    """What a generated crystal must be.

    Attributes:
        compositions: Allowed compositions of the primitive cell (atomic number → count); None for any.
        space_groups: Allowed ITA numbers.
        elements: Allowed elements; None for all.
        required: Elements that must all occur.
        cell: Per cell parameter that is given: name, smallest and largest grid steps. Needs one space group.
        sites: Orbits that must occur, sorted; needs one space group and compositions.
    """

    compositions: tuple[Counts, ...] | None = None
    space_groups: frozenset[int] = _ALL_GROUPS
    elements: frozenset[int] | None = None
    required: frozenset[int] = frozenset()
    cell: tuple[tuple[str, int, int], ...] = ()
    sites: tuple[CanonicalSite, ...] = ()

    @classmethod
    def build(
        cls,
        compositions: Iterable[dict[int, int]] | None = None,
        space_groups: Iterable[int] | None = None,
        elements: Iterable[int] | None = None,
        required: Iterable[int] = (),
        cell: Iterable[tuple[str, int, int]] = (),
        sites: Iterable[CanonicalSite] = (),
    ) -> "PromptConstraint":
        """Constraint from plain containers."""
        return cls(
            None if compositions is None else tuple(tuple(sorted(c.items())) for c in compositions),
            _ALL_GROUPS if space_groups is None else frozenset(space_groups),
            None if elements is None else frozenset(elements),
            frozenset(required),
            tuple(cell),
            tuple(sorted(sites)),
        )

    @property
    def needed_elements(self) -> frozenset[int]:
        """Elements that occur in every crystal of the constraint."""
        given = [frozenset(element for element, _ in counts) for counts in self.compositions or ()]
        return self.required.union(frozenset.intersection(*given) if given else ())

    @property
    def group_names(self) -> str:
        """The allowed space groups, for people."""
        if len(self.space_groups) > 5:
            return f"any of {len(self.space_groups)} space groups"
        return ", ".join(space_group_symbols()[g - 1] for g in sorted(self.space_groups))


def subtract_sites(number: int, remaining: Counts, sites: Sequence[CanonicalSite]) -> Counts | None:
    """Atoms still to place besides those of `sites`; None if there are too few."""
    counts = dict(remaining)
    for site in sites:
        counts[site.atomic_number] = (
            counts.get(site.atomic_number, 0) - primitive_multiplicities(number)[site.position][0]
        )
    if any(count < 0 for count in counts.values()):
        return None
    return tuple(sorted((element, count) for element, count in counts.items() if count))


class CompositionRules:
    """Which compositions a space group can hold within the token budget.

    Args:
        layout: Number formats of the sequence.
        max_atoms: Largest number of atoms in a primitive cell, where the prompt does not say it.
        max_tokens: Longest sequence, begin and end included.

    Raises:
        ValueError: if not even one atom fits into `max_tokens`.
    """

    def __init__(self, layout: SequenceLayout, max_atoms: int, max_tokens: int):
        self._layout = layout
        self.max_tokens = max_tokens
        room = (max_tokens - _HEADER) // (4 + 3 * layout.fraction.num_tokens)
        if room < 1:
            raise ValueError(f"max_tokens is {max_tokens}; a crystal of one atom needs {_HEADER + 12}")
        self.max_atoms = min(max_atoms, room, MAX_COUNT)
        self._groups_of_counts: dict[tuple[int, ...], frozenset[int]] = {}
        self._completable: dict[tuple[tuple[int, ...], int, frozenset[int]], bool] = {}

    def groups_for(self, composition: Counts, constraint: PromptConstraint) -> frozenset[int]:
        """Space groups of the constraint that can hold the composition."""
        counts = tuple(sorted(count for _, count in composition))
        groups = self._groups(counts, constraint.space_groups)
        if not constraint.sites:
            return groups
        taken = frozenset(site.position for site in constraint.sites)
        rests = {g: subtract_sites(g, tuple(sorted(composition)), constraint.sites) for g in groups}
        return frozenset(g for g, rest in rests.items() if rest is not None and can_finish(g, rest, None, taken))

    def _groups(self, counts: tuple[int, ...], wanted: frozenset[int]) -> frozenset[int]:
        if len(wanted) < 20 and counts not in self._groups_of_counts:
            return frozenset(g for g in wanted if self._holds(g, counts))
        if counts not in self._groups_of_counts:
            self._groups_of_counts[counts] = frozenset(g for g in _ALL_GROUPS if self._holds(g, counts))
        return self._groups_of_counts[counts] & wanted

    def _holds(self, group: int, counts: tuple[int, ...]) -> bool:
        placeable = max(counts) <= MAX_COUNT and can_finish(group, tuple(enumerate(counts, start=1)), None)
        return placeable and self._longest(group, counts) <= self.max_tokens

    def _longest(self, group: int, counts: tuple[int, ...]) -> float:
        """Tokens of the longest spelling: every atom on the position that costs most tokens per atom."""
        per_number = self._layout.fraction.num_tokens
        multiplicities = primitive_multiplicities(group)
        cost = max(
            (2 + per_number * p.num_parameters) / multiplicity
            for p, (multiplicity, free) in zip(space_group(group).positions, multiplicities, strict=True)
            if free
        )
        fixed = sum(not free for _, free in multiplicities)
        return sum(counts) * cost + 2 * min(fixed, sum(counts)) + 2 * len(counts) + _HEADER

    def feasible(self, constraint: PromptConstraint) -> list[Counts]:
        """The listed compositions that one of the space groups can hold."""
        return [c for c in constraint.compositions or () if self.groups_for(c, constraint)]

    def possible(self, composition: Counts, constraint: PromptConstraint) -> bool:
        """Whether a composition written so far can be completed with the elements still required."""
        missing = len(constraint.required - {element for element, _ in composition})
        counts = tuple(sorted(count for _, count in composition))
        if not counts and not missing:
            return False
        return self._can_complete(counts, missing, constraint.space_groups)

    def _can_complete(self, counts: tuple[int, ...], missing: int, groups: frozenset[int]) -> bool:
        room = self.max_atoms - sum(counts)
        if room < missing:
            return False
        if 1 in groups:
            return True
        if not missing:
            return bool(self._groups(counts, groups))
        key = (counts, missing, groups)
        if key not in self._completable:
            self._completable[key] = any(
                self._can_complete(tuple(sorted((*counts, n))), missing - 1, groups)
                for n in range(1, room - missing + 2)
            )
        return self._completable[key]

    def counts(self, composition: Counts, element: int, constraint: PromptConstraint) -> list[int]:
        """Counts of a further element from which the composition can be completed."""
        room = self.max_atoms - sum(count for _, count in composition)
        return [n for n in range(1, room + 1) if self.possible((*composition, (element, n)), constraint)]

    def missing(self, used: Iterable[int], constraint: PromptConstraint) -> list[int]:
        """Required elements not written yet, in the order in which they are written."""
        return sorted(constraint.required - set(used), key=FORMULA_RANK.__getitem__)

    def refuse(self, composition: Counts, constraint: PromptConstraint) -> str:
        """Why no space group of the constraint can hold a composition."""
        name = " ".join(composition_tokens(dict(composition)))
        atoms = sum(count for _, count in composition)
        limit = min(MAX_COUNT, self._layout.settings.max_atoms)
        if atoms > limit:
            return f"composition {name} has {atoms} atoms; accepted: up to {limit}"
        counts = tuple(sorted(count for _, count in composition))
        fitting = [g for g in constraint.space_groups if can_finish(g, tuple(enumerate(counts, start=1)), None)]
        if not fitting:
            return f"no crystal of {name} in {constraint.group_names}: the counts are no sum of Wyckoff multiplicities"
        if not any(self._holds(g, counts) for g in fitting):
            shortest = min(self._longest(g, counts) for g in fitting)
            return (
                f"a crystal of {name} in {constraint.group_names} may need {shortest:.0f} tokens; "
                f"accepted: up to {self.max_tokens}, which the model's context allows"
            )
        return f"no crystal of {name} in {constraint.group_names} has the sites asked for"
