"""Train on forces, compare with a potential of shipped weights, relax rattled crystals.

    python scripts/train_forces.py train scripts/recipes_forces/crystalformer-forces.yaml --data dft_forces.parquet \
        --output-dir runs/forces
    python scripts/train_forces.py train scripts/recipes_forces/crystalframer-vectors.yaml --data dft_forces.parquet \
        --output-dir runs/vectors
    pip install --no-deps --target chgnet_site chgnet==0.4.2 nvidia-ml-py3     # leaves the installed stack as it is
    PYTHONPATH=chgnet_site python scripts/train_forces.py evaluate --data dft_forces.parquet --output forces.json \
        runs/forces/model runs/vectors/model chgnet
    python scripts/train_forces.py relax runs/forces/model --data dft_forces.parquet --output relaxed.json

`evaluate` predicts the test rows: mean absolute errors of components of forces (eV/Å), beside those of a prediction of
no force, of energies (eV/atom) and of mean stresses (GPa), with 95 % intervals from a bootstrap over crystals. The
energies of CHGNet 0.3.0 get energies of elements fitted on training rows, as ours have. `relax` takes test crystals
whose DFT forces are at most `--max-force`, moves each atom by normal noise, relaxes it in its cell by BFGS and says
how far from where it was the atoms end, without the drift of all of them; with --textbook those of
`textbook_properties.yaml` that have 2 to --max-atoms atoms.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

GPA = 160.21766  # of eV/Å³
BACK = 0.1  # Å: so near to where it was a crystal is back


def load_model(folder: str) -> Any:
    """Potential or model of vectors of a folder."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

    import hf_crystal  # noqa: F401  (registers)

    is_potential = AutoConfig.from_pretrained(folder).model_type == "crystal_potential"
    auto_class = AutoModelForSequenceClassification if is_potential else AutoModelForTokenClassification
    return auto_class.from_pretrained(folder).eval()


def chgnet_predictions(rows: Any, train: Any, num_references: int) -> list[dict[str, np.ndarray]]:
    """Energies, forces and stresses of CHGNet 0.3.0, in our units; energies with fitted energies of elements."""
    from chgnet.model import CHGNet
    from pymatgen.core import Structure

    from hf_crystal.crystals.elements import CHEMICAL_SYMBOLS
    from hf_crystal.training.forces import fit_element_energies

    model = CHGNet.load(model_name="0.3.0", use_device="cpu", verbose=False)

    def structures(table: Any) -> list[Any]:
        return [
            Structure(
                np.reshape(row["lattice"], (3, 3)), row["atomic_numbers"], np.reshape(row["frac_coords"], (-1, 3))
            )
            for row in table
        ]

    drawn = train.shuffle(seed=0).select(range(min(num_references, len(train))))
    total = np.array([float(answer["e"]) for answer in model.predict_structure(structures(drawn), task="e")])
    known = np.array(drawn["energy"]) / np.array(drawn["num_atoms"])
    references = fit_element_energies(drawn["atomic_numbers"], known - total)
    found = []
    for row, structure in zip(rows, structures(rows), strict=True):
        answer = model.predict_structure(structure, task="efs")
        shift = np.mean([references.get(CHEMICAL_SYMBOLS[number], np.nan) for number in row["atomic_numbers"]])
        found.append({"energy": answer["e"] + shift, "forces": answer["f"], "stress": answer["s"] / GPA})
    return found


