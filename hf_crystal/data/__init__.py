# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Data sets: tables of crystals on disk, official benchmark splits, collation and batching.

Names are loaded when first used (PEP 562): importing this package imports neither torch nor datasets.
"""

from .._lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
# data sets with official splits: x for each `load_x`
OFFICIAL_SOURCES = tuple(name.removeprefix("load_") for name in __all__ if name.startswith("load_"))
OFFICIAL_SOURCES = tuple(name for name in OFFICIAL_SOURCES if name != "crystal_dataset")
