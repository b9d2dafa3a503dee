"""What the formula alone tells: a forest on Magpie features, on the rows of a training recipe.

    python scripts/baseline_composition.py scripts/recipes/crystalformer-mp20.yaml --data mp_20.parquet \
        --output baseline_mp20.json

    # beside the figures of a model on the same test rows: run.json of a training, metrics.json of a checkpoint
    python scripts/baseline_composition.py scripts/recipes/crystalformer-mp20.yaml --data mp_20.parquet \
        --output baseline_mp20.json --add-to runs/mp20/run.json
    python scripts/baseline_composition.py --from baseline_mp20.json --add-to runs/mp20/run.json

A model that sees the structure has to beat this, not only the mean of the training labels. Training rows, labels and
test rows are those that the recipe gives its model; each target has a forest of its own, grown on the crystals whose
label is known. Settings are scikit-learn's defaults. Needs scikit-learn (extra `metrics`).
"""

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

DESCRIPTION = "forest (extremely randomized trees) on Magpie features, trained on the same rows"
# of a target's figures, those that go beside a model's, under other names
ADDED_FIGURES = {"mae": "composition_mae", "mae_interval": "composition_mae_interval"}


def forest_of_column(train: Any, test: Any, column: str, num_trees: int, seed: int) -> tuple[np.ndarray, float, int]:
    """Predictions of one target for the test rows, mean of the training labels, and their number."""
    from hf_crystal.data.columns import composition_numbers
    from hf_crystal.evaluation.composition_baseline import forest_predictions

    labels = np.asarray(train[column], dtype=np.float64)
    numbers = composition_numbers(train[:]), composition_numbers(test[:])
    predictions = forest_predictions(numbers[0], labels, numbers[1], num_trees=num_trees, seed=seed)
    known = ~np.isnan(labels)
    return predictions, float(labels[known].mean()), int(known.sum())


def measure(recipe: Any, num_trees: int) -> dict[str, Any]:
    """Errors of the baseline on the test rows of a recipe, and how they came about."""
    from hf_crystal.evaluation import regression_metrics
    from hf_crystal.training.property_data import load_property_data

    started = time.process_time()
    splits = load_property_data(recipe.data, recipe.training.seed)
    train, test = splits["train"], splits["test"]
    seed = recipe.training.seed
    columns = [forest_of_column(train, test, target.column, num_trees, seed) for target in recipe.data.targets]
    metrics = regression_metrics(
        np.stack([predictions for predictions, _, _ in columns], axis=1),
        np.stack([np.asarray(test[target.column], dtype=np.float64) for target in recipe.data.targets], axis=1),
        target_names=[target.name for target in recipe.data.targets],
        target_units=[target.unit for target in recipe.data.targets],
        baseline_mean=[mean for _, mean, _ in columns],
    )
    return {
        "model": DESCRIPTION,
        "num_trees": num_trees,
        "seed": seed,
        "data": {
            "path": Path(recipe.data.path).name if recipe.data.path else recipe.data.source,
            "columns": {target.name: target.column for target in recipe.data.targets},
            "train_rows": {
                target.name: count for target, (_, _, count) in zip(recipe.data.targets, columns, strict=True)
            },
        },
        "versions": {name: version(name) for name in ("scikit-learn", "numpy")},
        "cpu_seconds": round(time.process_time() - started, 1),
        **metrics.to_dict(),
    }


def add_figures(metrics: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    """An evaluation JSON with the baseline's figures beside those of each of its targets.

    Raises:
        ValueError: a target that the baseline lacks, or has for other rows.
    """
    from hf_crystal.cards import target_rows

    of_name = {target["name"]: target for target in baseline["targets"]}
    for row in target_rows(metrics):
        own = of_name.get(row["name"])
        if own is None:
            raise ValueError(f"target {row['name']!r}: the baseline has {', '.join(of_name)}")
        for key in ("unit", "n"):
            if own[key] != row[key]:
                raise ValueError(f"target {row['name']!r}: the baseline has {key} {own[key]}, the model {row[key]}")
        row |= {added: own[figure] for figure, added in ADDED_FIGURES.items()}
    metrics["composition_baseline"] = {key: value for key, value in baseline.items() if key != "targets"}
    return metrics


def make_parser() -> argparse.ArgumentParser:
    """Command-line options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("recipe", nargs="?", help="YAML recipe of a property model, see scripts/recipes/")
    source.add_argument("--from", dest="measured", help="use this earlier output in place of a new forest")
    parser.add_argument("--data", help="table of crystals")
    parser.add_argument("--num-trees", type=int, default=100, help="trees per target (default: 100)")
    parser.add_argument("--output", help="write the figures here instead of printing them")
    parser.add_argument("--add-to", help="evaluation JSON of a model that gets them beside its own")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return parser


def main(args: argparse.Namespace) -> int:
    """Measure or read, write; returns the exit code."""
    try:
        if args.measured:
            baseline = json.loads(Path(args.measured).read_text(encoding="utf-8"))
        else:
            from hf_crystal.training import load_recipe

            overrides = [*args.overrides, *([] if args.data is None else [f"data.path={args.data}"])]
            baseline = measure(load_recipe(args.recipe, overrides), args.num_trees)
        text = json.dumps(baseline, indent=2, allow_nan=False) + "\n"
        if args.output:
            Path(args.output).write_text(text, encoding="utf-8")
        elif not args.add_to:
            print(text, end="")
        if args.add_to:
            target = Path(args.add_to)
            metrics = add_figures(json.loads(target.read_text(encoding="utf-8")), baseline)
            target.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except (ValueError, ImportError, OSError) as error:
        print(f"baseline_composition: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(make_parser().parse_args()))
