# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""OQMD as distributed by JARVIS (817,636 crystals) with CrystalFramer's splits."""

import os
from typing import Any

from .benchmarks import BenchmarkSpec, load_benchmark, spec_of_property
from .downloads import figshare
from .tables import CrystalDatasetDict

__all__ = ["OQMD", "load_oqmd"]

# URL: jarvis-tools, jarvis/db/figshare.py, entry "oqmd_3d_no_cfid"
_SOURCE = figshare(
    26790182,
    "all_oqmd.json.zip",
    "S. Kirklin et al., npj Comput. Mater. 1, 15010 (2015); doi:10.6084/m9.figshare.14206169; CC BY 4.0",
)
# sizes, and first and last ids of the splits: omron-sinicx/crystalframer, data/check_datasets.py
_ENERGY = BenchmarkSpec(
    name="oqmd",
    source=_SOURCE,
    labels={"delta_e": "_oqmd_delta_e", "stability": "_oqmd_stability"},
    sizes=(654108, 81763, 81763),
    boundary_ids=(("838046", "368371"), ("897017", "764365"), ("820496", "452980")),
    id_keys=("_oqmd_entry_id", "id"),
)
_BAND_GAP = BenchmarkSpec(
    name="oqmd-bandgap",
    source=_SOURCE,
    labels={"bandgap": "_oqmd_band_gap"},
    sizes=(653388, 81673, 81673),
    boundary_ids=(("307903", "932283"), ("719433", "989134"), ("506427", "452988")),
    id_keys=("_oqmd_entry_id", "id"),
)

OQMD: dict[str, BenchmarkSpec] = {"delta_e": _ENERGY, "stability": _ENERGY, "bandgap": _BAND_GAP}


def load_oqmd(
    property_name: str | None = None,
    *,
    path: str | os.PathLike | None = None,
    spec: BenchmarkSpec | None = None,
    **options: Any,
) -> CrystalDatasetDict:
    """OQMD with the official split of a property.

    Args:
        property_name: `delta_e` (also the default), `stability` (both eV/atom, one split) or `bandgap` (eV).
        path: local copy of `all_oqmd.json` (or its zip); downloaded from figshare otherwise (about 1 GB unpacked; it
            is read entry by entry).
        spec: another definition of the benchmark in place of the known one.
        **options: `sha256`, `official`, `split_file`, `cache_dir`: see `hf_crystal.data.benchmarks.load_benchmark`.

    Returns:
        `CrystalDatasetDict` with train, validation and test.

    Raises:
        ValueError: unknown property.
        BenchmarkError: the file is not the official release, and `official` was not set to False.
    """
    chosen = spec or spec_of_property(property_name or "delta_e", OQMD, "OQMD")
    return load_benchmark(chosen, path=path, **options)
