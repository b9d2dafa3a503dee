"""Write the figures of the embedded checkpoints into README.md and into their model cards.

    python scripts/render_readme.py            # after a checkpoint or its metrics.json has changed
    python scripts/render_readme.py --check    # exit code 1 if a file is out of date

Errors and rates of success come from hf_crystal/checkpoints/*/metrics.json: the run.json of the training, with figures
of further evaluations. Speeds come from docs/performance.jsonl, which scripts/bench_all.sh writes.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# what a line of the table of speeds says, and the figures that it shows: benchmark and name
SPEEDS = {
    "Crystalformer: forward pass, training step": [
        ("encoders", "crystalformer forward"),
        ("encoders", "crystalformer forward + backward"),
    ],
    "CrystalFramer: forward pass, training step": [
        ("encoders", "crystalframer forward"),
        ("encoders", "crystalframer forward + backward"),
    ],
    "`hf-crystal predict` from a table, reading and neighbor search included": [("feeding", "predict, Arrow rows")],
    "reading and neighbor search alone": [("feeding", "Arrow rows → batch → neighbors")],
    "generation, in batches; against one by one without a cache": [
        ("generation", "batch, cache, masks, shared prefill"),
        ("generation", "batch against one by one"),
    ],
    "crystal → canonical sequence, and back": [("canonical", "encoding, mp_20"), ("canonical", "decoding, mp_20")],
    "structure matching, 20 samples; against a plain loop": [
        ("matching", "match_rate"),
        ("matching", "plain loop / match_rate"),
    ],
}
# of a generator's figures; its card has them all
README_FIGURES = ("match_rate", "metre", "validity", "uniqueness", "novelty", "agreement")


def training_cost(metrics: dict[str, Any]) -> str:
    """Rows, hours and device of a training, as its record has them."""
    hours = metrics["training_seconds"] / 3600
    return f"{metrics['rows']['train']:,} crystals, {hours:.1f} h on {metrics['device']}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown table; empty without rows."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]]) if rows else ""


def checkpoint_table(metrics: dict[str, dict[str, Any]]) -> str:
    """Size and training of each checkpoint, one line each."""
    rows = [[f"`{name}`", f"{found['num_parameters']:,}", training_cost(found)] for name, found in metrics.items()]
    return _table(["checkpoint", "parameters", "training"], rows)


def property_table(metrics: dict[str, dict[str, Any]]) -> str:
    """Errors of property models, one line per target."""
    from hf_crystal.card_figures import interval_text, target_rows

    rows = []
    for name, found in metrics.items():
        for row in target_rows(found):
            error = f"{row['mae']:.4f} ({interval_text(*row['mae_interval'])}, n = {row['n']:,})"
            forest = f"{row['composition_mae']:.4f}" if "composition_mae" in row else "not measured"
            rows.append([f"`{name}`", f"{row['name']}, {row['unit']}", error, forest, f"{row['baseline_mae']:.4f}"])
    return _table(["checkpoint", "target", "test MAE (95 % interval)", "formula only", "mean predictor"], rows)


def generator_table(metrics: dict[str, dict[str, Any]]) -> str:
    """Figures of generators before relaxation, one line per figure and setting, one column per generator."""
    from hf_crystal.card_figures import generation_rows, interval_text

    cells: dict[tuple[str, str], dict[str, str]] = {}
    for name, found in metrics.items():
        for row in generation_rows(found):
            if row["figure"] not in README_FIGURES:
                continue
            known = row["low"] is not None
            interval = f"{interval_text(row['low'], row['high'])}, " if known else ""
            line = cells.setdefault((row["label"], row["setting"]), {})
            line[name] = f"{row['value']:.4f} ({interval}n = {row['samples']:,})"
    rows = [[*line, *(values.get(name, "–") for name in metrics)] for line, values in cells.items()]
    return _table(["figure (95 % interval)", "setting", *(f"`{name}`" for name in metrics)], rows)


def results_section() -> str:
    """Tables of the embedded checkpoints."""
    from hf_crystal.card_figures import load_metrics, pretraining_text
    from hf_crystal.checkpoints import checkpoint_folder, embedded_checkpoints, embedded_generators

    properties, generators = (
        {name: load_metrics(checkpoint_folder(name) / "metrics.json") for name in names}
        for names in (embedded_checkpoints(), embedded_generators())
    )
    tables = [checkpoint_table(properties | generators), property_table(properties)]
    tables += [f"`{name}`. {text}" for name, found in properties.items() if (text := pretraining_text(found))]
    tables.append(generator_table(generators))
    return "\n\n".join(filter(None, tables)) or "None in this checkout."


def speed_section() -> str:
    """Table of speeds."""
    from benchmarking import number

    lines = (ROOT / "docs" / "performance.jsonl").read_text(encoding="utf-8").splitlines()
    results = {result["benchmark"]: result for result in map(json.loads, lines)}
    values = {
        (name, figure["name"]): f"{number(figure['value'])} {figure['unit']}"
        for name, result in results.items()
        for figure in result["figures"]
    }
    rows = [[what, "; ".join(values[figure] for figure in figures)] for what, figures in SPEEDS.items()]
    hardware = results["canonical"]["hardware"].split(",")[0]
    return _table(["what", f"CPU time, {hardware}"], rows)


def readme_text(current: str) -> str:
    """README with the sections between the markers replaced."""
    for name, section in (("results", results_section), ("speed", speed_section)):
        head, begin, rest = current.partition(f"<!-- {name}:begin")
        comment, end, tail = rest.partition(f"<!-- {name}:end -->")
        if not begin or not end:
            raise ValueError(f"README.md lacks the markers of {name}")
        current = f"{head}{begin}{comment.splitlines()[0]}\n{section()}\n{end}{tail}"
    return current


def rendered_files() -> dict[Path, str]:
    """Every file that this script writes, with its text."""
    from hf_crystal import AutoModelForCrystalGeneration, AutoModelForCrystalPropertyPrediction, render_model_card
    from hf_crystal.cards import shipped_hub_config
    from hf_crystal.checkpoints import checkpoint_folder, embedded_checkpoints, embedded_generators

    loaders = dict.fromkeys(embedded_checkpoints(), AutoModelForCrystalPropertyPrediction)
    loaders |= dict.fromkeys(embedded_generators(), AutoModelForCrystalGeneration)
    files = {ROOT / "README.md": readme_text((ROOT / "README.md").read_text(encoding="utf-8"))}
    for name, loader in loaders.items():
        folder = checkpoint_folder(name)
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        files[folder / "README.md"] = render_model_card(
            loader.from_pretrained(folder), metrics=metrics, hub_config=shipped_hub_config(name)
        )
    return files


def main(args: argparse.Namespace) -> int:
    """Write or check; returns the exit code."""
    stale = []
    for path, text in rendered_files().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(path)
            if not args.check:
                path.write_text(text, encoding="utf-8")
    names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
    if args.check and stale:
        print(f"out of date: {names}; run python scripts/render_readme.py", file=sys.stderr)
        return 1
    print(f"written: {names}" if stale else "up to date")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether a file is out of date")
    sys.exit(main(parser.parse_args()))
