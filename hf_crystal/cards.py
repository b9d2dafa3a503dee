"""Model cards: prose with named slots, numbers filled in from the evaluation JSON."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "model_cards"
_SLOT = re.compile(r"\{\{(\w+)\}\}")
_MISSING = "No figures were supplied with this checkpoint."

_ARCHITECTURES = {
    "crystalformer": (
        "Crystalformer",
        "a transformer over the atoms of the unit cell whose attention sums over all periodic images",
        "Tatsunori Taniai, Ryo Igarashi, Yuta Suzuki, Naoya Chiba, Kotaro Saito, Yoshitaka Ushiku, Kanta Ono: "
        "*Crystalformer: Infinitely Connected Attention for Periodic Structure Encoding*, ICLR 2024, "
        "[arXiv:2403.11686](https://arxiv.org/abs/2403.11686)",
    ),
    "crystalframer": (
        "CrystalFramer",
        "Crystalformer with relative positions seen in a frame that each atom derives from its attention weights",
        "Yusei Ito, Tatsunori Taniai, Ryo Igarashi, Yoshitaka Ushiku, Kanta Ono: "
        "*Rethinking the role of frames for SE(3)-invariant crystal structure modeling*, ICLR 2025, "
        "[arXiv:2503.02209](https://arxiv.org/abs/2503.02209)",
    ),
}


def fill_slots(template: str, values: Mapping[str, str]) -> str:
    """Replace every `{{name}}` of a template.

    Args:
        template: text with slots.
        values: text per slot; names that the template does not use are ignored.

    Returns:
        The text without slots.

    Raises:
        ValueError: a slot of the template has no value.
    """
    missing = sorted(set(_SLOT.findall(template)) - set(values))
    if missing:
        raise ValueError(f"no value for slots {missing} of the template; available: {sorted(values)}")
    return _SLOT.sub(lambda match: values[match.group(1)], template)


def load_metrics(path: str | Path) -> dict[str, Any]:
    """Read an evaluation JSON.

    Args:
        path: `run.json` of a training, or the output of `hf-crystal evaluate`: a list `targets` of name, unit, n,
            mae, rmse, baseline_mae, at the top or under `test`.

    Returns:
        The parsed JSON.

    Raises:
        ValueError: no such file, or not JSON with such a list.
    """
    path = Path(path)
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"no such metrics file: {path}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    target_rows(metrics, str(path))
    return metrics


def target_rows(metrics: Mapping[str, Any], source: str = "metrics") -> list[dict[str, Any]]:
    """The figures per target of an evaluation JSON.

    Args:
        metrics: parsed evaluation JSON.
        source: where it came from, for the message.

    Returns:
        One dictionary per target with at least name, unit, n, mae, rmse and baseline_mae.

    Raises:
        ValueError: the list of targets is missing or a target lacks a figure.
    """
    section = metrics.get("test", metrics)
    rows = section.get("targets") if isinstance(section, Mapping) else None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{source} has no list `targets` (at the top or under `test`)")
    for row in rows:
        absent = [key for key in ("name", "unit", "n", "mae", "rmse", "baseline_mae") if key not in row]
        if absent:
            raise ValueError(f"{source}: target {row.get('name', row)!r} lacks {absent}")
    return rows


def results_table(metrics: Mapping[str, Any] | None) -> str:
    """Markdown table of the errors per target, beside those of predicting the training mean."""
    if metrics is None:
        return _MISSING
    lines = [
        "| target | unit | crystals | MAE | 95 % interval | RMSE | MAE of the mean predictor |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in target_rows(metrics):
        interval = row.get("mae_interval")
        spread = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "–"
        lines.append(
            f"| {row['name']} | {row['unit']} | {row['n']} | **{row['mae']:.4f}** | {spread} | {row['rmse']:.4f} "
            f"| {row['baseline_mae']:.4f} |"
        )
    return "\n".join(lines)


# fields of a run's record that the card tells, in this order
_TRAINING_FIELDS = {
    "rows": "crystals per split",
    "num_parameters": "trained parameters",
    "epochs": "epochs",
    "steps": "optimizer steps",
    "training_seconds": "wall time, s",
    "device": "device",
    "num_threads": "threads",
    "num_processes": "processes",
    "seed": "seed",
    "weight_averaging": "weight averaging",
    "git_commit": "commit",
    "versions": "versions",
}


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1000 else str(value)


def training_table(metrics: Mapping[str, Any] | None) -> str:
    """Markdown table of the training, from the record that the training wrote (`run.json`)."""
    record = metrics or {}
    rows = [
        f"| {label} | {_plain(record[key])} |"
        for key, label in _TRAINING_FIELDS.items()
        if record.get(key) is not None
    ]
    if not rows:
        return "The evaluation file of this checkpoint does not describe its training."
    return "\n".join(["| | |", "|---|---|", *rows])


def _front_matter(model: Any, metrics: Mapping[str, Any] | None, hub_config: Mapping[str, Any]) -> str:
    """YAML header that the Hub reads, with the figures as a model index."""
    from huggingface_hub import EvalResult, ModelCardData

    results = None
    if metrics is not None:
        results = [
            EvalResult(
                task_type="crystal-property-prediction",
                task_name="Crystal property prediction",
                dataset_type=hub_config["dataset_type"],
                dataset_name=hub_config["dataset"],
                dataset_split="test",
                metric_type="mae",
                metric_name=f"MAE {row['name']} ({row['unit']})" if row["unit"] else f"MAE {row['name']}",
                metric_value=row["mae"],
            )
            for row in target_rows(metrics)
        ]
    data = ModelCardData(
        license=hub_config["license"],
        library_name="transformers",
        tags=["crystal", "materials-science", "chemistry", model.config.model_type, *hub_config["tags"]],
        model_name=hub_config["title"],
        eval_results=results,
    )
    return f"---\n{data.to_yaml()}\n---\n"


DEFAULT_HUB_CONFIG: dict[str, Any] = {
    "template": "crystal-property",
    "title": "Crystal property model",
    "summary": "Predicts properties of crystals from their structure.",
    "repo": "path/to/this/folder",
    "dataset": "not stated",
    "dataset_type": "unknown",
    "license": "apache-2.0",
    "tags": [],
    "origin": "It is an independent implementation of the model of the paper below.",
    "limits": "Nothing further is known about this checkpoint.",
}


def read_hub_config(source: Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
    """Description of a repository: the defaults, overridden by a dictionary or a JSON file.

    Args:
        source: fields to override (see `DEFAULT_HUB_CONFIG`), or the path of a JSON file holding them.

    Returns:
        All fields.

    Raises:
        ValueError: unreadable file or unknown field.
    """
    if source is None:
        return dict(DEFAULT_HUB_CONFIG)
    if not isinstance(source, Mapping):
        try:
            source = json.loads(Path(source).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError) as error:
            raise ValueError(f"hub_config {source} cannot be read: {error}") from error
        if not isinstance(source, Mapping):
            raise ValueError("hub_config must hold a JSON object")
    unknown = sorted(set(source) - set(DEFAULT_HUB_CONFIG))
    if unknown:
        raise ValueError(f"hub_config has unknown fields {unknown}; accepted are {sorted(DEFAULT_HUB_CONFIG)}")
    return {**DEFAULT_HUB_CONFIG, **source}


def render_model_card(
    model: Any,
    *,
    metrics: Mapping[str, Any] | None = None,
    hub_config: Mapping[str, Any] | str | Path | None = None,
) -> str:
    """Text of the model card (README.md) of a property model.

    Args:
        model: model with a property head; names, units and parameter count are read from it.
        metrics: evaluation JSON (see `load_metrics`); every number of the card comes from it or from the model.
        hub_config: title, summary, data set and so on (see `DEFAULT_HUB_CONFIG`), or the path of a JSON file.

    Returns:
        Markdown with a YAML header.

    Raises:
        ValueError: a slot of the template cannot be filled, or the metrics lack a figure.
    """
    description = read_hub_config(hub_config)
    path = TEMPLATES / f"{description['template']}.md"
    if not path.is_file():
        available = sorted(file.stem for file in TEMPLATES.glob("*.md"))
        raise ValueError(f"no card template {description['template']!r}; available: {available}")
    config = model.config
    name, sentence, citation = _ARCHITECTURES[config.model_type]
    targets = [
        f"{target} ({unit})" if unit else target
        for target, unit in zip(config.target_names, config.target_units, strict=True)
    ]
    values = {
        **{key: value for key, value in description.items() if isinstance(value, str)},
        "architecture": name,
        "architecture_sentence": sentence,
        "num_parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "targets": ", ".join(targets),
        "results": results_table(metrics),
        "training": training_table(metrics),
        "citation": citation,
    }
    return _front_matter(model, metrics, description) + fill_slots(path.read_text(encoding="utf-8"), values)
