"""How fast the encoders train and predict on a GPU, with eager operations and with the Triton kernels.

Question: crystals per second of a training step (forward, backward, AdamW) and of inference for Crystalformer and for
CrystalFramer (max frames), in float32 and in bfloat16 (autocast), eager and Triton in the same run; and how far each
kernel is from the memory bandwidth of the device. Held fixed: published sizes (4 blocks of width 128, 8 heads, K = 64,
D = 64), cut-off 4.5 sigma, batches of 128 crystals of `fixtures/bench_crystals.npz`, neighbor search included.

First the two ways are compared: predictions and gradients of a float32 model must agree to 1e-4, or nothing is timed.
The bandwidth bound is the traffic that a kernel cannot avoid (each input read once, each output written once)
divided by the rate of a large copy timed in the same run. The kernels also compute 64 exponentials per edge, so the
bound is not expected to be reached.

    python scripts/bench_gpu.py --data-dir ../shared

One NVIDIA GPU of compute capability 8.0 or later and `pip install triton` (a CUDA build of torch brings it) are all
it needs. Neither this script nor the kernels have run on a GPU yet: there is no table of figures, and the kernels are
opt-in (`attention_kernel="triton"`) until a run shows that they are equal and faster. The last line of the output
is JSON.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarking import Report, measure

NUM_CRYSTALS = 128
LARGEST_ERROR = 1e-4  # relative, float32, eager against Triton
COPY_BYTES = 2**30
FLOAT, INDEX, OFFSET = 4, 4, 8  # bytes


def kernel_bytes(
    num_atoms: int, num_edges: int, heads: int, width: int, num_radial: int, num_angular: int, element: int = FLOAT
) -> dict[str, dict[str, int]]:
    """Bytes that every operator has to read and to write at least, each tensor once.

    Args:
        num_atoms, num_edges: T and E of the batch.
        heads, width: H and d.
        num_radial, num_angular: K and D; with one frame per atom and head.
        element: bytes of one number of query, key and value: 4 or 2.
    """
    vectors = num_atoms * heads * width
    per_head, rows = num_atoms * heads, (num_atoms + 1) * OFFSET
    lists = rows + num_edges * (INDEX + FLOAT)  # row_start, key, r²
    transposed = rows + 2 * num_edges * INDEX  # key_start, key_order, query
    expected, edge_values = per_head * num_radial * FLOAT, heads * num_edges * FLOAT
    units, features = 3 * num_edges * FLOAT, per_head * 3 * num_angular * FLOAT
    frames = per_head * 9 * FLOAT
    directions = (3 * per_head + 1) * OFFSET + frames + per_head * 3 * FLOAT  # entry_start, direction, share
    read = 3 * vectors * element + per_head * FLOAT + lists
    written = vectors * FLOAT + expected + per_head * FLOAT
    # gradients of mixed and expected, log-sums, deltas; then the sums by key read what the rows wrote
    rows_read = read + vectors * FLOAT + expected + 2 * per_head * FLOAT
    rows_written = vectors * element + per_head * FLOAT + 2 * edge_values
    keys_read = vectors * (element + FLOAT) + transposed + 2 * edge_values
    return {
        "attention forward": {"read": read, "written": written},
        "attention forward, edges kept": {"read": read, "written": written + 2 * edge_values},
        "attention backward": {"read": rows_read + keys_read, "written": rows_written + 2 * vectors * element},
        "max frames": {"read": edge_values + units + rows + OFFSET, "written": frames},
        "angular sums forward": {"read": edge_values + units + rows + directions, "written": features},
        "angular sums backward": {"read": features + units + rows + directions, "written": edge_values},
    }


def copy_rate(device: str, repeats: int) -> float:
    """Bytes per second that a large copy reads and writes."""
    import torch

    source = torch.empty(COPY_BYTES // FLOAT, device=device)
    target = torch.empty_like(source)
    timing = measure(synchronized(lambda: target.copy_(source)), repeats, 3, time.perf_counter)
    return 2 * COPY_BYTES / timing.median


def synchronized(function: Callable[[], Any]) -> Callable[[], None]:
    """The call, and then the wait for the GPU."""
    import torch

    def run() -> None:
        function()
        torch.cuda.synchronize()

    return run


def load_batch(folder: Path, count: int, device: str) -> dict[str, Any]:
    """One padded batch of the benchmark's crystals."""
    import numpy as np
    import torch

    from hf_crystal.testing import Crystal, collate

    table = np.load(folder / "fixtures" / "bench_crystals.npz")
    ends = np.cumsum(table["sizes"])
    crystals = []
    for index in range(count):
        atoms = slice(ends[index] - table["sizes"][index], ends[index])
        crystals.append(Crystal(table["Z"][atoms], table["pos"][atoms], table["lat"][index]))
    return {name: tensor.to(device) for name, tensor in collate(crystals, dtype=torch.float32).items()}


