# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Folders of structure files with a table of labels, one row at a time."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_crystal.crystals.formats import plain_name
from hf_crystal.crystals.reading import crystals_in

from .columns import KEY_COLUMNS
from .sources import STRUCTURE_COLUMN, STRUCTURE_SUFFIXES, open_text, structure_files

__all__ = ["find_label_table", "iter_folder"]


def _label_table(path: Path) -> dict[str, dict[str, Any]]:
    """Rows of a label CSV by file name; without a header it is read as `id, label` (CGCNN's id_prop.csv)."""
    with open_text(path) as stream:
        lines = list(csv.reader(stream))
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"{path.name} is empty; a header with one of {', '.join(KEY_COLUMNS)} is expected")
    header = [word.strip() for word in lines[0]]
    key = next((name for name in KEY_COLUMNS if name in header), None)
    if key is not None:
        rows = [dict(zip(header, line, strict=False)) for line in lines[1:]]
    elif len(header) == 2:
        key, rows = "id", [dict(zip(("id", "label"), line, strict=False)) for line in lines]
    else:
        raise ValueError(f"{path.name} has columns {header}; one of {', '.join(KEY_COLUMNS)} must name the file")
    return {row[key].strip(): {k: v for k, v in row.items() if k != key} for row in rows if row.get(key)}


def find_label_table(folder: Path) -> Path | None:
    """The CSV beside the structure files, where there is exactly one."""
    tables = sorted(folder.glob("*.csv"))
    if len(tables) > 1:
        raise ValueError(f"{folder} has {len(tables)} CSV files {[t.name for t in tables]}; pass labels=<file>")
    return tables[0] if tables else None


def iter_folder(folder: Path, labels: Path | None) -> Iterator[dict[str, Any]]:
    """Rows of a folder of structure files, with labels from a CSV and a split from the first-level folder.

    Args:
        folder: sub-folders named train, val, validation, valid or test become the column `split`.
        labels: CSV whose column file, id, … matches the file name with or without suffix.

    Yields:
        dicts with `id`, `file`, labels and the crystal's path; rows of the CSV without a file come as paths that do
        not exist, so that they are reported.
    """
    table = _label_table(labels) if labels is not None else {}
    unused = set(table)
    for path in structure_files(folder):
        relative = path.relative_to(folder)
        stem = path.name[: len(plain_name(path.name))]
        stem = stem if Path(stem).suffix.lower() not in STRUCTURE_SUFFIXES else Path(stem).stem
        keys = (str(relative), path.name, stem)
        key = next((key for key in keys if key in table), None)
        unused.discard(key or "")
        row: dict[str, Any] = {"id": stem, "file": str(relative)}
        if relative.parts[0] in ("train", "val", "validation", "valid", "test"):
            row["split"] = relative.parts[0]
        row.update(table.get(key, {}) if key else {})
        # the label of a file is that of one crystal: of several its reader takes the first and announces it
        for part, crystal in crystals_in(path) if key is None else [("", path)]:
            own = {"id": f"{stem}:{part}", "file": f"{relative}:{part}"} if part else {}
            yield {**row, **own, STRUCTURE_COLUMN: crystal}
    for key in sorted(unused):
        yield {"id": key, "file": key, **table[key], STRUCTURE_COLUMN: folder / key}
