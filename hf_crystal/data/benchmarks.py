# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Official splits of property benchmarks, rebuilt by their published rule and checked against published facts.

The rule is ALIGNN's (`alignn/data.py: get_id_train_val_test`), which Matformer, PotNet, Crystalformer and
CrystalFramer all follow: keep the entries whose label is a finite number, in the order of the file; shuffle their
indices with Python's `random.seed(123)`; take train from the front and test from the back, validation before test.
The counts and the first and last id of each split that CrystalFramer publishes (`data/check_datasets.py`, MIT) are
checked after the rule was applied, so a different release or order of the file cannot pass unnoticed.
"""

import json
import math
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .columns import crystal_features
from .conversion import convert_rows
from .downloads import Download, fetch
from .sources import STRUCTURE_COLUMN, iter_json
from .tables import CrystalDatasetDict, build_tables, cache_root, fingerprint

__all__ = ["BenchmarkError", "BenchmarkSpec", "load_benchmark", "official_split", "spec_of_property"]

_SPLITS = ("train", "validation", "test")
_SPLIT_SEED = 123


class BenchmarkError(ValueError):
    """The data at hand is not the benchmark's: sizes or ids differ from the published ones."""


@dataclass(frozen=True)
class BenchmarkSpec:
    """One benchmark: where its data is, which labels it has, what its official split looks like.

    Attributes:
        name: for messages and the cache.
        source: the file.
        labels: our column name → key in the file. An entry belongs to the benchmark if all are finite numbers.
        sizes: rows of train, validation and test.
        boundary_ids: first and last id of train, validation and test in the shuffled order; empty if not published.
        id_keys: keys in the file that may hold the id.
        explicit_sizes: whether the rule takes the sizes as given (MEGNet) instead of 80/10/10 %.
    """

    name: str
    source: Download
    labels: Mapping[str, str]
    sizes: tuple[int, int, int]
    boundary_ids: tuple[tuple[str, str], ...] = ()
    id_keys: tuple[str, ...] = field(default=("jid", "material_id", "id"))
    explicit_sizes: bool = False


def spec_of_property(name: str, specs: Mapping[str, BenchmarkSpec], data_set: str) -> BenchmarkSpec:
    """The benchmark of a property.

    Raises:
        ValueError: the data set has no such property.
    """
    if name not in specs:
        raise ValueError(f"property_name is {name!r}; {data_set} has official splits for {', '.join(specs)}")
    return specs[name]


def official_split(
    num_rows: int, sizes: tuple[int, int, int] | None = None, seed: int = _SPLIT_SEED
) -> tuple[list[int], list[int], list[int]]:
    """Indices of train, validation and test by ALIGNN's rule.

    Args:
        num_rows: entries with a label, in the order of the file.
        sizes: rows of each split; None for 80, 10 and 10 % rounded down.
        seed: seed of Python's `random.shuffle`.

    Returns:
        Three lists of indices in shuffled order. With percentages up to two rows are in no split.

    Raises:
        ValueError: fewer rows than the sizes need, or a split would be empty.
    """
    if sizes is None:
        # 1 - 0.1 - 0.1, not 0.8: the rule's own rounding
        sizes = (int((1 - 0.1 - 0.1) * num_rows), int(0.1 * num_rows), int(0.1 * num_rows))
    num_train, num_validation, num_test = sizes
    if min(sizes) < 1 or sum(sizes) > num_rows:
        raise ValueError(f"{num_rows} rows cannot be split into {num_train}, {num_validation} and {num_test}")
    order = list(range(num_rows))
    random.Random(seed).shuffle(order)
    return order[:num_train], order[-(num_validation + num_test) : -num_test], order[-num_test:]


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _labeled_entries(path: Path, spec: BenchmarkSpec) -> tuple[list[int], list[str]]:
    """Places in the file and ids of the entries that have every label; the crystals are not read."""
    places: list[int] = []
    ids: list[str] = []
    for place, entry in enumerate(iter_json(path, None)):
        missing = [key for key in spec.labels.values() if key not in entry]
        if missing:
            known = sorted(key for key in entry if key != STRUCTURE_COLUMN)
            raise BenchmarkError(f"{path.name}: entry {place} has no {missing[0]!r}; it has {', '.join(known)}")
        if all(_is_finite_number(entry[key]) for key in spec.labels.values()):
            places.append(place)
            ids.append(_id_of(entry, spec, place))
    return places, ids


def _id_of(entry: Mapping[str, Any], spec: BenchmarkSpec, place: int) -> str:
    return next((str(entry[key]) for key in spec.id_keys if entry.get(key) is not None), str(place))


