# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Arrow tables on disk: written row by row, found again by fingerprint, with a list of what was left out."""

import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features
from datasets.arrow_writer import ArrowWriter
from transformers.utils import logging

__all__ = ["CrystalDatasetDict", "build_tables", "cache_root", "fingerprint"]

logger = logging.get_logger(__name__)

_SKIPPED_FILE = "skipped.jsonl"
_INFO_FILE = "tables.json"
# part of every fingerprint: raise when the meaning of the stored columns changes
_FORMAT_VERSION = 1
_ROWS_PER_WRITE = 1000
# "val" and "validation" name the same split
_SAME_SPLIT = {"val": "validation", "validation": "val"}


class CrystalDatasetDict(DatasetDict):
    """`DatasetDict` that also says which rows were left out while it was built, and why.

    `splits["val"]` and `splits["validation"]` are the same split, whichever name the source used.

    Attributes:
        skipped_path (`Path`, *optional*): JSON lines with `index`, `name` and `reason`.
        num_skipped (`int`): rows left out.
    """

    skipped_path: Path | None = None
    num_skipped: int = 0
    _skipped_rows: list[dict[str, Any]] | None = None

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """Rows left out: dicts with `index` (row of the source), `name` and `reason`."""
        if self._skipped_rows is not None:
            return self._skipped_rows
        if self.skipped_path is None:
            return []
        with open(self.skipped_path, encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (
            isinstance(name, str) and super().__contains__(_SAME_SPLIT.get(name, name))
        )

    def __missing__(self, name: str) -> Dataset:
        other = _SAME_SPLIT.get(name)
        if other is not None and super().__contains__(other):
            return super().__getitem__(other)
        raise KeyError(f"no split {name!r}; there are {', '.join(map(str, self))}")


def cache_root(cache_dir: str | os.PathLike | None = None) -> Path:
    """Folder for tables that were converted or downloaded; inside the cache of `datasets` unless told otherwise.

    Where that cannot be written (home of a batch node, full disk), a folder that lasts as long as this process.
    """
    if cache_dir is not None:
        return Path(cache_dir)
    import datasets

    root = Path(datasets.config.HF_DATASETS_CACHE) / "hf_crystal"
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()  # permissions alone say little: quotas, mounts
    except OSError as error:
        logger.warning_once(f"{error}: tables are kept until this process ends; set HF_HOME or HF_DATASETS_CACHE")
        return Path(_folder_of_this_process().name)
    return root


@functools.cache
def _folder_of_this_process() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="hf_crystal-")


def fingerprint(files: Iterable[Path], options: dict[str, Any]) -> str:
    """Name of a conversion: files with their sizes and times of change, options, and the version of the format."""
    digest = hashlib.sha256(json.dumps([_FORMAT_VERSION, options], sort_keys=True, default=str).encode())
    for path in files:
        status = path.stat()
        digest.update(os.fsencode(f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}\n"))
    return digest.hexdigest()[:24]


class _TableWriter:
    """One Arrow file per split, opened when its first row comes."""

    def __init__(self, folder: Path, features: Features):
        self.folder = folder
        self.features = features
        self.writers: dict[str, ArrowWriter] = {}

    def write(self, split: str, row: dict[str, Any]) -> None:
        """Append a row to the file of its split; `ValueError` where the name of the split cannot be a file name."""
        if split not in self.writers:
            if not split or "/" in split or "\\" in split or split.startswith("."):
                raise ValueError(f"split name {split!r} cannot be a file name; use a plain word")
            path = str(self.folder / f"{split}.arrow")
            self.writers[split] = ArrowWriter(
                features=self.features, path=path, writer_batch_size=_ROWS_PER_WRITE, fingerprint=split
            )
        self.writers[split].write({name: row.get(name) for name in self.features})

    def close(self) -> dict[str, int]:
        """Write the ends of all files; number of rows by split."""
        return {split: writer.finalize()[0] for split, writer in self.writers.items()}


def build_tables(
    folder: Path,
    rows: Iterator[tuple[str, dict[str, Any]] | dict[str, Any]],
    features: Features,
) -> CrystalDatasetDict:
    """Write rows to Arrow files in `folder`, or open them where an earlier run finished; never all rows in memory.

    Args:
        folder: place of the table; written under another name first, so a killed run leaves nothing half done.
        rows: `(split, row)` for each good row, and a dict `{"index", "name", "reason"}` for each row left out.
        features: schema of the rows.

    Returns:
        `CrystalDatasetDict` of memory-mapped tables.

    Raises:
        ValueError: no row was good; the first reasons are named.
    """
    if not (folder / _INFO_FILE).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        try:
            _write_tables(work, rows, features)
            _move_into_place(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    info = json.loads((folder / _INFO_FILE).read_text(encoding="utf-8"))
    tables = CrystalDatasetDict({split: Dataset.from_file(str(folder / f"{split}.arrow")) for split in info["splits"]})
    tables.skipped_path = folder / _SKIPPED_FILE
    tables.num_skipped = info["num_skipped"]
    if tables.num_skipped:
        logger.warning(f"{tables.num_skipped} rows were left out; reasons in {tables.skipped_path} (or .skipped)")
    return tables


def _move_into_place(work: Path, folder: Path) -> None:
    try:
        os.replace(work, folder)
    except OSError:
        # another process of the same run was faster: its table is the same
        if not (folder / _INFO_FILE).is_file():
            raise


def _write_tables(
    folder: Path, rows: Iterator[tuple[str, dict[str, Any]] | dict[str, Any]], features: Features
) -> None:
    writer = _TableWriter(folder, features)
    num_skipped = 0
    examples: list[str] = []
    with open(folder / _SKIPPED_FILE, "w", encoding="utf-8") as skipped:
        for item in rows:
            if isinstance(item, tuple):
                writer.write(*item)
                continue
            num_skipped += 1
            if len(examples) < 3:
                examples.append(f"{item.get('name') or item.get('index')}: {item.get('reason')}")
            skipped.write(json.dumps(item) + "\n")
    splits = writer.close()
    if not splits:
        raise ValueError(f"no readable crystal ({num_skipped} rows left out). First reasons: {'; '.join(examples)}")
    info = {"splits": splits, "num_skipped": num_skipped}
    (folder / _INFO_FILE).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
