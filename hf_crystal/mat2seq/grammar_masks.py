# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""The grammar as rows of masks: what `CrystalGrammar` allows, by token id and with everything shared that can be.

Sequences walk along a tree; nodes of sequences that begin alike are one node. A node holds its mask row, and rows that
depend on little (a digit of a cell length, the Wyckoff positions left for the atoms left) are made once. Numbers are
kept as the grid steps still possible, so a digit narrows an array instead of being parsed.
"""

import functools
import weakref
from collections.abc import Hashable
from typing import Any

import numpy as np

from .grammar import CrystalGrammar, GrammarState
from .grammar_constraint import PromptConstraint
from .sequence_text import NumberFormat

__all__ = ["GrammarMasks", "GrammarNode", "masks_of"]

_MAX_ROWS = 20_000  # shared mask rows; one has the size of the vocabulary in bytes


class _Digits:
    """The numbers of one format: their token ids, and what is left of them after some tokens.

    Args:
        ids: Token ids of every number, shape (tokens of a number, steps).
        size: Size of the vocabulary.
    """

    def __init__(self, ids: np.ndarray, size: int):
        self.ids = ids
        self.size = size
        self._ranges: dict[tuple[int, int, int], _Number] = {}

    def number(self, steps: np.ndarray, place: int) -> "_Number":
        """A number of which `place` tokens are written; `steps` (increasing) are possible."""
        first, last = int(steps[0]), int(steps[-1])
        if last - first + 1 != len(steps):
            return _Number(self, steps, place)
        key = (place, first, last)  # most are ranges, and many are the same ones
        if key not in self._ranges:
            if len(self._ranges) >= _MAX_ROWS:
                self._ranges.clear()
            self._ranges[key] = _Number(self, steps, place)
        return self._ranges[key]


class _Number:
    """A number partly written: the grid steps still possible."""

    __slots__ = ("digits", "following", "forbidden", "next_ids", "place", "steps")

    def __init__(self, digits: _Digits, steps: np.ndarray, place: int):
        self.digits = digits
        self.steps = steps
        self.place = place
        self.next_ids = digits.ids[place, steps]
        self.forbidden = np.ones(digits.size, dtype=bool)
        self.forbidden[self.next_ids] = False
        self.following: dict[int, _Number | int] = {}

    def narrow(self, token_id: int) -> "_Number | int":
        """What is left after a token; the steps themselves once the number is complete."""
        known = self.following.get(token_id)
        if known is not None:
            return known
        left = self.steps[self.next_ids == token_id]
        if not len(left):
            raise ValueError(f"token {token_id} does not continue the number")
        complete = self.place + 1 == len(self.digits.ids)
        known = self.following[token_id] = int(left[0]) if complete else self.digits.number(left, self.place + 1)
        return known


class GrammarNode:
    """A place in a sequence.

    Attributes:
        state: State of the plain grammar; within a number the one at its beginning.
        forbidden: Bool of shape (V,): tokens that may not come next.
        done: Whether the sequence has ended.
    """

    __slots__ = ("_following", "_number", "_tree", "done", "forbidden", "state")

    def __init__(self, tree: "_Tree", state: GrammarState, number: _Number | None, forbidden: np.ndarray):
        self._tree = tree
        self._number = number
        self._following: dict[int, GrammarNode] = {}
        self.state = state
        self.forbidden = forbidden
        self.done = state.phase == "end"

    def step(self, token_id: int) -> "GrammarNode":
        """The node after a token; an ended sequence stays where it is.

        Raises:
            ValueError: if the token is not allowed here.
        """
        following = self._following.get(token_id)
        if following is None:
            if self.done:
                return self
            if self.forbidden[token_id]:
                token = self._tree.masks.token_of[token_id]
                raise ValueError(
                    f"token {token_id} ({token}) is not allowed in the phase {self.state.phase!r}: prompts are padded "
                    "on the left, and have elements and sites in the order of a sequence (prepare_prompt, encode)"
                )
            following = self._tree.after(self.state, self._number, token_id)
            self._following[token_id] = following
        return following


class GrammarMasks:
    """Mask rows of a grammar; equal to what `CrystalGrammar.allowed_tokens` says.

    Args:
        grammar: The grammar.
        end_ids: Tokens allowed after the end.
    """

    def __init__(self, grammar: CrystalGrammar, end_ids: tuple[int, ...]):
        self.grammar = grammar
        self.size = len(grammar.vocabulary)
        self.token_of = {i: token for token, i in grammar.vocabulary.items()}
        self.ended = self._row(end_ids)
        self._rows: dict[Any, np.ndarray] = {}
        self.number = functools.lru_cache(maxsize=4096)(self._number)

    def root(self, constraint: PromptConstraint) -> GrammarNode:
        """Beginning of the sequences under a constraint; keep it as long as they are written."""
        return _Tree(self, constraint).node(GrammarState())

    def _row(self, ids: tuple[int, ...] | list[int]) -> np.ndarray:
        row = np.ones(self.size, dtype=bool)
        row[list(ids)] = False
        return row

    def row(self, key: Hashable, state: GrammarState, constraint: PromptConstraint) -> np.ndarray:
        """Mask row of a state between numbers, made once per key."""
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= _MAX_ROWS:
                self._rows.clear()
            tokens = self.grammar.allowed_tokens(state, constraint)
            row = self._rows[key] = self._row([self.grammar.vocabulary[token] for token in tokens])
        return row

    @functools.cached_property
    def _coordinate_digits(self) -> _Digits:
        return self._digits(self.grammar.layout.fraction, self.grammar.steps)

    def _digits(self, form: NumberFormat, count: int) -> _Digits:
        """The numbers 0 … count − 1."""
        whole, rest = np.divmod(np.arange(count) * form.unit, 10**form.decimals)
        rows = []
        if form.whole:
            rows.append(np.array([self.grammar.vocabulary[f"{n}."] for n in range(int(whole[-1]) + 1)])[whole])
        left = form.decimals
        for size in form.group_sizes:
            left -= size
            mark = "~" if rows else "."
            tokens = [self.grammar.vocabulary[f"{mark}{n:0{size}d}"] for n in range(10**size)]
            rows.append(np.array(tokens)[rest // 10**left % 10**size])
        return _Digits(np.stack(rows), self.size)

    @functools.cached_property
    def _cell_digits(self) -> dict[NumberFormat, _Digits]:
        layout = self.grammar.layout
        largest = {layout.length: self.grammar.length_range[1], layout.angle: self.grammar.angle_range[1]}
        return {
            form: self._digits(form, round(high * 10**form.decimals / form.unit) + 1) for form, high in largest.items()
        }

    def _number(self, form: NumberFormat, low: int, high: int) -> _Number:
        return self._cell_digits[form].number(np.arange(low, high + 1), 0)

    @functools.cached_property
    def coordinate(self) -> Any:
        """Function (group, position, stride) → first coordinate of the first orbit on a position, made once."""
        return functools.lru_cache(maxsize=4096)(
            lambda group, position, stride: self.free_coordinate(
                GrammarState("coordinate", group=group, position=position), PromptConstraint(), stride
            )
        )

    def free_coordinate(self, state: GrammarState, constraint: PromptConstraint, stride: int) -> _Number:
        """A coordinate about to be written."""
        return self._coordinate_digits.number(self.grammar.coordinates(state, constraint, stride), 0)


_MASKS: weakref.WeakKeyDictionary[CrystalGrammar, GrammarMasks] = weakref.WeakKeyDictionary()


def masks_of(grammar: CrystalGrammar, end_ids: tuple[int, ...]) -> GrammarMasks:
    """The mask rows of a grammar, which all processors of that grammar share."""
    if grammar not in _MASKS:
        _MASKS[grammar] = GrammarMasks(grammar, end_ids)
    return _MASKS[grammar]


class _Tree:
    """Makes the nodes of all sequences under one constraint."""

    def __init__(self, masks: GrammarMasks, constraint: PromptConstraint):
        self.masks = masks
        self.constraint = constraint
        self.head = (constraint.compositions, constraint.space_groups, constraint.elements, constraint.required)

    def after(self, state: GrammarState, number: _Number | None, token_id: int) -> GrammarNode:
        """Node after a token."""
        if number is None:
            token = self.masks.token_of[token_id]
            return self.node(self.masks.grammar.advance(state, token, self.constraint))
        left = number.narrow(token_id)
        if isinstance(left, _Number):
            return GrammarNode(self, state, left, left.forbidden)
        return self.node(self.masks.grammar.take_number(state, left, self.constraint))

    def node(self, state: GrammarState) -> GrammarNode:
        """Node of a state between tokens of different meaning."""
        if state.phase == "end":
            return GrammarNode(self, state, None, self.masks.ended)
        if state.phase == "cell_number":
            number = self.masks.number(*self.masks.grammar.cell_range(state, self.constraint))
            return GrammarNode(self, state, number, number.forbidden)
        if state.phase == "coordinate":
            stride = self.masks.grammar.stride(state)
            if state.parameters or state.orbits or self.constraint.sites:
                number = self.masks.free_coordinate(state, self.constraint, stride)
            else:
                number = self.masks.coordinate(state.group, state.position, stride)
            return GrammarNode(self, state, number, number.forbidden)
        return GrammarNode(self, state, None, self.masks.row(self._key(state), state, self.constraint))

    def _key(self, state: GrammarState) -> tuple:
        """What the mask row depends on."""
        sites = self.constraint.sites and (self.constraint.sites, state.sites_done)
        match state.phase:
            case "site":
                return ("site", state.group, state.remaining, state.last, sites)
            case "position":
                return ("position", state.group, state.remaining, state.last, state.element, sites)
            case "axis":
                return ("axis", state.group, len(state.lattice))
            case "cell_begin":
                return ("cell_begin",)
        return (state.phase, state.composition, state.element, self.head, self.constraint.sites)
