"""Model cards: prose with named slots, numbers filled in from the evaluation JSON."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .card_figures import figure_rows, generation_rows, load_metrics, results_table, target_rows
from .checkpoints import OWNER
from .crystals.elements import cell_formula
from .crystals.record import atomic_number_of
from .typing import Generator, PropertyModel

__all__ = ["figure_rows", "load_metrics", "read_hub_config", "render_model_card", "shipped_hub_config", "target_rows"]

_SLOT = re.compile(r"\{\{(\w+)\}\}")

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

_ARCHITECTURES["crystal_potential"] = (
    "Crystalformer",
    "a transformer over the atoms of the unit cell whose attention sums over all periodic images, with energies of "
    "elements, forces and stress",
    _ARCHITECTURES["crystalformer"][2],
)

_MAT2SEQ_CITATION = (
    "The sequence is this project's own, after the aims of Mat2Seq: Keqiang Yan, Xiner Li, Hongyi Ling, Kenna Ashen, "
    "Carl Edwards, Raymundo Arróyave, Marinka Zitnik, Heng Ji, Xiaofeng Qian, Xiaoning Qian, Shuiwang Ji: "
    "*Invariant Tokenization of Crystalline Materials for Language Model Enabled Generation*, NeurIPS 2024, "
    "[arXiv:2503.00152](https://arxiv.org/abs/2503.00152)"
)


def shipped_folder(name: str) -> Path:
    """Folder `model_cards` or `hub_configs`: inside an installed package, beside the package in a checkout."""
    installed = Path(__file__).parent / name
    return installed if installed.is_dir() else Path(__file__).parents[1] / name


def shipped_hub_config(name: str) -> Path | None:
    """Description of one of this project's repositories, or None if there is none of that name."""
    path = shipped_folder("hub_configs") / f"{name}.json"
    return path if path.is_file() else None


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


