# /// script
# requires-python = ">=3.11"
# dependencies = ["hf_crystal"]
# ///
"""Training table of the `-mp` property models: Materials Project crystals without anything that a benchmark tests on.

    python scripts/prepare_materials_project.py DATA_FOLDER materials_project_training.parquet

Train: rows of `materials_project.parquet` with a label and at most `--max-atoms` atoms, and the training rows of
`mp_20.parquet`, whose geometry is the PBE one that the labels belong to (the release holds r2SCAN geometries for about
half of its entries). Left out: every id of a validation or test part of the MEGNet split and of MP-20 and of the test
part of MPTS-52, and every crystal with the reduced formula and the space group (0.1 Å) of such a row. Crystals of one
element are there eight times, and those more than 0.2 eV/atom above the hull twice, once with another volume: up
to 2 % less or 4 % more, as PBE's volumes are larger than r2SCAN's.
`--perturbed-copies 2` adds two copies of each training row with strains and displacements, as the last part of the
training of `crystalformer-mp` had them.
Val: validation parts of the MEGNet split and of MP-20 (`part` says which). Test: the test part of the MEGNet split.

Formation energy and gap are the matbench v0.1 labels, where these are missing those of the MEGNet release (both are
Materials Project 2018; they agree within 0.0011 eV/atom and 0.019 eV). Prints the counts as JSON.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from hf_crystal.crystals.record import CRYSTAL_COLUMNS

LABELS = {
    "formation_energy": ("mb_e_form", "e_form_megnet2018"),
    "band_gap": ("mb_band_gap_pbe", "band_gap_megnet2018"),
    "log10_bulk_modulus": ("mb_log10_K_VRH", None),
    "log10_shear_modulus": ("mb_log10_G_VRH", None),
}
_STRUCTURE = ["material_id", *CRYSTAL_COLUMNS, "num_atoms"]
_HELD_PARTS = ("val", "test")
_ELEMENT_REPEATS = 8
_OFF_HULL = 0.2  # eV/atom
_OFF_HULL_REPEATS = 2
_VOLUME_FACTORS = (0.98, 1.04)
_STRAIN = 0.005
_DISPLACEMENT = 0.02  # Å


def with_labels(rows: Any) -> Any:
    """Rows with one column per target of `LABELS` and `num_atoms`."""
    import numpy as np

    rows = rows.assign(
        num_atoms=[len(numbers) for numbers in rows.atomic_numbers],
        lattice=[np.asarray(values, dtype=np.float64) for values in rows.lattice],
        frac_coords=[np.asarray(values, dtype=np.float64) for values in rows.frac_coords],
        atomic_numbers=[np.asarray(numbers, dtype=np.int16) for numbers in rows.atomic_numbers],
    )
    for name, (column, substitute) in LABELS.items():
        values = rows[column].astype(np.float64)
        rows[name] = values if substitute is None else values.fillna(rows[substitute].astype(np.float64))
    return rows


def crystal_kind(numbers: Any, space_group: int) -> str:
    """Reduced element counts and space group as one key; the tables write formulas in different orders."""
    import numpy as np

    elements, counts = np.unique(numbers, return_counts=True)
    reduced = counts // np.gcd.reduce(counts)
    return " ".join(f"{element}:{count}" for element, count in zip(elements, reduced, strict=True)) + f" {space_group}"


def kinds_of(rows: Any) -> list[str]:
    """`crystal_kind` of every row."""
    return [crystal_kind(*pair) for pair in zip(rows.atomic_numbers, rows.spacegroup_symprec0p1, strict=True)]


def held_out(project: Any, mp20: Any, mpts52: Any) -> tuple[set[str], set[str]]:
    """Ids of the rows that benchmarks choose or test on, and the kinds of their crystals."""
    chosen = project[["split_megnet", "mp20_split"]].isin(_HELD_PARTS).any(axis=1) | (project.mpts52_split == "test")
    frames = [project[chosen], mp20[mp20.split.isin(_HELD_PARTS)], mpts52[mpts52.split == "test"]]
    ids = {name for frame in frames for name in frame.material_id}
    return ids, {kind for frame in frames for kind in kinds_of(frame)}


def far_from_hull(rows: Any) -> Any:
    """Which rows have a formation energy more than `_OFF_HULL` above the hull of matbench_mp_e_form."""
    import numpy as np

    import hf_crystal

    reference = hf_crystal.load_reference()
    energies: dict[str, float] = {}
    far = []
    for numbers, energy in zip(rows.atomic_numbers, rows.formation_energy, strict=True):
        kind = crystal_kind(numbers, 0)
        if kind not in energies:
            elements, counts = np.unique(numbers, return_counts=True)
            composition = {int(number): int(count) for number, count in zip(elements, counts, strict=True)}
            # noble gases are not among its elements, whose energies are zero
            known = reference.elements.issuperset(composition)
            energies[kind] = reference.stability(composition).hull_energy if known else 0.0
        far.append(energy - energies[kind] > _OFF_HULL)
    return far


def with_other_volumes(rows: Any) -> Any:
    """The rows with volumes changed by a factor drawn from `_VOLUME_FACTORS`, seeded."""
    import numpy as np

    factors = np.random.default_rng(0).uniform(*_VOLUME_FACTORS, len(rows)) ** (1 / 3)
    return rows.assign(lattice=[lattice * factor for lattice, factor in zip(rows.lattice, factors, strict=True)])


def perturbed(rows: Any, seed: int) -> Any:
    """The rows with normally distributed strains of the cell and displacements of the atoms, labels unchanged.

    At a minimum of the energy both count in second order only; the functionals of the geometries differ by more.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    lattices, positions = [], []
    for lattice, places in zip(rows.lattice, rows.frac_coords, strict=True):
        strain = generator.normal(0.0, _STRAIN, (3, 3))
        cell = np.reshape(lattice, (3, 3)) @ (np.eye(3) + (strain + strain.T) / 2)
        moves = generator.normal(0.0, _DISPLACEMENT, (len(places) // 3, 3)) @ np.linalg.inv(cell)
        lattices.append(cell.reshape(-1))
        positions.append(places + moves.reshape(-1))
    return rows.assign(lattice=lattices, frac_coords=positions)


def training_table(folder: Path, max_atoms: int, copies: int) -> tuple[Any, dict[str, int]]:
    """The table with its `split` and `part` columns, and the counts of what was left out."""
    import pandas as pd

    project = with_labels(pd.read_parquet(folder / "materials_project.parquet"))
    mp20 = with_labels(pd.read_parquet(folder / "mp_20.parquet"))
    identity = ["material_id", "split", "atomic_numbers", "spacegroup_symprec0p1"]
    mpts52 = pd.read_parquet(folder / "mpts_52.parquet", columns=identity)
    ids, kinds = held_out(project, mp20, mpts52)

    def is_held(frame: Any) -> Any:
        return frame.material_id.isin(ids) | pd.Series(kinds_of(frame), index=frame.index).isin(kinds)

    labeled = project[project[list(LABELS)].notna().any(axis=1)]
    small = labeled[labeled.num_atoms <= max_atoms]
    free = small[~is_held(small)]
    mp20_train = mp20[(mp20.split == "train") & mp20[list(LABELS)].notna().any(axis=1)]
    mp20_free = mp20_train[~is_held(mp20_train)]
    tables = [
        free.assign(split="train", part="materials_project"),
        mp20_free.assign(split="train", part="mp20"),
        project[project.split_megnet == "val"].assign(split="val", part="megnet"),
        mp20[mp20.split == "val"].assign(split="val", part="mp20"),
        project[project.split_megnet == "test"].assign(split="test", part="megnet"),
    ]
    columns = [*_STRUCTURE, *LABELS, "split", "part"]
    table = pd.concat([frame[columns] for frame in tables], ignore_index=True)
    table = table[table[list(LABELS)].notna().any(axis=1)]
    # among 95,000 compounds an element is rarely met, and elements are what users try first
    elements = table[(table.split == "train") & (table.atomic_numbers.map(lambda numbers: len(set(numbers))) == 1)]
    trained = table[table.split == "train"]
    far = trained[far_from_hull(trained)]
    others = with_other_volumes(pd.concat([far] * (_OFF_HULL_REPEATS - 1)))
    table = pd.concat([table, *[elements] * (_ELEMENT_REPEATS - 1), others], ignore_index=True)
    trained = table[table.split == "train"]
    table = pd.concat([table, *(perturbed(trained, seed) for seed in range(copies))], ignore_index=True)
    counts = {
        "labeled": len(labeled),
        f"at most {max_atoms} atoms": len(small),
        "held out by id or by formula and space group": len(small) - len(free),
        "materials_project train": len(free),
        "mp20 train": len(mp20_free),
        f"elements, {_ELEMENT_REPEATS} times each": len(elements),
        f"more than {_OFF_HULL} eV/atom above the hull, {_OFF_HULL_REPEATS} times each": len(far),
        **{f"{split} {part}": int(count) for (split, part), count in table.groupby(["split", "part"]).size().items()},
        "train atoms": int(table[table.split == "train"].num_atoms.sum()),
    }
    return table, counts


def main(args: argparse.Namespace) -> None:
    """Write the table and print its counts."""
    table, counts = training_table(args.data, args.max_atoms, args.perturbed_copies)
    table.to_parquet(args.output, compression="zstd", index=False)
    print(json.dumps(counts, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with materials_project, mp_20 and mpts_52 .parquet")
    parser.add_argument("output", type=Path, help="parquet file to write")
    parser.add_argument("--max-atoms", type=int, default=64, help="largest cell in training (default: 64)")
    parser.add_argument("--perturbed-copies", type=int, default=0, help="of every training row (default: 0)")
    main(parser.parse_args())
