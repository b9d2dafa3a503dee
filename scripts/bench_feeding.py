"""How fast crystals become batches, and what share of a prediction that is.

Question: how many crystals per second and core go from a table of Arrow rows, and from CIF text, to the padded batch
that an encoder reads, and through the neighbour search that every encoder starts with; how much of `hf-crystal
predict` is spent on that; and what worker processes bring. Held fixed: random MP-20 crystals, batches of 128, float32,
the neighbour search of the embedded `crystalformer-mp20`, one thread.

CIF text is what pymatgen writes, once without symmetry (P1) and once with its operations. "Excluding the parser"
takes away the time of pymatgen's `CifFile` and `CifParser` on the same text, measured apart. Bounds: the rate wanted,
and for Arrow rows the time that a copy of the same arrays takes.

    OMP_NUM_THREADS=1 python scripts/bench_feeding.py --data-dir ../shared

The last line of the output is JSON.
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarking import Report, Timing, measure

BATCH = 128
COLUMNS = ["lattice", "frac_coords", "atomic_numbers"]
ROWS_WANTED, CIFS_WANTED = 5000, 400  # crystals/s per core


def minus(whole: Timing, part: Timing) -> Timing:
    """What is left of a time without one of its parts; spreads of independent times add in squares."""
    return Timing(whole.median - part.median, (whole.spread**2 + part.spread**2) ** 0.5)


def batches_of(items: list[Any], size: int = BATCH) -> list[list[Any]]:
    """Lists of at most `size` items."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def neighbour_search(config: Any, batch: Any) -> None:
    """The edge list that the encoder starts with: all periodic images within its cut-off."""
    from hf_crystal.models.ops_periodic_geometry import pack_atoms, radius_edges

    atoms = pack_atoms(batch["attention_mask"])
    positions = batch["positions"][atoms.crystal, atoms.slot]
    radius_edges(positions, batch["cell"], atoms, config.cutoff_sigmas * config.largest_real_sigma)


def measure_rows(report: Report, table: Any, extractor: Any, config: Any, repeats: int) -> None:
    """Arrow rows → batch → neighbours, together and apart."""
    count = table.num_rows

    def read() -> list[Any]:
        return [extractor(part) for part in batches_of(table.to_pylist())]

    rows = batches_of(table.to_pylist())
    batches = [extractor(part) for part in rows]
    arrays = [values.numpy() for batch in batches for values in batch.data.values()]
    bound = count / measure(lambda: [array.copy() for array in arrays], repeats).median
    report.add_rate("Arrow rows → Python rows", count, measure(table.to_pylist, repeats), "crystals/s")
    report.add_rate(
        "Arrow rows → batch, without neighbour search",
        count,
        measure(read, repeats),
        "crystals/s",
        bound=bound,
        bound_name="copy of the batch's arrays",
    )
    report.add_rate(
        "neighbour search",
        count,
        measure(lambda: [neighbour_search(config, b) for b in batches], repeats),
        "crystals/s",
    )
    report.add_rate(
        "Arrow rows → batch → neighbours",
        count,
        measure(lambda: [neighbour_search(config, batch) for batch in read()], repeats),
        "crystals/s",
        bound=ROWS_WANTED,
        bound_name="wanted",
    )


def run_parser(texts: list[str]) -> None:
    """Pymatgen's part of reading CIF text: one look at the syntax, one full parse, as `parse_cif` has it done."""
    from pymatgen.io.cif import CifFile, CifParser

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for text in texts:
            CifFile.from_str(text)
            parser = CifParser.from_str(text, occupancy_tolerance=1.0, check_cif=False)
            parser.parse_structures(primitive=False, on_error="raise")


def measure_cifs(report: Report, kind: str, texts: list[str], extractor: Any, config: Any, repeats: int) -> None:
    """CIF text → batch → neighbours, with and without pymatgen's parser."""

    def read() -> None:
        for part in batches_of(texts):
            neighbour_search(config, extractor(part))

    parser, whole = measure(lambda: run_parser(texts), repeats), measure(read, repeats)
    report.add_rate(f"CIF ({kind}): pymatgen's parser alone", len(texts), parser, "crystals/s")
    report.add_rate(f"CIF ({kind}) → batch → neighbours", len(texts), whole, "crystals/s")
    report.add_rate(
        f"CIF ({kind}) → batch → neighbours, excluding the parser",
        len(texts),
        minus(whole, parser),
        "crystals/s",
        bound=CIFS_WANTED,
        bound_name="wanted",
    )


def measure_share(report: Report, name: str, sources: list[Any], model: str, repeats: int) -> None:
    """Share of reading, and of the neighbour search, in the pipeline that `hf-crystal predict` runs."""
    from hf_crystal.cli.models import load_property_pipeline

    pipe = load_property_pipeline(model, "cpu")
    config, count = pipe.model.config, len(sources)
    whole = measure(lambda: list(pipe(iter(sources), batch_size=16)), repeats)
    read = measure(lambda: [pipe.preprocess(source) for source in sources], repeats)
    items = sorted((pipe.preprocess(source) for source in sources), key=lambda item: -len(item["atomic_numbers"]))
    batches = [pipe.feature_extractor.pad(part) for part in batches_of(items, 16)]
    search = measure(lambda: [neighbour_search(config, batch) for batch in batches], repeats)
    report.add_rate(f"predict, {name}", count, whole, "crystals/s")
    report.add(f"predict, {name}: share of reading", 100 * read.median / whole.median, "%")
    report.add(f"predict, {name}: share of the neighbour search", 100 * search.median / whole.median, "%")


def measure_workers(report: Report, folder: str, count: int, model: str, repeats: int) -> None:
    """Wall time of reading all CIFs of a folder by `predict`, with and without worker processes."""
    from hf_crystal.cli.models import load_property_pipeline
    from hf_crystal.cli.sources import find_sources

    pipe = load_property_pipeline(model, "cpu")
    paths = [Path(name) for name in find_sources([folder])]
    for workers in (0, 2):
        read = measure(
            lambda workers=workers: sum(1 for _ in pipe(iter(paths), batch_size=16, num_workers=workers)),
            repeats,
            clock=time.perf_counter,
        )
        report.add_rate(f"predict, CIFs, {workers} workers, wall time", count, read, "crystals/s")


def main(args: argparse.Namespace) -> int:
    """Print all figures; the last line is JSON."""
    import numpy as np
    import pyarrow.parquet as pq
    from pymatgen.io.cif import CifWriter

    from hf_crystal import AutoModelForCrystalPropertyPrediction, CrystalFeatureExtractor
    from hf_crystal.checkpoints import checkpoint_folder
    from hf_crystal.models.structures_crystal import record_to_structure

    table = pq.read_table(args.data_dir / "data" / "mp_20.parquet", columns=COLUMNS)
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
        measure_workers(report, folder, len(paths), args.model, args.repeats)
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
