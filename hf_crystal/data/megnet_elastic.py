# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Bulk and shear moduli of the MEGNet set with the splits that Matformer published as files."""

import importlib
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .benchmarks import BenchmarkError
from .columns import crystal_features
from .conversion import convert_rows
from .downloads import Download, fetch
from .sources import STRUCTURE_COLUMN
from .tables import CrystalDatasetDict, build_tables, cache_root, fingerprint

__all__ = ["ELASTIC", "ElasticSpec", "load_megnet_elastic"]

_SPLITS = ("train", "validation", "test")
_CITATION = "Y. Yan et al., Matformer, NeurIPS 2022; C. Chen et al., Chem. Mater. 31, 3564 (2019); CC BY 4.0"

# The files are pickles. Only what plain dicts, lists, strings and numpy numbers need may be rebuilt from them;
# anything else could run code.
_SAFE_GLOBALS = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}


@dataclass(frozen=True)
class ElasticSpec:
    """One of the two data sets.

    Attributes:
        label: our column name.
        key: key of the label in the files.
        sources: files of train, validation and test.
        sizes: rows of train, validation and test.
        boundary_ids: first and last id of each.
    """

    label: str
    key: str
    sources: tuple[Download, Download, Download]
    sizes: tuple[int, int, int]
    boundary_ids: tuple[tuple[str, str], ...]


def _sources(kind: str, numbers: tuple[int, int, int]) -> tuple[Download, Download, Download]:
    train, validation, test = (
        Download(f"https://figshare.com/ndownloader/files/{number}", f"{kind}_megnet_{split}.pkl", None, _CITATION)
        for number, split in zip(numbers, ("train", "val", "test"), strict=True)
    )
    return train, validation, test


# file numbers: omron-sinicx/crystalframer, data/download_megnet_elastic.py; sizes and ids: data/check_datasets.py
_IDS = (("mp-10000", "mp-715469"), ("mp-10015", "mp-867194"), ("mp-1001019", "mp-704419"))
ELASTIC: dict[str, ElasticSpec] = {
    "bulk_modulus": ElasticSpec(
        "bulk_modulus", "bulk modulus", _sources("bulk", (40258705, 40258675, 40258666)), (4664, 393, 393), _IDS
    ),
    "shear_modulus": ElasticSpec(
        "shear_modulus", "shear modulus", _sources("shear", (40258681, 40258684, 40258678)), (4664, 392, 393), _IDS
    ),
}


class _PlainUnpickler(pickle.Unpickler):
    """Rebuilds plain data only."""

    def find_class(self, module: str, name: str) -> Any:
        """The class or function that the file names, where it is plain data; `UnpicklingError` for all others."""
        module = module.replace("numpy.core.", "numpy._core.")  # renamed in numpy 2
        if (module, name) not in _SAFE_GLOBALS:
            raise pickle.UnpicklingError(f"{module}.{name} is not plain data; the file is not read")
        return getattr(importlib.import_module(module), name)


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        with open(path, "rb") as stream:
            entries = _PlainUnpickler(stream).load()
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise BenchmarkError(f"{path.name} cannot be read as plain pickled data: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise BenchmarkError(f"{path.name} holds {type(entries).__name__}; a list of dicts is expected")
    return entries


def _rows(spec: ElasticSpec, files: list[Path], official: bool) -> Iterator[dict[str, Any]]:
    for split, file, size, boundary in zip(_SPLITS, files, spec.sizes, spec.boundary_ids, strict=True):
        entries = _entries(file)
        missing = {"id", "atoms", spec.key} - set(entries[0] if entries else {})
        if missing:
            raise BenchmarkError(f"{file.name}: entries lack {sorted(missing)}")
        ids = [str(entry["id"]) for entry in entries]
        if official and (len(ids) != size or (ids[0], ids[-1]) != boundary):
            raise BenchmarkError(
                f"{file.name} has {len(ids)} entries from {ids[0]} to {ids[-1]}; the official {split} split has "
                f"{size} from {boundary[0]} to {boundary[1]}. Use official=False for other files of this schema"
            )
        for name, entry in zip(ids, entries, strict=True):
            yield {"material_id": name, "split": split, spec.label: entry[spec.key], STRUCTURE_COLUMN: entry["atoms"]}


def load_megnet_elastic(
    property_name: str,
    *,
    path: str | os.PathLike | None = None,
    official: bool = True,
    cache_dir: str | os.PathLike | None = None,
) -> CrystalDatasetDict:
    """Bulk or shear moduli (log10 GPa) with the published splits.

    Args:
        property_name: `bulk_modulus` or `shear_modulus`.
        path: folder with `bulk_megnet_train.pkl` and so on; downloaded from figshare otherwise.
        official: check sizes and ids against the published ones.
        cache_dir: folder for downloads and tables.

    Returns:
        `CrystalDatasetDict` with train, validation and test.

    Raises:
        ValueError: unknown property.
        BenchmarkError: the files are not the published ones, or hold more than plain data.
        FileNotFoundError, ConnectionError: see `fetch`.
    """
    if property_name not in ELASTIC:
        raise ValueError(f"property_name is {property_name!r}; accepted are {', '.join(ELASTIC)}")
    spec = ELASTIC[property_name]
    files = [
        fetch(source, path=None if path is None else Path(path) / source.file_name, cache_dir=cache_dir)
        for source in spec.sources
    ]
    options = {"benchmark": spec.label, "official": official}
    folder = cache_root(cache_dir) / f"megnet-{spec.label}-{fingerprint(files, options)}"
    types = {"material_id": "string", spec.label: "float64"}
    rows = convert_rows(partial(_rows, spec, files, official), types, "split", {spec.label}, "skip")
    return build_tables(folder, rows, crystal_features(types))
