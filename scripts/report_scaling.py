"""How time and memory of the encoders grow with the number of atoms.

Question: is the cost linear? Supercells of one crystal from 10 to about 10,000 atoms, each alone in a batch, through
Crystalformer and CrystalFramer (max frames), forward (evaluation) and forward + backward (training). Every point is a
fresh process, forked after the imports, so that its peak memory is its own. Held fixed: published sizes, float32,
cut-off 4.5 sigma, neighbor search included, one thread, one call after a warm-up on the unit cell. Time is process
CPU time; memory is what the call added to the peak of the process.

The exponents are slopes of least-squares lines through log cost against log atoms, from 100 atoms on.

    python scripts/report_scaling.py --data-dir ../shared

The last line of the output is JSON.
"""

import argparse
import multiprocessing
import os
import sys
import time
from pathlib import Path

from bench_encoders import make_model, train_step
from benchmarking import Report, peak_mib

REPEATS = ((1, 1, 1), (2, 2, 1), (3, 3, 1), (3, 3, 3), (5, 4, 4), (6, 6, 6), (10, 10, 10))
MODELS = ("crystalformer", "crystalframer")
MODES = ("forward", "forward + backward")
FIT_FROM_ATOMS = 100
UNIT_CELL_ATOMS = 10


def measure_point(path: Path, model_name: str, mode: str, repeats: tuple[int, int, int]) -> dict[str, float]:
    """Body of a fresh process: atoms, CPU seconds and MiB added by one call on one supercell."""
    import numpy as np
    import torch

    from hf_crystal.testing import Crystal, collate, supercell

    torch.set_num_threads(1)
    data = np.load(path)
    number = int((data["sizes"] == UNIT_CELL_ATOMS).argmax())
    end = int(data["sizes"][: number + 1].sum())
    rows = slice(end - UNIT_CELL_ATOMS, end)
    crystal = Crystal(data["Z"][rows], data["pos"][rows].astype(float), data["lat"][number].astype(float))
    single = collate([crystal], dtype=torch.float32)
    batch = collate([supercell(crystal, repeats)], dtype=torch.float32)
    model = make_model(model_name, single)
    is_training = mode != "forward"
    model.train(is_training)

    def call(inputs: dict) -> None:
        if is_training:
            train_step(model, inputs)
        else:
            with torch.no_grad():
                model(**inputs)

    call(single)
    before, start = peak_mib(), time.process_time()
    call(batch)
    seconds = time.process_time() - start
    return {"atoms": batch["atomic_numbers"].shape[1], "seconds": seconds, "mib": peak_mib() - before}


def exponent(points: list[dict[str, float]], cost: str) -> float:
    """Slope of log cost against log atoms from 100 atoms on."""
    import numpy as np

    large = [point for point in points if point["atoms"] >= FIT_FROM_ATOMS]
    atoms, costs = (np.log([point[name] for point in large]) for name in ("atoms", cost))
    return float(np.polyfit(atoms, costs, 1)[0])


def main(args: argparse.Namespace) -> int:
    """Print a markdown table; the last line is JSON."""
    path = args.data_dir / "fixtures" / "bench_crystals.npz"
    import hf_crystal.encoders.modeling_crystalframer  # noqa: F401  # once, before the processes are forked

    processes = multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1)
    kept = [repeats for repeats in REPEATS if UNIT_CELL_ATOMS * repeats[0] * repeats[1] * repeats[2] <= args.max_atoms]
    report = Report("scaling", {"unit_cell_atoms": UNIT_CELL_ATOMS, "supercells": kept})
    table = ["| model | mode | atoms | CPU s | ms/atom | MiB added |", "|---|---|---|---|---|---|"]
    for model_name in args.models:
        for mode in MODES:
            points = []
            for repeats in kept:
                points.append(processes.apply(measure_point, (path, model_name, mode, repeats)))
                atoms, seconds, mib = (points[-1][name] for name in ("atoms", "seconds", "mib"))
                cells = (model_name, mode, atoms, f"{seconds:.3f}", f"{1000 * seconds / atoms:.3f}", f"{mib:.0f}")
                table.append(f"| {' | '.join(map(str, cells))} |")
            name = f"{model_name} {mode}"
            report.add(f"{name}, exponent of time", exponent(points, "seconds"), "", bound=1.1, bound_name="wanted")
            report.add(f"{name}, exponent of memory", exponent(points, "mib"), "", bound=1.1, bound_name="wanted")
            report.add(f"{name}, {points[-1]['atoms']} atoms", points[-1]["seconds"], "s")
            report.add(f"{name}, {points[-1]['atoms']} atoms, memory", points[-1]["mib"], "MiB")
    processes.close()
    processes.join()
    print("\n" + "\n".join(table) + "\n")
    report.finish()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default_data = Path(os.environ.get("HF_CRYSTAL_BENCH_DATA", "../shared"))
    parser.add_argument("--data-dir", type=Path, default=default_data, help="folder with fixtures/bench_crystals.npz")
    parser.add_argument("--max-atoms", type=int, default=10_000, help="leave out larger supercells")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    sys.exit(main(parser.parse_args()))
