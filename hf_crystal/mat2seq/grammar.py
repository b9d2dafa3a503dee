# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""The grammar of crystal sequences as an automaton with look-ahead: no dead ends, every completed sequence decodes.

At each step only tokens are allowed from which a complete crystal can still be written: compositions that fit the
asked space group, space groups that can hold the composition, Wyckoff positions that leave the remaining atoms
placeable, coordinates that make no atoms coincide, cells that exist, within the token budget.
`grammar_masks_mat2seq` answers the same questions faster.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..crystals.elements import FORMULA_RANK
from ..crystals.record import CHEMICAL_SYMBOLS
from .canonical_crystal import CanonicalSite, coordinate_strides, free_cell_parameters
from .grammar_constraint import CompositionRules, PromptConstraint, subtract_sites
from .grammar_feasibility import (
    Counts,
    can_finish,
    collapsing_values,
    equivalent_parameters,
    primitive_multiplicities,
    values_with_smaller_spelling,
)
from .sequence_text import SEPARATOR, NumberFormat, SequenceLayout, composition_tokens, position_token
from .space_groups import space_group, space_group_symbols
from .vocabulary import MAX_WHOLE

__all__ = ["CrystalGrammar", "GrammarState", "PromptConstraint"]

_ANGLE_MARGIN = 2.0  # degrees; keeps triclinic cells away from flat


