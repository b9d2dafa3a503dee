"""A folder that anyone can load from the Hub: weights, configuration, code, feature extractor, pipeline, card."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .cards import load_metrics, render_model_card

__all__ = ["export_pretrained", "render_model_card"]

logger = logging.get_logger(__name__)

# Small crystals of light elements for the check after an export; any model can read them.
PROBE_CRYSTALS: list[dict[str, Any]] = [
    {
        "lattice": [[0.0, 1.7834, 1.7834], [1.7834, 0.0, 1.7834], [1.7834, 1.7834, 0.0]],
        "frac_coords": [[0.0, 0.0, 0.0], [0.25, 0.25, 0.25]],
        "atomic_numbers": [6, 6],
    },
    {
        "lattice": [[0.0, 2.8203, 2.8203], [2.8203, 0.0, 2.8203], [2.8203, 2.8203, 0.0]],
        "frac_coords": [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]],
        "atomic_numbers": [11, 17],
    },
    {  # no symmetry
        "lattice": [[3.1, 0.2, -0.1], [0.4, 3.6, 0.3], [-0.5, 0.7, 4.2]],
        "frac_coords": [[0.02, 0.11, 0.07], [0.48, 0.55, 0.21], [0.31, 0.83, 0.69]],
        "atomic_numbers": [3, 8, 1],
    },
]


# what an exported folder may need; transformers refuses a file from the Hub that imports another missing package,
# inside a function too, unless the import stands in `try`
_REMOTE_PACKAGES = {"torch", "transformers", "safetensors", "numpy", "huggingface_hub"}


def _code_files(*classes: type) -> list[Path]:
    """Files that define the classes and everything they import beside them; all must load in a bare environment."""
    from transformers.dynamic_module_utils import get_imports, get_relative_import_files

    files: dict[str, Path] = {}
    for cls in classes:
        main_file = Path(str(sys.modules[cls.__module__].__file__))
        for file in [main_file, *map(Path, get_relative_import_files(main_file))]:
            if files.setdefault(file.name, file) != file:
                raise ValueError(f"two code files are named {file.name}: {files[file.name]} and {file}")
            foreign = sorted(set(get_imports(file)) - _REMOTE_PACKAGES - sys.stdlib_module_names)
            if foreign:
                raise ValueError(f"{file.name} imports {foreign} outside `try`; it would not load from the Hub")
    return sorted(files.values())


def _reference(cls: type) -> str:
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


def _edit_json(path: Path, changes: Mapping[str, Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content.update(changes)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _license_text() -> str:
    """Text of this package's licence, from the installed package or the checkout."""
    checkout = Path(__file__).parents[1] / "LICENSE"
    if checkout.is_file():
        return checkout.read_text(encoding="utf-8")
    files = importlib.metadata.files("hf_crystal") or []
    return next(file for file in files if file.name == "LICENSE").read_text(encoding="utf-8")


def _load(model: Any, feature_extractor: Any) -> tuple[Any, Any, Path | None]:
    """Model and feature extractor as objects, and the folder they came from, if any."""
    from .auto_model import AutoModelForCrystalPropertyPrediction
    from .models.feature_extraction_crystal import CrystalFeatureExtractor

    folder = None
    if isinstance(model, (str, os.PathLike)):
        folder = Path(model)
        if not folder.is_dir():
            raise ValueError(f"model folder not found: {folder}")
        model = AutoModelForCrystalPropertyPrediction.from_pretrained(folder, dtype="auto")
        if feature_extractor is None and (folder / "preprocessor_config.json").is_file():
            feature_extractor = CrystalFeatureExtractor.from_pretrained(folder)
    if not type(model).__name__.endswith("ForPropertyPrediction"):
        raise TypeError(f"model is a {type(model).__name__}; a crystal model with a property head is accepted")
    return model.eval(), feature_extractor or CrystalFeatureExtractor(), folder


def _write_folder(model: Any, feature_extractor: Any, folder: Path) -> None:
    """Weights, configuration with its `auto_map`, feature extractor, pipeline entry and code."""
    from .auto import CLASSES
    from .pipelines.pipeline_crystal_property import CrystalPropertyPipeline

    model.save_pretrained(folder)
    feature_extractor.save_pretrained(folder)
    for file in _code_files(type(model), type(model.config), type(feature_extractor), CrystalPropertyPipeline):
        shutil.copyfile(file, folder / file.name)
    config_name = type(model.config).__name__
    auto_map = {"AutoConfig": _reference(type(model.config))}
    for auto_name, registered_config, module, name in CLASSES:
        if registered_config == config_name and auto_name != "AutoFeatureExtractor":
            auto_map[auto_name] = f"{module}.{name}"
    task = {
        "impl": _reference(CrystalPropertyPipeline),
        # `pipeline()` looks this name up in transformers, so our own Auto class cannot stand here
        "pt": ["AutoModelForSequenceClassification"],
        "type": "multimodal",
    }
    _edit_json(
        folder / "config.json",
        {"auto_map": auto_map, "custom_pipelines": {"crystal-property-prediction": task}},
    )
    _edit_json(
        folder / "preprocessor_config.json",
        {"auto_map": {"AutoFeatureExtractor": _reference(type(feature_extractor))}},
    )


