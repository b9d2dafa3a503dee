# /// script
# requires-python = ">=3.11"
# dependencies = ["hf_crystal"]
# ///
"""Convert crystals of any accepted form to a parquet or Arrow folder that loads at once, anywhere.

A folder of CIF files with labels in a CSV beside them (columns id, ..., split):
    python scripts/prepare_dataset.py my_cifs/ prepared/ --split-column split

A table with a column of CIF text, as one Arrow folder for load_from_disk:
    python scripts/prepare_dataset.py table.csv prepared/ --structure-column cif --format arrow

A benchmark with its official splits (downloaded, or from a local copy with --path):
    python scripts/prepare_dataset.py jarvis prepared/ --property formation_energy

Beside the tables it writes `skipped.jsonl` (rows left out, with reasons) and `prepare.json` (what was done).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from hf_crystal.data import OFFICIAL_SOURCES


def make_parser() -> argparse.ArgumentParser:
    """Arguments of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help=f"table, folder, Hub dataset, or one of {', '.join(OFFICIAL_SOURCES)}")
    parser.add_argument("output", type=Path, help="folder to write; must not hold anything yet")
    parser.add_argument("--format", choices=("parquet", "arrow"), default="parquet", help="default: parquet")
    parser.add_argument("--split-column", help="column with the split of each row")
    parser.add_argument("--structure-column", help="column with the crystal")
    parser.add_argument("--label", action="append", dest="labels", help="column that must be numeric; repeat for more")
    parser.add_argument("--label-table", help="CSV of labels for a folder of structure files")
    parser.add_argument("--property", help="property that chooses the official split of a benchmark")
    parser.add_argument("--path", help="local copy of a benchmark's source file")
    parser.add_argument("--cache-dir", help="folder for downloads and converted tables")
    return parser


def load(args: argparse.Namespace) -> Any:
    """The splits that the arguments ask for."""
    import hf_crystal.data as data

    if args.source in OFFICIAL_SOURCES:
        loader = getattr(data, f"load_{args.source}")
        return loader(args.property, path=args.path, cache_dir=args.cache_dir)
    return data.load_crystal_dataset(
        args.source,
        split_column=args.split_column,
        structure_column=args.structure_column,
        label_names=args.labels,
        labels=args.label_table,
        cache_dir=args.cache_dir,
    )


def main(args: argparse.Namespace) -> int:
    """Convert; returns the exit code."""
    if args.output.exists() and any(args.output.iterdir()):
        print(f"prepare_dataset: {args.output} is not empty", file=sys.stderr)
        return 2
    try:
        splits = load(args)
    except (ValueError, OSError) as error:
        print(f"prepare_dataset: {error}", file=sys.stderr)
        return 2
    args.output.mkdir(parents=True, exist_ok=True)
    if args.format == "arrow":
        splits.save_to_disk(str(args.output))
    else:
        for name, rows in splits.items():
            rows.to_parquet(str(args.output / f"{name}.parquet"))
    with open(args.output / "skipped.jsonl", "w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(item) + "\n" for item in splits.skipped)
    summary = {
        "source": args.source,
        "splits": {str(name): len(rows) for name, rows in splits.items()},
        "num_skipped": splits.num_skipped,
    }
    (args.output / "prepare.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main(make_parser().parse_args()))