# fields of a run's record that the card tells, in this order
_TRAINING_FIELDS = {
    "rows": "rows per split",
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


def _eval_results(model: Any, metrics: Mapping[str, Any], description: Mapping[str, Any]) -> list[Any]:
    """Figures for the model index: the MAE of each target, or every figure of a generator."""
    from huggingface_hub import EvalResult

    task = "text-generation" if _is_generator(model) else "crystal-property-prediction"
    task_name = "Crystal generation" if _is_generator(model) else "Crystal property prediction"
    generated = generation_rows(metrics)
    rows = generated or [row for row in figure_rows(metrics) if row["figure"] == "mae"]
    results = []
    for row in rows:
        place = f" {row['setting']}" if not generated else f" ({row['setting']})"
        results.append(
            EvalResult(
                task_type=task,
                task_name=task_name,
                dataset_type=description["dataset_type"],
                dataset_name=description["dataset"],
                dataset_split=None if "cross_validation" in metrics else "test",
                metric_type=row["figure"],
                metric_name=f"{row['label']}{place}" + (f" ({row['unit']})" if row["unit"] else ""),
                metric_value=float(f"{row['value']:.4g}"),
            )
        )
    return results


def _front_matter(
    model: Any, metrics: Mapping[str, Any] | None, description: Mapping[str, Any], tags: list[str]
) -> str:
    """YAML header that the Hub reads, with the figures as a model index."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        license=description["license"],
        base_model=description.get("base_model"),
        library_name="transformers",
        tags=["crystal", "materials-science", "chemistry", *tags, *description["tags"]],
        model_name=description["title"],
        eval_results=None if metrics is None else _eval_results(model, metrics, description),
        pipeline_tag="text-generation" if _is_generator(model) else None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _of_base_model(model: Any, metrics: Mapping[str, Any] | None) -> dict[str, str]:
    """Repository and license of the checkpoint that a training started from, as its record or the model names it."""
    recipe = ((metrics or {}).get("recipe") or {}).get("model") or {}
    named = str(recipe.get("pretrained") or "")
    if recipe and not named:  # from scratch
        return {}
    if re.fullmatch(r"[\w.-]+/[\w.-]+", named) and not named.startswith(OWNER):
        return {"base_model": named}
    inherited = getattr(model.config, "base_model", None) or ""  # a folder is recorded by its name
    for name in (named.removeprefix(OWNER), inherited.removeprefix(OWNER)):
        if (shipped := shipped_hub_config(name) if name else None) is not None:
            base = read_hub_config(shipped)
            from_ = (
                f"Its weights began as those of `{base['repo']}` ({base['license']}), trained on: {base['dataset']}."
            )
            return {"base_model": base["repo"], "license": base["license"], "origin": from_}
    return {}


def _elements_seen(config: Any, recorded: bool) -> str:
    """The elements of the training crystals, by atomic number; without a record those that the weights came with."""
    symbols = sorted(getattr(config, "trained_elements", None) or {}, key=atomic_number_of)
    base = getattr(config, "base_model", None)
    inherited = f" (in the training of `{base}`; later ones are not recorded)" if base and not recorded else ""
    return f"{len(symbols)}: {' '.join(symbols)}{inherited}" if symbols else "not recorded"


def _size_of(model: Any) -> str:
    """Number of parameters, those of an error head apart: it is fitted after training."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    errors = sum(size for name, size in sizes.items() if name.startswith("error_head."))
    return f"{sum(sizes.values()) - errors:,}" + f", and {errors:,} of the error head" * bool(errors)


def _is_generator(model: Any) -> bool:
    return hasattr(model, "generate_crystals")


DESCRIPTION_NAME = "hub_config.json"  # of a folder that tells its own
DEFAULT_HUB_CONFIG: dict[str, Any] = {
    "template": "",  # the one for this kind of model
    "title": "Crystal model",
    "summary": "",
    "repo": "path/to/this/folder",
    "dataset": "not stated",
    "dataset_type": "unknown",
    "license": "apache-2.0",
    "tags": [],
    "origin": "",
    "limits": "Nothing further is known about this checkpoint.",
    "example": "Sr 1 Ti 1 O 3",  # composition that a generator's card asks for
}


def given_fields(source: Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
    """Fields of a description of a repository: a dictionary or a JSON file.

    Args:
        source: fields (see `DEFAULT_HUB_CONFIG`), or the path of a JSON file holding them.

    Raises:
        ValueError: unreadable file or unknown field.
    """
    if source is None:
        return {}
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
    return dict(source)


def read_hub_config(source: Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
    """All fields of a description: the defaults, overridden by `given_fields`."""
    return {**DEFAULT_HUB_CONFIG, **given_fields(source)}


def _property_values(model: Any) -> tuple[str, list[str], dict[str, str]]:
    """Template, tags and slots of a property model."""
    config = model.config
    name, sentence, citation = _ARCHITECTURES[config.model_type]
    units = zip(config.target_names, config.target_units, strict=True)
    spoken = [target.replace("_", " ") for target in config.target_names]
    values = {
        "architecture": name,
        "architecture_sentence": sentence,
        "targets": ", ".join(f"{target} ({unit})" if unit else target for target, unit in units),
        "target_names": ", ".join(spoken[:-2] + [" and ".join(spoken[-2:])]),
        "citation": citation,
    }
    return "crystal-property", [config.model_type, *(name.replace(" ", "-") for name in spoken)], values


def _example_values(example: str) -> dict[str, str]:
    """Slots of a composition in the words of a sequence: formula, dictionary, the words themselves."""
    words = example.split()
    counts = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    formula = cell_formula(atomic_number_of(element) for element, count in counts.items() for _ in range(count))
    return {"example_formula": formula, "example_counts": json.dumps(counts), "example_words": example}


def _generator_values(model: Any, metrics: Mapping[str, Any] | None) -> tuple[str, list[str], dict[str, str]]:
    """Template, tags and slots of a generator."""
    config = model.config
    recipe = (metrics or {}).get("recipe") or {}
    conditions = (recipe.get("data") or {}).get("conditions") or {}
    values = {
        "architecture": f"Llama language model: {config.num_hidden_layers} layers of width {config.hidden_size}, "
        f"{config.num_attention_heads} heads",
        "vocab_size": f"{config.vocab_size:,}",
        "max_tokens": str(config.max_position_embeddings),
        "conditions": ", ".join(str(name).replace("_", " ") for name in conditions) or "not recorded",
        "citation": _MAT2SEQ_CITATION,
    }
    return "crystal-generator", ["mat2seq", "crystal-generation"], values


def render_model_card(
    model: PropertyModel | Generator,
    *,
    metrics: Mapping[str, Any] | None = None,
    hub_config: Mapping[str, Any] | str | Path | None = None,
) -> str:
    """Text of the model card (README.md) of a property model or a generator.

    Args:
        model: model with a property head, or a generator; names, sizes and parameter count are read from it.
        metrics: evaluation JSON (see `load_metrics`); every number of the card comes from it or from the model.
        hub_config: title, summary, data set and so on (see `DEFAULT_HUB_CONFIG`), or the path of a JSON file.

    Returns:
        Markdown with a YAML header.

    Raises:
        ValueError: a slot of the template cannot be filled, or the metrics lack a figure.
    """
    given = given_fields(hub_config)
    description = {**DEFAULT_HUB_CONFIG, **given}
    base = _of_base_model(model, metrics)
    if base.get("base_model") == description["repo"]:  # a training that was continued
        base = {}
    base = {name: value for name, value in base.items() if name not in given}
    description |= base
    template, tags, values = _generator_values(model, metrics) if _is_generator(model) else _property_values(model)
    template = description["template"] or template
    path = shipped_folder("model_cards") / f"{template}.md"
    if not path.is_file():
        available = sorted(file.stem for file in path.parent.glob("*.md"))
        raise ValueError(f"no card template {template!r}; available: {available}")
    # the description may use the slots of the model, such as {{target_names}}
    described = {key: fill_slots(value, values) for key, value in description.items() if isinstance(value, str)}
    described["limits"] = " ".join(filter(None, (described["limits"], (metrics or {}).get("notes"))))
    values = {
        **described,
        **_example_values(description["example"]),
        **values,
        "num_parameters": _size_of(model),
        "elements_seen": _elements_seen(model.config, metrics is not None),
        "results": results_table(metrics),
        "training": training_table(metrics),
    }
    header = _front_matter(model, metrics, {**description, **described}, tags)
    return header + fill_slots(path.read_text(encoding="utf-8"), values)
