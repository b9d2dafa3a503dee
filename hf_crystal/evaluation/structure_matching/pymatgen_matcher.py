# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""pymatgen's `StructureMatcher` itself, called for one pair: the plain reference of `fast_matcher`."""

import functools
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MatcherSettings:
    """Arguments of pymatgen's `StructureMatcher`; other ones keep its defaults.

    Attributes:
        ltol: Fractional tolerance of lengths.
        stol: Tolerance of sites, in units of (volume / atoms)^(1/3).
        angle_tol: Tolerance of angles, degrees.
    """

    ltol: float
    stol: float
    angle_tol: float

    def __str__(self) -> str:
        return f"StructureMatcher(ltol={self.ltol}, stol={self.stol}, angle_tol={self.angle_tol})"


@functools.lru_cache(maxsize=8)
def structure_matcher(settings: MatcherSettings) -> Any:
    """The pymatgen `StructureMatcher` of these settings, one per process."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(ltol=settings.ltol, stol=settings.stol, angle_tol=settings.angle_tol)


def pymatgen_rms(settings: MatcherSettings, pair: tuple[Any, Any]) -> float | None:
    """`StructureMatcher.get_rms_dist` of two structures: the plain reference of `rms_distances`."""
    found = structure_matcher(settings).get_rms_dist(*pair)
    return None if found is None else float(found[0])


def pymatgen_fit(settings: MatcherSettings, pair: tuple[Any, Any]) -> bool:
    """`StructureMatcher.fit` of two structures: the plain reference of `fits`."""
    return bool(structure_matcher(settings).fit(*pair))