def make_models(seed: int, device: str, batch: dict[str, Any]) -> dict[str, Any]:
    """Calibrated models of the published sizes."""
    import torch

    import hf_crystal

    torch.manual_seed(seed)
    models = {
        "Crystalformer": hf_crystal.CrystalformerForPropertyPrediction(hf_crystal.CrystalformerConfig()),
        "CrystalFramer": hf_crystal.CrystalFramerForPropertyPrediction(hf_crystal.CrystalFramerConfig()),
    }
    for model in models.values():
        model.to(device).config.attention_kernel = "eager"
        model.calibrate(batch)
    return models


def outputs_and_gradients(model: Any, batch: dict[str, Any], kernel: str) -> tuple[list[Any], list[Any]]:
    """Predictions and the gradients of all weights, in evaluation mode: frames are the mean over ties."""
    model.config.attention_kernel = kernel
    model.eval().zero_grad()
    logits = model(**batch).logits
    logits.square().sum().backward()
    return [logits.detach()], [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


def largest_error(found: list[Any], wanted: list[Any]) -> float:
    """Largest difference of two lists of tensors, in units of the largest entry.

    One unit for all: the gradient of a key bias is zero, its value is rounding.
    """
    difference = max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))
    return difference / max(float(b.abs().max()) for b in wanted)


