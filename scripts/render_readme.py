"""Write the figures of the embedded checkpoints into README.md and into their model cards.

    python scripts/render_readme.py            # after a checkpoint or its metrics.json has changed
    python scripts/render_readme.py --check    # exit code 1 if a file is out of date

Every number comes from hf_crystal/checkpoints/*/metrics.json (the run.json of the training).
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results:begin", "<!-- results:end -->"


def results_section() -> str:
    """Table of the embedded checkpoints."""
    from hf_crystal.cards import load_metrics, target_rows
    from hf_crystal.checkpoints import checkpoint_folder, embedded_checkpoints

    lines = [
        "| checkpoint | parameters | target | training | test MAE (95 % interval) | mean predictor |",
        "|---|---|---|---|---|---|",
    ]
    for name in embedded_checkpoints():
        metrics = load_metrics(checkpoint_folder(name) / "metrics.json")
        cost = (
            f"{metrics['rows']['train']:,} crystals, {metrics['training_seconds'] / 3600:.1f} h on {metrics['device']}"
        )
        for row in target_rows(metrics):
            low, high = row["mae_interval"]
            lines.append(
                f"| `{name}` | {metrics['num_parameters']:,} | {row['name']}, {row['unit']} | {cost} "
                f"| {row['mae']:.4f} ({low:.4f} to {high:.4f}, n = {row['n']:,}) | {row['baseline_mae']:.4f} |"
            )
    return "\n".join(lines) if len(lines) > 2 else "None in this checkout."


def readme_text(current: str) -> str:
    """README with the section between the markers replaced."""
    head, begin, rest = current.partition(BEGIN)
    comment, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks the markers {BEGIN} and {END}")
    return f"{head}{begin}{comment.splitlines()[0]}\n{results_section()}\n{end}{tail}"


def rendered_files() -> dict[Path, str]:
    """Every file that this script writes, with its text."""
    from hf_crystal import AutoModelForCrystalPropertyPrediction, render_model_card
    from hf_crystal.checkpoints import checkpoint_folder, embedded_checkpoints

    files = {ROOT / "README.md": readme_text((ROOT / "README.md").read_text(encoding="utf-8"))}
    for name in embedded_checkpoints():
        folder = checkpoint_folder(name)
        model = AutoModelForCrystalPropertyPrediction.from_pretrained(folder)
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        files[folder / "README.md"] = render_model_card(
            model, metrics=metrics, hub_config=ROOT / "hub_configs" / f"{name}.json"
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
