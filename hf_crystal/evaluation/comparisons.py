# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Many pairs of crystals, each crystal reduced once and equal pairs compared once, in processes with a time limit."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hf_crystal.evaluation.fast_matcher import MatcherSettings, ReducedCrystal, reduce_crystal
from hf_crystal.evaluation.pools import JobPool, Outcome
from hf_crystal.evaluation.results import ReadCrystal

Verdict = Callable[[MatcherSettings, tuple[ReducedCrystal, ReducedCrystal]], Any]


def _answer(verdict: Verdict, settings: MatcherSettings, job: tuple[Any, Any]) -> Any:
    """A job is a pair of reduced crystals, or a structure and whether its cell has to be Niggli-reduced."""
    if isinstance(job[0], ReducedCrystal):
        return verdict(settings, job)
    return reduce_crystal(job[0], niggli=job[1])


def _import_pymatgen() -> None:
    import pymatgen.core  # noqa: F401


def _content(crystal: ReadCrystal) -> bytes:
    structure = crystal.structure
    numbers = repr([site.specie.Z for site in structure]).encode()
    return numbers + structure.lattice.matrix.tobytes() + structure.frac_coords.tobytes()


class PairComparer:
    """Compares pairs of crystals; use as a context manager.

    Args:
        verdict: `rms_distance` or `fits`.
        settings: Tolerances.
        num_workers: Processes; 0 for none.
        time_limit: Seconds for one pair, and for one reduction; needs and starts a process.
    """

    def __init__(
        self, verdict: Verdict, settings: MatcherSettings, *, num_workers: int = 0, time_limit: float | None = None
    ):
        self._pool = JobPool(
            functools.partial(_answer, verdict, settings),
            prepare=_import_pymatgen,
            num_workers=num_workers,
            time_limit=time_limit,
        )

    def __enter__(self) -> "PairComparer":
        self._pool.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.__exit__()

    def reduce(self, crystals: Sequence[ReadCrystal], places: Iterable[int], *, niggli: bool) -> dict[int, Outcome]:
        """Reduced crystals by place; equal ones share one outcome.

        Args:
            crystals: All crystals.
            places: Those to reduce, all readable.
            niggli: Whether they will be the second of a pair, see `reduce_crystal`.
        """
        contents = {place: _content(crystals[place]) for place in dict.fromkeys(places)}
        firsts = {content: place for place, content in reversed(contents.items())}
        outcomes = self._pool.run([(crystals[place].structure, niggli) for place in firsts.values()])
        by_content = dict(zip(firsts, outcomes, strict=True))
        return {place: by_content[content] for place, content in contents.items()}

    def compare(self, pairs: Sequence[tuple[Outcome, Outcome]]) -> list[Outcome]:
        """Verdicts on pairs of reduced crystals, in order; a crystal that could not be reduced fails all its pairs."""
        distinct: dict[tuple[int, int], tuple[Outcome, Outcome]] = {(id(a), id(b)): (a, b) for a, b in pairs}
        settled = {
            key: a if a.failure is not None else b
            for key, (a, b) in distinct.items()
            if a.failure is not None or b.failure is not None
        }
        waiting = [key for key in distinct if key not in settled]
        outcomes = self._pool.run([(distinct[key][0].value, distinct[key][1].value) for key in waiting])
        settled.update(zip(waiting, outcomes, strict=True))
        return [settled[id(a), id(b)] for a, b in pairs]