def measure_model(report: Report, name: str, model: Any, batch: dict[str, Any], repeats: int) -> None:
    """Training and inference rates of one model, eager and Triton, float32 and bfloat16."""
    import torch

    labels = torch.randn((NUM_CRYSTALS, 1), device=model.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    for dtype in (torch.float32, torch.bfloat16):
        for kernel in ("eager", "triton"):
            model.config.attention_kernel = kernel

            def autocast(dtype: torch.dtype = dtype) -> Any:
                return torch.autocast("cuda", dtype, enabled=dtype != torch.float32)

            def step() -> None:
                optimizer.zero_grad()
                with autocast():
                    loss = model(**batch, labels=labels).loss
                loss.backward()
                optimizer.step()

            @torch.no_grad()
            def predict() -> None:
                with autocast():
                    model(**batch)

            torch.cuda.reset_peak_memory_stats()
            for what, function in (("training", step), ("inference", predict)):
                model.train(what == "training")
                timing = measure(synchronized(function), repeats, 3, time.perf_counter)
                label = f"{name} {what}, {str(dtype).removeprefix('torch.')}, {kernel}"
                report.add_rate(label, NUM_CRYSTALS, timing, "crystals/s")
            peak = torch.cuda.max_memory_allocated() / 2**20
            report.add(f"{name} peak GPU memory, {str(dtype).removeprefix('torch.')}, {kernel}", peak, "MiB")


def kernel_calls(config: Any, edges: Any, dtype: Any) -> dict[str, Callable[[], Any]]:
    """Every operator on the edges of the batch, by the names of `kernel_bytes`."""
    import torch

    from hf_crystal.kernels.angles import angular_edge_sums, max_edge_frames
    from hf_crystal.kernels.attention import edge_attention

    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    num_atoms, device = edges.row_start.shape[0] - 1, edges.squared.device
    query, key, value = (
        torch.randn((num_atoms, heads, width), device=device, dtype=dtype).requires_grad_() for _ in range(3)
    )
    variance = torch.full((num_atoms, heads), 0.5, device=device)
    lists = (edges.row_start, edges.key, edges.squared, edges.key_start, edges.key_order, edges.query)

    def attention(stores_edges: bool) -> Any:
        basis = (config.num_radial_basis, float(config.radial_cutoff), float(config.radial_width_scale))
        return edge_attention(query, key, value, variance, *lists, *basis, stores_edges)

    mixed, expected, weights, _, logits = (tensor.detach() for tensor in attention(True))
    weights.requires_grad_()
    seed = torch.zeros(1, dtype=torch.long, device=device)
    slots = num_atoms * heads * 3

    def frames() -> Any:
        return max_edge_frames(logits, edges.units, edges.row_start, seed, float(config.frame_tie_tolerance))

    listed = (torch.arange(slots + 1, device=device), frames().reshape(-1, 3), torch.ones(slots, device=device), None)

    def angular() -> Any:
        basis = (config.num_angular_basis, float(config.angular_width_scale))
        return angular_edge_sums(weights, edges.units, edges.row_start, *listed, *basis)

    outputs, sums = attention(False)[:2], angular()
    grads, ones = (torch.ones_like(mixed), torch.ones_like(expected)), torch.ones_like(sums)
    return {
        "attention forward": torch.no_grad()(lambda: attention(False)),
        "attention forward, edges kept": torch.no_grad()(lambda: attention(True)),
        "attention backward": lambda: torch.autograd.grad(outputs, (query, key, value), grads, retain_graph=True),
        "max frames": frames,
        "angular sums forward": torch.no_grad()(angular),
        "angular sums backward": lambda: torch.autograd.grad(sums, weights, ones, retain_graph=True),
    }


def measure_kernels(report: Report, config: Any, edges: Any, rate: float, repeats: int) -> None:
    """Time of every operator beside the time that its unavoidable traffic takes at the rate of a copy."""
    import torch

    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    sizes = (edges.row_start.shape[0] - 1, edges.key.shape[0], heads, width)
    for dtype in (torch.float32, torch.bfloat16):
        bound = kernel_bytes(*sizes, config.num_radial_basis, config.num_angular_basis, dtype.itemsize)
        for name, call in kernel_calls(config, edges, dtype).items():
            if dtype == torch.bfloat16 and not name.startswith("attention"):
                continue  # frames and angles see float32 weights only
            timing = measure(synchronized(call), repeats, 3, time.perf_counter)
            seconds = sum(bound[name].values()) / rate
            label = f"{name}, {str(dtype).removeprefix('torch.')}"
            limits = {"bound": 1e6 * seconds, "bound_name": "memory bandwidth of a copy"}
            report.add(label, 1e6 * timing.median, "µs", spread=1e6 * timing.spread, **limits)


def main(args: argparse.Namespace) -> int:
    """Print the table; the last line is JSON."""
    import torch
    import triton

    from hf_crystal.encoders.geometry import build_geometry

    device = "cuda"
    torch.backends.cuda.matmul.allow_tf32 = False
    batch = load_batch(Path(args.data_dir), NUM_CRYSTALS, device)
    settings = {"device": torch.cuda.get_device_name(), "num_crystals": NUM_CRYSTALS, "triton": triton.__version__}
    report = Report("gpu", settings)
    models = make_models(args.seed, device, batch)
    for name, model in models.items():
        pairs = zip(*(outputs_and_gradients(model, batch, kernel) for kernel in ("triton", "eager")), strict=True)
        for what, (found, wanted) in zip(("predictions", "gradients"), pairs, strict=True):
            error = largest_error(found, wanted)
            limits = {"bound": LARGEST_ERROR, "bound_name": "largest accepted"}
            report.add(f"{name} {what}, Triton against eager", error, "relative", **limits)
            if not error <= LARGEST_ERROR:
                print(f"{name}: {what} differ by {error:.1e} > {LARGEST_ERROR:.0e}; nothing is timed.")
                return 1
    rate = copy_rate(device, args.repeats)
    report.add("memory bandwidth of a copy", rate / 1e9, "GB/s")
    config = models["CrystalFramer"].config
    config.attention_kernel = "triton"
    names = ("atomic_numbers", "positions", "cell", "attention_mask")
    edges = build_geometry(config, *(batch[name] for name in names)).edges
    measure_kernels(report, config, edges, rate, args.repeats)
    for name, model in models.items():
        measure_model(report, name, model, batch, args.repeats)
    report.finish()
    return 0


def obstacle() -> str | None:
    """What this script misses on this machine; none: it can run."""
    import importlib.util

    import torch

    if not torch.cuda.is_available():
        return "bench_gpu.py needs an NVIDIA GPU and a CUDA build of torch: torch.cuda.is_available() is False here."
    if importlib.util.find_spec("triton") is None:
        return "bench_gpu.py needs triton: pip install triton."
    return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("HF_CRYSTAL_BENCH_DATA", "../shared")
    parser.add_argument("--data-dir", default=default, help="folder with fixtures/bench_crystals.npz")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.exit(obstacle() or main(arguments))