def _expected_outputs(model: Any, feature_extractor: Any) -> dict[str, Any]:
    """What the objects in memory compute for the probe crystals, on the CPU."""
    import torch

    from .pipelines.pipeline_crystal_property import CrystalPropertyPipeline

    device = model.device
    pipe = CrystalPropertyPipeline(model=model, feature_extractor=feature_extractor, device="cpu")
    with torch.no_grad():
        outputs = model(**feature_extractor(PROBE_CRYSTALS))
    rows = pipe(PROBE_CRYSTALS, batch_size=len(PROBE_CRYSTALS))
    values = [[row[name] for name in model.config.target_names] for row in rows]
    model.to(device)
    return {
        "logits": outputs.logits,
        "pooler_output": outputs.pooler_output,
        "pipeline": torch.tensor(values, dtype=torch.float64),
    }


def check_export(folder: str | Path, model: Any, feature_extractor: Any) -> None:
    """Load an exported folder in a process without this package and compare outputs bit for bit.

    Args:
        folder: exported folder.
        model: the model that was exported.
        feature_extractor: the feature extractor that was exported.

    Raises:
        RuntimeError: the folder does not load, or an output differs; the message says which.
    """
    import torch
    from safetensors.torch import load_file

    expected = _expected_outputs(model, feature_extractor)
    with tempfile.TemporaryDirectory() as scratch:
        inputs, outputs = Path(scratch, "inputs.json"), Path(scratch, "outputs.safetensors")
        inputs.write_text(json.dumps(PROBE_CRYSTALS), encoding="utf-8")
        program = Path(__file__).with_name("export_check.py")
        # a module cache of its own, so that no earlier copy of the code is used
        environment = {**os.environ, "HF_MODULES_CACHE": str(Path(scratch, "modules")), "HF_HUB_OFFLINE": "1"}
        arguments = [str(Path(folder).resolve()), str(inputs), str(outputs), str(torch.get_num_threads())]
        run = subprocess.run(
            [sys.executable, "-P", str(program), *arguments],
            cwd=scratch,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            reason = (run.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"the exported folder does not load without hf_crystal: {reason}\n{run.stderr}")
        received = load_file(outputs)
    for name, value in expected.items():
        if not torch.equal(received[name], value):
            difference = (received[name] - value).abs().max().item()
            raise RuntimeError(f"{name} of the exported folder differs by {difference:g} from the model in memory")


def export_pretrained(
    model: Any,
    out: str | Path,
    *,
    feature_extractor: Any = None,
    metrics: Mapping[str, Any] | str | Path | None = None,
    hub_config: Mapping[str, Any] | str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a complete Hub repository of a property model, and check it before it appears under its name.

    The folder holds the weights, `config.json` and `preprocessor_config.json` with their `auto_map`, every code file
    needed, the pipeline, a model card and the licence, so it loads with `trust_remote_code=True` where only torch,
    transformers, safetensors and numpy are installed. That is tried in a separate process, with outputs compared bit
    for bit, before the folder is moved to `out`.

    Args:
        model: model with a property head, or a folder holding one.
        out: folder to create; must not exist unless `overwrite`.
        feature_extractor: the one to travel along; by default that of the model's folder, else a fresh one.
        metrics: evaluation figures for the card, or the path of their JSON file; by default `metrics.json` of the
            model's folder.
        hub_config: title, summary, data set and so on for the card (see `hf_crystal.cards.DEFAULT_HUB_CONFIG`), or
            the path of a JSON file.
        overwrite: replace an earlier export.

    Returns:
        `out` as a path.

    Raises:
        ValueError: `out` exists, the model folder does not, or the card cannot be filled.
        TypeError: the model has no property head.
        RuntimeError: the written folder does not load alone or computes something else; nothing is left at `out`.
    """
    out = Path(out)
    if out.exists() and not (overwrite and (out / "config.json").is_file()):
        hint = "pass overwrite=True to replace it" if (out / "config.json").is_file() else "choose another folder"
        raise ValueError(f"{out} exists already; {hint}")
    model, feature_extractor, source = _load(model, feature_extractor)
    if metrics is None and source is not None and (source / "metrics.json").is_file():
        metrics = source / "metrics.json"
    figures = load_metrics(metrics) if isinstance(metrics, (str, Path)) else metrics
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        folder = Path(scratch, out.name)
        _write_folder(model, feature_extractor, folder)
        card = render_model_card(model, metrics=figures, hub_config=hub_config)
        (folder / "README.md").write_text(card, encoding="utf-8")
        (folder / "LICENSE").write_text(_license_text(), encoding="utf-8")
        if figures is not None:
            (folder / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        check_export(folder, model, feature_extractor)
        if out.exists():
            shutil.rmtree(out)
        os.replace(folder, out)
    logger.info(f"exported to {out}; it loads without hf_crystal and gives bit-equal outputs")
    return out
