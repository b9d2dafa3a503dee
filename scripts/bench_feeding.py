"""How fast crystals become batches, and what share of a prediction that is.

Question: how many crystals per second and core go from a table of Arrow rows, and from CIF text, to the padded batch
that an encoder reads, and through the neighbor search that every encoder starts with; how much of `hf-crystal
predict` is spent on that; and what worker processes bring. Held fixed: random MP-20 crystals, batches of 128, float32,
the neighbor search of the embedded `crystalformer-mp20`, one thread.

CIF text is what pymatgen writes, once without symmetry (P1) and once with its operations; it is read as the package
does, and by pymatgen's `CifParser` (`check_cif=False`), the former reader, in the same run. Bounds: the rate wanted,
and for Arrow rows the time that a copy of the same arrays takes.

    OMP_NUM_THREADS=1 python scripts/bench_feeding.py --data-dir ../shared

The last line of the output is JSON.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarking import Report, measure

from hf_crystal.crystals.record import CRYSTAL_COLUMNS

BATCH = 128
ROWS_WANTED, CIFS_WANTED = 5000, 400  # crystals/s per core
TIMES_WANTED = 3  # the rate of the former reader


def batches_of(items: list[Any], size: int = BATCH) -> list[list[Any]]:
    """Lists of at most `size` items."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def neighbor_search(config: Any, batch: Any) -> None:
    """The edge list that the encoder starts with: all periodic images within its cut-off."""
    from hf_crystal.encoders.ops_periodic_geometry import pack_atoms, radius_edges

    atoms = pack_atoms(batch["attention_mask"])
    positions = batch["positions"][atoms.crystal, atoms.slot]
    radius_edges(positions, batch["cell"], atoms, config.cutoff_sigmas * config.largest_real_sigma)


def measure_rows(report: Report, table: Any, extractor: Any, config: Any, repeats: int) -> None:
    """Arrow rows → batch → neighbors, together and apart."""
    count = table.num_rows

    def read() -> list[Any]:
        return [extractor(part) for part in batches_of(table.to_pylist())]

    rows = batches_of(table.to_pylist())
    batches = [extractor(part) for part in rows]
    arrays = [values.numpy() for batch in batches for values in batch.data.values()]
    bound = count / measure(lambda: [array.copy() for array in arrays], repeats).median
    report.add_rate("Arrow rows → Python rows", count, measure(table.to_pylist, repeats), "crystals/s")
    report.add_rate(
        "Arrow rows → batch, without neighbor search",
        count,
        measure(read, repeats),
        "crystals/s",
        bound=bound,
        bound_name="copy of the batch's arrays",
    )
    report.add_rate(
        "neighbor search",
        count,
        measure(lambda: [neighbor_search(config, b) for b in batches], repeats),
        "crystals/s",
    )
    report.add_rate(
        "Arrow rows → batch → neighbors",
        count,
        measure(lambda: [neighbor_search(config, batch) for batch in read()], repeats),
        "crystals/s",
        bound=ROWS_WANTED,
        bound_name="wanted",
    )


def former_reader(text: str) -> Any:
    """Structure of a CIF as pymatgen's parser reads it, which the package used before gemmi."""
    from pymatgen.io.cif import CifParser

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CifParser.from_str(text, check_cif=False).parse_structures(primitive=False)[0]


def measure_cifs(report: Report, kind: str, texts: list[str], extractor: Any, config: Any, repeats: int) -> None:
    """CIF text → batch, beside the former reader in the same run; and → neighbors."""
    count = len(texts)
    former = measure(lambda: [extractor([former_reader(t) for t in part]) for part in batches_of(texts)], repeats)
    present = measure(lambda: [extractor(part) for part in batches_of(texts)], repeats)
    whole = measure(lambda: [neighbor_search(config, extractor(part)) for part in batches_of(texts)], repeats)
    report.add_rate(f"CIF ({kind}) → batch, pymatgen's parser", count, former, "crystals/s")
    report.add_rate(f"CIF ({kind}) → batch", count, present, "crystals/s")
    ratio = former.median / present.median
    report.add(f"CIF ({kind}) → batch, × pymatgen's parser", ratio, "", bound=TIMES_WANTED, bound_name="wanted")
    name = f"CIF ({kind}) → batch → neighbors"
    report.add_rate(name, count, whole, "crystals/s", bound=CIFS_WANTED, bound_name="wanted")


