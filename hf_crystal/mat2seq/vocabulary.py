# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""The frozen vocabulary of crystal sequences, and the conditions that may stand in front of them.

Order: special tokens, separator, cell axes, counts, integer parts, first digits of coordinates, further digits,
elements, space groups, Wyckoff positions, then properties and their bins. New kinds of tokens go to the end.
"""

import bisect
import itertools
import math
import numbers
import re
from dataclasses import asdict, dataclass
from typing import Any

from ..crystals.elements import FORMULA_RANK
from ..crystals.record import CHEMICAL_SYMBOLS
from .sequence_text import AXIS_TOKENS, SEPARATOR, SequenceLayout, position_token
from .space_groups import space_group, space_group_symbols

__all__ = ["DEFAULT_PROPERTIES", "OTHER_PROPERTIES", "SPECIAL_TOKENS", "PropertyBins", "build_vocabulary"]

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
MAX_COUNT = 512  # largest count of one element that has a token
MAX_WHOLE = 199  # largest integer part of a length (Å) or an angle (degrees)
_PROPERTY_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class PropertyBins:
    """A property that can condition generation, cut into bins.

    Attributes:
        name: Lower-case identifier; the token is `<name>`.
        unit: Physical unit, for people.
        edges: Increasing inner boundaries; n edges make n + 1 bins, a value on an edge falls into the upper bin.
    """

    name: str
    unit: str
    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        if (
            not _PROPERTY_NAME.fullmatch(self.name)
            or self.name.startswith("bin_")
            or f"<{self.name}>" in SPECIAL_TOKENS
        ):
            raise ValueError(f"property name is {self.name!r}; accepted: lower-case letters, digits and underscores")
        object.__setattr__(self, "edges", tuple(float(edge) for edge in self.edges))
        if not self.edges or any(a >= b for a, b in itertools.pairwise(self.edges)):
            raise ValueError(f"edges of {self.name} are {self.edges}; accepted: increasing numbers, at least one")

    @property
    def token(self) -> str:
        """Token that announces the property."""
        return f"<{self.name}>"

    def bin_token(self, value: float) -> str:
        """Token of the bin that holds a value.

        Raises:
            ValueError: for NaN.
        """
        if math.isnan(value):
            raise ValueError(f"{self.name} is NaN; leave an unknown property out")
        return f"<bin_{bisect.bisect_right(self.edges, value)}>"

    def check_target(self, value: object) -> str | None:
        """Whether generation can be conditioned on a value.

        The outermost bins have no end of their own; training values lie near the edges. Properties with no edge below
        zero, such as a band gap, are not negative.

        Returns:
            A warning for a value outside the edges, else None.

        Raises:
            ValueError: for what is no finite number, and for a value farther outside than half of what the edges span.
        """
        low, high = min(self.edges[0], 0.0), self.edges[-1]
        accepted = f"the trained bins reach from {low:g} to {high:g} {self.unit}".rstrip()
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise ValueError(f"{self.name} is {value!r}; accepted: a finite number, {accepted}")
        value = float(value)
        if low <= value <= high:
            return None
        reach = (high - self.edges[0]) / 2 if len(self.edges) > 1 else math.inf
        if (self.edges[0] > 0 > value) or not low - reach <= value <= high + reach:
            raise ValueError(f"{self.name} is {value:g} {self.unit}; {accepted}")
        side = f"at least {high:g}" if value > high else f"below {low:g}"
        return f"{self.name} is {value:g} {self.unit}; {accepted}: the condition says no more than {side}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "edges": list(self.edges)}


DEFAULT_PROPERTIES = (
    PropertyBins("band_gap", "eV", (0.01, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 8)),
    PropertyBins("formation_energy", "eV/atom", tuple(-4 + 0.25 * i for i in range(21))),
)
OTHER_PROPERTIES = (  # of generators whose recipe names them
    PropertyBins("e_above_hull", "eV/atom", (0.005, 0.025, 0.05, 0.1, 0.2, 0.4)),
    PropertyBins("bulk_modulus", "GPa", (10, 20, 30, 45, 60, 80, 100, 125, 150, 175, 200, 250, 300, 400)),
)


def build_vocabulary(layout: SequenceLayout, properties: tuple[PropertyBins, ...]) -> list[str]:
    """All tokens, in their frozen order."""
    tokens = [*SPECIAL_TOKENS, SEPARATOR, *AXIS_TOKENS]
    tokens += [str(count) for count in range(1, MAX_COUNT + 1)]
    tokens += [f"{whole}." for whole in range(MAX_WHOLE + 1)]
    first = layout.fraction.group_sizes[0]
    tokens += [f".{value:0{first}d}" for value in range(10**first)]
    formats = (layout.fraction, layout.length, layout.angle)
    sizes = {size for form in formats for size in form.group_sizes[not form.whole :]}
    for size in sorted(sizes, reverse=True):
        tokens += [f"~{value:0{size}d}" for value in range(10**size)]
    tokens += [CHEMICAL_SYMBOLS[number] for number in sorted(FORMULA_RANK)]
    tokens += space_group_symbols()
    positions = {(p.multiplicity, p.index, position_token(n, p.index)) for n in range(1, 231) for p in _positions(n)}
    tokens += [token for _, _, token in sorted(positions)]
    tokens = list(dict.fromkeys(tokens))  # one letter has several places in the lists of different groups
    tokens += [p.token for p in properties]
    bins = max((len(p.edges) + 1 for p in properties), default=0)
    tokens += [f"<bin_{i}>" for i in range(bins)]
    if len(set(tokens)) != len(tokens):
        raise ValueError("two properties share a name")
    return tokens


def _positions(number: int) -> tuple:
    return space_group(number).positions