class GrammarState(NamedTuple):
    """Where a sequence stands. `phase` names what comes next."""

    phase: str = "element"
    composition: Counts = ()  # in the order written
    element: int = 0
    group: int = 0
    lattice: tuple[int, ...] = ()
    number: tuple[str, ...] = ()  # tokens of an unfinished number
    remaining: Counts = ()
    last: tuple[int, int] | None = None  # position and element of the last site
    last_parameters: tuple[int, ...] = ()
    position: int = 0
    parameters: tuple[int, ...] = ()
    orbits: tuple[tuple[int, ...], ...] = ()  # parameters of the orbits already on the position of the last site
    sites_done: int = 0  # how many of the sites asked for are written


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
        self.eos_token: str = tokenizer.eos_token
        self.steps = self.layout.settings.fraction_steps
        if self.steps < 500:
            raise ValueError(f"fraction_steps is {self.steps}; generation needs at least 500 to keep atoms apart")
        self.rules = CompositionRules(self.layout, max_atoms, max_tokens)
        low, high = length_range
        if not 0 < low < high <= MAX_WHOLE:
            raise ValueError(f"length_range is {length_range}; accepted: increasing, positive, up to {MAX_WHOLE} Å")
        if not 10 <= angle_range[0] < 60 or not 120 < angle_range[1] <= 170:
            raise ValueError(
                f"angle_range is {angle_range}; accepted: lower end 10 to 60, upper end 120 to 170 degrees"
            )
        self.length_range = length_range
        self.angle_range = angle_range

        self.max_tokens = self.rules.max_tokens
        self.max_atoms = self.rules.max_atoms

    # ------------------------------------------------------------------------------------------------ what is next

    def allowed_tokens(self, state: GrammarState, constraint: PromptConstraint) -> list[str]:
        """Tokens from which a complete crystal can still be written."""
        return list(getattr(self, f"_next_{state.phase}")(state, constraint))

    def advance(self, state: GrammarState, token: str, constraint: PromptConstraint) -> GrammarState:
        """State after a token that `allowed_tokens` offered."""
        following: GrammarState = getattr(self, f"_after_{state.phase}")(state, token, constraint)
        return following

    def check(self, constraint: PromptConstraint) -> None:
        """Refuse a prompt that no crystal fulfills.

        Raises:
            ValueError: with the reason.
        """
        if constraint.compositions is not None:
            if not self.rules.feasible(constraint):
                raise ValueError(self.rules.refuse(constraint.compositions[0], constraint))
        elif not self.allowed_tokens(GrammarState(), constraint):
            raise ValueError(
                f"no composition of up to {self.max_atoms} atoms fits {constraint.group_names} "
                "and the elements asked for"
            )

    # ------------------------------------------------------------------------------------------------- composition

    def _next_element(self, state: GrammarState, constraint: PromptConstraint) -> Iterable[str]:
        if constraint.compositions is not None:
            return self._next_of_listed(state, constraint)
        used = [e for e, _ in state.composition]
        rank = FORMULA_RANK[used[-1]] if used else -1
        missing = self.rules.missing(used, constraint)
        last_rank = FORMULA_RANK[missing[0]] if missing else 118
        pool = constraint.elements if constraint.elements is not None else frozenset(FORMULA_RANK)
        candidates = [e for e in pool | constraint.required if rank < FORMULA_RANK[e] <= last_rank]
        # Which counts fit depends on whether the element is a required one, not on which element it is.
        verdicts: dict[bool, bool] = {}
        tokens = []
        for element in sorted(candidates):
            kind = element in constraint.required
            if kind not in verdicts:
                verdicts[kind] = bool(self.rules.counts(state.composition, element, constraint))
            if verdicts[kind]:
                tokens.append(CHEMICAL_SYMBOLS[element])
        complete = used and not missing and self.rules.possible(state.composition, constraint)
        return [*tokens, SEPARATOR] if complete else tokens

    def _next_of_listed(self, state: GrammarState, constraint: PromptConstraint) -> list[str]:
        written = [t for e, count in state.composition for t in (CHEMICAL_SYMBOLS[e], str(count))]
        if state.phase == "count":
            written.append(CHEMICAL_SYMBOLS[state.element])
        found = set()
        for composition in self.rules.feasible(constraint):
            tokens = [*composition_tokens(dict(composition)), SEPARATOR]
            if tokens[: len(written)] == written and len(tokens) > len(written):
                found.add(tokens[len(written)])
        return sorted(found)

    def _after_element(self, state: GrammarState, token: str, _constraint: PromptConstraint) -> GrammarState:
        if token == SEPARATOR:
            return state._replace(phase="group", remaining=tuple(sorted(state.composition)))
        return state._replace(phase="count", element=_numbers()[token])

    def _next_count(self, state: GrammarState, constraint: PromptConstraint) -> Iterable[str]:
        if constraint.compositions is not None:
            return self._next_of_listed(state, constraint)
        return [str(n) for n in self.rules.counts(state.composition, state.element, constraint)]

    def _after_count(self, state: GrammarState, token: str, _constraint: PromptConstraint) -> GrammarState:
        return state._replace(phase="element", composition=(*state.composition, (state.element, int(token))))

    # ---------------------------------------------------------------------------------------- space group and cell

    def _next_group(self, state: GrammarState, constraint: PromptConstraint) -> list[str]:
        groups = self.rules.groups_for(state.composition, constraint)
        return [space_group_symbols()[number - 1] for number in sorted(groups)]

    def _after_group(self, state: GrammarState, token: str, _constraint: PromptConstraint) -> GrammarState:
        return state._replace(phase="cell_begin", group=space_group_symbols().index(token) + 1)

    def _next_cell_begin(self, _state: GrammarState, _constraint: PromptConstraint) -> list[str]:
        return [SEPARATOR]

    def _after_cell_begin(self, state: GrammarState, _token: str, _constraint: PromptConstraint) -> GrammarState:
        return state._replace(phase="axis")

    def _next_axis(self, state: GrammarState, _constraint: PromptConstraint) -> list[str]:
        names = free_cell_parameters(state.group)
        return [names[len(state.lattice)]] if len(state.lattice) < len(names) else [SEPARATOR]

    def _after_axis(self, state: GrammarState, token: str, _constraint: PromptConstraint) -> GrammarState:
        return state._replace(phase="site" if token == SEPARATOR else "cell_number")

    def cell_range(self, state: GrammarState, constraint: PromptConstraint) -> tuple[NumberFormat, int, int]:
        """Format, smallest and largest steps of the next cell parameter."""
        names = free_cell_parameters(state.group)
        name = names[len(state.lattice)]
        form = self.layout.cell_format(name)
        for given, smallest, largest in constraint.cell:
            if given == name:
                return form, smallest, largest
        step = form.unit / 10**form.decimals
        low, high = self.length_range if len(name) == 1 else self.angle_range
        if name == "gamma":
            alpha, beta = (state.lattice[names.index(other)] * step for other in ("alpha", "beta"))
            low = max(low, abs(alpha - beta) + _ANGLE_MARGIN)
            high = min(high, alpha + beta - _ANGLE_MARGIN, 360 - alpha - beta - _ANGLE_MARGIN)
        return form, int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))

    def _next_cell_number(self, state: GrammarState, constraint: PromptConstraint) -> list[str]:
        form, low, high = self.cell_range(state, constraint)
        return _number_tokens(form, state.number, np.arange(low, high + 1) * form.unit)

    def _after_cell_number(self, state: GrammarState, token: str, constraint: PromptConstraint) -> GrammarState:
        form = self.cell_range(state, constraint)[0]
        number = (*state.number, token)
        if len(number) < form.num_tokens:
            return state._replace(number=number)
        return self.take_number(state, _read(form, number), constraint)

    def take_number(self, state: GrammarState, steps: int, constraint: PromptConstraint) -> GrammarState:
        """State after a whole cell parameter or coordinate, in grid steps."""
        if state.phase == "cell_number":
            return state._replace(phase="axis", number=(), lattice=(*state.lattice, steps))
        state = state._replace(parameters=(*state.parameters, steps), number=())
        if len(state.parameters) < space_group(state.group).positions[state.position].num_parameters:
            return state
        return self._close_site(state, constraint)

    # ------------------------------------------------------------------------------------------------------- sites

    def _positions_for(self, state: GrammarState, element: int, constraint: PromptConstraint) -> list[int]:
        """Wyckoff positions where the element can go next without leaving other atoms unplaceable."""
        counts = dict(state.remaining)
        pending = constraint.sites[state.sites_done :]
        found = []
        for index, (multiplicity, free) in enumerate(primitive_multiplicities(state.group)):
            if state.last is not None:
                again = index == state.last[0] and free and element >= state.last[1]
                if not (index > state.last[0] or again):
                    continue
            if multiplicity > counts[element]:
                continue
            if pending and not self._before_pending(index, element, free, pending):
                continue
            asked = bool(pending) and (index, element) == (pending[0].position, pending[0].atomic_number)
            left = _without(state.remaining, element, multiplicity)
            rest = subtract_sites(state.group, left, pending[asked:]) if pending else left
            taken = frozenset(site.position for site in pending)
            if rest is not None and can_finish(state.group, rest, (index, element), taken):
                found.append(index)
        return found

    @staticmethod
    def _before_pending(index: int, element: int, free: bool, pending: Sequence[CanonicalSite]) -> bool:
        """Whether a site may be written while the sites asked for, in their order, are still to come."""
        following = pending[0]
        if (index, element) == (following.position, following.atomic_number):
            return True
        return (index, element) < (following.position, following.atomic_number) and (
            free or index != following.position
        )

    def _next_site(self, state: GrammarState, constraint: PromptConstraint) -> list[str]:
        if not state.remaining:
            return [self.eos_token]
        return [CHEMICAL_SYMBOLS[e] for e, _ in state.remaining if self._positions_for(state, e, constraint)]

    def _after_site(self, state: GrammarState, token: str, _constraint: PromptConstraint) -> GrammarState:
        if token == self.eos_token:
            return state._replace(phase="end")
        return state._replace(phase="position", element=_numbers()[token])

    def _next_position(self, state: GrammarState, constraint: PromptConstraint) -> list[str]:
        indices = self._positions_for(state, state.element, constraint)
        return [position_token(state.group, index) for index in indices]

    def _after_position(self, state: GrammarState, token: str, constraint: PromptConstraint) -> GrammarState:
        index = _position_indices(state.group)[token]
        same = state.last is not None and state.last[0] == index
        state = state._replace(
            phase="coordinate", position=index, parameters=(), number=(), orbits=state.orbits if same else ()
        )
        if space_group(state.group).positions[index].num_parameters:
            return state
        return self._close_site(state, constraint)

    def _asked(self, state: GrammarState, constraint: PromptConstraint) -> bool:
        """Whether the site being written is the next of those asked for."""
        pending = constraint.sites[state.sites_done :]
        return bool(pending) and (state.position, state.element) == (pending[0].position, pending[0].atomic_number)

    def _close_site(self, state: GrammarState, constraint: PromptConstraint) -> GrammarState:
        """Take the finished site into account."""
        multiplicity, _ = primitive_multiplicities(state.group)[state.position]
        return state._replace(
            phase="site",
            remaining=_without(state.remaining, state.element, multiplicity),
            last=(state.position, state.element),
            last_parameters=state.parameters,
            parameters=(),
            orbits=(*state.orbits, state.parameters),
            sites_done=state.sites_done + self._asked(state, constraint),
        )

    def _next_coordinate(self, state: GrammarState, constraint: PromptConstraint) -> list[str]:
        form = self.layout.fraction
        values = self.coordinates(state, constraint, self.stride(state))
        return _number_tokens(form, state.number, values * form.unit)

    def stride(self, state: GrammarState) -> int:
        """Steps of which the next free coordinate is a multiple in a canonical crystal."""
        strides = _strides(state.group, state.lattice, self.layout.settings)
        return int(strides[state.position, len(state.parameters)])

    def coordinates(self, state: GrammarState, constraint: PromptConstraint, stride: int) -> np.ndarray:
        """Values of the next free coordinate, in increasing steps, that make no atoms coincide.

        One crystal has one spelling where possible: coordinates are multiples of `stride`, orbits are spelt by their
        smallest parameters, and those of one element on one position come in increasing order. Where no value is left
        for that, spelling gives way; a crystal is still written.
        """
        place = len(state.parameters)
        pending = constraint.sites[state.sites_done :]
        if self._asked(state, constraint):
            if pending[0].parameters:
                return np.array([pending[0].parameters[place]])
            pending = pending[1:]
        allowed = ~collapsing_values(state.group, state.position, state.parameters, self.steps)
        final = place == space_group(state.group).positions[state.position].num_parameters - 1
        others = (*state.orbits, *(s.parameters for s in pending if s.position == state.position and s.parameters))
        if final:
            for orbit in others:
                for image in equivalent_parameters(state.group, state.position, orbit, self.steps):
                    if image[:place] == state.parameters:
                        allowed[image[place]] = False
        smallest = ~values_with_smaller_spelling(state.group, state.position, state.parameters, self.steps)
        increasing = np.ones_like(allowed)
        same = state.last == (state.position, state.element)
        if same and state.parameters == state.last_parameters[:place]:
            increasing[: state.last_parameters[place] + final] = False
        on_grid = np.zeros_like(allowed)
        on_grid[::stride] = True
        for values in (allowed & on_grid, allowed):
            for choice in (values & smallest & increasing, values & increasing, values & smallest, values):
                if choice.any():
                    return np.flatnonzero(choice)
        raise ValueError(f"no coordinate is left in the state {state}")  # cannot happen with 500 steps or more

    def _after_coordinate(self, state: GrammarState, token: str, constraint: PromptConstraint) -> GrammarState:
        number = (*state.number, token)
        if len(number) < self.layout.fraction.num_tokens:
            return state._replace(number=number)
        return self.take_number(state, _read(self.layout.fraction, number), constraint)

    def _next_end(self, _state: GrammarState, _constraint: PromptConstraint) -> list[str]:
        return [self.eos_token]

    def _after_end(self, state: GrammarState, _token: str, _constraint: PromptConstraint) -> GrammarState:
        return state


_strides = functools.lru_cache(maxsize=4096)(coordinate_strides)


@functools.cache
def _numbers() -> dict[str, int]:
    return {CHEMICAL_SYMBOLS[number]: number for number in FORMULA_RANK}


@functools.cache
def _position_indices(group: int) -> dict[str, int]:
    return {position_token(group, p.index): p.index for p in space_group(group).positions}


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