def errors_of(predicted: list[dict[str, np.ndarray]], rows: Any) -> dict[str, Any]:
    """Mean absolute errors with intervals, of all rows and of each set."""
    sizes = np.array(rows["num_atoms"])
    forces = [np.reshape(row, (-1, 3)) for row in rows["forces"]]
    errors = {
        "forces": np.array([np.abs(own["forces"] - true).mean() for own, true in zip(predicted, forces, strict=True)])
    }
    weights = {"forces": sizes, "energy": np.ones(len(sizes)), "stress": np.ones(len(sizes))}
    if "energy" in predicted[0]:
        energies = np.array([own["energy"] for own in predicted], dtype=np.float64).ravel()
        errors["energy"] = np.abs(energies - np.array(rows["energy"]) / sizes)
        stress = np.array([np.reshape(own["stress"], (3, 3)) for own in predicted])
        errors["stress"] = GPA * np.abs(stress - np.reshape(rows["stress"], (-1, 3, 3))).mean((1, 2))
    sets = np.array(rows["set"]) if "set" in rows.column_names else np.full(len(sizes), "all")
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(sizes), size=(1000, len(sizes)))
    report: dict[str, Any] = {}
    for name, values in errors.items():
        known = np.isfinite(values)
        own, weight = np.where(known, values, 0.0), weights[name] * known
        means = (own * weight)[draws].sum(1) / weight[draws].sum(1)
        report[name] = {
            "mae": float((own * weight).sum() / weight.sum()),
            "interval": np.quantile(means, [0.025, 0.975]).tolist(),
            "n": int(known.sum()),
            "by_set": {
                part: float((own * weight)[sets == part].sum() / weight[sets == part].sum())
                for part in sorted(set(sets))
            },
        }
    return report


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Errors of models, of CHGNet and of no force at all on the test rows."""
    from hf_crystal.training.forces import ForceDataArguments, force_rows, predict_forces

    data = ForceDataArguments(path=args.data)
    rows = force_rows(data, args.split)
    found: dict[str, Any] = {
        "rows": len(rows),
        "no force": errors_of([{"forces": np.zeros((size, 3))} for size in rows["num_atoms"]], rows),
    }
    for name in args.models:
        started = time.process_time()
        if name == "chgnet":
            predicted = chgnet_predictions(
                rows, force_rows(data, data.train_split, for_training=True), args.references
            )
        else:
            predicted = predict_forces(load_model(name), rows)
        found[name] = {**errors_of(predicted, rows), "cpu_seconds": round(time.process_time() - started, 1)}
    return found


def calm_crystals(args: argparse.Namespace) -> list[Any]:
    """ASE's `Atoms` of test rows near their minimum, drawn by the seed."""
    from ase import Atoms

    from hf_crystal.training.forces import ForceDataArguments, force_rows

    rows = force_rows(ForceDataArguments(path=args.data), args.split)
    largest = np.array([np.linalg.norm(np.reshape(forces, (-1, 3)), axis=1).max() for forces in rows["forces"]])
    sizes = np.array(rows["num_atoms"])
    calm = np.flatnonzero((largest <= args.max_force) & (sizes >= 2) & (sizes <= args.max_atoms))
    chosen = np.random.default_rng(args.seed).permutation(calm)[: args.crystals]
    return [
        Atoms(
            numbers=row["atomic_numbers"],
            scaled_positions=np.reshape(row["frac_coords"], (-1, 3)),
            cell=np.reshape(row["lattice"], (3, 3)),
            pbc=True,
        )
        for row in rows.select(chosen)
    ]


def textbook_crystals(args: argparse.Namespace) -> list[Any]:
    """ASE's `Atoms` of crystals of `textbook_properties.yaml`, drawn by the seed: entries of the Materials Project."""
    import pandas as pd
    import yaml
    from ase import Atoms
    from prepare_materials_project import kinds_of, with_labels
    from report_domain import crystals_of
    from textbook_properties import chosen_rows

    project = with_labels(pd.read_parquet(args.textbook))
    project["kind"] = kinds_of(project)
    textbook = yaml.safe_load(Path(__file__).with_name("textbook_properties.yaml").read_text(encoding="utf-8"))
    rows = chosen_rows(project, textbook)
    rows = rows[(rows.num_atoms >= 2) & (rows.num_atoms <= args.max_atoms)]
    return [
        Atoms(crystal["atomic_numbers"], scaled_positions=crystal["frac_coords"], cell=crystal["lattice"], pbc=True)
        for crystal in crystals_of(rows.sample(min(args.crystals, len(rows)), random_state=args.seed))
    ]


def distance(atoms: Any, start: np.ndarray) -> float:
    """Root mean square displacement of the atoms without their common drift, Å."""
    moved = atoms.positions - start
    return float(np.sqrt(np.mean(((moved - moved.mean(0)) ** 2).sum(1))))


