"""What the encoders cost on a CPU, beside the least that the arithmetic and the memory traffic allow.

Question: process CPU time per crystal of a forward pass (evaluation) and of forward + backward (training), for
Crystalformer and for CrystalFramer (max frames; in evaluation the mean over all tied frames, in training one random
frame of each atom and head), neighbor search included; and the peak memory of a training step.
Held fixed: published sizes (4 blocks of width 128, 8 heads, K = 64, D = 64), untrained weights, the first 128 crystals
of `fixtures/bench_crystals.npz` in one batch, float32, cut-off 4.5 sigma, 2 threads. One product of two 512 x 512
float32 matrices, timed in the same run, is the unit that makes machines comparable.

Bounds. Arithmetic: the multiplications of the model (`multiplications`) at the rate of that product; a backward pass
counts twice a forward pass. Bandwidth: per block one read of the radial table and of the image weights, at the rate of
a large copy. The larger of the two is shown.

Memory is measured in a fresh process: the largest resident memory after one training step, and its parts: what
importing torch and transformers' model class takes (scipy, which pymatgen needs, is imported by transformers where it
is installed), what the imports of this package, batch and model add, and what the step adds. Triton is hidden from
that process: torch's wheel for CPUs comes without it, here it is installed for the tests of the kernels, and torch
imports it (75 MiB) where it is found.

    python scripts/bench_encoders.py --data-dir ../shared

CPU time of two threads includes the time that they wait for each other: on a machine that others use too,
`--threads 1` is the better measurement. The last line of the output is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarking import Report, measure, peak_mib, product_seconds

NUM_CRYSTALS = 128
COPY_FLOATS = 2**26
# issue 4 of this repository: ms per crystal, and 500 MB as the peak of a training step
WANTED = {
    "crystalformer forward": 2.5,
    "crystalformer forward + backward": 9.0,
    "crystalframer forward": 8.0,
    "crystalframer forward + backward": 30.0,
}
WANTED_PEAK_MIB = 500e6 / 2**20


def load_batch(path: Path, count: int) -> dict[str, Any]:
    """One padded float32 batch of the first crystals of a fixture file (`sizes`, `Z`, `pos`, `lat`)."""
    import numpy as np
    import torch

    from hf_crystal.testing import Crystal, collate

    data = np.load(path)
    numbers, positions, sizes = data["Z"], data["pos"], data["sizes"]
    ends = np.cumsum(sizes)[:count]
    crystals = [
        Crystal(numbers[end - size : end], positions[end - size : end], cell)
        for end, size, cell in zip(ends, sizes, data["lat"], strict=False)
    ]
    return collate(crystals, dtype=torch.float32)


def make_model(name: str, batch: dict[str, Any]) -> Any:
    """An untrained, calibrated model of the published size."""
    import torch

    from hf_crystal import CrystalformerConfig, CrystalFramerConfig
    from hf_crystal.encoders.modeling_crystalformer import CrystalformerForPropertyPrediction
    from hf_crystal.encoders.modeling_crystalframer import CrystalFramerForPropertyPrediction

    torch.manual_seed(0)
    if name == "crystalformer":
        model: Any = CrystalformerForPropertyPrediction(CrystalformerConfig())
    else:
        model = CrystalFramerForPropertyPrediction(CrystalFramerConfig())
    model.calibrate(batch)
    return model


def train_step(model: Any, batch: dict[str, Any]) -> None:
    """Forward and backward."""
    import torch

    model.zero_grad()
    labels = torch.zeros(batch["cell"].shape[0], 1)
    model(**batch, labels=labels).loss.backward()


def multiplications(config: Any, num_atoms: int, num_pairs: int, num_edges: int) -> int:
    """Multiplications of one forward pass that a direct evaluation of the model's equations cannot avoid.

    Args:
        config: of the model.
        num_atoms, num_pairs, num_edges: T, sum over crystals of their pairs, and images, of the batch.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    dense = num_atoms * width * (4 * width + 2 * config.intermediate_size)
    pairs = 2 * num_pairs * width  # q·k and A v
    basis = config.num_radial_basis
    if config.model_type == "crystalframer":
        basis += 3 * config.num_angular_basis
    images = num_edges * heads * basis + num_atoms * width * basis  # sums of the bases, then W
    return config.num_hidden_layers * (dense + pairs + images)


def table_bytes(config: Any, num_edges: int) -> int:
    """Bytes of one read of the radial table, and of one write and one read of the image weights, in every block."""
    return 4 * config.num_hidden_layers * num_edges * (config.num_radial_basis + 2 * config.num_attention_heads)


def copy_rate() -> float:
    """Bytes per CPU second of a large copy, reads and writes counted."""
    import torch

    source = torch.ones(COPY_FLOATS)
    target = torch.empty_like(source)
    return 2 * 4 * COPY_FLOATS / measure(lambda: target.copy_(source)).median


