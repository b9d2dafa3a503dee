"""The folder of a property model: weights, configuration, feature extractor, pipeline and their code."""

import functools
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..typing import PropertyModel
from .files import code_files, edit_json, reference, run_check

if TYPE_CHECKING:
    from ..encoders.feature_extraction_crystal import CrystalFeatureExtractor

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


def write_folder(model: PropertyModel, feature_extractor: "CrystalFeatureExtractor", folder: Path) -> None:
    """Weights, configuration with its `auto_map`, feature extractor, pipeline entry and code."""
    feature_extractor.save_pretrained(folder)
    model.save_pretrained(folder)
    write_code(folder, model.config)


@functools.cache
def _code_of(*classes: type) -> dict[str, str]:
    """`code_files`, read once: a training saves many times."""
    return code_files(*classes)


def write_code(folder: Path, config: Any, saved_class: type | None = None) -> None:
    """Make a saved folder load with `trust_remote_code=True` where this package is not installed.

    Args:
        folder: holds `config.json`, `preprocessor_config.json` or both, as a model and its feature extractor write
            them.
        config: configuration of the model; None where only a feature extractor has been saved.
        saved_class: class of the model; none: the one with a property head.
    """
    from ..auto import CLASSES, VECTORS_AUTO_CLASS, property_classes
    from ..encoders.feature_extraction_crystal import CrystalFeatureExtractor
    from ..pipelines.pipeline_crystal_property import CrystalPropertyPipeline

    has_code = (folder / "config.json").is_file() and "auto_map" in json.loads((folder / "config.json").read_text())
    if (folder / "preprocessor_config.json").is_file() and (has_code or config is not None):
        auto_map = {"AutoFeatureExtractor": reference(CrystalFeatureExtractor)}
        edit_json(folder / "preprocessor_config.json", {"auto_map": auto_map})
    if config is None or type(config) not in dict(property_classes()):
        return
    model_class: type = dict(property_classes())[type(config)]
    config_name = type(config).__name__
    vectors = [name for auto_name, *_, name in CLASSES if auto_name == VECTORS_AUTO_CLASS]
    has_vectors = saved_class is not None and saved_class.__name__ in vectors
    classes: list[Any] = [saved_class] if has_vectors else [model_class, CrystalPropertyPipeline]
    classes += [type(config), CrystalFeatureExtractor]
    for name, text in _code_of(*classes).items():
        (folder / name).write_text(text, encoding="utf-8")
    auto_map = {"AutoConfig": reference(type(config))}
    for auto_name, registered_config, module, name in CLASSES:
        is_other = auto_name == "AutoFeatureExtractor" or (auto_name == VECTORS_AUTO_CLASS) != has_vectors
        if registered_config == config_name and not is_other:
            auto_map[auto_name] = f"{module.rpartition('.')[2]}.{name}"
    if has_vectors:  # of a padded sequence; no pipeline
        edit_json(folder / "config.json", {"auto_map": auto_map})
        return
    task = {
        "impl": reference(CrystalPropertyPipeline),
        # `pipeline()` looks this name up in transformers, so our own Auto class cannot stand here
        "pt": ["AutoModelForSequenceClassification"],
        "type": "multimodal",
    }
    edit_json(
        folder / "config.json",
        {"auto_map": auto_map, "custom_pipelines": {"crystal-property-prediction": task}},
    )


def _expected_outputs(model: Any, feature_extractor: Any) -> dict[str, Any]:
    """What the objects in memory compute for the probe crystals, on the CPU."""
    import torch

    from ..pipelines.pipeline_crystal_property import CrystalPropertyPipeline

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


def check_folder(folder: str | Path, model: PropertyModel, feature_extractor: "CrystalFeatureExtractor") -> None:
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
        run_check("property", folder, inputs, outputs)
        received = load_file(outputs)
    for name, value in expected.items():
        if not torch.equal(received[name], value):
            difference = (received[name] - value).abs().max().item()
            raise RuntimeError(f"{name} of the exported folder differs by {difference:g} from the model in memory")
