"""Crystals per second and core of encoding (`canonicalize`) and of decoding sequences, data set by data set.

    OMP_NUM_THREADS=1 python scripts/bench_canonical.py --data-dir ../shared

CPU time of this process, median of the repeats; tables of the space groups are warm, nothing else is kept from one
repeat to the next. Encoding begins with a record of arrays and includes the checks of the input; the bound is one
symmetry search per crystal by moyopy (Rust) on the same cells, without anything else. The plain path, the reference
that must give the same canonical crystals, is timed on fewer crystals in the same run and compared. Decoding begins
with tokens and ends with the checked arrays of the primitive cell. The last line is JSON.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from benchmarking import Report, measure
from report_canonical import SETS, read_records

from hf_crystal.mat2seq.canonical_crystal import coordinate_strides, rounding_displacements
from hf_crystal.mat2seq.canonical_start import canonical_start, primitive_cell
from hf_crystal.mat2seq.canonicalize import (
    CanonicalCrystal,
    CanonicalSettings,
    canonicalize,
    canonicalize_plainly,
)
from hf_crystal.mat2seq.sequence_text import SequenceLayout, parse_tokens, write_tokens


def symmetry_searches(records: list[dict], settings: CanonicalSettings) -> Callable[[], object]:
    """One call of moyopy per crystal, input made beforehand."""
    import moyopy

    cells = []
    for record in records:
        cell, frac, numbers = record["cell"], record["frac_coords"], record["atomic_numbers"]
        if np.linalg.det(cell) < 0:
            cell, frac = cell[[1, 0, 2]], frac[:, [1, 0, 2]]
        metric, frac, numbers = canonical_start(*primitive_cell(cell, frac, numbers), settings)
        cells.append(moyopy.Cell(np.linalg.cholesky(metric).tolist(), frac.tolist(), numbers.tolist()))
    setting = moyopy.Setting.standard()
    return lambda: [moyopy.MoyoDataset(cell, symprec=settings.symprec, setting=setting) for cell in cells]


def encode(records: list[dict], settings: CanonicalSettings) -> list[CanonicalCrystal]:
    """Canonical crystals, with nothing kept from an earlier pass over the same cells."""
    coordinate_strides.cache_clear()
    rounding_displacements.cache_clear()
    return [canonicalize(record, settings=settings) for record in records]


def bench_set(name: str, records: list[dict], plain_count: int, repeats: int, report: Report) -> None:
    """Figures of one data set.

    Raises:
        RuntimeError: if the plain path gives another canonical crystal.
    """
    settings = CanonicalSettings()
    layout = SequenceLayout(settings)
    crystals = [canonicalize(record, settings=settings) for record in records]
    tokens = [write_tokens(crystal) for crystal in crystals]
    few = [(r["cell"], r["frac_coords"], r["atomic_numbers"]) for r in records[:plain_count]]
    if [canonicalize_plainly(*record, settings) for record in few] != crystals[:plain_count]:
        raise RuntimeError(f"{name}: the plain path gives other canonical crystals")
    moyopy_rate = len(records) / measure(symmetry_searches(records, settings), repeats).median
    report.add_rate(
        f"encoding, {name}",
        len(records),
        measure(lambda: encode(records, settings), repeats),
        "crystals/s",
        bound=moyopy_rate,
        bound_name="one moyopy search each",
    )
    report.add_rate(
        f"encoding on the plain path, {name}",
        len(few),
        measure(lambda: [canonicalize_plainly(*record, settings) for record in few], repeats),
        "crystals/s",
    )
    report.add_rate(
        f"decoding, {name}",
        len(records),
        measure(lambda: [parse_tokens(sequence, layout).to_record() for sequence in tokens], repeats),
        "crystals/s",
        bound=5000.0,
        bound_name="wanted",
    )


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-dir", "--data", type=Path, required=True, help="folder with data/*.parquet or *.parquet"
    )
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--count", type=int, default=300, help="crystals per data set")
    parser.add_argument("--plain-count", type=int, default=60, help="crystals per data set on the plain path")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    folder = args.data_dir / "data" if (args.data_dir / "data").is_dir() else args.data_dir
    report = Report("canonical", {"crystals": args.count, "repeats": args.repeats})
    for name in args.sets:
        bench_set(name, read_records(folder, name, SETS[name], args.count), args.plain_count, args.repeats, report)
    report.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