def _check_official(spec: BenchmarkSpec, parts: tuple[list[int], ...], ids: list[str], path: Path) -> None:
    sizes = tuple(len(part) for part in parts)
    advice = "Use the release named in the benchmark, or official=False for a split of your own by the same rule"
    if sizes != spec.sizes:
        raise BenchmarkError(
            f"{path.name} gives splits of {sizes} rows, the official ones of {spec.name} have {spec.sizes}. {advice}"
        )
    for split, part, expected in zip(_SPLITS, parts, spec.boundary_ids, strict=False):
        found = (ids[part[0]], ids[part[-1]])
        if found != expected:
            raise BenchmarkError(
                f"{path.name}: {split} of {spec.name} starts and ends with {found}, officially with {expected}: the "
                f"order of the file differs. {advice}"
            )


def listed_ids(split_file: Path) -> dict[str, list[str]]:
    """Ids of train, validation and test: JSON with train, val and test as lists of ids or objects keyed by id.

    Raises:
        BenchmarkError: the file cannot be read, or a split is missing.
    """
    try:
        listed = json.loads(split_file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise BenchmarkError(f"split_file {split_file} cannot be read: {error}") from error
    found = {}
    for split, keys in zip(
        _SPLITS, (("train", "id_train"), ("val", "validation", "id_val"), ("test", "id_test")), strict=True
    ):
        key = next((key for key in keys if key in listed), None)
        if key is None:
            raise BenchmarkError(f"split_file {split_file.name} has {sorted(listed)}; {keys[0]} is missing")
        found[split] = list(map(str, listed[key]))
    return found


def _parts_from_file(split_file: Path, ids: list[str]) -> tuple[list[int], ...]:
    """Places of the ids of each split."""
    index = {name: place for place, name in enumerate(ids)}
    parts = []
    for split, names in listed_ids(split_file).items():
        unknown = [name for name in names if name not in index]
        if unknown:
            raise BenchmarkError(
                f"split_file {split_file.name}: {len(unknown)} ids of {split} have no labeled entry in the data, "
                f"first {unknown[0]!r}"
            )
        parts.append([index[name] for name in names])
    return tuple(parts)


def load_benchmark(
    spec: BenchmarkSpec,
    *,
    path: str | os.PathLike | None = None,
    sha256: str | None = None,
    official: bool = True,
    split_file: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> CrystalDatasetDict:
    """Tables of a benchmark with its official splits.

    The file is read entry by entry, twice at the first call (ids, then crystals) and not at all later.

    Args:
        spec: the benchmark.
        path: local copy of the source file (JSON, or a zip or gz of it); downloaded otherwise.
        sha256: digest to check instead of the one known.
        official: check sizes and ids against the published ones; False splits any file of the same schema by the
            same rule, 80/10/10 %.
        split_file: JSON with ids of train, val and test instead of the rule (JARVIS-Leaderboard files, or ALIGNN's
            `ids_train_val_test.json`).
        cache_dir: folder for the download and the tables.

    Returns:
        `CrystalDatasetDict` with train, validation and test; rows in the order of the file, with `material_id` and
        the labels as columns. Crystals that cannot be used are in `.skipped`.

    Raises:
        BenchmarkError: sizes, ids or columns are not the benchmark's.
        FileNotFoundError, ConnectionError, ValueError: see `fetch`.
    """
    file = fetch(spec.source, path=path, sha256=sha256, cache_dir=cache_dir)
    split_path = None if split_file is None else Path(split_file)
    options = {"benchmark": spec.name, "labels": dict(spec.labels), "sizes": spec.sizes, "official": official}
    watched = [file] if split_path is None else [file, split_path]
    folder = cache_root(cache_dir) / f"{spec.name}-{fingerprint(watched, options)}"
    split_of: dict[int, str] = {}
    if not (folder / "tables.json").is_file():
        places, ids = _labeled_entries(file, spec)
        if split_path is not None:
            parts = _parts_from_file(split_path, ids)
        else:
            sizes = spec.sizes if official and spec.explicit_sizes else None
            try:
                parts = official_split(len(ids), sizes)
            except ValueError as error:
                raise BenchmarkError(f"{file.name} has {len(ids)} labeled entries: {error}") from error
            if official:
                _check_official(spec, parts, ids, file)
        split_of = {places[row]: split for split, part in zip(_SPLITS, parts, strict=True) for row in part}
    types = {"material_id": "string", "split": "string", **dict.fromkeys(spec.labels, "float64")}
    rows = convert_rows(lambda: _entries(file, spec, split_of), types, "split", set(spec.labels), "skip")
    features = crystal_features({name: kind for name, kind in types.items() if name != "split"})
    return build_tables(folder, rows, features)


def _entries(file: Path, spec: BenchmarkSpec, split_of: Mapping[int, str]) -> Iterator[dict[str, Any]]:
    """Entries that belong to a split."""
    for place, entry in enumerate(iter_json(file, None)):
        if place in split_of:
            labels = {name: entry[key] for name, key in spec.labels.items()}
            yield {
                "material_id": _id_of(entry, spec, place),
                "split": split_of[place],
                **labels,
                STRUCTURE_COLUMN: entry[STRUCTURE_COLUMN],
            }
