# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""The sequence of a crystal: composition | space group | cell | sites, as tokens and as one line of text.

    Ti 2 O 4 | P4_2/mnm | a 4.59 c 2.96 | Ti 2a O 4f .3050

Counts are those of the primitive cell. Only what the space group leaves free is written. `2a`, `4f` are Wyckoff
positions with their multiplicity in the conventional cell. A number is split into tokens of a few digits: integer
part `4.`, further digits `~59`; a free coordinate has no integer part: `.30` `~50`. As text they stand together.
Tokens are written and read here, side by side.
"""

import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..crystals.elements import FORMULA_RANK
from ..crystals.record import CHEMICAL_SYMBOLS, ImpossibleCellError
from .canonical_crystal import (
    CanonicalCrystal,
    CanonicalSettings,
    CanonicalSite,
    free_cell_parameters,
)
from .space_groups import space_group, space_group_symbols

__all__ = [
    "AXIS_TOKENS",
    "SEPARATOR",
    "CoincidingAtomsError",
    "CompositionMismatchError",
    "ImpossibleLatticeError",
    "MissingEndError",
    "NumberFormat",
    "RepeatedFixedPositionError",
    "SequenceError",
    "SequenceLayout",
    "UnexpectedTokenError",
    "UnknownPositionError",
    "join_tokens",
    "parse_tokens",
    "position_token",
    "split_text",
    "write_tokens",
]

SEPARATOR = "|"
AXIS_TOKENS = ("a", "b", "c", "alpha", "beta", "gamma")
_CONDITION = re.compile(r"<[A-Za-z][A-Za-z0-9_]*>")


class SequenceError(ValueError):
    """A sequence that is no crystal.

    Attributes:
        position: Token at which it fails, counted from 0 without padding; -1 for the sequence as a whole.
        reason: What is wrong.
    """

    def __init__(self, reason: str, position: int = -1):
        self.reason = reason
        self.position = position
        super().__init__(f"token {position}: {reason}" if position >= 0 else reason)

    def __reduce__(self) -> tuple:
        return type(self), (self.reason, self.position)


class UnexpectedTokenError(SequenceError):
    """A token that the grammar does not allow at its place."""


class UnknownPositionError(SequenceError):
    """A Wyckoff position that the space group does not have."""


class RepeatedFixedPositionError(SequenceError):
    """A position without free coordinates used twice."""


class CompositionMismatchError(SequenceError):
    """Sites that do not add up to the composition."""


class ImpossibleLatticeError(SequenceError):
    """Cell parameters that form no cell."""


class CoincidingAtomsError(SequenceError):
    """Two atoms on one point."""


class MissingEndError(SequenceError):
    """A sequence that stops before it is complete."""


@dataclass(frozen=True)
class NumberFormat:
    """How grid steps are written: `unit` · steps / 10^`decimals`, in groups of `digits` decimal digits per token.

    Attributes:
        decimals: Digits after the point.
        unit: Size of one step in the last digit.
        digits: Digits per token.
        whole: Whether there is a token for the integer part.
    """

    decimals: int
    unit: int
    digits: int
    whole: bool

    @classmethod
    def for_step(cls, step: float, digits: int, *, whole: bool) -> "NumberFormat":
        """Format for multiples of `step`.

        Raises:
            ValueError: for a step that six decimals cannot write, such as 1/3.
        """
        for decimals in range(1, 7):
            unit = round(step * 10**decimals)
            if unit >= 1 and abs(unit - step * 10**decimals) < 1e-9 * unit:
                return cls(decimals, unit, digits, whole)
        raise ValueError(f"a grid step of {step:g} cannot be written with 6 decimals; choose e.g. 1/2000 or 0.005")

    @functools.cached_property
    def group_sizes(self) -> tuple[int, ...]:
        """Digits of each token after the point."""
        full, rest = divmod(self.decimals, self.digits)
        return (self.digits,) * full + ((rest,) if rest else ())

    @property
    def num_tokens(self) -> int:
        """Tokens of one number."""
        return len(self.group_sizes) + self.whole

    def write(self, steps: int) -> list[str]:
        """Tokens of a number of steps."""
        whole, rest = divmod(steps * self.unit, 10**self.decimals)
        tokens = [f"{whole}."] if self.whole else []
        text = str(rest).zfill(self.decimals)
        for size in self.group_sizes:
            tokens.append(("~" if tokens else ".") + text[:size])
            text = text[size:]
        return tokens

    def read(self, tokens: Sequence[str]) -> int | None:
        """Steps written by exactly these tokens; None if they are not such a number."""
        text = "".join(token.replace("~", "") for token in tokens)
        whole, point, rest = text.partition(".")
        if not point or not rest.isdigit() or (whole and not whole.isdigit()) or bool(whole) != self.whole:
            return None
        value = int(whole or "0") * 10**self.decimals + int(rest)
        steps, remainder = divmod(value, self.unit)
        return steps if not remainder and self.write(steps) == list(tokens) else None


@dataclass(frozen=True)
class SequenceLayout:
    """Grid and number formats of a sequence."""

    settings: CanonicalSettings = field(default_factory=CanonicalSettings)
    digits_per_token: int = 2

    def __post_init__(self) -> None:
        if self.digits_per_token not in (1, 2, 3):
            raise ValueError(f"digits_per_token is {self.digits_per_token!r}; accepted: 1, 2 or 3")

    @functools.cached_property
    def fraction(self) -> NumberFormat:
        """Free coordinates."""
        return NumberFormat.for_step(1.0 / self.settings.fraction_steps, self.digits_per_token, whole=False)

    @functools.cached_property
    def length(self) -> NumberFormat:
        """Cell lengths, Å."""
        return NumberFormat.for_step(self.settings.length_step, self.digits_per_token, whole=True)

    @functools.cached_property
    def angle(self) -> NumberFormat:
        """Cell angles, degrees."""
        return NumberFormat.for_step(self.settings.angle_step, self.digits_per_token, whole=True)

    def cell_format(self, axis: str) -> NumberFormat:
        """Format of a cell parameter."""
        return self.length if len(axis) == 1 else self.angle


@functools.cache
def position_token(number: int, index: int) -> str:
    """Token of a Wyckoff position, such as `4f`."""
    position = space_group(number).positions[index]
    return f"{position.multiplicity}{position.letter}"


@functools.cache
def _positions_by_token(number: int) -> dict[str, int]:
    return {position_token(number, i): i for i in range(len(space_group(number).positions))}


@functools.cache
def _symbol_numbers() -> dict[str, int]:
    return {symbol: number for number, symbol in enumerate(space_group_symbols(), start=1)}


@functools.cache
def _element_numbers() -> dict[str, int]:
    return {CHEMICAL_SYMBOLS[number]: number for number in FORMULA_RANK}


def write_tokens(crystal: CanonicalCrystal, digits_per_token: int = 2) -> list[str]:
    """Tokens of a canonical crystal, without begin and end."""
    layout = SequenceLayout(crystal.settings, digits_per_token)
    tokens = composition_tokens(crystal.composition)
    tokens += [SEPARATOR, space_group_symbols()[crystal.space_group - 1], SEPARATOR]
    for axis, steps in zip(free_cell_parameters(crystal.space_group), crystal.lattice, strict=True):
        tokens += [axis, *layout.cell_format(axis).write(steps)]
    tokens.append(SEPARATOR)
    for site in crystal.sites:
        tokens += [CHEMICAL_SYMBOLS[site.atomic_number], position_token(crystal.space_group, site.position)]
        for steps in site.parameters:
            tokens += layout.fraction.write(steps)
    return tokens


def composition_tokens(composition: dict[int, int]) -> list[str]:
    """`Ti 2 O 4` of atomic number → count."""
    tokens = []
    for number in sorted(composition, key=FORMULA_RANK.__getitem__):
        tokens += [CHEMICAL_SYMBOLS[number], str(composition[number])]
    return tokens


def _to_text(crystal: CanonicalCrystal) -> str:
    """The sequence as one line of text."""
    return join_tokens(write_tokens(crystal))


CanonicalCrystal.to_text = _to_text  # here, because the reader below makes crystals


def join_tokens(tokens: Sequence[str]) -> str:
    """Text of tokens; digit groups of one number stand together."""
    return " ".join(tokens).replace(" ~", "")


def split_text(text: str, layout: SequenceLayout) -> list[str]:
    """Tokens of a text; inverse of `join_tokens`."""
    tokens: list[str] = []
    for word in text.replace(SEPARATOR, f" {SEPARATOR} ").split():  # `|Fm-3m`: a prompt and its continuation
        whole, point, rest = word.partition(".")
        if not point or not rest.isdigit() or (whole and not whole.isdigit()):
            tokens.append(word)
            continue
        groups = [rest[i : i + layout.digits_per_token] for i in range(0, len(rest), layout.digits_per_token)]
        if whole:
            tokens += [f"{whole}.", *(f"~{group}" for group in groups)]
        else:
            tokens += [f".{groups[0]}", *(f"~{group}" for group in groups[1:])]
    return tokens


class _Reader:
    """Walks over the tokens of a sequence."""

    def __init__(self, tokens: Sequence[str]):
        self.tokens = tokens
        self.place = 0

    @property
    def next(self) -> str | None:
        """The token at this place, None at the end; it is not taken."""
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def take(self, expected: str) -> str:
        """The next token; an error that says what was expected if there is none."""
        token = self.next
        if token is None:
            raise MissingEndError(f"the sequence ends where {expected} is due", self.place)
        self.place += 1
        return token

    def refuse(self, token: str, expected: str) -> UnexpectedTokenError:
        """The error for a token that was just taken."""
        return UnexpectedTokenError(f"{token!r} where {expected} is due", self.place - 1)

    def separator(self) -> None:
        """Take a separator; `UnexpectedTokenError` for any other token."""
        token = self.take(f"{SEPARATOR!r}")
        if token != SEPARATOR:
            raise self.refuse(token, f"{SEPARATOR!r}")

    def number(self, form: NumberFormat, name: str) -> int:
        """Take the tokens of a number: its whole steps; `UnexpectedTokenError` where they are no number."""
        tokens = [self.take(name) for _ in range(form.num_tokens)]
        steps = form.read(tokens)
        if steps is None:
            raise UnexpectedTokenError(f"{join_tokens(tokens)!r} is not a number for {name}", self.place - len(tokens))
        return steps


def parse_tokens(tokens: Sequence[str], layout: SequenceLayout, *, max_atoms: int | None = None) -> CanonicalCrystal:
    """Read a whole sequence (without begin and end; leading conditions are passed over).

    Raises:
        SequenceError: one of its subclasses, with the token's place and the reason.
    """
    reader = _Reader(tokens)
    while reader.next is not None and _CONDITION.fullmatch(reader.next):
        reader.place += 1
    composition = _read_composition(reader)
    limit = layout.settings.max_atoms if max_atoms is None else max_atoms
    if sum(composition.values()) > limit:
        raise CompositionMismatchError(f"{sum(composition.values())} atoms; accepted: up to {limit}", reader.place - 1)
    symbol = reader.take("a space group")
    if symbol not in _symbol_numbers():
        raise reader.refuse(symbol, "a space group")
    number = _symbol_numbers()[symbol]
    reader.separator()
    lattice = []
    for axis in free_cell_parameters(number):
        token = reader.take(f"the cell parameter {axis}")
        if token != axis:
            raise reader.refuse(token, f"the cell parameter {axis}")
        lattice.append(reader.number(layout.cell_format(axis), axis))
    reader.separator()
    sites = _read_sites(reader, number, composition, layout)
    crystal = CanonicalCrystal(number, tuple(lattice), tuple(sites), layout.settings)
    _check_geometry(crystal)
    return crystal


def _read_composition(reader: _Reader) -> dict[int, int]:
    composition: dict[int, int] = {}
    while True:
        token = reader.take("an element")
        if token == SEPARATOR and composition:
            return composition
        number = _element_numbers().get(token)
        if number is None or number in composition:
            raise reader.refuse(token, "a further element" if composition else "an element")
        count = reader.take("a count")
        if not count.isdecimal() or count.startswith("0") or len(count) > 6:
            raise reader.refuse(count, "a count")
        composition[number] = int(count)


def _read_sites(
    reader: _Reader, number: int, composition: dict[int, int], layout: SequenceLayout
) -> list[CanonicalSite]:
    group = space_group(number)
    remaining = Counter(composition)
    used: set[int] = set()
    sites = []
    while reader.next is not None:
        token = reader.take("an element")
        element = _element_numbers().get(token)
        if element is None:
            raise reader.refuse(token, "an element")
        token = reader.take("a Wyckoff position")
        index = _positions_by_token(number).get(token)
        if index is None:
            raise UnknownPositionError(f"{group.symbol} has no position {token!r}", reader.place - 1)
        position = group.positions[index]
        if not position.num_parameters:
            if index in used:
                raise RepeatedFixedPositionError(f"fixed position {token} is used twice", reader.place - 1)
            used.add(index)
        remaining[element] -= position.multiplicity // len(group.centering)
        if remaining[element] < 0:
            symbol = CHEMICAL_SYMBOLS[element]
            raise CompositionMismatchError(f"more {symbol} than the composition has", reader.place - 1)
        parameters = tuple(reader.number(layout.fraction, "a coordinate") for _ in range(position.num_parameters))
        sites.append(CanonicalSite(index, element, parameters))
    missing = {CHEMICAL_SYMBOLS[e]: count for e, count in remaining.items() if count}
    if missing:
        raise MissingEndError(f"the sequence ends with atoms missing: {missing}", reader.place)
    return sites


def _check_geometry(crystal: CanonicalCrystal) -> None:
    try:
        crystal.to_record()  # kept: reading it again costs nothing
    except ImpossibleCellError as error:
        raise ImpossibleLatticeError(str(error)) from error
    except ValueError as error:
        raise CoincidingAtomsError(str(error)) from error
