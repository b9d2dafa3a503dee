"""Small crystals whose answers are known by hand, and jobs that misbehave."""

import os
import time
from dataclasses import dataclass
from typing import Any

from pymatgen.core import Lattice, Structure


@dataclass(frozen=True)
class Decoded:
    """Stands for `DecodedCrystal`."""

    structure: Any
    error: Exception | None = None
    canonical: Any = None


@dataclass(frozen=True)
class Canonical:
    space_group: int


def rocksalt(a: float = 5.64, first: str = "Na", second: str = "Cl") -> Structure:
    """Primitive cell of the rock-salt type with cubic edge `a`, Å."""
    cell = [[0, a / 2, a / 2], [a / 2, 0, a / 2], [a / 2, a / 2, 0]]
    return Structure(Lattice(cell), [first, second], [[0, 0, 0], [0.5, 0.5, 0.5]])


def cesium_chloride(a: float = 3.5, first: str = "Na", second: str = "Cl") -> Structure:
    return Structure(Lattice.cubic(a), [first, second], [[0, 0, 0], [0.5, 0.5, 0.5]])


def chain(shift: float = 0.0) -> Structure:
    """CsCl type whose second atom is off the center by `shift` of the edge of 4 Å."""
    return Structure(Lattice.cubic(4.0), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5 + shift]])


def doubled(job: Any) -> Any:
    """A job of the pool: "raise", "hang" and "die" do so."""
    if job == "raise":
        raise ValueError("asked to")
    if job == "hang":
        time.sleep(600)
    if job == "die":
        os._exit(7)
    return 2 * job


def misbehaving_pairs(settings: Any, pairs: Any) -> list[float | None]:
    """Stands for the matcher: dies for potassium, hangs for rubidium, fails for lithium."""
    from hf_crystal.evaluation.structure_matching.fast_matcher import rms_distances

    for pair in pairs:
        for number, job in ((19, "die"), (37, "hang"), (3, "raise")):
            if number in pair[0].numbers:
                doubled(job)
    return rms_distances(settings, pairs)
