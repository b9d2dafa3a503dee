# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""The verdicts of pymatgen's `StructureMatcher`, on many pairs of crystals at once.

Why it is our own: judging a generator compares hundreds of thousands of pairs, and pymatgen works pair by pair. This
one gives equal verdicts 14.8 times as fast (`scripts/bench_matching.py`: 2,000 pairs of MP-20, none with another
verdict, RMS displacements equal to 1e-15). `docs/explain/matching.md` says how, and where pymatgen is still called.

`matching` holds the metrics, `fast_matcher` the verdicts, `pymatgen_matcher` the plain reference; the other files are
the steps between them.
"""
