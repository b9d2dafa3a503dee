"""Write the phases on the convex hull of matbench_mp_e_form, for hf_crystal/stability.py.

    python scripts/make_reference_hull.py ../shared/data/matbench_labels_nostruct.parquet \
        hf_crystal/references/matbench_mp_e_form.parquet

The table has the columns `task`, `composition` (of the primitive cell) and `target` (formation energy, eV/atom) of
matbench v0.1 (Dunn et al., npj Comput. Mater. 6, 138, 2020; data: Materials Project, CC BY 4.0).
"""

import argparse
from pathlib import Path

import pandas as pd

from hf_crystal.crystals.elements import cell_formula, parse_composition
from hf_crystal.stability import ReferenceHull, _parts


def main() -> None:
    """Read the table, find the phases on the hull, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    rows = pd.read_parquet(options.table, columns=["task", "composition", "target"])
    rows = rows[rows["task"] == "matbench_mp_e_form"]
    hull = ReferenceHull([_parts(text) for text in rows["composition"]], rows["target"], name="matbench_mp_e_form")
    stable = hull.stable_phases()
    plain = {_plain(formula): energy for formula, energy in stable.items()}
    table = pd.DataFrame({"formula": list(plain), "formation_energy": list(plain.values())}).sort_values("formula")
    table["formation_energy"] = table["formation_energy"].round(5)
    options.output.parent.mkdir(exist_ok=True)
    table.to_parquet(options.output, index=False, compression="zstd", compression_level=19)
    print(
        f"{len(rows)} entries, {len(hull)} formulas, {len(table)} of them on the hull; "
        f"{options.output.stat().st_size / 1e6:.2f} MB"
    )


def _plain(formula: str) -> str:
    """Without brackets, which `load_reference` reads fastest."""
    return cell_formula([z for z, count in parse_composition(formula).items() for _ in range(count)])


if __name__ == "__main__":
    main()
