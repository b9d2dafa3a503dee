"""Write the lowest phase of each formula of matbench_mp_e_form, for hf_crystal/stability.py.

    python scripts/make_reference_hull.py ../shared/data/matbench_labels_nostruct.parquet \
        hf_crystal/references/matbench_mp_e_form.parquet

The table has the columns `task`, `composition` (of the primitive cell) and `target` (formation energy, eV/atom) of
matbench v0.1 (Dunn et al., npj Comput. Mater. 6, 138, 2020; data: Materials Project, CC BY 4.0).
"""

import argparse
import math
from pathlib import Path

import pandas as pd

from hf_crystal.crystals.elements import cell_formula
from hf_crystal.stability import _parts


def main() -> None:
    """Read the table, choose the phases, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    rows = pd.read_parquet(options.table, columns=["task", "composition", "target"])
    rows = rows[rows["task"] == "matbench_mp_e_form"]
    lowest: dict[str, float] = {}
    for text, energy in zip(rows["composition"], rows["target"], strict=True):
        counts = _parts(text)  # `Sr1 Ti1 O3`
        unit = math.gcd(*counts.values())
        formula = cell_formula([z for z, count in counts.items() for _ in range(count // unit)])
        lowest[formula] = min(energy, lowest.get(formula, math.inf), math.inf if len(counts) > 1 else 0.0)
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
