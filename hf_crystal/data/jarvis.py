# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""JARVIS-DFT 3D, release 2021-08-18 (55,723 crystals), with the splits that the papers report."""

import os
from typing import Any

from .benchmarks import BenchmarkSpec, load_benchmark, spec_of_property
from .downloads import figshare
from .tables import CrystalDatasetDict

__all__ = ["JARVIS", "load_jarvis"]

# URL and member name: jarvis-tools, jarvis/db/figshare.py, entry "dft_3d_2021"
_SOURCE = figshare(
    29204826,
    "jdft_3d-8-18-2021.json.zip",
    "K. Choudhary et al., npj Comput. Mater. 6, 173 (2020); doi:10.6084/m9.figshare.6815699; public domain",
)
# sizes, and first and last ids of the splits: omron-sinicx/crystalframer, data/check_datasets.py
_MAIN = BenchmarkSpec(
    name="jarvis-dft_3d_2021",
    source=_SOURCE,
    labels={
        "formation_energy": "formation_energy_peratom",
        "total_energy": "optb88vdw_total_energy",
        "opt_bandgap": "optb88vdw_bandgap",
    },
    sizes=(44578, 5572, 5572),
    boundary_ids=(("JVASP-21450", "JVASP-28366"), ("JVASP-68836", "JVASP-5650"), ("JVASP-38636", "JVASP-90134")),
)
_MBJ = BenchmarkSpec(
    name="jarvis-dft_3d_2021-mbj_bandgap",
    source=_SOURCE,
    labels={"mbj_bandgap": "mbj_bandgap"},
    sizes=(14537, 1817, 1817),
    boundary_ids=(("JVASP-11762", "JVASP-12820"), ("JVASP-59652", "JVASP-10869"), ("JVASP-100464", "JVASP-65765")),
)
_EHULL = BenchmarkSpec(
    name="jarvis-dft_3d_2021-ehull",
    source=_SOURCE,
    labels={"ehull": "ehull"},
    sizes=(44296, 5537, 5537),
    boundary_ids=(("JVASP-33661", "JVASP-14073"), ("JVASP-101868", "JVASP-118132"), ("JVASP-8413", "JVASP-90134")),
)

JARVIS: dict[str, BenchmarkSpec] = {
    "formation_energy": _MAIN,
    "total_energy": _MAIN,
    "opt_bandgap": _MAIN,
    "mbj_bandgap": _MBJ,
    "ehull": _EHULL,
}


def load_jarvis(
    property_name: str | None = None,
    *,
    path: str | os.PathLike | None = None,
    spec: BenchmarkSpec | None = None,
    **options: Any,
) -> CrystalDatasetDict:
    """JARVIS-DFT 3D with the official split of a property.

    Args:
        property_name: `formation_energy` (also the default), `total_energy` (both eV/atom), `opt_bandgap`,
            `mbj_bandgap` or `ehull` (eV). The first three share one split and come together.
        path: local copy of `jdft_3d-8-18-2021.json` (or its zip); downloaded from figshare otherwise.
        spec: another definition of the benchmark in place of the known one.
        **options: `sha256`, `official`, `split_file`, `cache_dir`: see `hf_crystal.data.benchmarks.load_benchmark`.

    Returns:
        `CrystalDatasetDict` with train, validation and test.

    Raises:
        ValueError: unknown property.
        BenchmarkError: the file is not the official release, and `official` was not set to False.
    """
    chosen = spec or spec_of_property(property_name or "formation_energy", JARVIS, "JARVIS")
    return load_benchmark(chosen, path=path, **options)
