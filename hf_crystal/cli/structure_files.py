"""Generated crystals as a list and as files: CIF, POSCAR, extended XYZ."""

import contextlib
import re
import sys
from pathlib import Path
from typing import Any, Literal

from .writers import Format, announce_written, open_writer

StructureFormat = Literal["cif", "poscar", "extxyz"]
_SUFFIXES: dict[StructureFormat, str] = {"cif": ".cif", "poscar": ".vasp", "extxyz": ".extxyz"}


_NUMBERS = ["volume", "log_likelihood", "score", "probability", "known_e_above_hull"]
_COLUMNS = ["formula", "space_group", "num_atoms", *_NUMBERS, "source"]
_ADDED = {  # by grouping, relaxation, stability
    "num_equal": "int64",
    "energy": "double",
    "converged": "bool",
    "num_steps": "int64",
    "volume_change": "double",
    "e_above_hull": "double",
    "e_above_hull_standard_error": "double",
    "decomposes_to": "string",
}
_FAR = 0.2  # eV/atom: hardly a crystal predicted so far is near the hull (docs/experiments.md)
_MOST_WARNINGS = 8  # lines; of crystals of odd volumes each has its own
_MORE_COLUMNS = ["initial_energy", "energy_of", "sequence", "warnings", "cif"]  # of every form but the table
_TYPES = {**_ADDED, "num_atoms": "int64", "initial_energy": "double", **dict.fromkeys(_NUMBERS, "double")}


def write_crystals(
    results: list[dict[str, Any]],
    output: Format,
    output_file: Path | None,
    folder: Path | None,
    form: StructureFormat,
    *,
    novel: bool,
) -> None:
    """Write the list and, into a folder, one file each; warnings go to standard error.

    Crystals of the language model are compared with known ones unless `novel`: then known ones were left out before.

    Raises:
        ValueError: the folder holds other crystals, the list cannot be written there, or none of the crystals could be
            relaxed, as the list then says.
    """
    _print_warnings(results)
    if "energy" not in results[0]:  # relaxed ones are compared by their hull
        results = results if novel else _with_known(results)
        _print_order([result for result in results if result["source"].startswith("known")])
    if about := results[0].get("energy_of"):
        caveat = "" if "energy" in results[0] else ": a hint, no ranking of stability"
        print(f"hf-crystal: e_above_hull is of {about}{caveat}", file=sys.stderr)
        if some := [result for result in results if (result["e_above_hull"] or 0.0) > _FAR]:
            first = f"the first {some[0]['source']} of {some[0]['space_group']}"
            print(
                f"hf-crystal: {len(some)} of {len(results)}, {first}: more than {_FAR:g} eV/atom above the hull",
                file=sys.stderr,
            )
    files = [None] * len(results) if folder is None else write_structures(folder, results, form)
    more = [name for name in _MORE_COLUMNS if name in results[0]] if output != "table" else []
    is_empty = output == "table" and all(result["known_e_above_hull"] is None for result in results)
    shown = [name for name in _COLUMNS if not is_empty or name != "known_e_above_hull"]
    columns = [*shown, *(name for name in _ADDED if name in results[0]), "file", *more]
    with open_writer(output, output_file, columns, _TYPES) as writer:
        for file, result in zip(files, results, strict=True):
            size = {"num_atoms": len(result["structure"]), "volume": float(result["structure"].volume)}
            row = {**result, **size, "file": file}
            writer.write({name: row[name] for name in columns})
    if folder is not None:
        announce_written(f"{folder} ({len(files)} {form} file{'s' * (len(files) != 1)})")
    if all(result.get("energy", 0.0) is None for result in results):
        reason = next(text for text in results[0]["warnings"] if text.startswith("not relaxed"))
        raise ValueError(f"none of {len(results)} crystals could be relaxed: {reason}")


def _print_warnings(results: list[dict[str, Any]]) -> None:
    """Each warning once, with the crystals that have it where not all do."""
    doubtful: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        for warning in result["warnings"]:
            doubtful.setdefault(warning, []).append(result)
    for warning, some in list(doubtful.items())[:_MOST_WARNINGS]:
        more = f" and {len(some) - 1} more" * (len(some) > 1)
        is_named = len(some) == len(results) or warning.startswith(some[0]["source"])
        whose = "" if is_named else f"{some[0]['source']} of {some[0]['space_group']}{more}: "
        print(f"hf-crystal: warning: {whose}{warning}", file=sys.stderr)
    if len(doubtful) > _MOST_WARNINGS:
        print(f"hf-crystal: {len(doubtful) - _MOST_WARNINGS} more warnings: see --output json", file=sys.stderr)


def _print_order(known: list[dict[str, Any]]) -> None:
    """What known crystals are sorted by."""
    if not known:
        return
    order = "known crystals are in the order of their PBE energies: where these are close, nature's may be another"
    guessed = [result["source"] for result in known if result["known_e_above_hull"] is None]
    if guessed:
        which = f"{guessed[0]}{f' and {len(guessed) - 1} more' * (len(guessed) > 1)}"
        order += f"; {which} without a calculated distance from the hull mostly by a predicted energy"
    print(f"hf-crystal: {order}", file=sys.stderr)


def _with_known(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results in which a known crystal of the language model has a warning; a line on standard error counts them."""
    from ..candidates import equal_known

    marked, names = [], []
    for result in results:
        known = None
        if result["source"] == "model":
            with contextlib.suppress(ValueError):  # atoms that collide: nothing known is like that
                known = equal_known(result)
        if known:
            names.append(f"{result['formula']} of {result['space_group']} is {known}")
            note = f"no new crystal: StructureMatcher takes it for {known}"
            result = {**result, "warnings": [*result["warnings"], note]}
        marked.append(result)
    if names:
        drawn = sum(result["source"] == "model" for result in results)
        print(
            f"hf-crystal: {len(names)} of {drawn} crystals of the language model are known ones by StructureMatcher, "
            f"the first: {names[0]}",
            file=sys.stderr,
        )
    return marked


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


def folder_in_use(folder: Path, others: list[Path], again: bool = True) -> ValueError:
    """The error for a folder with crystals of another call; `again`: the same call may write them again."""
    crystals = f"{len(others)} other crystal{'s' * (len(others) != 1)}"
    return ValueError(
        f"--output-dir {folder} holds {crystals}, the first is {others[0].name}; accepted: a new or empty folder"
        f"{', or the same call with the same --seed again' * again}"
    )


def _text(result: dict[str, Any], form: StructureFormat) -> str:
    if form == "cif":
        return str(result["cif"])
    if form == "poscar":  # elements in the order of the title, by electronegativity
        return str(result["structure"].get_sorted_structure().to(fmt="poscar"))
    return _extended_xyz(result)


def _extended_xyz(result: dict[str, Any]) -> str:
    structure = result["structure"]
    lattice = " ".join(f"{value:.8f}" for value in structure.lattice.matrix.ravel())
    about = f'Lattice="{lattice}" Properties=species:S:1:pos:R:3 pbc="T T T" space_group="{result["space_group"]}"'
    if result["log_likelihood"] is not None:
        about += f" log_likelihood={result['log_likelihood']:.6f}"
    atoms = [f"{site.specie.symbol} " + " ".join(f"{value:.8f}" for value in site.coords) for site in structure]
    return "\n".join([str(len(structure)), about, *atoms]) + "\n"
