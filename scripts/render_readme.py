"""Write the figures of the embedded checkpoints into README.md, docs/models.md and into their model cards.

    python scripts/render_readme.py            # after a checkpoint or its metrics.json has changed
    python scripts/render_readme.py --check    # exit code 1 if a file is out of date

Errors and rates of success come from hf_crystal/checkpoints/*/metrics.json: the run.json of the training, with figures
of further evaluations (scripts/update_metrics.py). The baseline of structure prediction comes from
docs/baseline_substitution.json (scripts/baseline_substitution.py).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# of the crystals that a generator made of nothing; its card has all figures
FREE_FIGURES = {
    "structure_validity": "valid structure (distances, volume)",
    "composition_validity": "valid composition (SMACT)",
    "validity": "both",
    "uniqueness": "unique",
    "novelty": "novel",
}
WITHOUT_GENERATOR = {  # of scripts/baseline_substitution.py and scripts/evaluate_prototypes.py
    "elements replaced in a training crystal, nothing learned": ROOT / "docs" / "baseline_substitution.json",
    "**known prototypes**, alike elements learned (index of the training part)": ROOT / "docs" / "prototypes.json",
}
# match rate in % and RMSE as published, MP-20, one attempt: unfiltered, filtered
PUBLISHED = {
    "DiffCSP": ("57.8 / .063", "52.5 / .060"),
    "FlowMM": ("66.2 / .066", "60.0 / .063"),
    "OMatG": ("69.8 / .074", "63.8 / .072"),
    "MCFlow": ("70.4 / .059", "64.1 / .056"),
    "Crystalite": ("–", "66.1 / .033"),
    "MaskGXT ([arXiv:2606.22866](https://arxiv.org/abs/2606.22866))": ("73.8", "–"),
}
COMPARED = "mat2seq-mp20"
# the ways of asking for a crystal of a composition: section, key of the metrics after the protocol, in words
ATTEMPTS = (
    ("greedy", "1", "greedy decoding, 1 attempt"),
    ("sampled", "1", "sampled, 1 attempt"),
    ("sampled", "20", "sampled, best of 20"),
)
PROTOCOLS = {"match": "unfiltered", "match_smact14": "filtered"}


def training_cost(metrics: dict[str, Any]) -> str:
    """Rows, hours and device of a training, as its record has them."""
    minutes = metrics["training_seconds"] / 60
    lasted = f"{minutes / 60:.1f} h" if minutes >= 60 else f"{minutes:.0f} min"
    return f"{metrics['rows']['train']:,} crystals, {lasted} on {metrics['device']}"


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
            if row.get("nonmetal_mae") is not None:
                interval = interval_text(*row["nonmetal_mae_interval"])
                error = f"{row['nonmetal_mae']:.4f} ({interval}, n = {row['nonmetal_n']:,})"
                rows.append([f"`{name}`", f"{row['name']} of non-metals, {row['unit']}", error, "–", "–"])
    return _table(["checkpoint", "target", "test MAE (95 % interval)", "formula only", "mean predictor"], rows)


def _percent(share: float, interval: list[float] | None, samples: int) -> str:
    within = "" if interval is None else f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
    return f"{100 * share:.1f}{within}, n = {samples:,}"


def generator_table(metrics: dict[str, dict[str, Any]]) -> str:
    """Figures of generators before relaxation in percent, one line per figure, one column per generator."""
    lines: dict[str, list[str]] = {}
    for section, n, attempt in ATTEMPTS:
        for key, protocol in PROTOCOLS.items():
            found = [each["generation"].get(section, {}).get(f"{key}_{n}") for each in metrics.values()]
            lines[f"match rate, {attempt}, {protocol}"] = [
                _percent(match["match_rate"], match["match_rate_interval"], match["num_items"]) if match else "–"
                for match in found
            ]
    for figure, words in FREE_FIGURES.items():
        part = "validity" if "validity" in figure else figure
        found = [each["generation"].get("free", {}).get(part, {}) for each in metrics.values()]
        lines[f"from nothing: {words}"] = [
            _percent(made[figure], made.get(f"{figure}_interval"), made["num_crystals"]) if figure in made else "–"
            for made in found
        ]
    rows = [[words, *cells] for words, cells in lines.items() if any(cell != "–" for cell in cells)]
    return _table(["figure in % (95 % interval)", *(f"`{name}`" for name in metrics)], rows)


def comparison_section() -> str:
    """Published match rates, a baseline without learning, and the embedded generator, under both protocols."""
    from hf_crystal.card_figures import load_metrics
    from hf_crystal.checkpoints import checkpoint_folder

    def cells(figures: dict[str, Any], n: str) -> list[str]:
        """Match rate in % and RMSE under each protocol."""
        found = [figures.get(f"{key}_{n}") for key in PROTOCOLS]
        rates = [
            match and f"{100 * match['match_rate']:.1f} / {match['rmse']:.3f}".replace("/ 0", "/ ") for match in found
        ]
        return [rate or "not measured" for rate in rates]

    rows = [[name, *rates] for name, rates in PUBLISHED.items()]
    rows += [[what, *cells(json.loads(file.read_text()), "1")] for what, file in WITHOUT_GENERATOR.items()]
    generation = load_metrics(checkpoint_folder(COMPARED) / "metrics.json")["generation"]
    for section, n, attempt in ATTEMPTS[:2]:
        rows.append([f"**`{COMPARED}`**, {attempt.partition(',')[0]}", *cells(generation[section], n)])
    return _table(["match rate in % / RMSE", *PROTOCOLS.values()], rows)


def against_section() -> str:
    """Four tasks: our figure, and that of what would be used instead."""
    from hf_crystal.card_figures import load_metrics, target_rows
    from hf_crystal.checkpoints import checkpoint_folder

    def errors(checkpoint: str, target: str) -> tuple[str, str]:
        """Test error of a model, and of the formula alone."""
        rows = target_rows(load_metrics(checkpoint_folder(checkpoint) / "metrics.json"))
        row = next(row for row in rows if row["name"] == target)
        return f"`{checkpoint}` {row['mae']:.4f}", f"forest on the formula {row['composition_mae']:.4f}"

    def rate(file: Path) -> str:
        return f"{100 * json.loads(file.read_text())['match_1']['match_rate']:.1f}"

    replaced, prototypes = (rate(file) for file in WITHOUT_GENERATOR.values())
    best = max(PUBLISHED, key=lambda name: float(PUBLISHED[name][0].split(" / ")[0].replace("–", "0")))
    beside = json.loads((ROOT / "docs" / "chgnet.json").read_text(encoding="utf-8"))
    f1 = {
        name: f"{row['stable']['f1']:.3f} in {row['cpu_ms']:.0f} ms" for name, row in beside.items() if "stable" in row
    }
    rows = [
        [
            "formation energy, MP-20 with matbench labels, MAE in eV/atom",
            *errors("crystalformer-mp20", "formation_energy"),
        ],
        ["band gap, the same, MAE in eV", *errors("crystalformer-mp20", "band_gap")],
        [
            "near the hull or not, [1,000 crystals](docs/chgnet.md) of MPTS-52, F1 by the labels that ours learned",
            f"`crystalformer-mp` {f1['own']} of CPU time a crystal",
            f"CHGNet {f1['chgnet']}",
        ],
        [
            "structure of given cell contents, MP-20, match rate in %",
            f"known prototypes of the training part {prototypes}",
            f"elements replaced {replaced}; best published {PUBLISHED[best][0]} ({best.partition(' ')[0]})",
        ],
    ]
    return _table(["task, and the test set", "here", "instead"], rows)


def _metrics(names: list[str]) -> dict[str, dict[str, Any]]:
    from hf_crystal.card_figures import load_metrics
    from hf_crystal.checkpoints import checkpoint_folder

    return {name: load_metrics(checkpoint_folder(name) / "metrics.json") for name in names}


def page_sections() -> dict[Path, dict[str, str]]:
    """Text of each marked part, by page."""
    from hf_crystal.checkpoints import embedded_checkpoints, embedded_generators

    properties, generators = _metrics(embedded_checkpoints()), _metrics(embedded_generators())
    return {
        ROOT / "README.md": {"against": against_section()},
        ROOT / "docs" / "models.md": {
            "properties": property_table(properties),
            "generators": generator_table(generators),
            "comparison": comparison_section(),
            "checkpoints": checkpoint_table(properties | generators),
        },
    }


def with_sections(page: Path, sections: dict[str, str]) -> str:
    """A page with the parts between its markers replaced."""
    current = page.read_text(encoding="utf-8")
    for name, text in sections.items():
        head, begin, rest = current.partition(f"<!-- {name}:begin")
        comment, end, tail = rest.partition(f"<!-- {name}:end -->")
        if not begin or not end:
            raise ValueError(f"{page.name} lacks the markers of {name}")
        current = f"{head}{begin}{comment.splitlines()[0]}\n{text}\n{end}{tail}"
    return current


def rendered_files() -> dict[Path, str]:
    """Every file that this script writes, with its text."""
    from hf_crystal import AutoModelForCrystalGeneration, AutoModelForCrystalPropertyPrediction, render_model_card
    from hf_crystal.cards import shipped_hub_config
    from hf_crystal.checkpoints import checkpoint_folder, embedded_checkpoints, embedded_generators

    loaders = dict.fromkeys(embedded_checkpoints(), AutoModelForCrystalPropertyPrediction)
    loaders |= dict.fromkeys(embedded_generators(), AutoModelForCrystalGeneration)
    files = {page: with_sections(page, sections) for page, sections in page_sections().items()}
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
