"""Models of disordered crystals beside the formula alone and the best ordering: tables, errors, a Markdown table.

    python scripts/evaluate_disordered.py prepare disordered_superconductors_3dsc.parquet 3dsc.parquet
    python scripts/evaluate_disordered.py prepare --orderings disordered_li_conductors_obelix.parquet ordered.parquet

    # after trainings that differ in their seeds: scripts/train_property.py ... --output-dir runs/3dsc-123
    python scripts/evaluate_disordered.py measure --data 3dsc.parquet --output 3dsc.json runs/3dsc-*
    python scripts/evaluate_disordered.py table 3dsc.json obelix.json ordered.json

    python scripts/evaluate_disordered.py hull disordered_li_conductors_obelix.parquet --count 40

`prepare` keeps cells of up to 64 sites of tables that have `Tc_K` and adds `log_tc`, log(Tc / K + 1). With --orderings
each disordered crystal is replaced by its ordering of lowest electrostatic energy, in cells of up to 64 atoms unless
the disordered one is larger. `measure` predicts the test rows of each run, the first target, and grows two forests on
the formulas of the same training rows, on Magpie features and on element fractions. An error is the mean over the
runs, its 95 % interval a bootstrap over test crystals. `hull` predicts how far disordered crystals that have been made
lie above the hull, as mixtures and as the mean of four orderings: the truth is near 0.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

LARGEST_CELL = 64


def prepare(source: str, output: str, orderings: bool) -> None:
    """Write the table that a recipe reads."""
    import pandas

    table = pandas.read_parquet(source)
    if "Tc_K" in table:
        table = table[table["n_sites"] <= LARGEST_CELL].assign(log_tc=lambda rows: np.log1p(rows["Tc_K"]))
    if orderings:
        from hf_crystal.data import crystal_row
        from hf_crystal.disorder import orderings as ordered

        structures = ["lattice", "frac_coords", "species"]
        best = [
            crystal_row(ordered({name: row[name] for name in structures}, 1, max_atoms=LARGEST_CELL)[0])
            for row in table.to_dict("records")
        ]
        table = table.drop(columns=structures).reset_index(drop=True).join(pandas.DataFrame(best))
    table.to_parquet(output)


def fraction_forest(train: list[list[int]], labels: np.ndarray, test: list[list[int]], seed: int) -> np.ndarray:
    """Predictions of a random forest on the share of each element; of few and similar formulas the better forest."""
    from sklearn.ensemble import RandomForestRegressor

    shares = [np.stack([np.bincount(own, minlength=119) / len(own) for own in numbers]) for numbers in (train, test)]
    forest = RandomForestRegressor(n_estimators=200, n_jobs=1, random_state=seed).fit(shares[0], labels)
    return np.asarray(forest.predict(shares[1]))


def test_rows(folder: Path, data: str) -> tuple[np.ndarray, dict[str, np.ndarray], float]:
    """Labels of the test rows, predictions of the run and of the forests of its seed, mean training label."""
    from hf_crystal.data import CrystalCollator
    from hf_crystal.data.columns import composition_numbers
    from hf_crystal.evaluation.composition_baseline import forest_predictions
    from hf_crystal.evaluation.property_report import predict_rows
    from hf_crystal.loading import load_property_model
    from hf_crystal.training import load_recipe
    from hf_crystal.training.property_data import label_columns, load_property_data

    recipe = load_recipe(folder / "recipe.yaml", [f"data.path={data}"])
    columns, seed = label_columns(recipe.data), recipe.training.seed
    splits = load_property_data(recipe.data, seed)
    model, extractor = load_property_model(folder / "model")
    predicted, labels = predict_rows(model, splits["test"], CrystalCollator(extractor, label_names=columns))
    known = np.asarray(splits["train"][columns[0]], dtype=np.float64)
    train, test = (composition_numbers(splits[name][:]) for name in ("train", "test"))
    values = {
        "model": predicted[:, 0],
        "magpie": forest_predictions(train, known, test, seed=seed),
        "fractions": fraction_forest(train, known, test, seed),
    }
    return labels[:, 0], values, float(known.mean())


def measure(folders: list[Path], data: str) -> dict[str, Any]:
    """Errors of several runs on the same test rows, and of the baselines."""
    from sklearn.metrics import roc_auc_score

    from hf_crystal.evaluation.intervals import mean_interval

    started = time.process_time()
    records = [json.loads((folder / "run.json").read_text(encoding="utf-8")) for folder in folders]
    found = [test_rows(folder, data) for folder in folders]
    labels, _, mean = found[0]
    values = {name: np.stack([own[name] for _, own, _ in found]) for name in found[0][1]}
    errors = {name: np.abs(predicted - labels) for name, predicted in values.items()}
    best = min(("magpie", "fractions"), key=lambda name: float(errors[name].mean()))
    gain = (errors["model"] - errors[best]).mean(axis=0)
    measured: dict[str, Any] = {
        "target": records[0]["recipe"]["data"]["targets"][0],
        "rows": records[0]["rows"],
        "epochs": records[0]["epochs"],
        "seeds": [record["seed"] for record in records],
        "cpu_seconds": [record["cpu_seconds"] for record in records],
        "mean_predictor_mae": float(np.abs(labels - mean).mean()),
        "best_forest": best,
        "model_less_best": {"mae": float(gain.mean()), "interval": mean_interval(gain)},
    }
    for name, error in errors.items():
        spread = float(((labels - labels.mean()) ** 2).sum())
        measured[name] = {
            "mae": float(error.mean()),
            "interval": mean_interval(error.mean(axis=0)),
            "mae_of_seeds": error.mean(axis=1).tolist(),
            "mse": float((error**2).mean()),
            "r2": float(np.mean(1 - (error**2).sum(axis=1) / spread)),
        }
        if (labels == 0).any():  # whether there is superconductivity at all
            ranked = [float(roc_auc_score(labels > 0, predicted)) for predicted in values[name]]
            measured[name]["auc_above_zero"] = float(np.mean(ranked))
    return {**measured, "measuring_cpu_seconds": round(time.process_time() - started, 1)}


def hull(source: str, count: int) -> None:
    """Print quartiles of the predicted distances of random disordered crystals of fewer than 90 sites."""
    import pandas

    from hf_crystal.loading import load_property_pipeline
    from hf_crystal.stability import add_stability, energy_target, load_reference

    table = pandas.read_parquet(source)
    table = table[~table["ordered"] & (table["n_sites"] < 90)].sample(count, random_state=0)
    crystals = table[["lattice", "frac_coords", "species"]].to_dict("records")
    pipe, reference = load_property_pipeline(), load_reference()
    target = energy_target(pipe.model.config)
    for way in ("mix", "orderings"):
        results = [add_stability(found, target, reference) for found in pipe(crystals, disorder=way)]
        distances = [found["e_above_hull"] for found in results if found.get("e_above_hull") is not None]
        low, median, high = np.quantile(distances, [0.25, 0.5, 0.75])
        print(f"{way}: {median:.2f} eV/atom above the hull ({low:.2f} to {high:.2f} for half of {len(distances)})")


def markdown(files: list[Path]) -> str:
    """One row for each file."""
    heads = (
        "| run | n | model | Magpie forest | element forest | model − better forest | training mean | CPU min a run |"
    )
    lines = [heads, "|" + "---|" * 8]
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        cells = [
            "{:.2f} ({:.2f} to {:.2f})".format(found[name]["mae"], *found[name]["interval"])
            for name in ("model", "magpie", "fractions", "model_less_best")
        ]
        minutes = np.mean(found["cpu_seconds"]) / 60
        numbers = [str(found["rows"]["test"]), *cells, f"{found['mean_predictor_mae']:.2f}", f"{minutes:.1f}"]
        lines.append(
            f"| {file.stem}, {len(found['seeds'])} seed{'s' * (len(found['seeds']) > 1)} | {' | '.join(numbers)} |"
        )
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """Command-line options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("prepare", help="write the table that a recipe reads")
    one.add_argument("source", help="table with lattice, frac_coords and species")
    one.add_argument("output", help="parquet file to write")
    one.add_argument("--orderings", action="store_true", help="replace disordered crystals by their best ordering")
    two = commands.add_parser("measure", help="errors of runs that differ in their seeds, and of the baselines")
    two.add_argument("runs", nargs="+", type=Path, help="folders of runs of one recipe")
    two.add_argument("--data", required=True, help="table that they were trained on")
    two.add_argument("--output", required=True, type=Path, help="JSON file to write")
    three = commands.add_parser("table", help="print a Markdown table")
    three.add_argument("files", nargs="+", type=Path, help="what `measure` wrote")
    four = commands.add_parser("hull", help="predicted distances of crystals that have been made")
    four.add_argument("source", help="table with lattice, frac_coords, species, ordered and n_sites")
    four.add_argument("--count", type=int, default=40, help="random crystals")
    return parser


def main(args: argparse.Namespace) -> int:
    """Run one command; returns the exit code."""
    try:
        if args.command == "prepare":
            prepare(args.source, args.output, args.orderings)
        elif args.command == "measure":
            text = json.dumps(measure(args.runs, args.data), indent=2, allow_nan=False)
            args.output.write_text(text + "\n", encoding="utf-8")
        elif args.command == "hull":
            hull(args.source, args.count)
        else:
            print(markdown(args.files))
    except (ValueError, ImportError, OSError) as error:
        print(f"evaluate_disordered: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(make_parser().parse_args()))
