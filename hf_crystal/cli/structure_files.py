"""Generated crystals as files: CIF, POSCAR, extended XYZ."""

import re
from pathlib import Path
from typing import Any, Literal

StructureFormat = Literal["cif", "poscar", "extxyz"]
_SUFFIXES: dict[StructureFormat, str] = {"cif": ".cif", "poscar": ".vasp", "extxyz": ".extxyz"}


def write_structures(folder: Path, results: list[dict[str, Any]], form: StructureFormat) -> list[str]:
    """Write results of the pipeline "crystal-generation", one file each; the names of the files.

    Raises:
        ValueError: the folder holds other crystals; nothing is written.
    """
    named = {}
    for number, result in enumerate(results, 1):
        group = re.sub(r"[^0-9A-Za-z_-]", "-", result["space_group"])
        named[f"{result['formula']}_{number:03d}_{group}"] = result
    forms: dict[str, StructureFormat] = {suffix: name for name, suffix in _SUFFIXES.items()}
    others = [  # the same crystals in another format are none
        path
        for path in crystal_files(folder)
        if path.stem not in named or _text(named[path.stem], forms[path.suffix]) != path.read_text(encoding="utf-8")
    ]
    if others:
        raise folder_in_use(folder, others)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {folder / f"{name}{_SUFFIXES[form]}": _text(result, form) for name, result in named.items()}
    for path, text in paths.items():
        path.write_text(text, encoding="utf-8")
    return list(map(str, paths))


def crystal_files(folder: Path) -> list[Path]:
    """Files of a folder that may be crystals of an earlier call; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES.values())


def folder_in_use(folder: Path, others: list[Path]) -> ValueError:
    """The error for a folder with crystals of another call."""
    return ValueError(
        f"--output-dir {folder} holds {len(others)} other crystals, the first is {others[0].name}; accepted: "
        "a new or empty folder, or the same call with the same --seed again"
    )


def _text(result: dict[str, Any], form: StructureFormat) -> str:
    if form == "cif":
        return str(result["cif"])
    return str(result["structure"].to(fmt="poscar")) if form == "poscar" else _extended_xyz(result)


def _extended_xyz(result: dict[str, Any]) -> str:
    structure = result["structure"]
    lattice = " ".join(f"{value:.8f}" for value in structure.lattice.matrix.ravel())
    about = (
        f'Lattice="{lattice}" Properties=species:S:1:pos:R:3 pbc="T T T" '
        f'space_group="{result["space_group"]}" log_likelihood={result["log_likelihood"]:.6f}'
    )
    atoms = [f"{site.specie.symbol} " + " ".join(f"{value:.8f}" for value in site.coords) for site in structure]
    return "\n".join([str(len(structure)), about, *atoms]) + "\n"
