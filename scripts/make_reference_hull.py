"""Write the lowest phase of each formula of matbench_mp_e_form, for hf_crystal/stability.py.

    python scripts/make_reference_hull.py ../shared/data/matbench_labels_nostruct.parquet \
        hf_crystal/references/matbench_mp_e_form.parquet

The table has the columns `task`, `composition` (of the primitive cell) and `target` (formation energy, eV/atom) of
matbench v0.1 (Dunn et al., npj Comput. Mater. 6, 138, 2020; data: Materials Project, CC BY 4.0). Entries of
`wrong_labels.csv` (scripts/find_wrong_labels.py) are left out.
"""

import argparse
import math
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from hf_crystal.crystals.elements import cell_formula
from hf_crystal.stability import _parts


def formula_of(composition: str) -> str:
    """Reduced formula of `Sr1 Ti1 O3`."""
    counts = _parts(composition)
    unit = math.gcd(*counts.values())
    return cell_formula([z for z, count in counts.items() for _ in range(count // unit)])


def are_wrong(formulas: Iterable[str], energies: Iterable[float]) -> list[bool]:
    """Which entries `find_wrong_labels.py` lists, by reduced formula and formation energy, eV/atom."""
    listed = pd.read_csv(Path(__file__).with_name("wrong_labels.csv"))
    wrong = set(zip(listed.formula, listed.energy.round(4), strict=True))
    return [(formula, round(energy, 4)) in wrong for formula, energy in zip(formulas, energies, strict=True)]


def main() -> None:
    """Read the table, choose the phases, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    rows = pd.read_parquet(options.table, columns=["task", "composition", "target"])
    rows = rows[rows["task"] == "matbench_mp_e_form"]
    formulas, energies = [formula_of(text) for text in rows["composition"]], rows["target"]
    lowest: dict[str, float] = {}
    for formula, energy, wrong in zip(formulas, energies, are_wrong(formulas, energies), strict=True):
        if not wrong:
            element = len(_parts(formula)) == 1
            lowest[formula] = min(energy, lowest.get(formula, math.inf), 0.0 if element else math.inf)
    # with a positive energy a phase never matters: the elements are there, at zero
    kept = {formula: round(energy, 5) for formula, energy in lowest.items() if energy < 0 or len(_parts(formula)) == 1}
    table = pd.DataFrame({"formula": list(kept), "formation_energy": list(kept.values())}).sort_values("formula")
    options.output.parent.mkdir(exist_ok=True)
    table.to_parquet(options.output, index=False, compression="zstd", compression_level=19)
    print(
        f"{len(rows)} entries, {len(lowest)} formulas, {len(table)} kept; {options.output.stat().st_size / 1e6:.2f} MB"
    )


if __name__ == "__main__":
    main()
