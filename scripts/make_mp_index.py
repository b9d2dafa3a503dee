"""Write the index of the Materials Project that travels in the package, for formulas that users ask for.

    python scripts/make_mp_index.py ../shared/data/materials_project.parquet hf_crystal/prototypes/mp.parquet
    python scripts/make_mp_index.py … … --check 700

Crystals with at most `--max-atoms` atoms in the primitive cell and `--max-sites` Wyckoff positions: long sequences are
mostly models of disorder, no prototypes. A crystal that has more symmetry at 0.1 Å, as the release lists it, is taken
with that: relaxations distort some by so much, galena among them. Crystals of more than four times the volume that
their elements have are left out, unless they are known to lie at most 0.1 eV/atom above the hull (molecules do): most
are relaxations that failed, with all atoms far apart. Nothing is held out for benchmarks: these use the index
`mp20_train`, or `exclude`.

Energies are those of PBE with the corrections of one release: `mb_e_form`, where it is missing those of other columns,
shifted to it by the crystals of the same formula that have both, and where there is none what the default property
model predicts, and one standard error more: the lowest of many predictions is too low. Energies above the hull are
those of `mb_e_form` against `hf_crystal.load_reference()`, which has the same energies, then `e_hull_mp2018`, and of
the others predicted (without the error) and marked so. Distances between elements are those of `mp20_train`, most of
whose crystals have been made.

`--check` asks, of crystals with a known energy that the model was not trained on, whether they are lower than all
others of their formula: as predicted, with one standard error more, and with the energy that was assumed before for
those without (0.074 eV/atom above the lowest).

The probabilities of prototypes are written into the file afterwards, by `fit_probability.py`.

Data: Materials Project, release 2025.02.12, CC BY 4.0. About 30 CPU minutes.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import spglib
from make_reference_hull import are_wrong

from hf_crystal.crystals.doubts import expected_volumes
from hf_crystal.crystals.elements import reduced_formula
from hf_crystal.loading import load_property_pipeline
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
    return found


def above_hull(table: pd.DataFrame, energies: pd.Series) -> pd.Series:
    """Energy above the hull of each crystal that has one of the hull's kind in the column given, eV/atom."""
    reference, found = load_reference(), pd.Series(np.nan, table.index)
    for formula, rows in table[energies.notna()].groupby("formula"):
        with contextlib.suppress(ValueError):  # an element that no phase of the hull has
            found[rows.index] = np.maximum(0.0, energies[rows.index] - reference.stability(formula).hull_energy)
    return found


def predicted(crystals: Sequence[CanonicalCrystal]) -> np.ndarray:
    """Formation energies by the default property model and their standard errors, eV/atom, (N, 2)."""
    pipe = load_property_pipeline()
    results = pipe([crystal.to_structure() for crystal in crystals])
    fields = ("formation_energy", "formation_energy_standard_error")
    return np.array([[result.get(field, np.nan) for field in fields] for result in results])


def check(table: pd.DataFrame, index: PrototypeIndex, count: int) -> None:
    """How often a crystal whose energy is hidden is put rightly before or after all others of its formula."""
    rows = table.set_index("material_id").loc[index.names].assign(row=np.arange(len(index)))
    rows = rows[rows.mb_e_form.notna()]
    held = rows.split_megnet.isin(["val", "test"]) | rows.mp20_split.isin(["val", "test"])
    rows = rows[
        held.groupby(rows.reduced).transform("any") & (rows.groupby("reduced").mb_e_form.transform("size") > 1)
    ]
    rows = rows[rows.reduced.isin(pd.Series(rows.reduced.unique()).sample(count, random_state=0))]
    hidden = rows[held[rows.index]]
    guesses, errors = predicted([index.known(row) for row in hidden.row]).T
    lowest = np.array([rows[(rows.reduced == row.reduced) & (rows.row != row.row)].mb_e_form.min() for row in
                       hidden.itertuples()])  # fmt: skip
    lower = hidden.mb_e_form.to_numpy() < lowest
    ways = {"0.074 above the lowest": lowest + 0.074, "predicted": guesses, "and one error": guesses + errors}
    for name, guess in ways.items():
        first = np.where(guess < lowest, hidden.mb_e_form, lowest)
        loss = np.mean(first - np.minimum(hidden.mb_e_form, lowest))
        right = np.mean((guess < lowest) == lower)
        print(f"{name}: {right:.1%} of {len(hidden)} right, the first is {loss:.4f} eV/atom above the lowest")


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
    parser.add_argument("--check", type=int, metavar="FORMULAS", help="only check, with an index that is there")
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
        "split_megnet",
        "mp20_split",
        *ENERGIES,
    ]
    table = without_wrong_labels(pd.read_parquet(given.table, columns=columns))
    if given.check:
        check(table, PrototypeIndex.load(given.output), given.check)
        return
    table["energy"] = energies(table)
    small = table[table.n_primitive <= given.max_atoms]
    found = dict(crystals(small, given.max_sites))
    write(small.set_index("material_id", drop=False).loc[list(found)], found, given.output)


def write(table: pd.DataFrame, found: dict[str, CanonicalCrystal], output: Path) -> None:
    """Write the index of some crystals, with the energies of the rows of their names."""
    heights = above_hull(table, table.mb_e_form.astype(float))
    gases = failed(found.items(), heights.to_dict())
    heights = heights.fillna(table.e_hull_mp2018.astype(float))
    table, kept = table.drop(list(gases)), {name: crystal for name, crystal in found.items() if name not in gases}
    missing = table.index[table.energy.isna() | heights[table.index].isna()]
    guessed = pd.DataFrame(predicted([kept[name] for name in missing]), missing).reindex(table.index)
    index = PrototypeIndex.build(
        kept,
        energies=table.energy.fillna(guessed.sum(axis=1, skipna=False)).dropna().to_dict(),
        above_hull=heights[table.index].dropna().to_dict(),
        predicted_above_hull=above_hull(table, guessed[0]).dropna().to_dict(),
        distances=embedded_index("mp20_train").distances,
    )
    index.save(output)
    print(
        f"{len(found)} crystals, {len(gases)} far too large, {len(index)} indexed, {table.energy.isna().mean():.1%} "
        f"without an energy, {len(missing)} predicted; {output.stat().st_size / 1e6:.2f} MB"
    )


if __name__ == "__main__":
    main()