def report_memory(name: str, path: Path, threads: int) -> int:
    """Body of the fresh process: prints peak memory after imports, before and after one training step as JSON."""
    sys.modules["triton"] = None  # type: ignore[assignment]  # an installation for CPUs has none (module docstring)
    import torch
    import transformers.modeling_utils  # noqa: F401  what every model needs

    torch.set_num_threads(threads)
    imports = peak_mib()
    batch = load_batch(path, NUM_CRYSTALS)
    model = make_model(name, {key: value[:8] for key, value in batch.items()})
    model.train()
    before = peak_mib()
    train_step(model, batch)
    print(json.dumps({"imports": imports, "before": before, "after": peak_mib()}))
    return 0


def measure_memory(name: str, path: Path, threads: int) -> dict[str, float]:
    """Peak MiB of a fresh process after its imports, before and after its training step."""
    command = [sys.executable, __file__, "--crystals", str(path), "--threads", str(threads), "--memory-of", name]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def main(args: argparse.Namespace) -> int:
    """Print figures and a markdown table; the last line is JSON."""
    import torch

    path = args.crystals or args.data_dir / "fixtures" / "bench_crystals.npz"
    if args.memory_of:
        return report_memory(args.memory_of, path, args.threads)
    torch.set_num_threads(args.threads)
    batch = load_batch(path, NUM_CRYSTALS)
    report = Report("encoders", {"num_crystals": NUM_CRYSTALS, "crystals": path.name, "threads": args.threads})
    unit, bandwidth = product_seconds(repeats=args.repeats), copy_rate()
    multiplications_per_second = 512**3 / unit
    report.add("512³ product", 1000 * unit, "ms")
    report.add("copy", bandwidth / 1e9, "GB/s")
    rows = []

    def note(name: str, function: Any, factor: int) -> None:
        timing = measure(function, args.repeats)
        arithmetic = factor * multiplications(model.config, *counts) / multiplications_per_second
        traffic = factor * table_bytes(model.config, counts[2]) / bandwidth
        bound = max((arithmetic, "arithmetic"), (traffic, "memory bandwidth"))
        scale = 1000 / NUM_CRYSTALS
        value, spread, limit = (scale * seconds for seconds in (timing.median, timing.spread, bound[0]))
        report.add(name, value, "ms/crystal", spread=spread, bound=limit, bound_name=bound[1])
        products = timing.median / NUM_CRYSTALS / unit
        wanted = WANTED.get(name)
        cells = (
            f"{value:.2f}",
            f"{products:.2f}",
            f"{limit:.2f} ({bound[1]})",
            "" if wanted is None else f"{wanted:g}",
        )
        rows.append((name, *cells))

    for name in ("crystalformer", "crystalframer"):
        model = make_model(name, batch)
        with torch.no_grad():
            geometry = model.encoder._start(*(batch[key] for key in ("atomic_numbers", "positions", "cell")), None)[1]
        layouts = [images.layout for images in geometry.images]
        counts = (
            geometry.positions.shape[0],
            sum(int(layout.pair_mask.sum()) for layout in layouts),
            sum(int(layout.edge_mask.sum()) for layout in layouts),
        )
        forward = torch.no_grad()(lambda model=model: model(**batch))
        model.eval()
        note(f"{name} forward", forward, 1)
        if name == "crystalformer":
            model.config.attention_kernel = "reference"
            note(f"{name} forward, the paper's equations term by term", forward, 1)
            model.config.attention_kernel = "eager"
        model.train()
        if name == "crystalframer":
            note(f"{name} forward, one random frame", forward, 1)
        note(f"{name} forward + backward", lambda model=model: train_step(model, batch), 3)
    memory = []
    for name in ("crystalformer", "crystalframer"):
        peaks = measure_memory(name, path, args.threads)
        limit = {"bound": WANTED_PEAK_MIB, "bound_name": "wanted"} if name == "crystalformer" else {}
        report.add(f"{name} training step, peak memory", peaks["after"], "MiB", **limit)
        imports, before, after = (peaks[key] for key in ("imports", "before", "after"))
        parts = {"imports": imports, "batch and model": before - imports, "the step": after - before}
        for part, mib in parts.items():
            report.add(f"{name} training step, share of {part}", mib, "MiB")
        memory.append((name, f"{after:.0f}", *(f"{mib:.0f}" for mib in parts.values())))
    print("\n| what | ms/crystal | 512³ products | bound, ms | wanted, ms |\n|---|---|---|---|---|")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    print("\n| training step | peak memory, MiB | imports | batch and model | the step |\n|---|---|---|---|---|")
    print("\n".join(f"| {' | '.join(row)} |" for row in memory) + "\n")
    report.finish()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default_data = Path(os.environ.get("HF_CRYSTAL_BENCH_DATA", "../shared"))
    parser.add_argument("--data-dir", type=Path, default=default_data, help="folder with fixtures/bench_crystals.npz")
    parser.add_argument("--crystals", type=Path, help="another fixture file, instead")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory-of", choices=("crystalformer", "crystalframer"), help=argparse.SUPPRESS)
    sys.exit(main(parser.parse_args()))
