r"""What starting from a pretrained encoder buys: one recipe, from it and from scratch, several seeds, equal budget.

    OMP_NUM_THREADS=1 python scripts/compare_pretraining.py scripts/recipes/crystalformer-elastic.yaml \
        --data mp_20.parquet --output-dir runs/elastic

The twin from scratch has the recipe without `model.pretrained`: same rows, steps, batches and rates. Each run lies
in OUTPUT_DIR/pretrained-SEED or OUTPUT_DIR/scratch-SEED; the same command goes on where it was stopped and repeats no
finished run. OUTPUT_DIR/comparison.json has, per target, the test MAE of every run and the difference of the two ways
with its 95 % interval: bootstrap over test crystals of the difference in absolute error, averaged over seeds, which
keeps the pairing of crystals. The record of the first pretrained run gets the comparison too, for its card.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

PROTOCOL = "mean absolute error over test crystals, averaged over seeds; percentile bootstrap over paired crystals"
WAYS = ("pretrained", "scratch")


def train(recipe: str, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """One run in a process of its own, unless it is finished; returns its record.

    Raises:
        ValueError: the folder holds a run of another recipe.
    """
    from hf_crystal.training import load_recipe

    record = folder / "run.json"
    if not record.is_file():
        script = Path(__file__).with_name("train_property.py")
        command = [sys.executable, str(script), recipe, "--output-dir", str(folder)]
        command += [word for override in overrides for word in ("--set", override)]
        if (folder / "checkpoints").is_dir():
            command.append("--resume")
        subprocess.run(command, check=True)
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    if found["recipe"]["training"] != load_recipe(recipe, overrides).to_dict()["training"]:
        raise ValueError(f"{folder} holds a run with another `training` section; choose another --output-dir")
    return found


def absolute_errors(folder: Path, rows: Any, columns: list[str]) -> np.ndarray:
    """Absolute errors of a run's model, `(rows, targets)`, NaN where a label is unknown."""
    from hf_crystal.data import CrystalCollator
    from hf_crystal.evaluation.property_report import predict_rows
    from hf_crystal.loading import load_property_model

    model, feature_extractor = load_property_model(folder / "model")
    collator = CrystalCollator(feature_extractor, label_names=columns)
    predictions, labels = predict_rows(model, rows, collator, batch_size=128)
    return np.abs(predictions - labels)


def compare_target(target: Any, errors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Both ways on one target.

    Args:
        target: Its name and unit.
        errors: Absolute errors of each way, `(seeds, rows)`.
    """
    from hf_crystal.evaluation.intervals import mean_interval

    known = ~np.isnan(errors["scratch"][0])
    of_crystal = {way: values[:, known].mean(axis=0) for way, values in errors.items()}
    difference = of_crystal["pretrained"] - of_crystal["scratch"]
    entry: dict[str, Any] = {"name": target.name, "unit": target.unit, "n": int(known.sum())}
    for way in WAYS:
        entry[f"{way}_mae"] = float(of_crystal[way].mean())
        entry[f"{way}_mae_of_seeds"] = errors[way][:, known].mean(axis=1).tolist()
    return entry | {
        "difference": float(difference.mean()),
        "difference_interval": mean_interval(difference.tolist()),
        "relative_difference": float(difference.mean() / of_crystal["scratch"].mean()),
    }


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing and compare."""
    from hf_crystal.training import load_recipe
    from hf_crystal.training.property_data import label_columns, load_property_data

    overrides = [*args.overrides, *([] if args.data is None else [f"data.path={args.data}"])]
    recipe = load_recipe(args.recipe, overrides)
    if not recipe.model.get("pretrained"):
        raise ValueError(f"{args.recipe}: model.pretrained is not set, there is nothing to compare with")
    folder = Path(args.output_dir)
    changes = {"pretrained": [], "scratch": ["model.pretrained=null"]}
    records: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for seed in args.seeds:
        for way in WAYS:
            settings = [*overrides, *changes[way], f"training.seed={seed}"]
            records[way].append(train(args.recipe, folder / f"{way}-{seed}", settings))
    rows, columns = load_property_data(recipe.data, recipe.training.seed)["test"], label_columns(recipe.data)
    errors = {
        way: np.stack([absolute_errors(folder / f"{way}-{seed}", rows, columns) for seed in args.seeds])
        for way in WAYS
    }
    return {
        "protocol": PROTOCOL,
        "pretrained": Path(recipe.model["pretrained"]).name,
        "seeds": args.seeds,
        "steps": sorted({record["steps"] for records_of in records.values() for record in records_of}),
        "cpu_seconds": {way: [record["cpu_seconds"] for record in records[way]] for way in WAYS},
        "targets": [
            compare_target(target, {way: values[:, :, index] for way, values in errors.items()})
            for index, target in enumerate(recipe.data.targets)
        ],
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write with a final newline."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def make_parser() -> argparse.ArgumentParser:
    """Command-line options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="YAML recipe of a property model with model.pretrained")
    parser.add_argument("--output-dir", required=True, help="folder of the runs and of comparison.json")
    parser.add_argument("--data", help="table of crystals")
    parser.add_argument("--seeds", type=int, nargs="+", default=[123, 124, 125], help="(default: 123 124 125)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return parser


def main(args: argparse.Namespace) -> int:
    """Train, compare, write, print; returns the exit code."""
    try:
        comparison = compare(args)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"compare_pretraining: {error}", file=sys.stderr)
        return 2
    folder = Path(args.output_dir)
    write_json(folder / "comparison.json", comparison)
    record = folder / f"pretrained-{args.seeds[0]}" / "run.json"
    write_json(record, json.loads(record.read_text(encoding="utf-8")) | {"pretraining": comparison})
    for target in comparison["targets"]:
        low, high = target["difference_interval"]
        print(
            f"{target['name']}: test MAE {target['pretrained_mae']:.4f} {target['unit']} from "
            f"{comparison['pretrained']}, {target['scratch_mae']:.4f} from scratch; difference "
            f"{target['difference']:+.4f} (95 % {low:+.4f} to {high:+.4f}, n = {target['n']:,})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(make_parser().parse_args()))
