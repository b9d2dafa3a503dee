# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Disordered crystals: ordered ones in their place."""

from .crystals.orderings import orderings

__all__ = ["orderings"]