def relax(args: argparse.Namespace) -> dict[str, Any]:
    """Rattled crystals and where a potential takes them."""
    from ase.optimize import BFGS

    from hf_crystal.ase import CrystalCalculator

    calculator = CrystalCalculator(args.model, energy="energy")
    crystals = []
    for place, atoms in enumerate(calm_crystals(args) if args.textbook is None else textbook_crystals(args)):
        start = atoms.positions.copy()
        atoms.calc = calculator
        unmoved = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
        atoms.rattle(args.rattle, seed=args.seed + place)
        rattled, trajectory = distance(atoms, start), []
        search = BFGS(atoms, logfile=None)
        search.attach(lambda: trajectory.append([distance(atoms, start), atoms.get_potential_energy() / len(atoms)]))  # noqa: B023
        converged = bool(search.run(fmax=args.fmax, steps=args.steps))
        crystals.append(
            {
                "formula": atoms.get_chemical_formula(),
                "atoms": len(atoms),
                "force_unmoved": unmoved,
                "rattled": rattled,
                "relaxed": distance(atoms, start),
                "steps": search.get_number_of_steps(),
                "converged": converged,
                "trajectory": trajectory,
            }
        )
        print(json.dumps({name: value for name, value in crystals[-1].items() if name != "trajectory"}), flush=True)
    relaxed = np.array([crystal["relaxed"] for crystal in crystals])
    if args.figure is not None:
        draw(crystals, args.figure)
    return {
        "back": int((relaxed <= BACK).sum()),
        "crystals": len(crystals),
        "mean_rattled": float(np.mean([crystal["rattled"] for crystal in crystals])),
        "median_relaxed": float(np.median(relaxed)),
        "results": crystals,
    }


def draw(crystals: list[dict[str, Any]], path: Path) -> None:
    """Distance of each crystal from where it was, over the steps of its relaxation."""
    from hf_crystal.viz.style import PALETTE, clean, new_figure

    figure = new_figure(5.0, 2.8)
    axes = figure.add_subplot()
    for crystal in crystals:
        distances = [distance for distance, _ in crystal["trajectory"]]
        color = PALETTE[0] if crystal["relaxed"] <= BACK else PALETTE[5]
        axes.plot(range(len(distances)), distances, color=color, linewidth=0.8, alpha=0.8)
    axes.axhline(BACK, color="black", linewidth=0.6, linestyle=":")
    axes.set(xlabel="step of BFGS", ylabel="RMS displacement (Å)", ylim=(0, None), xlim=(0, None))
    clean(axes)
    figure.savefig(path)


def train(args: argparse.Namespace) -> dict[str, Any]:
    """One training; its record without the curve."""
    from hf_crystal.training.forces import ForceRecipe, train_forces

    recipe = ForceRecipe.load(args.recipe, [f"data.path={args.data}", *args.set])
    record = train_forces(recipe, args.output_dir, resume=args.resume, max_hours=args.max_hours)
    return {name: value for name, value in record.items() if name not in ("training_curve", "recipe")}


def make_parser() -> argparse.ArgumentParser:
    """Command-line options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train", help="train a recipe")
    one.add_argument("recipe", type=Path, help="of scripts/recipes_forces")
    one.add_argument("--output-dir", type=Path, required=True, help="folder of the run")
    one.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change the recipe")
    one.add_argument("--resume", action="store_true", help="continue the run of that folder")
    one.add_argument("--max-hours", type=float, help="wall budget")
    two = commands.add_parser("evaluate", help="errors on the test rows")
    two.add_argument("models", nargs="+", help="folders of models, and chgnet")
    two.add_argument("--references", type=int, default=500, help="training rows for CHGNet's elements (default: 500)")
    three = commands.add_parser("relax", help="relax rattled test crystals")
    three.add_argument("model", help="folder of a potential")
    three.add_argument(
        "--textbook", type=Path, help="materials_project.parquet: textbook crystals in place of test rows"
    )
    three.add_argument("--crystals", type=int, default=20, help="number (default: 20)")
    three.add_argument("--max-atoms", type=int, default=20, help="of a cell (default: 20)")
    three.add_argument("--max-force", type=float, default=0.05, help="largest DFT force, eV/Å (default: 0.05)")
    three.add_argument("--rattle", type=float, default=0.1, help="standard deviation of the noise, Å (default: 0.1)")
    three.add_argument("--fmax", type=float, default=0.02, help="converged below this force, eV/Å (default: 0.02)")
    three.add_argument("--steps", type=int, default=200, help="at most (default: 200)")
    three.add_argument("--figure", type=Path, help="PNG of the distances over the steps")
    three.add_argument("--seed", type=int, default=0, help="of choice and noise (default: 0)")
    for command in (one, two, three):
        command.add_argument("--data", required=True, help="table with forces")
    for command in (two, three):
        command.add_argument("--split", default="test", help="rows (default: test)")
        command.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser


def main(args: argparse.Namespace) -> int:
    """Run one command; returns the exit code."""
    try:
        if args.command == "train":
            print(json.dumps(train(args), indent=2))
            return 0
        found = evaluate(args) if args.command == "evaluate" else relax(args)
        args.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(json.dumps({name: value for name, value in found.items() if name != "results"}, indent=2))
    except (ValueError, ImportError, OSError) as error:
        print(f"train_forces: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(make_parser().parse_args()))
