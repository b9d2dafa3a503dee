# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""The grammar of crystal sequences as an automaton with look-ahead: no dead ends, every completed sequence decodes.

At each step only tokens are allowed from which a complete crystal can still be written: compositions that fit the
asked space group, space groups that can hold the composition, Wyckoff positions that leave the remaining atoms
placeable, coordinates that make no atoms coincide, cells that exist, within the token budget.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .canonical_grid import free_cell_parameters
from .canonical_text import SEPARATOR, NumberFormat, SequenceLayout, composition_tokens, position_token
from .elements_crystal import FORMULA_RANK
from .feasibility_mat2seq import (
    Counts,
    can_finish,
    collapsing_values,
    equivalent_parameters,
    primitive_multiplicities,
    values_with_smaller_spelling,
)
from .records_crystal import CHEMICAL_SYMBOLS
from .symmetry_crystal import space_group, space_group_symbols
from .vocabulary_mat2seq import MAX_COUNT, MAX_WHOLE

__all__ = ["CrystalGrammar", "GrammarState", "PromptConstraint"]

_ALL_GROUPS = frozenset(range(1, 231))
_ANGLE_MARGIN = 2.0  # degrees; keeps triclinic cells away from flat
_HEADER = 40  # begin, end, separators, space group and a triclinic cell, with room


@dataclass(frozen=True)
class PromptConstraint:
    """What a generated crystal must be.

    Attributes:
        compositions: Allowed compositions of the primitive cell (atomic number → count); None for any.
        space_groups: Allowed ITA numbers.
        elements: Allowed elements; None for all.
        required: Elements that must all occur.
    """

    compositions: tuple[tuple[tuple[int, int], ...], ...] | None = None
    space_groups: frozenset[int] = _ALL_GROUPS
    elements: frozenset[int] | None = None
    required: frozenset[int] = frozenset()

    @classmethod
    def build(
        cls,
        compositions: Iterable[dict[int, int]] | None = None,
        space_groups: Iterable[int] | None = None,
        elements: Iterable[int] | None = None,
        required: Iterable[int] = (),
    ) -> "PromptConstraint":
        """Constraint from plain containers."""
        return cls(
            None if compositions is None else tuple(tuple(sorted(c.items())) for c in compositions),
            _ALL_GROUPS if space_groups is None else frozenset(space_groups),
            None if elements is None else frozenset(elements),
            frozenset(required),
        )


@dataclass(frozen=True)
class GrammarState:
    """Where a sequence stands. `phase` names what comes next."""

    phase: str = "element"
    composition: tuple[tuple[int, int], ...] = ()  # in the order written
    element: int = 0
    group: int = 0
    lattice: tuple[int, ...] = ()
    number: tuple[str, ...] = ()  # tokens of an unfinished number
    remaining: Counts = ()
    last: tuple[int, int] | None = None
    last_parameters: tuple[int, ...] = ()
    position: int = 0
    parameters: tuple[int, ...] = ()
    occupied: tuple[tuple[int, frozenset[tuple[int, ...]]], ...] = ()  # position → parameters of orbits there


