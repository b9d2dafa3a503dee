r"""Whether one process, two, and gradient accumulation give one loss curve: Trainer, Accelerate loop, generator.

    OMP_NUM_THREADS=1 python scripts/report_processes.py --data perov_5.parquet --output processes.json

Each way trains the recipe for Perov-5 on 128 crystals in batches of 32, without dropout. Given is the largest relative
difference of a step's loss from that of the Trainer on one process; the weights are float32. Two processes are CPU
processes (gloo) where there is no GPU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["data.max_train_rows=128", "training.batch_size=32", "training.num_train_epochs=2", "training.swa_epochs=0"]
SMALL += ["training.logging_steps=1", "training.eval_steps=8", "data.max_validation_rows=16"]
PROPERTY = ("scripts/recipes/crystalformer-perov5.yaml", [])
GENERATOR = (
    "scripts/recipes_mat2seq/mat2seq-perov5.yaml",
    ["data.max_test_rows=16", "training.validity_samples=0", "training.bf16=false", "model.dropout=0.0"],
)
# name, script, recipe, and processes and accumulation steps of its ways; the first run of a recipe is the reference
LOOPS = (
    ("encoder, Trainer", "train_property.py", PROPERTY, [(1, 1), (1, 4), (2, 1), (2, 2)]),
    ("encoder, Accelerate loop", "train_property_accelerate.py", PROPERTY, [(1, 1), (1, 4), (2, 1), (2, 2)]),
    ("generator, Trainer", "train_mat2seq.py", GENERATOR, [(1, 1), (1, 4), (2, 1), (2, 2)]),
)


def losses(script: str, recipe: str, settings: list[str], data: str, processes: int) -> list[float]:
    """Loss of every step of one run."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        words = [f"scripts/{script}", recipe, "--data", data, "--output-dir", folder]
        words += [word for setting in settings for word in ("--set", setting)]
        done = subprocess.run([*launcher, *words], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{script} on {processes} processes failed: {done.stderr.strip()[-2000:]}")
        curve = json.loads(Path(folder, "run.json").read_text(encoding="utf-8"))["training_curve"]
    return [float(entry["loss"]) for entry in curve]


def measure(data: str) -> list[dict[str, Any]]:
    """Largest relative difference of each way from one process; of the Accelerate loop from the Trainer."""
    rows: list[dict[str, Any]] = []
    references: dict[str, list[float]] = {}
    for name, script, (recipe, more), ways in LOOPS:
        for processes, accumulation in ways:
            settings = [*SMALL, *more, f"training.gradient_accumulation_steps={accumulation}"]
            curve = losses(script, recipe, settings, data, processes)
            reference = references.setdefault(recipe, curve)
            if len(curve) != len(reference):
                raise RuntimeError(f"{name}: {len(curve)} steps on {processes} processes, {len(reference)} on one")
            difference = max(abs(ours / theirs - 1) for ours, theirs in zip(curve, reference, strict=True))
            rows.append(
                {
                    "loop": name,
                    "processes": processes,
                    "accumulation_steps": accumulation,
                    "steps": len(curve),
                    "last_loss": curve[-1],
                    "largest_relative_difference": difference,
                }
            )
            print(f"{name:25} {processes} x {accumulation}: {len(curve)} steps, {difference:.1e}", flush=True)
    return rows


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="perov_5.parquet")
    parser.add_argument("--output", help="write the figures here as JSON")
    args = parser.parse_args()
    rows = measure(str(Path(args.data).resolve()))
    if args.output:
        Path(args.output).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
