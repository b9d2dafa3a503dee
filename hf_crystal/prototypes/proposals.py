"""One door to crystals of a formula: known ones, prototypes with its elements in them, then those of a model."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from hf_crystal.crystals.elements import CHEMICAL_SYMBOLS, isotope_notes, parse_composition
from hf_crystal.mat2seq.space_groups import space_group_number, space_group_symbols
from hf_crystal.mat2seq.tokenization_mat2seq import DecodedCrystal
from hf_crystal.mat2seq.validity import atoms_are_apart, atoms_collide, check_min_distance

from .index import Judge, PrototypeIndex, embedded_index, equal_of

__all__ = ["propose"]

_GUESSED = "its size, and what it is like, are guesses"


@functools.cache
def _default_index() -> PrototypeIndex:
    return embedded_index("mp")


def propose(
    composition: str | Mapping[Any, Any],
    n: int = 1,
    *,
    known: bool = True,
    space_group: str | int | Sequence[str | int] | None = None,
    max_atoms: int | None = None,
    min_distance: float | None = None,
    unseen: Literal["warn", "refuse"] = "warn",
    generate: Callable[[int], Sequence[DecodedCrystal]] | None = None,
    judge: Judge | None = None,
    index: PrototypeIndex | None = None,
) -> list[DecodedCrystal]:
    """Crystals of a formula, the likeliest first: known ones, then prototypes, then those of a model.

    ```python
    propose("TiO2", 5)                   # known crystals, lowest energy first
    propose("LiFeSO4F", 5, known=False)  # only what is not known of this formula
    ```

    Args:
        composition: A formula, any number of units in the cell; or a mapping: atoms of the primitive cell.
        n: Largest number of crystals.
        known: False leaves out known crystals of the composition, and what `StructureMatcher` takes for one of them.
        space_group: Symbol or number, or several of them.
        max_atoms: Largest primitive cell.
        min_distance: Leave out crystals with atoms nearer than this, Å. Those with two atoms closer than half the sum
            of their covalent radii are left out always.
        unseen: What becomes of elements, and of two elements together, that no known crystal has: a warning of each
            crystal, or an error.
        generate: Draws so many crystals from a model, for the places that prototypes do not fill, and of several for
            the last one: no index holds every crystal.
        judge: Predicts energies of prototypes, which then count in their order, such as
            `hf_crystal.stability.predicted_energies`.
        index: Known crystals; by default the embedded ones of the Materials Project.

    Returns:
        Crystals, all different, those of the model by `StructureMatcher`; `source` says where each comes from, see
        `PrototypeIndex.candidates`.

    Raises:
        ValueError: there is no such formula or space group, or an element is refused.
    """
    check_min_distance(min_distance)
    several = [space_group] if isinstance(space_group, (str, int)) else space_group
    groups = None if several is None else [space_group_number(group) for group in several]

    def accepted(item: DecodedCrystal) -> bool:
        return not atoms_collide(item) and (min_distance is None or atoms_are_apart(item.structure, min_distance))

    index = _default_index() if index is None else index
    symbols = [CHEMICAL_SYMBOLS[number] for number in parse_composition(composition)]
    notes = tuple(f"{text}; {_GUESSED}" for text in index.unseen(symbols))
    if notes and unseen == "refuse":
        raise ValueError("; ".join(notes))
    notes = (*notes, *isotope_notes(composition))
    found = index.candidates(
        composition,
        n,
        formula=isinstance(composition, str),
        known=known,
        max_atoms=max_atoms,
        space_groups=groups,
        keeps=accepted,
        judge=judge,
    )
    if groups is not None and known and not any(item.source.startswith("known") for item in found):
        others = dict.fromkeys(
            item.sequence.split(" | ")[1] for item in index.known_of(parse_composition(composition))
        )
        asked = {space_group_symbols()[number - 1] for number in groups}
        if others and asked.isdisjoint(others):  # else they are too large, or atoms too close
            notes = (*notes, f"no known crystal of {composition} has this space group; known: {', '.join(others)}")
    found = [dataclasses.replace(item, warnings=(*item.warnings, *notes)) for item in found] if notes else found
    if generate is not None and (len(found) < n or n > 1):
        count = n if len(found) < n else 2
        try:
            drawn = generate(count if known else 2 * count)  # some will be known ones
        except ValueError:  # what the model cannot write is no reason to refuse the rest
            if not found:
                raise
            drawn = []
        have = {item.sequence for item in found}
        new = [item for item in drawn if item.sequence not in have and accepted(item)]
        new = [item for item in new if equal_of(item.structure, found) is None]
        new = [item for item in new if known or not index.is_known(item)]
        found = [*found[: n - 1], *new] if new and n > 1 else found + new
    return found[:n]
