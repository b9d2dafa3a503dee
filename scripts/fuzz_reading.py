"""Damaged crystal files: does each end in a crystal, a crystal with a warning, or a named reason?

Seeds are the files of `examples/`, written again by pymatgen as CIF with and without symmetry (which gives the formula
that damage is compared with), POSCAR, extended XYZ and JSON, and the files of `messy_structures.zip` where
`--data-dir` has it. Each mutant is read alone in a process with limits of time and memory.

    python scripts/fuzz_reading.py --count 7500 --data-dir ../shared

Counted are crystals, crystals with a warning, reasons, and faults: exceptions that no reader foresaw, 10 s, 1 GB, a
crystal that contradicts the formula in its own text without a warning, and content of a file that a mutant only
named. The last line of the output is JSON; exit code 1 where there is a fault.
"""

import argparse
import json
import os
import random
import re
import resource
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from hf_crystal.evaluation.pools import JobPool

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SECONDS, BYTES = 10.0, 1 << 30
_AT_ONCE = 250  # mutants in memory
SECRET = "kxqzwv"
PLANTED = f"{SECRET}\n3.0\n1 0 0\n0 1 0\n0 0 1\nOg\n1\nDirect\n0 0 0\n"  # no seed holds Og
GOOD = ("crystal", "crystal with warning", "reason")

Mutation = Callable[[random.Random, bytes, str], bytes]


def seeds(data_dir: Path | None) -> list[tuple[str, bytes]]:
    """Suffix and content of undamaged files."""
    from hf_crystal.crystals.reading import as_record, record_to_structure

    found: list[tuple[str, bytes]] = []
    for path in sorted(EXAMPLES.glob("*.cif")):
        record = as_record(path)
        structure = record_to_structure(record)
        cell = " ".join(map(str, record.cell.ravel().tolist()))
        atoms = [
            f"{site.specie.symbol} " + " ".join(f"{x:.6f}" for x in site.coords) for site in structure
        ]  # as `hf-crystal generate` writes them
        frame = "\n".join([str(len(atoms)), f'Lattice="{cell}" Properties=species:S:1:pos:R:3 pbc="T T T"', *atoms])
        plain = {key: value.tolist() for key, value in dict(record).items()}
        texts = {
            "a.cif": path.read_text(),
            "b.cif": structure.to(fmt="cif"),
            "c.cif": structure.to(fmt="cif", symprec=0.01),
            "d.vasp": structure.to(fmt="poscar"),
            "e.xyz": frame + "\n",
            "f.json": json.dumps(structure.as_dict()),
            "g.json": json.dumps({"id": path.stem, "structure": plain}),
        }
        found += [(name, text.encode()) for name, text in texts.items()]
    found *= 4  # the messy ones are many, and many of them are refused undamaged
    messy = None if data_dir is None else data_dir / "data" / "messy_structures.zip"
    if messy is not None and messy.is_file():
        with zipfile.ZipFile(messy) as archive:
            names = [item.filename for item in archive.infolist() if item.file_size < 100_000]
            found += [(f"m-{name}", archive.read(name) or b"\n") for name in names if name != "manifest.csv"]
    return found


# ------------------------------------------------------------------------------------------------------- mutations


def _cut(rng: random.Random, data: bytes, _: str) -> bytes:
    return data[: rng.randrange(len(data))]


