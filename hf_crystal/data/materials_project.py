# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Materials Project 2018.6.1 (the MEGNet set, 69,239 crystals) with the 60000/5000/4239 split of the papers."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..crystals.record import CRYSTAL_COLUMNS
from .benchmarks import BenchmarkError, BenchmarkSpec, listed_ids, load_benchmark
from .downloads import figshare
from .loading import load_crystal_dataset
from .megnet_elastic import ELASTIC, load_megnet_elastic
from .sources import iter_json
from .tables import CrystalDatasetDict

__all__ = ["MEGNET", "load_materials_project"]

logger = logging.get_logger(__name__)

# URL: jarvis-tools, jarvis/db/figshare.py, entry "megnet"; the splits are defined on this file's order
_SOURCE = figshare(
    26724977,
    "megnet.json.zip",
    "C. Chen et al., Chem. Mater. 31, 3564 (2019); Materials Project, CC BY 4.0",
)
# sizes, and first and last ids of the splits: omron-sinicx/crystalframer, data/check_datasets.py
MEGNET = BenchmarkSpec(
    name="megnet-2018.6.1",
    source=_SOURCE,
    labels={"e_form": "e_form", "bandgap": "gap pbe"},
    sizes=(60000, 5000, 4239),
    boundary_ids=(("mp-569112", "mvc-6917"), ("mp-558851", "mp-542332"), ("mp-554286", "mp-17481")),
    id_keys=("id", "material_id"),
    explicit_sizes=True,
)
# keys of the same labels in MEGNet's own mp.2018.6.1.json
_MEGNET_KEYS = {"e_form": "formation_energy_per_atom", "bandgap": "band_gap"}
# columns of the same labels, and of the split, in a table of a later release
_TABLE_COLUMNS = {"e_form": "e_form_megnet2018", "bandgap": "band_gap_megnet2018"}
_TABLE_SPLIT = "split_megnet"


def load_materials_project(
    property_name: str | None = None,
    *,
    path: str | os.PathLike | None = None,
    spec: BenchmarkSpec | None = None,
    **options: Any,
) -> CrystalDatasetDict:
    """Materials Project 2018.6.1 with the official split.

    Args:
        property_name: `e_form` (eV/atom) or `bandgap` (eV), which come together; `bulk_modulus` or `shear_modulus`
            (log10 GPa), which have files of their own, see `hf_crystal.data.megnet_elastic`.
        path: local copy of `megnet.json` of JARVIS (or its zip), or of MEGNet's `mp.2018.6.1.json`; the former is
            downloaded from figshare otherwise. The official split is defined on the order of the JARVIS file; with
            MEGNet's file the check of the ids decides whether the order is the same. Or a parquet table of a later
            release with `material_id`, the labels and `split_megnet` (or `split_file`): crystals are taken by id, and
            how many it lacks is told; with a `split_file` their ids are in `.skipped`. `sha256` and `official` have no
            place there.
        spec: another definition of the benchmark in place of the known one.
        **options: `sha256`, `official`, `split_file`, `cache_dir`: see `hf_crystal.data.benchmarks.load_benchmark`.

    Returns:
        `CrystalDatasetDict` with train, validation and test.

    Raises:
        ValueError: unknown property.
        BenchmarkError: the file is not the official release, and `official` was not set to False.
    """
    if spec is None and property_name in ELASTIC:
        return load_megnet_elastic(property_name, path=path, **options)
    chosen = spec or MEGNET
    if property_name is not None and property_name not in chosen.labels:
        known = ", ".join([*chosen.labels, *ELASTIC])
        raise ValueError(f"property_name is {property_name!r}; this benchmark has {known}")
    if path is not None and Path(path).suffix == ".parquet":
        return _from_table(chosen, Path(path), **options)
    if path is not None and os.path.isfile(path):
        first = next(iter_json(Path(path), None), {})
        if _MEGNET_KEYS["e_form"] in first:
            keys = {name: _MEGNET_KEYS.get(name, key) for name, key in chosen.labels.items()}
            chosen = replace(chosen, labels=keys, id_keys=("material_id", "id"))
    return load_benchmark(chosen, path=path, **options)


def _from_table(
    spec: BenchmarkSpec,
    path: Path,
    split_file: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> CrystalDatasetDict:
    """The crystals of a benchmark that a table has, by id; its geometries and ids are those of its release."""
    import numpy as np

    tables = load_crystal_dataset(path, cache_dir=cache_dir)
    rows = tables["train"]
    columns = {name: name if name in rows.column_names else _TABLE_COLUMNS[name] for name in spec.labels}
    needed = ["material_id", *columns.values(), *([] if split_file else [_TABLE_SPLIT])]
    if missing := [name for name in needed if name not in rows.column_names]:
        raise BenchmarkError(f"{path.name} has no column {', '.join(missing)}; it has {', '.join(rows.column_names)}")
    labels = np.array([rows[name] for name in columns.values()], dtype=np.float64)
    known = np.isfinite(labels.sum(axis=0))
    names = [name if has else None for name, has in zip(rows["material_id"], known, strict=True)]
    split_of = dict(zip(names, rows[_TABLE_SPLIT], strict=True)) if split_file is None else {}
    lacking: list[dict[str, Any]] = []
    if split_file is not None:
        have = set(names)
        for split, ids in listed_ids(Path(split_file)).items():
            split_of |= dict.fromkeys(ids, split)
            lacking += [
                {"index": None, "name": name, "reason": f"{split}: not in {path.name}"}
                for name in ids
                if name not in have
            ]
    split_of.pop(None, None)
    parts = np.array([split_of.get(name) or "" for name in names])
    columns_kept = [*CRYSTAL_COLUMNS, "num_atoms", "material_id", *columns.values()]
    chosen = rows.select_columns(columns_kept).rename_columns(
        {column: name for name, column in columns.items() if column != name}
    )
    words = {"train": ["train"], "validation": ["val", "validation"], "test": ["test"]}
    found = CrystalDatasetDict(
        {split: chosen.select(np.flatnonzero(np.isin(parts, names))) for split, names in words.items()}
    )
    shares = [f"{split} {len(found[split]):,} of {size:,}" for split, size in zip(found, spec.sizes, strict=True)]
    logger.warning(
        f"{path.name} has not all crystals of {spec.name} ({', '.join(shares)}), and its own geometries: errors are "
        "not those of the official split"
    )
    found._skipped_rows = [*tables.skipped, *lacking]
    found.num_skipped = len(found._skipped_rows)
    return found
