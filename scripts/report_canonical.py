# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Measure canonical crystals on real data: uniqueness, noise, completeness, idempotence, distinctness, length, speed.

Unique: share of crystals (per cent) all of whose random descriptions give the sequence of the original (rotation,
origin, unimodular cell, supercell, order, left-handed axes; every third in a random setting of its space group).
Noise: all noisy descriptions give one sequence. Matched: the decoded crystal equals the original by
`StructureMatcher(ltol=0.01, stol=0.02, angle_tol=0.5, scale=False)`; where pymatgen's own search for a primitive cell
(tolerance 0.25 Å) leaves the two with different cells, both primitive cells are compared as they are. Moved:
displacement of sites, Å, 99th percentile over all sites and the largest per crystal at its 99th percentile.

The second table counts pairs that must differ and do: mirror images of chiral crystals (and, the other way round,
mirror images of achiral ones that must be equal), 1 % of strain along one axis, two species swapped (left out where a
structure matcher says that this is the same crystal), one atom moved by 0.1 Å.

    python scripts/report_canonical.py --data ../shared/data --limit 500 --noise 1e-8 1e-6 1e-5 1e-4
"""

import argparse
import concurrent.futures
import functools
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas

from hf_crystal.evaluation.descriptions import alternative_setting, random_description
from hf_crystal.mat2seq.canonical_start import primitive_cell
from hf_crystal.mat2seq.canonicalize import CanonicalCrystal, CanonicalSettings, canonicalize
from hf_crystal.mat2seq.sequence_text import write_tokens
from hf_crystal.mat2seq.space_groups import space_group

if TYPE_CHECKING:
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

SETS = {
    "mp_20": "test",
    "perov_5": "test",
    "carbon_24": "test",
    "mpts_52": "test",
    "unlabelled_oqmd_alexandria_mp": None,
}
KINDS = ("chiral", "achiral", "strained", "swapped", "atom moved")


@dataclass
class Verdict:
    """What one crystal showed."""

    name: str
    unique: bool = True
    noise: dict[float, bool] = field(default_factory=dict)
    matched: bool | None = None
    idempotent: bool = True
    moved: list[float] = field(default_factory=list)
    distinct: dict[str, bool] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
    error: str | None = None


def read_records(folder: Path, name: str, split: str | None, limit: int | None) -> list[dict]:
    """Crystals of a data set as records; a seeded sample where there are more than `limit`."""
    table = pandas.read_parquet(folder / f"{name}.parquet")
    if split is not None:
        table = table[table.split == split]
    if limit is not None and limit < len(table):
        table = table.sample(limit, random_state=0)
    return [
        {
            "cell": np.array(row.lattice, dtype=float).reshape(3, 3),
            "frac_coords": np.array(row.frac_coords, dtype=float).reshape(-1, 3),
            "atomic_numbers": np.array(row.atomic_numbers, dtype=np.int64),
            "name": str(getattr(row, "material_id", index)),
        }
        for index, row in enumerate(table.itertuples())
    ]


def space_group_records(per_group: int) -> list[dict]:
    """Made-up crystals written in every space-group type."""
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "mat2seq"))
    from mat2seq_crystals import random_crystal

    generator = np.random.default_rng(0)
    settings = CanonicalSettings.preset("fine")
    records = []
    for number in range(1, 231):
        for index in range(per_group):
            record = dict(random_crystal(number, generator, settings).to_record())
            records.append({**record, "name": f"{space_group(number).symbol} {index}"})
    return records


def examine(
    settings: CanonicalSettings,
    descriptions: int,
    noise: list[float],
    noise_limit: int | None,
    match: bool,
    job: tuple[int, dict],
) -> Verdict:
    """All measurements of one crystal."""
    seed, record = job
    verdict = Verdict(record["name"])
    generator = np.random.default_rng(seed)
    begin = time.process_time()
    try:
        crystal = canonicalize(record, settings=settings)
    except ValueError as error:
        verdict.error = str(error)
        return verdict
    verdict.seconds = time.process_time() - begin
    verdict.tokens = len(write_tokens(crystal)) + 2
    for index in range(descriptions):
        base = alternative_setting(record, generator) if index % 3 == 2 else record
        if canonicalize(random_description(base, generator), settings=settings) != crystal:
            verdict.unique = False
    verdict.distinct = tell_apart(record, crystal, generator)
    for level in noise if noise_limit is None or seed < noise_limit else []:
        noisy = (random_description(record, generator, noise=level) for _ in range(descriptions))
        found = [canonicalize(one, settings=settings) for one in noisy]
        verdict.noise[level] = len(set(found)) <= 1
    decoded = crystal.to_structure()
    verdict.idempotent = canonicalize(decoded, settings=settings) == crystal
    if match:
        verdict.matched, verdict.moved = compare(record, decoded)
    return verdict


def tell_apart(record: dict, crystal: CanonicalCrystal, generator: np.random.Generator) -> dict[str, bool]:
    """Whether other crystals get other sequences, and a mirror image the same one where it is the same crystal."""
    cell, numbers = np.asarray(record["cell"]), np.asarray(record["atomic_numbers"])

    def same(**changes: np.ndarray) -> bool:
        return canonicalize({**record, **changes}, settings=crystal.settings) == crystal

    chiral = (np.linalg.det(space_group(crystal.space_group).rotations) > 0).all()
    mirrored = same(cell=cell * np.array([1.0, 1.0, -1.0]))
    axis = cell[0] / np.linalg.norm(cell[0])
    strained = cell + 0.01 * np.outer(cell @ axis, axis)
    found = {"chiral" if chiral else "achiral": mirrored != chiral, "strained": not same(cell=strained)}
    elements = np.unique(numbers)
    if len(elements) > 1:
        first, second = generator.choice(elements, size=2, replace=False)
        swapped = np.where(numbers == first, second, np.where(numbers == second, first, numbers))
        if not same_by_matcher(record, {**record, "atomic_numbers": swapped}):
            found["swapped"] = not same(atomic_numbers=swapped)
    if len(numbers) > 1:
        step = generator.normal(size=3)
        frac = np.array(record["frac_coords"])
        frac[generator.integers(len(frac))] += 0.1 * step / np.linalg.norm(step) @ np.linalg.inv(cell)
        found["atom moved"] = not same(frac_coords=frac)
    return found


def same_by_matcher(first: dict, second: dict) -> bool:
    """Whether two crystals of the same cell may be one; different counts are told apart without the matcher."""
    counts = [dict(zip(*np.unique(r["atomic_numbers"], return_counts=True), strict=True)) for r in (first, second)]
    return counts[0] == counts[1] and matcher().fit(as_pymatgen(first), as_pymatgen(second))


def matcher(**changes: object) -> "StructureMatcher":
    """Matcher of pymatgen with the tolerances of this report."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(**{"ltol": 0.01, "stol": 0.02, "angle_tol": 0.5, "scale": False, **changes})