def _flip(rng: random.Random, data: bytes, _: str) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _lines(rng: random.Random, data: bytes, _: str) -> bytes:
    """One or some lines deleted, repeated, moved, or repeated very often."""
    lines = data.splitlines(True)
    start = rng.randrange(len(lines))
    end = start + rng.choice((1, 1, 1, 2, 10))
    kind = rng.randrange(4)
    if kind == 0:
        return b"".join(lines[:start] + lines[end:])
    if kind == 1:
        return b"".join(lines[:end] + lines[start:])
    if kind == 2:
        lines[start], lines[end % len(lines)] = lines[end % len(lines)], lines[start]
        return b"".join(lines)
    repeated = lines[start : start + 1] * min(rng.choice((100, 20_000)), 1 + (1 << 20) // len(lines[start]))
    return b"".join(lines[:start] + repeated + lines[start + 1 :])


NUMBERS = b"0 1 -1 2 1e9 1e300 1e-300 nan inf -inf 0x10 1_0 ? . 1/3 0.5d0 1e 0.5(3 \xc2\xb2 \xd9\xa4".split()


def _number(rng: random.Random, data: bytes, _: str) -> bytes:
    places = list(re.finditer(rb"-?\d+\.?\d*", data))
    if not places:
        return data + b"1"
    place = rng.choice(places)
    new = rng.choice((*NUMBERS, b"9" * 5000, b"1" + place[0], place[0][:-1]))
    return data[: place.start()] + new + data[place.end() :]


def _word(rng: random.Random, data: bytes, _: str) -> bytes:
    """One word replaced by another of the file, or by a sign of the format."""
    places = list(re.finditer(rb"[^\s,{}\[\]]+", data))
    if not places:
        return data + b"x"
    place = rng.choice(places)
    signs = (b"loop_", b"data_x", b";", b"'", b'"', b"#", b"{", b"[", b"", b"X", b"OH", b"D", b"\x00", b"save_a")
    new = rng.choice((rng.choice(places)[0], rng.choice(signs)))
    return data[: place.start()] + new + data[place.end() :]


def _encoding(rng: random.Random, data: bytes, _: str) -> bytes:
    text = data.decode("latin-1")
    return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "cp037", "utf-16-le", "utf-7")))


def _blanks(rng: random.Random, data: bytes, _: str) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + rng.choice((b"\n", b" \n", b"\r", b" ", b"(", b"[", b"'\n;")) * 30_000 + data[place:]


def _planted(rng: random.Random, data: bytes, planted: str) -> bytes:
    """Text that names a file, where a value or the whole crystal was."""
    name = rng.choice((planted, f"file://{planted}", "/dev/zero", "/proc/self/environ"))
    key = rng.choice(("structure", "cif", "atoms", "poscar", "crystal", "file"))
    documents = (json.dumps({key: name}), json.dumps([{key: json.dumps({"cif": name})}]), name + "\n")
    if rng.random() < 0.5:
        return rng.choice(documents).encode()
    return _word(rng, data, planted).replace(b"'", f"'{name}".encode(), 1)


def _nested(rng: random.Random, data: bytes, _: str) -> bytes:
    start = data[: rng.choice((0, 0, 10))]
    depth = rng.choice((3, 50, 490, 5000))
    key = rng.choice((b"structure", b"lattice", b"sites", b"matrix"))
    return start + b'{"' + key + b'": ' + (b'{"matrix": ' * depth) + b"1" + b"}" * depth + b"}"


