"""Write figures of a new evaluation into an embedded checkpoint's metrics.json; scripts/render_readme.py shows them.

    python scripts/update_metrics.py crystalformer-mp20 --data mp_20.parquet   # property model: its test split, again
    python scripts/update_metrics.py crystalformer-mp --run runs/further/run.json   # trained further from its weights
    hf-crystal evaluate generation --data mp_20.parquet --output-dir all --num-samples 0 --num-free 0
    hf-crystal evaluate generation --data mp_20.parquet --output-dir part --count 2000
    python scripts/update_metrics.py mat2seq-mp20 --evaluation all/evaluation.json --evaluation part/evaluation.json

Of a generator the sections that were evaluated are replaced, the others stay; where several evaluations have one,
the one with more crystals counts, figure by figure. Of a property model the figures of every target on the test split
of its recipe are replaced; baselines on the same rows stay. The record of a run that began with the weights of the
checkpoint replaces its record; steps, epochs and costs of both are added, and those of the parts are kept in `parts`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def crystals_of(section: Any) -> int:
    """Crystals to be found, or generated from nothing."""
    return section["match_1"]["num_items"] if "match_1" in section else section["validity"]["num_crystals"]


def merged_generation(metrics: dict[str, Any], evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    """Metrics with the sections of the evaluations."""
    found: dict[str, Any] = {}
    for evaluation in evaluations:
        for name, section in evaluation["generation"].items():
            if name in found and isinstance(section, dict):
                smaller, larger = sorted((section, found[name]), key=crystals_of)
                section = {**smaller, **larger}  # best of many samples may be of the smaller alone
            if name not in found or isinstance(section, dict):
                found[name] = section
    return {**metrics, "generation": {**metrics.get("generation", {}), **found}}


def evaluated_again(metrics: dict[str, Any], folder: Path, data: str, batch_size: int) -> dict[str, Any]:
    """Metrics with the test figures of the model as it is, on the rows and labels of its recipe."""
    from hf_crystal import load_crystal_dataset
    from hf_crystal.evaluation.property_report import evaluate_property_folder

    recipe = metrics["recipe"]["data"]
    rows = load_crystal_dataset(data, split_column=recipe["split_column"], disorder="mix")[recipe["test_split"]]
    test = evaluate_property_folder(folder, rows, batch_size=batch_size).to_dict()
    before = {target["name"]: target for target in metrics["test"]["targets"]}
    for target in test["targets"]:
        known = before.get(target["name"], {})
        if known.get("n") == target["n"]:
            target |= {key: value for key, value in known.items() if key not in target}
            print(f"{target['name']}: MAE {known['mae']:.6f} -> {target['mae']:.6f} {target['unit']}")
    return {**metrics, "test": test}


COSTS = ("steps", "epochs", "training_seconds", "cpu_seconds")


def trained_further(metrics: dict[str, Any], run: dict[str, Any], checkpoint: str) -> dict[str, Any]:
    """The record of a run that began with the weights of a checkpoint, with the cost of both."""
    if run["recipe"]["model"].get("pretrained") != checkpoint:
        raise ValueError(f"the run began with {run['recipe']['model'].get('pretrained')}, not with {checkpoint}")
    describing = (*COSTS, "git_commit", "weight_averaging")
    parts = metrics.get("parts") or [{name: metrics[name] for name in describing}]
    return {
        **run,
        **{name: metrics[name] + run[name] for name in COSTS},
        "parts": [*parts, {name: run[name] for name in describing}],
    }


def main(args: argparse.Namespace) -> int:
    """Evaluate or read, and write; returns the exit code."""
    from hf_crystal.checkpoints import checkpoint_folder

    folder = checkpoint_folder(args.checkpoint)
    file = folder / "metrics.json"
    metrics = json.loads(file.read_text(encoding="utf-8"))
    if args.evaluation:
        metrics = merged_generation(
            metrics, [json.loads(path.read_text(encoding="utf-8")) for path in args.evaluation]
        )
    if args.run:
        metrics = trained_further(metrics, json.loads(args.run.read_text(encoding="utf-8")), args.checkpoint)
    if args.data:
        metrics = evaluated_again(metrics, folder, args.data, args.batch_size)
    file.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(f"written: {file}; now run scripts/render_readme.py")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="embedded checkpoint")
    parser.add_argument("--data", help="table that the recipe of a property model names")
    parser.add_argument("--evaluation", type=Path, action="append", help="evaluation.json of a generator; repeatable")
    parser.add_argument("--run", type=Path, help="run.json of a property model trained further from the checkpoint")
    parser.add_argument("--batch-size", type=int, default=64, help="crystals per forward pass")
    sys.exit(main(parser.parse_args()))
