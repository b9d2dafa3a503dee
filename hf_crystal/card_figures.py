"""Figures of an evaluation JSON, as rows for cards, model indexes and data sets of results."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_MISSING = "No figures were supplied with this checkpoint."
_DASH = "–"
_NEEDED_OF_A_TARGET = ("name", "unit", "n", "mae", "rmse", "baseline_mae")

# figures of one target: key in the evaluation file -> what it says
_TARGET_FIGURES = {
    "mae": "MAE",
    "nonmetal_mae": "MAE of non-metals",
    "rmse": "RMSE",
    "r2": "R2",
    "baseline_mae": "MAE of the mean predictor",
    "composition_mae": "MAE of a forest on the formula",
}
# figures of a generator: key in the evaluation file -> what it says; shares are between 0 and 1
_GENERATION_FIGURES = {
    "nats_per_token": "negative log-likelihood, nats per token",
    "nats_per_crystal": "negative log-likelihood, nats per crystal",
    "decoded": "share that decodes",
    "composition": "share with the composition asked for",
    "match_rate": "match rate",
    "likelier_than_greedy": "share of compositions with a sample likelier than the greedy crystal",
    "rms_mean": "mean RMS of the matches",
    "rmse": "mean RMS of the matches",
    "metre": "METRe",
    "crmse": "cRMSE",
    "validity": "valid share, structure and SMACT",
    "structure_validity": "valid share, structure",
    "composition_validity": "valid share, SMACT",
    "uniqueness": "uniqueness",
    "novelty": "novelty",
    "agreement": "share whose space group, looked for within 0.1 Å, is the written one",
    "recall": "coverage, recall",
    "precision": "coverage, precision",
    "density_distance": "Wasserstein distance of densities",
    "num_elements_distance": "Wasserstein distance of numbers of elements",
    "property_distance": "Wasserstein distance of a property",
    "success_rate": "success rate of a condition",
    "without_condition": "the same where the condition was not asked for",
}
# the fields of `ValidityResult`, where the evaluation has not added the shares with their intervals
_OTHER_NAMES = {
    "validity": "valid",
    "structure_validity": "structure_valid",
    "composition_validity": "composition_valid",
}
# sections of a training record, in words
_SECTIONS = {
    "answer": "what follows the composition",
    "answer with conditions": "what follows the composition, conditions given",
}
_COUNTED = ("decoded", "composition")  # shares that older files give as counts
_SAMPLES = (
    *("samples", "num_items", "num_crystals", "num_sampled"),  # of novelty and distances the crystals judged, …
    *("num_references", "num_samples", "num_generated", "crystals"),  # … of METRe the crystals to be found
)


def load_metrics(path: str | Path) -> dict[str, Any]:
    """Read an evaluation JSON.

    Args:
        path: `run.json` of a training, or the output of `hf-crystal evaluate`. Of a property model: a list `targets`
            of name, unit, n, mae, rmse, baseline_mae, at the top or under `test`. Of a generator: figures under
            `generation` or `test`.

    Returns:
        The parsed JSON.

    Raises:
        ValueError: no such file, not JSON, or without figures.
    """
    path = Path(path)
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"no such metrics file: {path}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(metrics, Mapping) or not generation_rows(metrics):
        target_rows(metrics, str(path))
    return dict(metrics)


def target_rows(metrics: Mapping[str, Any], source: str = "metrics") -> list[dict[str, Any]]:
    """The figures per target of a property model's evaluation JSON.

    Args:
        metrics: parsed evaluation JSON.
        source: where it came from, for the message.

    Returns:
        One dictionary per target with at least name, unit, n, mae, rmse and baseline_mae.

    Raises:
        ValueError: the list of targets is missing or a target lacks a figure.
    """
    section = metrics.get("test", metrics) if isinstance(metrics, Mapping) else None
    rows = section.get("targets") if isinstance(section, Mapping) else None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{source} has no list `targets` (at the top or under `test`)")
    for row in rows:
        absent = [key for key in _NEEDED_OF_A_TARGET if key not in row]
        if absent:
            raise ValueError(f"{source}: target {row.get('name', row)!r} lacks {absent}")
    return rows


def _row(key: str, label: str, section: Mapping[str, Any], **further: Any) -> dict[str, Any]:
    low, high = section.get(f"{key}_interval") or (None, None)
    return {"figure": key, "label": label, "value": section[key], "low": low, "high": high, **further}


def _setting(section: Mapping[str, Any], name: str) -> str:
    """How the figures of a section came about, in words."""
    protocol = section.get("protocol", {})
    if not isinstance(protocol, Mapping):
        protocol = {"protocol": str(protocol).partition(":")[0]}
    shown = {**protocol, **{key: section[key] for key in ("n", "temperature", "split") if key in section}}
    words = [str(value) if key == "protocol" else f"{key} {value}" for key, value in shown.items() if _is_plain(value)]
    # in the name already: "metre" for the protocol metre, "20 samples" for n 20
    parts = name.split(", ")
    words = [
        word for word in words if word != parts[-1] and not any(f"n {part}".startswith(f"{word} ") for part in parts)
    ]
    return ", ".join([*([name] if name else []), *words])


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _sections(tree: Any, name: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping with a figure of `_GENERATION_FIGURES`, with the names that lead to it."""
    if isinstance(tree, list):
        for entry in tree:
            yield from _sections(entry, name)
    elif isinstance(tree, Mapping):
        renamed = {key: tree[other] for key, other in _OTHER_NAMES.items() if other in tree}
        if tree.get("composition_valid") is None:  # what passes is then only the structure
            renamed.pop("validity", None)
        figures = {**renamed, **tree}
        if any(_is_plain(figures.get(key)) for key in _GENERATION_FIGURES):
            yield name, figures
        for key, entry in tree.items():
            if key not in ("protocol", "settings", "samples", "crystals"):
                yield from _sections(entry, f"{name}, {_section_words(key)}".removeprefix(", "))


