"""Evaluate a saved property model on labeled crystals and print the metrics as JSON.

    python scripts/evaluate_property.py runs/mp20 --data mp_20.parquet
    python scripts/evaluate_property.py runs/mp20/model --data mp_20.parquet --split test --column mb_e_form

Given the folder of a run, columns and split column come from its recipe.yaml; otherwise a label column is needed for
each target of the model whose name is no column.
"""

import argparse
import json
import sys
from pathlib import Path


def make_parser(parser: argparse.ArgumentParser | None = None) -> argparse.ArgumentParser:
    """Command-line options; fills a given (sub-)parser or a new one."""
    if parser is None:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder of a run, or of a saved model")
    parser.add_argument("--data", required=True, help="table of crystals with labels")
    parser.add_argument("--split", help="split to evaluate (default: the recipe's test split, or 'test')")
    parser.add_argument("--split-column", help="column with the split of each row")
    parser.add_argument("--column", action="append", help="label column of each target, in the model's order")
    parser.add_argument("--batch-size", type=int, default=64, help="crystals per forward pass")
    parser.add_argument("--output", help="write the JSON here instead of printing it")
    return parser


def main(args: argparse.Namespace) -> int:
    """Evaluate; returns the exit code."""
    from hf_crystal.data import load_crystal_dataset
    from hf_crystal.evaluation.property_report import evaluate_property_folder
    from hf_crystal.evaluation.run_files import MODEL_FOLDER, RECIPE_NAME
    from hf_crystal.training import load_recipe
    from hf_crystal.training.property_data import label_columns

    folder = Path(args.folder)
    columns, split, split_column = args.column, args.split or "test", args.split_column or "split"
    try:
        if (folder / RECIPE_NAME).is_file():
            data = load_recipe(folder / RECIPE_NAME).data
            columns = columns or label_columns(data)
            split = args.split or data.test_split
            split_column = args.split_column or data.split_column
            folder = folder / MODEL_FOLDER
        splits = load_crystal_dataset(args.data, split_column=split_column, disorder="mix")
        if split not in splits:
            raise ValueError(f"--split {split!r}: the data has {', '.join(splits)}")
        metrics = evaluate_property_folder(folder, splits[split], columns, batch_size=args.batch_size)
    except (ValueError, FileNotFoundError, OSError) as error:
        print(f"evaluate_property: {error}", file=sys.stderr)
        return 2
    text = json.dumps({"model": str(folder), "split": split, **metrics.to_dict()}, indent=2, allow_nan=False)
    if args.output:
        Path(args.output).write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(make_parser().parse_args()))
