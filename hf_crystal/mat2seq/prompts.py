# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Generation prompts: read, checked, turned into the beginning of a sequence and a constraint of the grammar."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..crystals.elements import CHEMICAL_SYMBOLS, isotope_notes, parse_composition
from ..crystals.record import cell_from_parameters
from .canonical_crystal import CanonicalSite, free_cell_parameters, orbit_points, quantize
from .grammar import CrystalGrammar, GrammarState
from .grammar_constraint import PromptConstraint
from .grammar_feasibility import equivalent_parameters
from .sequence_text import SEPARATOR, composition_tokens, position_token, split_text
from .space_groups import space_group, space_group_number, space_group_symbols
from .tokenization_mat2seq import Mat2SeqTokenizer

__all__ = ["CrystalPrompt", "PreparedPrompt", "parse_composition", "prepare_prompt"]


@dataclass(frozen=True)
class CrystalPrompt:
    """A generation prompt; all fields are optional.

    Attributes:
        composition: Atoms of the primitive cell, as a formula or mapping.
        formula_units: With these numbers the composition is a formula unit, and cells of so many units are allowed;
            "any": as many as fit.
        space_group: Symbol such as `P4_2/mnm` or ITA number, or several of them.
        chemical_system: Elements, such as `"Li-Fe-O"`; each occurs, no other does.
        properties: Conditions, by name: finite numbers near the range of the tokenizer's bins; None leaves one out.
        cell: Free cell parameters of the standard setting (Å, degrees), values or (smallest, largest) pairs: a crystal
            given in part. Needs one space group.
        sites: Orbits that occur, such as `"Ti 2a"` or `"O 4f 0.305"`, without coordinates where they are to be found.
            Needs one space group and a composition.
        prompt: Beginning of a sequence to be continued; excludes everything but the properties.
    """

    composition: Any = None
    formula_units: int | Sequence[int] | Literal["any"] | None = None
    space_group: str | int | Sequence[str | int] | None = None
    chemical_system: Sequence[str] | str | None = None
    properties: Mapping[str, float | None] | None = None
    cell: Mapping[str, float | Sequence[float]] | None = None
    sites: Sequence[str] | None = None
    prompt: str | None = None


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt that some crystal fulfills: ids of the beginning of the sequence, constraint, and warnings about it."""

    ids: tuple[int, ...]
    constraint: PromptConstraint
    has_conditions: bool = False
    warnings: tuple[str, ...] = ()


def prepare_prompt(asked: CrystalPrompt, tokenizer: Mat2SeqTokenizer, grammar: CrystalGrammar) -> PreparedPrompt:
    """Check a prompt and write what is certain from the start.

    Raises:
        ValueError: for a prompt that no crystal fulfills, with the reason.
    """
    properties = {name: value for name, value in (asked.properties or {}).items() if value is not None}
    notes = [bins.check_target(properties[bins.name]) for bins in tokenizer.property_bins if bins.name in properties]
    conditions = tokenizer.condition_tokens(properties)
    if asked.prompt is not None:
        others = (asked.composition, asked.formula_units, asked.space_group, asked.chemical_system)
        if any(field is not None for field in (*others, asked.cell, asked.sites)):
            raise ValueError(
                "prompt excludes composition, space_group, chemical_system, cell and sites: write them into it"
            )
        head, constraint = _continued(asked.prompt, tokenizer, grammar)
    else:
        constraint = _constraint(asked, grammar)
        grammar.check(constraint)
        head = _certain_tokens(constraint)
    tokens = [tokenizer.bos_token, *conditions, *head]
    ids = tuple(grammar.vocabulary[token] for token in tokens)
    told = (*(note for note in notes if note is not None), *isotope_notes(asked.composition))
    return PreparedPrompt(ids, constraint, bool(conditions), told)


def _constraint(asked: CrystalPrompt, grammar: CrystalGrammar) -> PromptConstraint:
    groups = None if asked.space_group is None else _groups(asked.space_group)
    compositions = _compositions(asked, grammar.max_atoms)
    elements = _elements(asked.chemical_system)
    if (asked.cell or asked.sites) and (groups is None or len(groups) > 1):
        raise ValueError("cell and sites need one space_group: it says what is free and what the positions are")
    if asked.sites and compositions is None:
        raise ValueError("sites need a composition")
    cell = _cell(asked.cell, groups[0], grammar) if asked.cell and groups else ()
    sites = _sites(asked.sites, groups[0], grammar.steps) if asked.sites and groups else ()
    return PromptConstraint.build(compositions, groups, elements, elements or (), cell, sites)


def _groups(space_group: Any) -> list[int]:
    several = [space_group] if isinstance(space_group, (str, int)) else list(space_group)
    if not several:
        raise ValueError("space_group is empty; accepted: symbols or numbers 1 to 230")
    return [space_group_number(group) for group in several]


def _compositions(asked: CrystalPrompt, max_atoms: int) -> list[dict[int, int]] | None:
    if asked.composition is None:
        if asked.formula_units is not None:
            raise ValueError("formula_units needs a composition")
        return None
    if asked.chemical_system is not None:
        raise ValueError("composition and chemical_system exclude each other")
    unit = parse_composition(asked.composition)
    if asked.formula_units is None:
        return [unit]
    if asked.formula_units == "any":
        multiples = list(range(1, max(1, max_atoms // sum(unit.values())) + 1))
    else:
        given = asked.formula_units
        multiples = [given] if isinstance(given, int) else list(given)
    if not multiples or not all(isinstance(n, int) and n >= 1 for n in multiples):
        raise ValueError(f"formula_units is {asked.formula_units!r}; accepted: positive whole numbers or 'any'")
    return [{e: n * k for e, n in unit.items()} for k in multiples]


def _elements(chemical_system: Sequence[str] | str | None) -> list[int] | None:
    if chemical_system is None:
        return None
    symbols = chemical_system.split("-") if isinstance(chemical_system, str) else list(chemical_system)
    unknown = [symbol for symbol in symbols if symbol not in CHEMICAL_SYMBOLS[1:]]
    if unknown or not symbols:
        raise ValueError(f"chemical_system has {unknown or 'no elements'}; accepted: symbols such as 'Li-Fe-O'")
    return [CHEMICAL_SYMBOLS.index(symbol) for symbol in symbols]


def _cell(given: Mapping[str, Any], group: int, grammar: CrystalGrammar) -> list[tuple[str, int, int]]:
    """Name, smallest and largest steps of each cell parameter that is given."""
    free = free_cell_parameters(group)
    unknown = sorted(set(given) - set(free))
    if unknown:
        raise ValueError(f"cell has {unknown}; free in {space_group(group).symbol}: {', '.join(free)}")
    ranges = []
    for name in free:
        if name not in given:
            continue
        value = given[name]
        low, high = (value, value) if isinstance(value, (int, float)) else (min(value), max(value))
        smallest, largest = grammar.length_range if len(name) == 1 else grammar.angle_range
        if not smallest <= low <= high <= largest:
            raise ValueError(f"cell parameter {name} is {value}; accepted: {smallest:g} to {largest:g}")
        form = grammar.layout.cell_format(name)
        step = form.unit / 10**form.decimals
        ranges.append((name, int(quantize(low, step)), int(quantize(high, step))))
    angles = [name for name in ("alpha", "beta", "gamma") if name in given]
    if group <= 2 and angles:
        if len(angles) < 3 or any(low != high for name, low, high in ranges if name in angles):
            raise ValueError("the angles of a triclinic cell are given as three values or not at all")
        cell_from_parameters(1.0, 1.0, 1.0, *(float(given[name]) for name in angles))
    return ranges


def _sites(given: Sequence[str], group: int, steps: int) -> list[CanonicalSite]:
    """The orbits asked for, each by its smallest parameters."""
    if isinstance(given, str):
        raise ValueError(f"sites is {given!r}; accepted: a list of sites such as ['Ti 2a', 'O 4f 0.305']")
    positions = space_group(group).positions
    names = {position_token(group, p.index): p for p in positions}
    sites: list[CanonicalSite] = []
    for text in given:
        symbol, name, *numbers = text.split() if len(text.split()) > 1 else (text, "")
        if symbol not in CHEMICAL_SYMBOLS[1:] or name not in names:
            raise ValueError(
                f"site {text!r}: accepted: an element, a position of {space_group(group).symbol} "
                f"({', '.join(names)}) and its free coordinates"
            )
        position = names[name]
        if numbers and len(numbers) != position.num_parameters:
            raise ValueError(f"site {text!r} has {len(numbers)} coordinates; {name} has {position.num_parameters}")
        try:
            parameters = tuple(int(quantize(float(x) % 1.0, 1.0 / steps)) % steps for x in numbers)
        except ValueError as error:
            raise ValueError(f"site {text!r}: coordinates are numbers") from error
        if parameters:
            if len(orbit_points(space_group(group), position, parameters, steps)) < position.multiplicity:
                raise ValueError(f"site {text!r} lies on a more special position than {name}")
            parameters = min(equivalent_parameters(group, position.index, parameters, steps))
        exclusive = parameters or not position.num_parameters
        if exclusive and any((s.position, s.parameters) == (position.index, parameters) for s in sites):
            raise ValueError(f"site {text!r} is occupied already")
        sites.append(CanonicalSite(position.index, CHEMICAL_SYMBOLS.index(symbol), parameters))
    return sites


def _certain_tokens(constraint: PromptConstraint) -> list[str]:
    """What every crystal of the constraint begins with."""
    if constraint.compositions is None or len(constraint.compositions) > 1:
        return []
    tokens = [*composition_tokens(dict(constraint.compositions[0])), SEPARATOR]
    if len(constraint.space_groups) == 1:
        tokens += [space_group_symbols()[next(iter(constraint.space_groups)) - 1], SEPARATOR]
    return tokens


def _continued(
    prompt: str, tokenizer: Mat2SeqTokenizer, grammar: CrystalGrammar
) -> tuple[list[str], PromptConstraint]:
    """Tokens of a text prompt, checked against the grammar, and the constraint under which they are continued."""
    tokens = split_text(prompt, tokenizer.layout)
    # A composition in the prompt may be larger than what would be generated freely.
    end = tokens.index(SEPARATOR) if SEPARATOR in tokens else 0
    constraint = PromptConstraint()
    if end and end % 2 == 0:
        pairs = zip(tokens[0:end:2], tokens[1:end:2], strict=True)
        counts = {symbol: int(count) for symbol, count in pairs if count.isdecimal()}
        constraint = PromptConstraint.build([parse_composition(counts)])
        grammar.check(constraint)
    state = GrammarState()
    for place, token in enumerate(tokens):
        allowed = grammar.allowed_tokens(state, constraint)
        if token not in allowed:
            raise ValueError(f"prompt token {place} is {token!r}; accepted there: {', '.join(allowed[:12])} …")
        state = grammar.advance(state, token, constraint)
    return tokens, constraint