def _section_words(key: str) -> str:
    """A key of the evaluation file in words: `match_smact14_20` names the number of samples and the filter."""
    match = re.fullmatch(r"match_(smact14_)?(\d+)", key)
    if match is None:
        return "unconditional" if key == "free" else key.replace("_", " ")
    samples = f"{match[2]} sample{'' if match[2] == '1' else 's'}"
    return f"{samples}, {'filtered by distances and SMACT' if match[1] else 'unfiltered'}"


def generation_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures of a generator's evaluation JSON; figures that are not there are left out.

    Returns:
        Rows of figure, label, value, low, high, unit, samples and setting; empty where it holds none.
    """
    test = metrics.get("test")
    tree = [metrics.get("generation"), {} if isinstance(test, Mapping) and "targets" in test else test]
    rows = []
    for path, section in _sections(tree):
        name = _SECTIONS.get(path, path)
        samples = next((section[key] for key in _SAMPLES if isinstance(section.get(key), int)), None)
        setting = _setting(section, name)
        for key, label in _GENERATION_FIGURES.items():
            if not _is_plain(section.get(key)):
                continue
            row = _row(key, label, section, unit="", samples=samples, setting=setting)
            if key in _COUNTED and isinstance(row["value"], int) and samples:
                row["value"] /= samples
            rows.append(row)
    return rows


def figure_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every known figure of an evaluation JSON, of a property model or a generator.

    Returns:
        Rows of figure, label, value, low, high (95 % interval or None), unit, samples and setting (for a property:
        the target).

    Raises:
        ValueError: it holds none.
    """
    rows = generation_rows(metrics)
    if rows:
        return rows
    for target in target_rows(metrics):
        for key, label in _TARGET_FIGURES.items():
            if target.get(key) is not None:
                unit = "" if key == "r2" else target["unit"]
                samples = target["nonmetal_n" if key == "nonmetal_mae" else "n"]
                rows.append(_row(key, label, target, unit=unit, samples=samples, setting=target["name"]))
    return rows


def interval_text(low: float | None, high: float | None) -> str:
    """An interval with four decimals, or a dash."""
    return _DASH if low is None or high is None else f"{low:.4f} to {high:.4f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def target_table(metrics: Mapping[str, Any]) -> str:
    """Markdown table of the errors per target, beside those of baselines that do not see the structure."""
    targets = target_rows(metrics)
    with_forest = any("composition_mae" in row for row in targets)
    with_nonmetals = any(row.get("nonmetal_mae") is not None for row in targets)
    head = ["target", "unit", "crystals", "MAE", "95 % interval", "RMSE", "MAE of the mean predictor"]
    rows = []
    for row in targets:
        cells = [row["name"], row["unit"], str(row["n"]), f"**{row['mae']:.4f}**"]
        cells += [interval_text(*(row.get("mae_interval") or (None, None))), f"{row['rmse']:.4f}"]
        cells.append(f"{row['baseline_mae']:.4f}")
        if with_nonmetals:
            known = row.get("nonmetal_mae") is not None
            cells.append(f"{row['nonmetal_mae']:.4f} ({row['nonmetal_n']:,} crystals)" if known else _DASH)
        if with_forest:
            cells.append(f"{row['composition_mae']:.4f}" if "composition_mae" in row else _DASH)
        rows.append(cells)
    head += ["MAE of non-metals"] if with_nonmetals else []
    return _table([*head, *(["MAE of a forest on the formula"] if with_forest else [])], rows)


def generation_table(metrics: Mapping[str, Any]) -> str:
    """Markdown table of a generator's figures."""
    rows = [
        [
            row["label"],
            row["setting"],
            _DASH if row["samples"] is None else f"{row['samples']:,}",
            f"**{row['value']:.4f}**",
            interval_text(row["low"], row["high"]),
        ]
        for row in generation_rows(metrics)
    ]
    return _table(["figure", "setting", "samples", "value", "95 % interval"], rows)


def pretraining_text(metrics: Mapping[str, Any]) -> str:
    """What starting from a pretrained encoder bought (`scripts/compare_pretraining.py`); empty if not measured."""
    comparison = metrics.get("pretraining")
    if comparison is None:
        return ""
    rows = [
        [
            target["name"],
            target["unit"],
            f"**{target['pretrained_mae']:.4f}**",
            f"{target['scratch_mae']:.4f}",
            f"{target['difference']:+.4f}",
            interval_text(*target["difference_interval"]),
        ]
        for target in comparison["targets"]
    ]
    start = f"MAE from {comparison['pretrained']}"
    steps = " or ".join(f"{count:,}" for count in comparison["steps"])
    return (
        f"Fine-tuned and from scratch at equal budget (pretraining not counted), {steps} optimizer steps each, means "
        f"of {len(comparison['seeds'])} seeds:\n\n"
    ) + _table(["target", "unit", start, "MAE from scratch", "difference", "95 % interval"], rows)


def results_table(metrics: Mapping[str, Any] | None) -> str:
    """Markdown tables of an evaluation JSON, or a sentence that there is none."""
    if metrics is None:
        return _MISSING
    if generation_rows(metrics):
        return generation_table(metrics)
    return "\n\n".join(filter(None, (target_table(metrics), pretraining_text(metrics))))
