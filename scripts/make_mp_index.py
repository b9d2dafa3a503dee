"""Write the index of the Materials Project that travels in the package, for formulas that users ask for.

    python scripts/make_mp_index.py ../shared/data/materials_project.parquet hf_crystal/prototypes/mp.parquet

Crystals with at most `--max-atoms` atoms in the primitive cell and `--max-sites` Wyckoff positions: long sequences are
mostly models of disorder, no prototypes. A crystal that has more symmetry at 0.1 Å, as the release lists it, is taken
with that: relaxations distort some by so much, galena among them. Crystals of more than four times the volume that
their elements have are left out, unless they are known to lie at most 0.1 eV/atom above the hull (molecules do): most
are relaxations that failed, with all atoms far apart. Nothing is held out for benchmarks: these use the index
`mp20_train`, or `exclude`.

Energies are those of PBE with the corrections of one release: `mb_e_form`, where it is missing those of other columns,
shifted to it by the crystals of the same formula that have both. A crystal without any is taken to be farther above
the lowest of its formula than three of four others are. Energies above the hull are those of `mb_e_form` against
`hf_crystal.load_reference()`, which has the same energies; crystals without it have none. Distances between elements
are those of `mp20_train`, most of whose crystals have been made.

The probabilities of prototypes are written into the file afterwards, by `fit_probability.py`.

Data: Materials Project, release 2025.02.12, CC BY 4.0. About 20 CPU minutes.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import spglib
from make_reference_hull import are_wrong

from hf_crystal.crystals.doubts import expected_volumes
from hf_crystal.crystals.elements import reduced_formula
from hf_crystal.mat2seq.canonical_crystal import CanonicalCrystal, CanonicalSettings
from hf_crystal.mat2seq.canonicalize import canonicalize_record
from hf_crystal.prototypes import PrototypeIndex, embedded_index
from hf_crystal.stability import load_reference

ENERGIES = ["mb_e_form", "e_form_megnet2018", "e_form_mp2020", "e_hull_mp2018"]
LARGEST_VOLUME = 4.0  # of the expected one
NEAR_THE_HULL = 0.1  # eV/atom


def without_wrong_labels(table: pd.DataFrame) -> pd.DataFrame:
    """The table without the energies that `find_wrong_labels.py` lists."""
    energies = table.mb_e_form.astype(float)
    wrong = np.array(are_wrong(table.atomic_numbers.map(reduced_formula), energies))
    return table.assign(mb_e_form=energies.mask(wrong))


def energies(table: pd.DataFrame) -> pd.Series:
    """Energy of each crystal, comparable within a formula, eV/atom."""
    found = table[ENERGIES[0]].astype(float)
    for column in ENERGIES[1:]:
        other = table[column].astype(float)
        shift = (found - other).groupby(table.reduced).transform("median")
        if column == "e_hull_mp2018":  # needs a shift, unless it is the only one; the others mostly agree
            shift = shift.where(shift.notna() | (found.groupby(table.reduced).transform("count") > 0), 0.0)
        else:
            shift = shift.fillna(0.0)
        found = found.fillna(other + shift)
    rises = found - found.groupby(table.reduced).transform("min")
    high = rises[rises > 0].quantile(0.75)
    print(f"{found.isna().mean():.1%} without an energy: {high:.3f} eV/atom above the lowest of the formula")
    return found.fillna(found.groupby(table.reduced).transform("min") + high)


def above_hull(table: pd.DataFrame) -> dict[str, float]:
    """Energy above the hull of each crystal that has one of the hull's kind, eV/atom."""
    reference, found = load_reference(), {}
    for formula, rows in table[table.mb_e_form.notna()].groupby("formula"):
        hull = reference.stability(formula).hull_energy
        found |= {row.material_id: max(0.0, float(row.mb_e_form) - hull) for row in rows.itertuples()}
    return found


def crystals(table: pd.DataFrame, max_sites: int) -> Iterator[tuple[str, Any]]:
    """Names and canonical crystals."""
    settings = CanonicalSettings()
    for row in table.itertuples():
        cell, places = (np.reshape(values, (-1, 3)).astype(float) for values in (row.lattice, row.frac_coords))
        numbers = np.asarray(row.atomic_numbers, dtype=np.int64)
        try:
            crystal = canonicalize_record(cell, places, numbers, settings)
            if crystal.space_group != row.spacegroup_symprec0p1:
                looser = spglib.standardize_cell((cell, places, numbers), to_primitive=True, symprec=0.1)
                if looser is not None:
                    crystal = canonicalize_record(*looser[:2], looser[2].astype(np.int64), settings)
        except ValueError as error:
            print(f"left out {row.material_id}: {error}", file=sys.stderr)
            continue
        if len(crystal.sites) <= max_sites:
            yield row.material_id, crystal


def failed(crystals: Iterable[tuple[str, CanonicalCrystal]], heights: dict[str, float]) -> set[str]:
    """Names of crystals far too large; not of those whose distance from the hull, eV/atom, is known to be small."""
    found = set()
    for name, crystal in crystals:
        record = crystal.to_record()
        volume = abs(np.linalg.det(record.cell)) / len(record.atomic_numbers)
        large = volume > LARGEST_VOLUME * expected_volumes(record.atomic_numbers[None])[0]
        if large and not heights.get(name, np.inf) <= NEAR_THE_HULL:
            found.add(name)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="materials_project.parquet")
    parser.add_argument("output", type=Path, help="index to write")
    parser.add_argument("--max-atoms", type=int, default=96)
    parser.add_argument("--max-sites", type=int, default=24)
    given = parser.parse_args()
    columns = [
        "material_id",
        "formula",
        "reduced",
        "n_primitive",
        "spacegroup_symprec0p1",
        "lattice",
        "frac_coords",
        "atomic_numbers",
        *ENERGIES,
    ]
    table = without_wrong_labels(pd.read_parquet(given.table, columns=columns))
    known = dict(zip(table.material_id, energies(table), strict=True))
    small = table[table.n_primitive <= given.max_atoms]
    heights, found = above_hull(small), dict(crystals(small, given.max_sites))
    gases = failed(found.items(), heights)
    index = PrototypeIndex.build(
        {name: crystal for name, crystal in found.items() if name not in gases},
        energies={name: energy for name, energy in known.items() if np.isfinite(energy)},
        above_hull=heights,
        distances=embedded_index("mp20_train").distances,
    )
    index.save(given.output)
    print(
        f"{len(small)} crystals, {len(gases)} far too large, {len(index)} indexed; "
        f"{given.output.stat().st_size / 1e6:.2f} MB"
    )


if __name__ == "__main__":
    main()