def as_pymatgen(record: dict) -> "Structure":
    """A record as pymatgen's `Structure`."""
    from pymatgen.core import Lattice, Structure

    return Structure(Lattice(record["cell"]), record["atomic_numbers"], record["frac_coords"])


def compare(record: dict, decoded: "Structure") -> tuple[bool, list[float]]:
    """Tight match, and the displacement of each site (empty where the cells hold different numbers of atoms)."""
    original = as_pymatgen(record)
    if not matcher().fit(original, decoded):
        cell, frac, numbers = primitive_cell(record["cell"], record["frac_coords"], record["atomic_numbers"])
        original = as_pymatgen({"cell": cell, "frac_coords": frac, "atomic_numbers": numbers})
        if not matcher(primitive_cell=False).fit(original, decoded):
            return False, []
    if len(original) != len(decoded):
        return True, []
    aligned = matcher(primitive_cell=False).get_s2_like_s1(original, decoded)
    if aligned is None:
        return True, []
    delta = aligned.frac_coords - original.frac_coords
    delta -= np.rint(delta)
    delta -= delta.mean(axis=0)
    return True, np.linalg.norm(delta @ original.lattice.matrix, axis=1).tolist()


def summarize(name: str, verdicts: list[Verdict], noise: list[float]) -> str:
    """One row of the table."""
    good = [v for v in verdicts if v.error is None]

    def share(values: list[bool]) -> str:
        return f"{100 * np.mean(values):.2f}" if values else "-"

    sites = np.concatenate([v.moved for v in good if v.moved] or [[np.nan]])
    largest = [max(v.moved) for v in good if v.moved] or [np.nan]
    cells = [name, str(len(verdicts)), str(len(verdicts) - len(good)), share([v.unique for v in good])]
    cells += [share([v.noise[level] for v in good if level in v.noise]) for level in noise]
    cells += [share([v.matched for v in good if v.matched is not None]), share([v.idempotent for v in good])]
    cells += [f"{np.percentile(sites, 99):.4f}", f"{np.percentile(largest, 99):.4f}"]
    cells += [f"{np.mean([v.tokens for v in good]):.1f}", str(max(v.tokens for v in good))]
    cells.append(f"{len(good) / sum(v.seconds for v in good):.0f}")
    return "| " + " | ".join(cells) + " |"


