r"""Do other decay laws than the Gaussian, or routed heads, help? Equal CPU budgets, several seeds.

    OMP_NUM_THREADS=1 python scripts/compare_decay_laws.py DATA_FOLDER --output-dir runs/decay-laws \
        --output docs/decay_laws.md

Five small encoders that differ in `decay`, `domain` and `routing` alone, on two tasks: formation energy and band gap
of Materials Project rows with at most 20 atoms (`split_megnet`), and the logarithm of the total dielectric constant
(`eps_total` of matbench_phonons, folds 2 to 4 for training, 1 for validation, 0 for the test). First a training step
of each is timed, in turns; then each gets as many steps as fit into the CPU time of the Gaussian one. Nothing is
chosen by validation or test rows; both are shown.

Each run is one JSON file in OUTPUT_DIR, and the same command goes on where it was stopped. `--table-only` writes the
page from the runs that are there.
"""

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

HEADS = 4
MODEL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 256,
    "num_radial_basis": 32,
    "radial_cutoff": 9.0,
    "head_hidden_size": 64,
}
HALF = HEADS // 2
VARIANTS: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "+ yukawa in half of the heads": {"decay": ["gaussian"] * HALF + ["yukawa"] * HALF},
    "+ vdw in half of the heads": {"decay": ["gaussian"] * HALF + ["vdw"] * HALF},
    "dual, fixed": {"domain": "multihead"},
    "dual, routed": {"domain": "multihead", "routing": "learned"},
}
BATCH, WARMUP, LEARNING_RATE, MUON_LEARNING_RATE = 32, 50, 1e-3, 5e-3
MOST_ATOMS = 20


@dataclasses.dataclass(frozen=True)
class Task:
    """Rows and targets of one comparison; `steps` are those of the Gaussian model."""

    name: str
    columns: tuple[str, ...]
    names: tuple[str, ...]
    units: tuple[str, ...]
    steps: int


TASKS = (
    Task("mp", ("e_form_megnet2018", "band_gap_megnet2018"), ("formation_energy", "band_gap"), ("eV/atom", "eV"), 600),
    Task("dielectric", ("log_eps_total",), ("log10 eps_total",), ("",), 400),
)


def read_parts(task: Task, data: Path, train_rows: int) -> dict[str, Any]:
    """Tables of a task: train, val, test."""
    import pandas as pd

    if task.name == "dielectric":
        rows = pd.read_parquet(data / "matbench_phonons.parquet")
        rows["log_eps_total"] = np.log10(rows.eps_total)
        rows["part"] = rows.fold.map({0: "test", 1: "val"}).fillna("train")
    else:
        columns = ["lattice", "frac_coords", "atomic_numbers", "split_megnet", "n_sites", *task.columns]
        rows = pd.read_parquet(data / "materials_project.parquet", columns=columns)
        rows = rows[rows.split_megnet.notna() & (rows.n_sites <= MOST_ATOMS)].rename(columns={"split_megnet": "part"})
    parts = {part: rows[rows.part == part] for part in ("train", "val", "test")}
    if len(parts["train"]) > train_rows:
        parts["train"] = parts["train"].sample(train_rows, random_state=0)
    return parts


def collate_parts(task: Task, data: Path, train_rows: int) -> dict[str, dict[str, Any]]:
    """Each part as one padded batch."""
    from hf_crystal import CrystalFeatureExtractor
    from hf_crystal.data import CrystalCollator

    collator = CrystalCollator(CrystalFeatureExtractor(), label_names=list(task.columns))
    return {part: collator(rows.to_dict("records")) for part, rows in read_parts(task, data, train_rows).items()}


def take(batch: dict[str, Any], rows: Any) -> dict[str, Any]:
    """Some rows of a padded batch, without columns that only padding fills."""
    taken = {name: values[rows] for name, values in batch.items()}
    most = int(taken["attention_mask"].sum(1).max())
    return {
        name: v[:, :most] if name in ("atomic_numbers", "positions", "attention_mask") else v
        for name, v in taken.items()
    }


def build(task: Task, variant: str, train: dict[str, Any], seed: int) -> Any:
    """A new model, calibrated and scaled by training rows."""
    import torch

    from hf_crystal import CrystalformerConfig, CrystalformerForPropertyPrediction

    torch.manual_seed(seed)
    targets = {"target_names": list(task.names), "target_units": list(task.units)}
    model = CrystalformerForPropertyPrediction(CrystalformerConfig(**MODEL, **targets, **VARIANTS[variant]))
    labels = train["labels"].double()
    model.set_target_scaling(labels.mean(0), labels.std(0, correction=0))
    first = take(train, torch.arange(BATCH))
    model.calibrate(first)
    return model


