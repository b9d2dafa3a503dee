"""Candidates from known crystals: those of a formula, and the same anonymous contents with other elements put in."""

from .index import DEFAULT_INDEX, PrototypeIndex, embedded_index
from .proposals import propose

__all__ = ["DEFAULT_INDEX", "PrototypeIndex", "embedded_index", "propose"]