def count_distinct(name: str, verdicts: list[Verdict]) -> str:
    """One row of the second table: right of tried."""
    cells = [name]
    for kind in KINDS:
        tried = [v.distinct[kind] for v in verdicts if kind in v.distinct]
        cells.append(f"{sum(tried)} of {len(tried)}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table and the crystals that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the parquet files")
    parser.add_argument("--sets", nargs="+", default=[*SETS, "space_groups"], choices=[*SETS, "space_groups"])
    parser.add_argument("--limit", type=int, default=None, help="crystals per data set; all by default")
    parser.add_argument("--per-group", type=int, default=10, help="made-up crystals per space-group type")
    parser.add_argument("--descriptions", type=int, default=5)
    parser.add_argument("--noise", type=float, nargs="*", default=[], help="standard deviations, Å")
    parser.add_argument("--noise-limit", type=int, default=None, help="crystals per set described with noise")
    parser.add_argument("--preset", default="default", choices=["default", "fine", "mid"])
    parser.add_argument("--symprec", type=float, default=0.01)
    parser.add_argument("--no-match", action="store_true", help="leave out the slow structure matcher")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    settings = CanonicalSettings.preset(options.preset, symprec=options.symprec)
    print(f"settings: {settings}; {options.descriptions} descriptions each")
    heads = ["set", "crystals", "refused", "unique", *(f"noise {level:g}" for level in options.noise)]
    heads += ["matched", "idempotent", "moved p99", "largest p99", "tokens", "most", "crystals/s"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads), flush=True)
    failures, distinct = [], []
    for name in options.sets:
        if name == "space_groups":
            records = space_group_records(options.per_group)
        else:
            records = read_records(options.data, name, SETS[name], options.limit)
        work = functools.partial(examine, settings, options.descriptions, options.noise, options.noise_limit,
                                 not options.no_match)  # fmt: skip
        if options.workers > 1:
            with concurrent.futures.ProcessPoolExecutor(options.workers) as pool:
                verdicts = list(pool.map(work, enumerate(records), chunksize=16))
        else:
            verdicts = [work(job) for job in enumerate(records)]
        print(summarize(name, verdicts, options.noise), flush=True)
        distinct.append(count_distinct(name, verdicts))
        for v in verdicts:
            wrong = [kind for kind, right in v.distinct.items() if not right]
            if v.error or not v.unique or v.matched is False or not v.idempotent or wrong:
                failures.append(f"{name} {v.name}: {v.error or ''} unique={v.unique} matched={v.matched} "
                                f"idempotent={v.idempotent} not told apart: {wrong}")  # fmt: skip
    print("\n| set | " + " | ".join(KINDS) + " |\n|" + "---|" * (1 + len(KINDS)))
    print("\n".join(distinct))
    print("\n".join(failures) or "no crystal failed")


if __name__ == "__main__":
    main()
