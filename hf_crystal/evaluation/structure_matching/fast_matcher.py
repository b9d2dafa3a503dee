# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""The verdicts of pymatgen's `StructureMatcher` on many pairs, with the work of the pairs done in arrays.

`StructureMatcher` reduces both crystals, then tries every lattice of the first that is near the cell of the second,
and every translation that puts an atom on its like. Here a crystal is reduced once, however many pairs it is part of;
all lattices and translations of many pairs are tried together; and of those that symmetry of the first crystal makes
equal only one is looked at. Nothing is rejected that `StructureMatcher` accepts: the tolerances, the box of periodic
images (in the LLL-reduced average cell) and the assignment are its own. Where several assignments or images are
equally cheap, they may leave different displacements, and pymatgen takes one by rounding: if the verdict can hang on
it, pymatgen is asked. `pymatgen_rms` and `pymatgen_fit` are the plain reference.

Source of the criterion: `StructureMatcher` of pymatgen (S. P. Ong et al., Comput. Mater. Sci. 68 (2013) 314).
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hf_crystal.evaluation.results import plain_structure
from hf_crystal.evaluation.structure_matching.assignments import TiedMatch, matches, partnered
from hf_crystal.evaluation.structure_matching.pymatgen_matcher import MatcherSettings, pymatgen_fit, pymatgen_rms
from hf_crystal.evaluation.structure_matching.reduced_crystals import ReducedCrystal, site_blocks
from hf_crystal.evaluation.structure_matching.superpositions import superpositions

Pair = tuple[ReducedCrystal, ReducedCrystal]
Measure = Callable[[np.ndarray], np.ndarray]

_BLOCK_ENTRIES = 200_000  # pairs of atoms held at a time
_SAME = 1e-9  # values that differ by less are equal


def rms_distances(settings: MatcherSettings, pairs: Sequence[Pair]) -> list[float | None]:
    """RMS displacement over (volume / atoms)^(1/3) of each pair, None where the crystals do not match.

    Args:
        settings: Tolerances.
        pairs: Crystals of `reduce_crystal`; the second of each with `niggli=True`.
    """

    def ask(pair: Pair) -> float:
        """The RMS displacement that pymatgen finds, `stol` for none."""
        found = pymatgen_rms(settings, (plain_structure(pair[0].given), plain_structure(pair[1].given)))
        return settings.stol if found is None else found

    values = _smallest(settings, pairs, lambda distances: np.sqrt((distances**2).mean(axis=-1)), ask)
    return [value if value < settings.stol else None for value in values]


def fits(settings: MatcherSettings, pairs: Sequence[Pair]) -> list[bool]:
    """Whether the crystals of each pair match: no paired atoms farther apart than the tolerance.

    Args:
        settings: Tolerances.
        pairs: As in `rms_distances`.
    """

    def ask(pair: Pair) -> float:
        """Below `stol` where pymatgen finds a match."""
        found = pymatgen_fit(settings, (plain_structure(pair[0].given), plain_structure(pair[1].given)))
        return 0.0 if found else settings.stol

    values = _smallest(settings, pairs, lambda distances: distances.max(axis=-1), ask, any_will_do=True)
    return [value < settings.stol for value in values]


def _smallest(
    settings: MatcherSettings,
    pairs: Sequence[Pair],
    measure: Measure,
    ask: Callable[[Pair], float],
    *,
    any_will_do: bool = False,
) -> list[float]:
    """Smallest value of `measure` over all ways of laying the first crystal on the second; `stol` if none is smaller.

    Args:
        settings: Tolerances.
        pairs: The pairs.
        measure: Value (...) of distances (..., N) between paired atoms.
        ask: pymatgen's answer for a pair.
        any_will_do: Whether every value below `stol` is as good as the smallest.
    """
    values = [settings.stol] * len(pairs)
    alike: dict[Any, list[int]] = defaultdict(list)
    laid: dict[int, Pair] = {}
    for place, (first, second) in enumerate(pairs):
        if len(first.numbers) > len(second.numbers):
            first = first.reduced
        if first.content == second.content:
            laid[place] = first, second
            alike[second.sizes, second.anchor].append(place)
    for places in alike.values():
        found = _smallest_alike(settings, [laid[place] for place in places], measure, ask, any_will_do)
        for place, value in zip(places, found, strict=True):
            # in a smaller cell the first crystal has too few atoms; only a match has to be looked at again
            if value < settings.stol and laid[place][0].reduced is laid[place][0]:
                values[place] = value
    return values


def _smallest_alike(
    settings: MatcherSettings, pairs: list[Pair], measure: Measure, ask: Callable[[Pair], float], any_will_do: bool
) -> list[float]:
    """`_smallest` of pairs with the same numbers of atoms of each element, in order, and the same anchor."""
    blocks = site_blocks(pairs[0][1].sizes)
    best = np.full(len(pairs), settings.stol)
    open_: list[TiedMatch] = []
    laid = superpositions(pairs, blocks, settings)
    step = max(1, _BLOCK_ENTRIES // len(blocks.first))
    for start in range(0, len(laid), step):
        part = laid.take(np.arange(start, min(start + step, len(laid))))
        part = part.take(partnered(part, blocks, settings.stol))
        if len(part):
            owner, distances, tied = matches(part, blocks, settings.stol)
            np.minimum.at(best, owner, measure(distances))
            open_ += tied
    ambiguous: dict[int, float] = {}  # least of the values that the pair may have
    for tie in sorted(open_, key=lambda tie: tie.lower_bound):
        if tie.lower_bound >= best[tie.owner] or (any_will_do and best[tie.owner] < settings.stol):
            continue
        least, largest = tie.rms_range(best[tie.owner])
        if largest - least < _SAME and not any_will_do:
            best[tie.owner] = min(best[tie.owner], least)
        else:
            ambiguous[tie.owner] = min(least, ambiguous.get(tie.owner, np.inf))
    for pair, least in ambiguous.items():
        if least < best[pair] and not (any_will_do and best[pair] < settings.stol):
            best[pair] = ask(pairs[pair])
    return best.tolist()
