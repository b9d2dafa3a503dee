# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Data sets: tables of crystals on disk, official benchmark splits, collation and batching.

Names are loaded when first used (PEP 562): importing this package imports neither torch nor datasets.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .batching import AtomBudgetBatchSampler as AtomBudgetBatchSampler
    from .benchmarks import BenchmarkError as BenchmarkError
    from .benchmarks import BenchmarkSpec as BenchmarkSpec
    from .benchmarks import official_split as official_split
    from .collators import CrystalCollator as CrystalCollator
    from .columns import crystal_features as crystal_features
    from .columns import crystal_row as crystal_row
    from .jarvis import load_jarvis as load_jarvis
    from .loading import load_crystal_dataset as load_crystal_dataset
    from .materials_project import load_materials_project as load_materials_project
    from .oqmd import load_oqmd as load_oqmd
    from .tables import CrystalDatasetDict as CrystalDatasetDict

# public name -> file that defines it
_NAMES = {
    "AtomBudgetBatchSampler": "batching",
    "BenchmarkError": "benchmarks",
    "BenchmarkSpec": "benchmarks",
    "CrystalCollator": "collators",
    "CrystalDatasetDict": "tables",
    "crystal_features": "columns",
    "load_crystal_dataset": "loading",
    "load_jarvis": "jarvis",
    "load_materials_project": "materials_project",
    "load_oqmd": "oqmd",
    "official_split": "benchmarks",
    "crystal_row": "columns",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> object:
    """Load a public name on first use."""
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted({*globals(), *__all__})
