"""Generated crystals as files: CIF, POSCAR, extended XYZ."""

import re
from pathlib import Path
from typing import Any, Literal

StructureFormat = Literal["cif", "poscar", "extxyz"]
_SUFFIXES = {"cif": ".cif", "poscar": ".vasp", "extxyz": ".extxyz"}


def write_structure(folder: Path, number: int, result: dict[str, Any], form: StructureFormat) -> str:
    """Write one result of the pipeline "crystal-generation"; the name of its file."""
    group = re.sub(r"[^0-9A-Za-z_-]", "-", result["space_group"])
    path = folder / f"{result['formula']}_{number:03d}_{group}{_SUFFIXES[form]}"
    if form == "cif":
        text = result["cif"]
    elif form == "poscar":
        text = result["structure"].to(fmt="poscar")
    else:
        text = _extended_xyz(result)
    path.write_text(text, encoding="utf-8")
    return str(path)


def _extended_xyz(result: dict[str, Any]) -> str:
    structure = result["structure"]
    lattice = " ".join(f"{value:.8f}" for value in structure.lattice.matrix.ravel())
    about = (
        f'Lattice="{lattice}" Properties=species:S:1:pos:R:3 pbc="T T T" '
        f'space_group="{result["space_group"]}" log_likelihood={result["log_likelihood"]:.6f}'
    )
    atoms = [f"{site.specie.symbol} " + " ".join(f"{value:.8f}" for value in site.coords) for site in structure]
    return "\n".join([str(len(structure)), about, *atoms]) + "\n"