class CrystalGrammar:
    """Allowed next tokens of crystal sequences.

    Args:
        tokenizer: A `Mat2SeqTokenizer`.
        max_atoms: Largest number of atoms in a primitive cell, where the prompt does not say it.
        max_tokens: Longest sequence, begin and end included.
        length_range: Cell lengths, Å.
        angle_range: Cell angles, degrees.

    Raises:
        ValueError: if the bounds leave no crystal.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_atoms: int = 20,
        max_tokens: int = 512,
        length_range: tuple[float, float] = (1.5, 100.0),
        angle_range: tuple[float, float] = (20.0, 160.0),
    ):
        self.layout: SequenceLayout = tokenizer.layout
        self.vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.eos_token_id: int = tokenizer.eos_token_id
        self.eos_token: str = tokenizer.eos_token
        self.steps = self.layout.settings.fraction_steps
        self.max_tokens = max_tokens
        if self.steps < 500:
            raise ValueError(f"fraction_steps is {self.steps}; generation needs at least 500 to keep atoms apart")
        room = (max_tokens - _HEADER) // (4 + 3 * self.layout.fraction.num_tokens)
        if room < 1:
            raise ValueError(f"max_tokens is {max_tokens}; a crystal of one atom needs {_HEADER + 12}")
        self.max_atoms = min(max_atoms, room, MAX_COUNT)
        low, high = length_range
        if not 0 < low < high <= MAX_WHOLE:
            raise ValueError(f"length_range is {length_range}; accepted: increasing, positive, up to {MAX_WHOLE} Å")
        if not 10 <= angle_range[0] < 60 or not 120 < angle_range[1] <= 170:
            raise ValueError(
                f"angle_range is {angle_range}; accepted: lower end 10 to 60, upper end 120 to 170 degrees"
            )
        self.length_range = length_range
        self.angle_range = angle_range
        self._groups_of_counts: dict[tuple[int, ...], frozenset[int]] = {}

    # ------------------------------------------------------------------------------------------------ what is next

    def allowed_tokens(self, state: GrammarState, constraint: PromptConstraint) -> list[str]:
        """Tokens from which a complete crystal can still be written."""
        return list(getattr(self, f"_next_{state.phase}")(state, constraint))

    def advance(self, state: GrammarState, token: str) -> GrammarState:
        """State after a token that `allowed_tokens` offered."""
        following: GrammarState = getattr(self, f"_after_{state.phase}")(state, token)
        return following

    def check(self, constraint: PromptConstraint) -> None:
        """Refuse a prompt that no crystal fulfils.

        Raises:
            ValueError: with the reason.
        """
        if constraint.compositions is not None and not self._feasible_compositions(constraint):
            names = ", ".join(" ".join(composition_tokens(dict(c))) for c in constraint.compositions)
            groups = _group_names(constraint.space_groups)
            raise ValueError(
                f"no crystal of {names} in {groups}: the counts are no sum of Wyckoff multiplicities, "
                f"or the sequence may exceed {self.max_tokens} tokens"
            )
        if not self.allowed_tokens(GrammarState(), constraint):
            raise ValueError(
                f"no composition of up to {self.max_atoms} atoms fits {_group_names(constraint.space_groups)} "
                "and the elements asked for"
            )

    # ------------------------------------------------------------------------------------------------- composition

    def _feasible_compositions(self, constraint: PromptConstraint) -> list[tuple[tuple[int, int], ...]]:
        return [c for c in constraint.compositions or () if self._groups_for(c, constraint.space_groups)]

    def _groups_for(self, composition: Sequence[tuple[int, int]], wanted: frozenset[int]) -> frozenset[int]:
        """Space groups that can hold the composition within the token budget."""
        counts = tuple(sorted(count for _, count in composition))
        if len(wanted) < 20 and counts not in self._groups_of_counts:
            return frozenset(g for g in wanted if self._holds(g, counts))
        if counts not in self._groups_of_counts:
            self._groups_of_counts[counts] = frozenset(g for g in _ALL_GROUPS if self._holds(g, counts))
        return self._groups_of_counts[counts] & wanted

    def _holds(self, group: int, counts: tuple[int, ...]) -> bool:
        if max(counts) > MAX_COUNT or not can_finish(group, tuple(enumerate(counts, start=1)), None):
            return False
        # Longest spelling: every atom on the position that costs most tokens per atom.
        per_number = self.layout.fraction.num_tokens
        positions = space_group(group).positions
        cost = max(
            (2 + per_number * p.num_parameters) / multiplicity
            for p, (multiplicity, free) in zip(positions, primitive_multiplicities(group), strict=True)
            if free
        )
        fixed = sum(not free for _, free in primitive_multiplicities(group))
        longest = sum(counts) * max(cost, 0.0) + 2 * min(fixed, sum(counts)) + 2 * len(counts) + _HEADER
        return longest <= self.max_tokens

    def _possible(self, composition: Counts, constraint: PromptConstraint) -> bool:
        """Whether a composition written so far can be completed with the elements still required."""
        total = sum(count for _, count in composition)
        missing = sorted(constraint.required - {e for e, _ in composition}, key=FORMULA_RANK.__getitem__)
        if total + len(missing) > self.max_atoms:
            return False
        if 1 in constraint.space_groups:
            return True
        if not missing:
            return bool(composition) and bool(self._groups_for(composition, constraint.space_groups))
        room = self.max_atoms - total - len(missing) + 1
        return any(self._possible((*composition, (missing[0], n)), constraint) for n in range(1, room + 1))

    def _next_element(self, state: GrammarState, constraint: PromptConstraint) -> Iterable[str]:
        if constraint.compositions is not None:
            return self._next_of_listed(state, constraint)
        used = [e for e, _ in state.composition]
        rank = FORMULA_RANK[used[-1]] if used else -1
        missing = sorted(constraint.required - set(used), key=FORMULA_RANK.__getitem__)
        last_rank = FORMULA_RANK[missing[0]] if missing else 118
        pool = constraint.elements if constraint.elements is not None else frozenset(FORMULA_RANK)
        candidates = [e for e in pool | constraint.required if rank < FORMULA_RANK[e] <= last_rank]
        # Which counts fit depends on whether the element is a required one, not on which element it is.
        verdicts: dict[bool, bool] = {}
        tokens = []
        for element in sorted(candidates):
            kind = element in constraint.required
            if kind not in verdicts:
                verdicts[kind] = bool(self._counts(state.composition, element, constraint))
            if verdicts[kind]:
                tokens.append(CHEMICAL_SYMBOLS[element])
        complete = used and not missing and self._possible(state.composition, constraint)
        return [*tokens, SEPARATOR] if complete else tokens

    def _counts(self, composition: Counts, element: int, constraint: PromptConstraint) -> list[int]:
        room = self.max_atoms - sum(count for _, count in composition)
        return [n for n in range(1, room + 1) if self._possible((*composition, (element, n)), constraint)]

    def _next_of_listed(self, state: GrammarState, constraint: PromptConstraint) -> list[str]:
        written = composition_tokens_in_order(state.composition)
        if state.phase == "count":
            written.append(CHEMICAL_SYMBOLS[state.element])
        found = set()
        for composition in self._feasible_compositions(constraint):
            tokens = [*composition_tokens(dict(composition)), SEPARATOR]
            if tokens[: len(written)] == written and len(tokens) > len(written):
                found.add(tokens[len(written)])
        return sorted(found)

    def _after_element(self, state: GrammarState, token: str) -> GrammarState:
        if token == SEPARATOR:
            return dataclasses.replace(state, phase="group", remaining=tuple(sorted(state.composition)))
        return dataclasses.replace(state, phase="count", element=CHEMICAL_SYMBOLS.index(token))

    def _next_count(self, state: GrammarState, constraint: PromptConstraint) -> Iterable[str]:
        if constraint.compositions is not None:
            return self._next_of_listed(state, constraint)
        return [str(n) for n in self._counts(state.composition, state.element, constraint)]

    def _after_count(self, state: GrammarState, token: str) -> GrammarState:
        composition = (*state.composition, (state.element, int(token)))
        return dataclasses.replace(state, phase="element", composition=composition)

    # ---------------------------------------------------------------------------------------- space group and cell

    def _next_group(self, state: GrammarState, constraint: PromptConstraint) -> list[str]:
        groups = self._groups_for(state.composition, constraint.space_groups)
        return [space_group_symbols()[number - 1] for number in sorted(groups)]

    def _after_group(self, state: GrammarState, token: str) -> GrammarState:
        return dataclasses.replace(state, phase="cell_begin", group=space_group_symbols().index(token) + 1)

    def _next_cell_begin(self, _state: GrammarState, _constraint: PromptConstraint) -> list[str]:
        return [SEPARATOR]

    def _after_cell_begin(self, state: GrammarState, _token: str) -> GrammarState:
        return dataclasses.replace(state, phase="axis")

    def _next_axis(self, state: GrammarState, _constraint: PromptConstraint) -> list[str]:
        names = free_cell_parameters(state.group)
        return [names[len(state.lattice)]] if len(state.lattice) < len(names) else [SEPARATOR]

    def _after_axis(self, state: GrammarState, token: str) -> GrammarState:
        return dataclasses.replace(state, phase="site" if token == SEPARATOR else "cell_number")

    def _cell_range(self, state: GrammarState) -> tuple[NumberFormat, int, int]:
        """Format, smallest and largest steps of the next cell parameter."""
        names = free_cell_parameters(state.group)
        name = names[len(state.lattice)]
        form = self.layout.cell_format(name)
        step = form.unit / 10**form.decimals
        low, high = self.length_range if len(name) == 1 else self.angle_range
        if name == "gamma":
            alpha, beta = (state.lattice[names.index(other)] * step for other in ("alpha", "beta"))
            low = max(low, abs(alpha - beta) + _ANGLE_MARGIN)
            high = min(high, alpha + beta - _ANGLE_MARGIN, 360 - alpha - beta - _ANGLE_MARGIN)
        return form, int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))

    def _next_cell_number(self, state: GrammarState, _constraint: PromptConstraint) -> list[str]:
        form, low, high = self._cell_range(state)
        return _number_tokens(form, state.number, np.arange(low, high + 1) * form.unit)

    def _after_cell_number(self, state: GrammarState, token: str) -> GrammarState:
        names = free_cell_parameters(state.group)
        form = self.layout.cell_format(names[len(state.lattice)])
        number = (*state.number, token)
        if len(number) < form.num_tokens:
            return dataclasses.replace(state, number=number)
        lattice = (*state.lattice, _read(form, number))
        return dataclasses.replace(state, phase="axis", number=(), lattice=lattice)

    # ------------------------------------------------------------------------------------------------------- sites

    def _positions_for(self, state: GrammarState, element: int) -> list[int]:
        """Wyckoff positions where the element can go next without leaving other atoms unplaceable."""
        counts = dict(state.remaining)
        found = []
        for index, (multiplicity, free) in enumerate(primitive_multiplicities(state.group)):
            if state.last is not None:
                again = index == state.last[0] and free and element >= state.last[1]
                if not (index > state.last[0] or again):
                    continue
            if multiplicity <= counts[element]:
                rest = _without(state.remaining, element, multiplicity)
                if can_finish(state.group, rest, (index, element)):
                    found.append(index)
        return found

    def _next_site(self, state: GrammarState, _constraint: PromptConstraint) -> list[str]:
        if not state.remaining:
            return [self.eos_token]
        return [CHEMICAL_SYMBOLS[element] for element, _ in state.remaining if self._positions_for(state, element)]

    def _after_site(self, state: GrammarState, token: str) -> GrammarState:
        if token == self.eos_token:
            return dataclasses.replace(state, phase="end")
        return dataclasses.replace(state, phase="position", element=CHEMICAL_SYMBOLS.index(token))

    def _next_position(self, state: GrammarState, _constraint: PromptConstraint) -> list[str]:
        return [position_token(state.group, index) for index in self._positions_for(state, state.element)]

    def _after_position(self, state: GrammarState, token: str) -> GrammarState:
        positions = space_group(state.group).positions
        index = next(p.index for p in positions if position_token(state.group, p.index) == token)
        state = dataclasses.replace(state, phase="coordinate", position=index, parameters=(), number=())
        return state if positions[index].num_parameters else self._close_site(state)

    def _close_site(self, state: GrammarState) -> GrammarState:
        """Take the finished site into account."""
        multiplicity, free = primitive_multiplicities(state.group)[state.position]
        occupied = dict(state.occupied)
        if free:
            images = equivalent_parameters(state.group, state.position, state.parameters, self.steps)
            occupied[state.position] = occupied.get(state.position, frozenset()) | images
        return dataclasses.replace(
            state,
            phase="site",
            remaining=_without(state.remaining, state.element, multiplicity),
            last=(state.position, state.element),
            last_parameters=state.parameters,
            parameters=(),
            occupied=tuple(sorted(occupied.items())),
        )

    def _next_coordinate(self, state: GrammarState, _constraint: PromptConstraint) -> list[str]:
        values = self._coordinates(state)
        return _number_tokens(self.layout.fraction, state.number, values * self.layout.fraction.unit)

    def _coordinates(self, state: GrammarState) -> np.ndarray:
        """Values of the next free coordinate, in steps, that make no atoms coincide.

        One crystal has one spelling where possible: orbits are spelt by their smallest parameters, and those of one
        element on one position come in increasing order. Where no value is left for that, spelling gives way; a
        crystal is still written.
        """
        place = len(state.parameters)
        position = space_group(state.group).positions[state.position]
        allowed = ~collapsing_values(state.group, state.position, state.parameters, self.steps)
        final = place == position.num_parameters - 1
        if final:
            for other in dict(state.occupied).get(state.position, ()):
                if other[:place] == state.parameters:
                    allowed[other[place]] = False
        smallest = ~values_with_smaller_spelling(state.group, state.position, state.parameters, self.steps)
        increasing = np.ones_like(allowed)
        same = state.last == (state.position, state.element)
        if same and state.parameters == state.last_parameters[:place]:
            increasing[: state.last_parameters[place] + final] = False
        for choice in (allowed & smallest & increasing, allowed & increasing, allowed & smallest):
            if choice.any():
                return np.flatnonzero(choice)
        return np.flatnonzero(allowed)

    def _after_coordinate(self, state: GrammarState, token: str) -> GrammarState:
        form = self.layout.fraction
        number = (*state.number, token)
        if len(number) < form.num_tokens:
            return dataclasses.replace(state, number=number)
        state = dataclasses.replace(state, parameters=(*state.parameters, _read(form, number)), number=())
        positions = space_group(state.group).positions
        if len(state.parameters) < positions[state.position].num_parameters:
            return state
        return self._close_site(state)

    def _next_end(self, _state: GrammarState, _constraint: PromptConstraint) -> list[str]:
        return [self.eos_token]

    def _after_end(self, state: GrammarState, _token: str) -> GrammarState:
        return state


def composition_tokens_in_order(composition: Counts) -> list[str]:
    """Tokens of a composition as far as it is written."""
    return [token for element, count in composition for token in (CHEMICAL_SYMBOLS[element], str(count))]


def _group_names(groups: frozenset[int]) -> str:
    if len(groups) > 5:
        return f"any of {len(groups)} space groups"
    return ", ".join(space_group_symbols()[g - 1] for g in sorted(groups))


def _without(remaining: Counts, element: int, count: int) -> Counts:
    return tuple((e, n - count if e == element else n) for e, n in remaining if e != element or n > count)


def _read(form: NumberFormat, tokens: Sequence[str]) -> int:
    steps = form.read(tokens)
    if steps is None:
        raise ValueError(f"{tokens} is no number of the format {form}")
    return steps


def _number_tokens(form: NumberFormat, written: tuple[str, ...], values: np.ndarray) -> list[str]:
    """Next tokens of a number that must be one of `values` (increasing, in units of its last decimal)."""
    done = len(written) - (form.whole and bool(written))
    digits_left = form.decimals - sum(form.group_sizes[:done])
    if written:
        head = int("".join(token.strip(".~") or "0" for token in written))
        begin, end = np.searchsorted(values, [head * 10**digits_left, (head + 1) * 10**digits_left])
        values = values[begin:end]
    elif form.whole:
        return [f"{whole}." for whole in np.unique(values // 10**form.decimals).tolist()]
    size = form.group_sizes[done]
    groups = np.unique(values // 10 ** (digits_left - size) % 10**size).tolist()
    mark = "~" if written else "."
    return [f"{mark}{group:0{size}d}" for group in groups]
