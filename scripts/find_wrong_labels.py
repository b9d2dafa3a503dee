# /// script
# requires-python = ">=3.11"
# dependencies = ["hf_crystal"]
# ///
"""List entries of matbench_mp_e_form whose energies are too low to be true, for make_reference_hull.py.

    python scripts/find_wrong_labels.py DATA_FOLDER scripts/wrong_labels.csv

An energy that is wrong and low makes every crystal near its composition look unstable. Two things may tell: the hull
of the release of 2018 at the formula, as `e_hull_mp2018` of its crystals gives it, and what `crystalformer-mp`, which
was trained on these energies, predicts for the structure, where `materials_project.parquet` has it (at most
`--max-atoms`). Of the lowest entries of each formula those are listed that lie 0.2 eV/atom below both, or 0.5 below
the only one there is. A phase that was found later passes by the second, an element that the model knows badly by the
first. Where an entry is listed the next one of its formula is judged, too. A quarter of an hour of one core.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from make_reference_hull import formula_of
from report_domain import crystals_of

from hf_crystal.crystals.elements import reduced_formula
from hf_crystal.loading import load_property_pipeline

_BELOW_BOTH, _BELOW_ONE = 0.2, 0.5  # eV/atom
_SAME = 2e-3  # eV/atom between an entry and the crystal whose label it is


def predictions(rows: pd.DataFrame) -> pd.Series:
    """Formation energies that the default model predicts, by index."""
    answers = load_property_pipeline("crystalformer-mp")(crystals_of(rows), batch_size=64)
    return pd.Series([answer["formation_energy"] for answer in answers], rows.index, dtype=float)


def main(args: argparse.Namespace) -> None:
    """Judge the lowest entries, then those that come after listed ones."""
    labels = pd.read_parquet(args.data / "matbench_labels_nostruct.parquet", columns=["task", "composition", "target"])
    labels = labels[labels.task == "matbench_mp_e_form"]
    entries = pd.DataFrame({"formula": labels.composition.map(formula_of), "energy": labels.target})
    columns = ["atomic_numbers", "lattice", "frac_coords", "n_sites"]
    columns += ["mb_e_form", "e_form_megnet2018", "e_hull_mp2018"]
    crystals = pd.read_parquet(args.data / "materials_project.parquet", columns=columns)
    crystals["formula"] = crystals.atomic_numbers.map(reduced_formula)
    hull = (crystals.e_form_megnet2018 - crystals.e_hull_mp2018).groupby(crystals.formula).min().dropna()
    crystals = crystals[crystals.mb_e_form.notna() & (crystals.n_sites <= args.max_atoms)]
    listed: list[pd.DataFrame] = []
    while len(entries):
        lowest = entries.groupby("formula").energy.min()
        wrong = pd.DataFrame({"energy": lowest, "hull_2018": hull.reindex(lowest.index)})
        doubtful = wrong[~(wrong.energy > wrong.hull_2018 - _BELOW_BOTH)]
        offsets = crystals.mb_e_form - doubtful.energy.reindex(crystals.formula).to_numpy()
        own = crystals[offsets.abs() < _SAME]
        wrong["predicted"] = predictions(own).groupby(own.formula).min()
        evidence = wrong[["hull_2018", "predicted"]]
        limits = evidence.count(axis=1).map({0: np.inf, 1: _BELOW_ONE, 2: _BELOW_BOTH})
        wrong = wrong[wrong.energy < evidence.min(axis=1) - limits].round(5)
        listed.append(wrong)
        print(f"{len(lowest)} entries, {len(own)} predicted: {len(wrong)} listed", flush=True)
        entries = entries[entries.formula.isin(wrong.index)]
        entries = entries[entries.energy > lowest.reindex(entries.formula).to_numpy()]
    pd.concat(listed).sort_index().to_csv(args.output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with matbench_labels_nostruct and materials_project .parquet")
    parser.add_argument("output", type=Path, help="CSV file to write")
    parser.add_argument("--max-atoms", type=int, default=100, help="largest cell that is predicted (default: 100)")
    main(parser.parse_args())
