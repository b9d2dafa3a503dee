# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Many pairs of crystals, each crystal reduced once and equal pairs compared once, in processes with a time limit."""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hf_crystal.evaluation.pools import JobPool, Outcome
from hf_crystal.evaluation.results import ReadCrystal
from hf_crystal.evaluation.structure_matching.fast_matcher import Pair
from hf_crystal.evaluation.structure_matching.pymatgen_matcher import MatcherSettings
from hf_crystal.evaluation.structure_matching.reduced_crystals import reduce_crystal

Verdicts = Callable[[MatcherSettings, Sequence[Pair]], list[Any]]

_PAIRS_AT_A_TIME = 64  # more are not faster


def _answer(verdicts: Verdicts, settings: MatcherSettings, job: Any) -> Any:
    """A job is a list of pairs of reduced crystals, or a crystal and whether its cell has to be Niggli-reduced."""
    if isinstance(job, list):
        return verdicts(settings, job)
    return reduce_crystal(job[0], niggli=job[1])


def _import_pymatgen() -> None:
    import pymatgen.core  # noqa: F401


def _content(crystal: ReadCrystal) -> bytes:
    record = crystal.record
    assert record is not None  # only readable crystals are compared
    return record.atomic_numbers.tobytes() + record.cell.tobytes() + record.frac_coords.tobytes()


class PairComparer:
    """Compares pairs of crystals; use as a context manager.

    Args:
        verdicts: `rms_distances` or `fits`.
        settings: Tolerances.
        num_workers: Processes; 0 for none.
        time_limit: Seconds for one pair, and for one reduction; needs and starts a process.
    """

    def __init__(
        self, verdicts: Verdicts, settings: MatcherSettings, *, num_workers: int = 0, time_limit: float | None = None
    ):
        self._pool = JobPool(
            functools.partial(_answer, verdicts, settings),
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
        outcomes = self._pool.run([(crystals[place].record, niggli) for place in firsts.values()])
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
        alike: dict[Any, list[tuple[int, int]]] = defaultdict(list)
        for key, (_, b) in distinct.items():
            if key not in settled:
                alike[b.value.sizes, b.value.anchor].append(key)
        batches = [
            keys[begin : begin + _PAIRS_AT_A_TIME]
            for keys in alike.values()
            for begin in range(0, len(keys), _PAIRS_AT_A_TIME)
        ]
        settled.update(self._run(batches, distinct))
        return [settled[id(a), id(b)] for a, b in pairs]

    def _run(
        self, batches: list[list[tuple[int, int]]], distinct: dict[tuple[int, int], tuple[Outcome, Outcome]]
    ) -> dict[tuple[int, int], Outcome]:
        """Verdicts by key; where a batch fails, its pairs are compared one by one, to know which it was."""
        jobs = [[(distinct[key][0].value, distinct[key][1].value) for key in keys] for keys in batches]
        settled: dict[tuple[int, int], Outcome] = {}
        failed: list[list[tuple[int, int]]] = []
        for keys, outcome in zip(batches, self._pool.run(jobs), strict=True):
            if outcome.failure is None:
                settled.update(zip(keys, map(Outcome, outcome.value), strict=True))
            elif len(keys) == 1:
                settled[keys[0]] = outcome
            else:
                failed += [[key] for key in keys]
        return {**settled, **self._run(failed, distinct)} if failed else settled