def batches(count: int, seed: int) -> Iterator[Any]:
    """Rows of training batches without end, every row once in each epoch."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count // BATCH * BATCH].split(BATCH)


def measure_costs(task: Task, train: dict[str, Any], repeats: int) -> dict[str, float]:
    """CPU seconds of a training step per crystal: the median of steps that all variants take in turns."""
    import torch

    models = {variant: build(task, variant, train, 0).train() for variant in VARIANTS}
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for rows, _ in zip(batches(len(train["labels"]), 0), range(repeats + 1), strict=False):
        batch = take(train, rows)
        for variant, model in models.items():
            start = time.process_time()
            model(**batch).loss.backward()
            times[variant].append((time.process_time() - start) / len(rows))
            torch._foreach_zero_([p.grad for p in model.parameters() if p.grad is not None])
    return {variant: float(np.median(values[1:])) for variant, values in times.items()}


def absolute_errors(model: Any, batch: dict[str, Any]) -> np.ndarray:
    """`(rows, targets)` in physical units."""
    import torch

    model.eval()
    with torch.no_grad():
        rows = torch.arange(len(batch["labels"])).split(128)
        predictions = torch.cat([model(**take(batch, part)).logits for part in rows])
    return (predictions - batch["labels"]).abs().numpy()


def train_one(task: Task, variant: str, seed: int, parts: dict[str, Any], steps: int) -> dict[str, Any]:
    """One training, one-cycle rates; its record."""
    import torch

    from hf_crystal.training.arguments import CrystalTrainingArguments
    from hf_crystal.training.optimizers import build_optimizer

    start = time.process_time()
    model = build(task, variant, parts["train"], seed).train()
    rates = {"learning_rate": LEARNING_RATE, "optimizer": "muon", "muon_learning_rate": MUON_LEARNING_RATE}
    optimizer = build_optimizer(model, CrystalTrainingArguments(**rates))  # type: ignore[arg-type]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    for rows, _ in zip(batches(len(parts["train"]["labels"]), seed), range(steps), strict=False):
        model(**take(parts["train"], rows)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    spent = time.process_time() - start
    record: dict[str, Any] = {"steps": steps, "cpu_seconds": round(spent, 1)}
    errors = {part: absolute_errors(model, parts[part]) for part in ("val", "test")}
    record |= {part: values.mean(0).tolist() for part, values in errors.items()}
    record["test_errors"] = errors["test"].round(5).T.tolist()
    if model.config.routing == "learned":
        record["gates"] = model.routing_gates.tolist()
    return record


def read_json(path: Path) -> Any:
    """Content of a file; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_json(path: Path, content: Any) -> None:
    """Written beside it and moved, so that an interruption leaves no half of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".part").replace(path)


def run_path(folder: Path, task: Task, variant: str, seed: int) -> Path:
    """File of a run."""
    return folder / f"{task.name}-{list(VARIANTS).index(variant)}-{seed}.json"


def run_all(args: argparse.Namespace) -> None:
    """Every run that is missing, seed after seed."""
    data = {task.name: collate_parts(task, args.data, args.train_rows) for task in TASKS}
    settings = {"model": MODEL, "variants": VARIANTS, "tasks": [dataclasses.asdict(task) for task in TASKS]}
    settings |= {"rows": {name: {p: len(b["labels"]) for p, b in parts.items()} for name, parts in data.items()}}
    settings = json.loads(json.dumps(settings))
    known = read_json(args.output_dir / "settings.json")
    if known is not None and known["settings"] != settings:
        raise SystemExit(f"{args.output_dir} holds runs with other settings; choose another --output-dir")
    if known is None:
        costs = {task.name: measure_costs(task, data[task.name]["train"], args.repeats) for task in TASKS}
        known = {"settings": settings, "costs": costs}
        write_json(args.output_dir / "settings.json", known)
    for seed in args.seeds:
        for task in TASKS:
            costs = known["costs"][task.name]
            for variant in VARIANTS:
                path = run_path(args.output_dir, task, variant, seed)
                if not path.is_file():
                    steps = round(task.steps * costs["gaussian"] / costs[variant])
                    write_json(path, train_one(task, variant, seed, data[task.name], steps))
                    record = read_json(path)
                    print(path.name, *(record[name] for name in ("cpu_seconds", "val", "test")), flush=True)


def difference(runs: dict[str, Any], others: dict[str, Any], seeds: list[int], column: int) -> str:
    """Test MAE minus that of other runs, and its 95 % bootstrap interval over crystals, errors averaged over seeds."""
    from hf_crystal.evaluation.intervals import mean_interval

    pairs = [np.subtract(runs[s]["test_errors"][column], others[s]["test_errors"][column]) for s in seeds]
    of_crystals = np.mean(pairs, axis=0)
    low, high = mean_interval(of_crystals.tolist()) or (math.nan, math.nan)
    return f"{of_crystals.mean():+.4f} ({low:+.4f} to {high:+.4f})"


def table(task: Task, column: int, folder: Path, seeds: list[int], costs: dict[str, float]) -> tuple[str, int]:
    """Markdown table of one target over the seeds that all variants have, and the number of those seeds."""
    runs = {v: {s: read_json(run_path(folder, task, v, s)) for s in seeds} for v in VARIANTS}
    common = [seed for seed in seeds if all(runs[variant][seed] for variant in VARIANTS)]
    unit = f", {task.units[column]}" if task.units[column] else ""
    titles = f"{task.names[column]}, MAE{unit} | cost | steps | validation | test | test, of each seed"
    lines = [f"| {titles} | test minus gaussian (95 %) |", "|---|---:|---:|---:|---:|---|---|"]
    for variant in VARIANTS:
        values = {part: [runs[variant][seed][part][column] for seed in common] for part in ("val", "test")}
        is_base = variant == "gaussian" or not common
        against = "" if is_base else difference(runs[variant], runs["gaussian"], common, column)
        of_seeds = ", ".join(f"{value:.4f}" for value in values["test"])
        means = [f"{np.mean(values[part]):.4f}" if common else "" for part in ("val", "test")]
        steps = runs[variant][common[0]]["steps"] if common else ""
        cost = costs[variant] / costs["gaussian"]
        lines.append(f"| {variant} | {cost:.2f} | {steps} | {means[0]} | {means[1]} | {of_seeds} | {against} |")
    return "\n".join(lines), len(common)


def gate_lines(folder: Path, seeds: list[int]) -> list[str]:
    """Mean gate of each block and head, per task, over the seeds that are there."""
    lines = []
    for task in TASKS:
        records = [read_json(run_path(folder, task, "dual, routed", seed)) for seed in seeds]
        gates = [record["gates"] for record in records if record]
        for block, row in enumerate(np.mean(gates, 0) if gates else []):
            lines.append(f"| {task.name} | {block + 1} | " + " | ".join(f"{gate:.2f}" for gate in row) + " |")
    return lines


def page(args: argparse.Namespace) -> str:
    """What was measured, as Markdown."""
    known = read_json(args.output_dir / "settings.json")
    rows, costs = known["settings"]["rows"], known["costs"]
    records = [read_json(run_path(args.output_dir, t, v, s)) for t in TASKS for v in VARIANTS for s in args.seeds]
    seconds = sum(record["cpu_seconds"] for record in records if record)
    text = [
        "# Decay laws and routing, measured",
        "",
        f"Written by `scripts/compare_decay_laws.py` from {sum(map(bool, records))} trainings of together "
        f"{seconds / 60:.0f} CPU minutes. Encoder: width {MODEL['hidden_size']}, {MODEL['num_hidden_layers']} blocks, "
        f"{HEADS} heads; images within 8.9 Å for all laws. Cost: CPU time of a training step per crystal, in units of "
        "the Gaussian model's, timed in turns in one process. Every model has the CPU time of the Gaussian one's "
        "steps. Intervals: bootstrap over test crystals of the paired difference, averaged over seeds; they do not "
        "hold the scatter of seeds, which the column before shows. About half of the Materials Project cells were "
        "relaxed with another functional than that of the labels: the figures compare these models, not others.",
    ]
    for task in TASKS:
        counts = ", ".join(f"{rows[task.name][part]:,} {part}" for part in ("train", "val", "test"))
        per_crystal = 1000 * costs[task.name]["gaussian"]
        for column in range(len(task.names)):
            body, count = table(task, column, args.output_dir, args.seeds, costs[task.name])
            text += ["", f"{counts} rows; seeds: {count}; gaussian {per_crystal:.2f} ms a crystal:", "", body]
    text += ["", "Gates of the routed heads (weight of real space, mean over seeds; they begin at 0.95 and 0.05):", ""]
    text += ["| task | block | " + " | ".join(f"head {head + 1}" for head in range(HEADS)) + " |"]
    text += ["|---|---:|" + "---:|" * HEADS, *gate_lines(args.output_dir, args.seeds)]
    return "\n".join(text) + "\n"


def main(args: argparse.Namespace) -> None:
    """Train what is missing, write the page."""
    if not args.table_only:
        run_all(args)
    args.output.write_text(page(args), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with materials_project.parquet and matbench_phonons.parquet")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--train-rows", type=int, default=8000, help="most training rows of a task (default: 8000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each variant (default: 9)")
    parser.add_argument("--table-only", action="store_true", help="train nothing")
    main(parser.parse_args())