def measure_share(report: Report, name: str, sources: list[Any], model: str, repeats: int) -> None:
    """Share of reading, and of the neighbor search, in the pipeline that `hf-crystal predict` runs."""
    from hf_crystal.loading import load_property_pipeline

    pipe = load_property_pipeline(model, "cpu")
    config, count = pipe.model.config, len(sources)
    whole = measure(lambda: list(pipe(iter(sources), batch_size=64)), repeats)
    extract = pipe.feature_extractor.extract_all
    read = measure(lambda: [extract(part) for part in batches_of(sources, 64)], repeats)
    items = sorted(extract(sources), key=lambda item: -len(item["atomic_numbers"]))
    batches = [pipe.feature_extractor.pad(part) for part in batches_of(items, 64)]
    search = measure(lambda: [neighbor_search(config, batch) for batch in batches], repeats)
    report.add_rate(f"predict, {name}", count, whole, "crystals/s")
    report.add(f"predict, {name}: share of reading", 100 * read.median / whole.median, "%")
    report.add(f"predict, {name}: share of the neighbor search", 100 * search.median / whole.median, "%")


def measure_workers(report: Report, paths: list[Path], model: str, repeats: int) -> None:
    """What `predict` on CIF files costs the process that computes, while it reads itself and while others read."""
    from hf_crystal.loading import load_property_pipeline

    pipe = load_property_pipeline(model, "cpu")
    for workers in (0, 2):
        read = measure(lambda workers=workers: list(pipe(iter(paths), batch_size=64, num_workers=workers)), repeats)
        name = f"predict, CIF files, {workers} workers: CPU time of the main process"
        report.add_rate(name, len(paths), read, "crystals/s")


def main(args: argparse.Namespace) -> int:
    """Print all figures; the last line is JSON."""
    import numpy as np
    import pyarrow.parquet as pq
    from pymatgen.io.cif import CifWriter

    from hf_crystal import AutoModelForCrystalPropertyPrediction, CrystalFeatureExtractor
    from hf_crystal.checkpoints import checkpoint_folder
    from hf_crystal.crystals.reading import record_to_structure

    table = pq.read_table(args.data_dir / "data" / "mp_20.parquet", columns=list(CRYSTAL_COLUMNS))
    chosen = np.random.default_rng(args.seed).choice(len(table), args.num_rows, replace=False)
    table = table.take(chosen).combine_chunks()
    rows = table.to_pylist()
    atoms = float(np.mean([len(row["atomic_numbers"]) for row in rows]))
    config = AutoModelForCrystalPropertyPrediction.from_pretrained(checkpoint_folder(args.model)).config
    settings = {"data": "mp_20", "rows": args.num_rows, "cifs": args.num_cifs, "atoms_per_crystal": atoms}
    report = Report("feeding", {**settings, "batch": BATCH, "model": args.model, "repeats": args.repeats})
    extractor = CrystalFeatureExtractor()
    measure_rows(report, table, extractor, config, args.repeats)
    structures = [record_to_structure(row) for row in rows[: args.num_cifs]]
    kinds: dict[str, Callable[[Any], str]] = {
        "P1": lambda structure: str(CifWriter(structure)),
        "symmetry": lambda structure: str(CifWriter(structure, symprec=0.01)),
    }
    texts = {kind: [write(structure) for structure in structures] for kind, write in kinds.items()}
    for kind, some in texts.items():
        measure_cifs(report, kind, some, extractor, config, args.repeats)
    measure_share(report, "Arrow rows", rows[: args.num_cifs], args.model, args.repeats)
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(texts["symmetry"]):
            Path(folder, f"{number:04d}.cif").write_text(text)
        paths = sorted(Path(folder).iterdir())
        measure_share(report, "CIF files", paths, args.model, args.repeats)
        measure_workers(report, paths, args.model, args.repeats)
    report.finish()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with data/mp_20.parquet")
    parser.add_argument("--model", default="crystalformer-mp20", help="embedded checkpoint")
    parser.add_argument("--num-rows", type=int, default=2048, help="rows of the table")
    parser.add_argument("--num-cifs", type=int, default=128, help="of which written as CIF and predicted")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(main(parser.parse_args()))
