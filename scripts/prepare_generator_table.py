"""Training table of `mat2seq-mp`: the crystals of the embedded index `mp` that no generation benchmark asks for.

    python scripts/prepare_generator_table.py DATA_FOLDER generator_table.parquet

Train: crystals of the index (release 2025.02.12 of the Materials Project, with the symmetry at 0.1 Å where that is
more, at most 24 Wyckoff positions) with at most `--max-atoms` atoms in the primitive cell, without the formulas of the
validation and test parts of MP-20 and MPTS-52. Val and test: those parts of MP-20.

Labels: formation energy and gap of matbench v0.1, distance to its hull (`hf_crystal.load_reference()`; `e_hull_mp2018`
where there is no formation energy, and in val and test), bulk modulus in GPa. About four minutes; prints the counts.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from make_mp_index import above_hull

from hf_crystal.prototypes import embedded_index

LABELS = ["mb_e_form", "mb_band_gap_pbe", "mb_log10_K_VRH", "e_hull_mp2018"]


def crystal_columns(cell: Any, places: Any, numbers: Any) -> dict[str, list]:
    """The columns of a crystal, of one type in all rows."""
    return {
        "lattice": np.ravel(cell).astype(float).tolist(),
        "frac_coords": np.ravel(places).astype(float).tolist(),
        "atomic_numbers": [int(number) for number in numbers],
    }


def labels_of(row: Any, distance: float) -> dict[str, float]:
    """The columns of the conditions; NaN where a label is unknown."""
    return {
        "formation_energy": row.mb_e_form,
        "band_gap": row.mb_band_gap_pbe,
        "e_above_hull": distance,
        "bulk_modulus": 10**row.mb_log10_K_VRH,
    }


def training_rows(project: pd.DataFrame, max_atoms: int) -> Iterator[dict[str, Any]]:
    """Rows of the index without held formulas."""
    index = embedded_index("mp")
    free = project[~(project.mp20_held_formula | project.mpts52_held_formula)]
    free = free.set_index("material_id")
    distances = above_hull(free, free.mb_e_form.astype(float)).fillna(free.e_hull_mp2018)
    for place, name in enumerate(index.names):
        if name not in free.index:
            continue
        crystal = index.known(place)
        record = crystal.to_record()
        if len(record) > max_atoms:
            continue
        row = free.loc[name]
        yield {
            "material_id": name,
            **crystal_columns(record.cell, record.frac_coords, record.atomic_numbers),
            **labels_of(row, distances[name]),
            "split": "train",
        }


def benchmark_rows(mp20: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Validation and test part of MP-20."""
    for row in mp20[mp20.split != "train"].itertuples():
        yield {
            "material_id": row.material_id,
            **crystal_columns(row.lattice, row.frac_coords, row.atomic_numbers),
            **labels_of(row, row.e_hull_mp2018),
            "split": row.split,
        }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with materials_project and mp_20 .parquet")
    parser.add_argument("output", type=Path, help="parquet file to write")
    parser.add_argument("--max-atoms", type=int, default=64, help="largest primitive cell in training (default: 64)")
    parser.add_argument("--max-above-hull", type=float, help="train on crystals known to lie at most so far, eV/atom")
    given = parser.parse_args()
    columns = ["material_id", "formula", "mp20_held_formula", "mpts52_held_formula", *LABELS]
    project = pd.read_parquet(given.data / "materials_project.parquet", columns=columns)
    project[LABELS] = project[LABELS].astype(float)
    mp20 = pd.read_parquet(given.data / "mp_20.parquet")
    mp20[LABELS] = mp20[LABELS].astype(float)
    train = list(training_rows(project, given.max_atoms))
    if given.max_above_hull is not None:
        train = [row for row in train if row["e_above_hull"] <= given.max_above_hull]
    table = pd.DataFrame([*train, *benchmark_rows(mp20)])
    table.to_parquet(given.output, compression="zstd", index=False)
    trained = table[table.split == "train"]
    known = {name: int(trained[name].notna().sum()) for name in ("formation_energy", "band_gap", "e_above_hull")}
    counts = {**table.split.value_counts().to_dict(), **known, "bulk_modulus": int(trained.bulk_modulus.notna().sum())}
    print(json.dumps(counts, indent=2))


if __name__ == "__main__":
    main()