def _joined(rng: random.Random, data: bytes, _: str) -> bytes:
    return data + rng.choice((data, b"garbage\n", b"\x1f\x8b\x08", b"\x00" * 100, data[: len(data) // 2]))


MUTATIONS: tuple[Mutation, ...] = (
    _cut, _cut, _flip, _lines, _lines, _number, _number, _word, _word, _encoding, _blanks, _planted, _nested, _joined,
)  # fmt: skip


# --------------------------------------------------------------------------------------------------------- outcome


def contradiction(text: str, numbers: list[int]) -> bool:
    """Whether a CIF of one block states another composition than the atoms have, without the reader's code."""
    from hf_crystal.crystals.record import CHEMICAL_SYMBOLS

    found = re.findall(r"^_chemical_formula_sum[ \t]+(?:'([^'\n]+)'|([A-Za-z0-9]+))[ \t]*$", text, re.M)
    words = "".join(found[0]).split() if len(found) == 1 and text.count("data_") == 1 else []
    matches = [re.fullmatch(r"([A-Z][a-z]?)(\d{0,6})", word) for word in words]
    if not matches or not all(match and match[1] in CHEMICAL_SYMBOLS for match in matches):
        return False
    stated: Counter[str] = Counter()
    for match in filter(None, matches):
        stated[match[1]] += int(match[2] or 1)
    read = Counter(CHEMICAL_SYMBOLS[number] for number in numbers)
    units = re.findall(r"^_cell_formula_units_Z[ \t]+([1-9]\d{0,3})[ \t]*$", text, re.M)
    if len(units) == 1 and read.total() not in (stated.total(), stated.total() * int(units[0])):
        return True
    return any(stated[s] * read.total() != read[s] * stated.total() for s in {*stated, *read})


def limit_memory() -> None:
    """Load what readers need, then cap the address space of this process."""
    import ase.io  # noqa: F401
    import gemmi  # noqa: F401
    import moyopy  # noqa: F401

    from hf_crystal.crystals.reading import as_record

    as_record(EXAMPLES / "Si.cif")
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, size + BYTES))


def read(job: tuple[str, bytes]) -> tuple[str, str]:
    """Kind of outcome of one mutant, and what tells about it."""
    from hf_crystal.crystals.formats import decode_text
    from hf_crystal.crystals.reading import as_record
    from hf_crystal.crystals.record import CrystalInputError

    name, data = job
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(data)
        try:
            record = as_record(path)
        except CrystalInputError as error:
            if SECRET in error.reason:
                return "foreign content", error.reason
            if "(MemoryError)" in error.reason:
                return "over 1 GB", error.reason
            return ("unforeseen" if "cannot be read (" in error.reason else "reason"), error.reason
    if 118 in record.atomic_numbers.tolist():
        return "foreign content", record.formula
    if record.warnings:
        return "crystal with warning", record.warnings[0]
    if path.suffix == ".cif" and contradiction(decode_text(data), record.atomic_numbers.tolist()):
        return "atoms against the formula", record.formula
    return "crystal", record.formula


def mutants(numbers: range, seed: int, planted: str, files: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Names and contents of damaged files; the same for the same arguments."""
    made = []
    for number in numbers:
        rng = random.Random(f"{seed} {number}")
        name, data = rng.choice(files)
        mutation = rng.choice(MUTATIONS)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            data = mutation(rng, data, planted) or b"\n"
        made.append((f"{number}-{mutation.__name__[1:]}-{name}", data))
    return made


def main(args: argparse.Namespace) -> int:
    """Print counts and the faults; the last line is JSON."""
    with tempfile.TemporaryDirectory() as folder:
        planted = Path(folder, "planted.vasp")
        planted.write_text(PLANTED)
        os.environ["PLANTED"] = SECRET  # in /proc/self/environ of the processes
        files, counts = seeds(args.data_dir), Counter[str]()
        with JobPool(read, prepare=limit_memory, num_workers=args.workers, time_limit=SECONDS) as pool:
            for start in range(0, args.count, _AT_ONCE):
                numbers = range(start, min(start + _AT_ONCE, args.count))
                jobs = mutants(numbers, args.seed, str(planted), files)
                for (name, data), outcome in zip(jobs, pool.run(jobs), strict=True):
                    late = "over 10 s" if outcome.failure == "timeout" else f"bare {outcome.failure}"
                    kind, about = outcome.value or (late, str(outcome.reason))
                    counts[kind] += 1
                    if kind not in GOOD:
                        print(f"{kind}: {name}: {about[:160]}", flush=True)
                        if args.keep is not None:
                            args.keep.mkdir(parents=True, exist_ok=True)
                            (args.keep / name).write_bytes(data)
    print(json.dumps({"mutants": counts.total(), "seed": args.seed, **counts}))
    return int(sum(counts[kind] for kind in GOOD) < counts.total())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=7500, help="mutants")
    parser.add_argument("--data-dir", type=Path, help="folder with data/messy_structures.zip")
    parser.add_argument("--keep", type=Path, help="write the mutants with faults into this folder")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(main(parser.parse_args()))
