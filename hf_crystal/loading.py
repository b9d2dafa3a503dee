"""The one door from any way of naming a model to the model: what a name stands for, and how it is loaded.

A name is, in this order: a folder with `config.json`, a checkpoint embedded in this package, a repository of the Hub.
"""

import contextlib
import functools
import hashlib
import json
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import LlamaConfig, PreTrainedConfig
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .auto import property_classes, take_names
from .checkpoints import DEFAULT_GENERATOR, DEFAULT_MODEL, embedded_checkpoints, embedded_generators, folder_of_name
from .encoders.feature_extraction_crystal import CrystalFeatureExtractor
from .encoders.modeling_crystalformer import CrystalformerForPropertyPrediction
from .mat2seq.modeling_mat2seq import Mat2SeqForCausalLM
from .mat2seq.tokenization_mat2seq import Mat2SeqTokenizer
from .typing import Device, GeneratorLike, ModelName, PropertyModelLike

__all__ = [
    "AutoModelForCrystalGeneration",
    "AutoModelForCrystalPropertyPrediction",
    "check_property_model",
    "load_generation_pipeline",
    "load_generator",
    "load_property_model",
    "load_property_pipeline",
    "measured_errors",
    "model_digest",
    "resolve_model",
]

_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_PROPERTY_CLASSES = property_classes()


class AutoModelForCrystalPropertyPrediction(_BaseAutoModelClass):
    """Loads whichever crystal model with a property head a folder or repository holds."""

    _model_mapping: Any = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForCrystalGeneration(_BaseAutoModelClass):
    """Loads a language model over crystal sequences, with `generate_crystals`; the folder is a stock Llama's."""

    _model_mapping: Any = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


for _config_class, _model_class in _PROPERTY_CLASSES:
    AutoModelForCrystalPropertyPrediction.register(_config_class, _model_class, exist_ok=True)
AutoModelForCrystalGeneration.register(LlamaConfig, Mat2SeqForCausalLM, exist_ok=True)
for _auto_class in (AutoModelForCrystalPropertyPrediction, AutoModelForCrystalGeneration):
    take_names(_auto_class)


def resolve_model(name: ModelName) -> str:
    """Folder or Hub repository that a name stands for.

    Args:
        name: a folder with `config.json`, else an embedded checkpoint, else a repository of the Hub (owner/name).

    Returns:
        What `from_pretrained` takes.

    Raises:
        ValueError: none of these.
    """
    name = os.fspath(name)
    folder = Path(name)
    if (folder / "config.json").is_file():
        return name
    if (found := folder_of_name(name)) != name:
        return str(found)
    if folder.is_dir():
        adapter = (folder / "adapter_config.json").is_file()
        hint = ": it is an adapter of PEFT, merge it into its model (docs/how_to/fine_tune.md)" if adapter else ""
        raise ValueError(f"model folder {name} has no config.json{hint}")
    if not _REPOSITORY.fullmatch(name):
        embedded = [*embedded_checkpoints(), *embedded_generators()]
        raise ValueError(
            f"model not found: {name}; accepted are a folder, a repository of the Hub (owner/name) or an embedded "
            f"checkpoint: {', '.join(embedded) or 'none in this installation'}"
        )
    return name


# what the libraries raise for files that are cut short, hold other types than they should, or code in place of numbers
_DAMAGED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    pickle.UnpicklingError,
)


def model_digest(name: ModelName) -> str:
    """Changes where a file of the model changes, besides its card; the commit where it comes from the Hub."""
    location = resolve_model(name)
    if not os.path.isdir(location):
        return str(PreTrainedConfig.get_config_dict(location)[0].get("_commit_hash"))
    digest = hashlib.sha256()
    for file in sorted(Path(location).iterdir()):
        if file.suffix in (".json", ".safetensors", ".bin") and file.name not in ("metrics.json", "hub_config.json"):
            with file.open("rb") as stream:
                digest.update(f"{file.name}|{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


@functools.cache
def measured_errors(name: ModelName) -> dict[str, float]:
    """Target → mean absolute error on the test set, where the model's folder tells it."""
    path = Path(resolve_model(name)) / "metrics.json"
    if not path.is_file():
        return {}
    targets = json.loads(path.read_text(encoding="utf-8")).get("test", {}).get("targets", [])
    return {target["name"]: float(target["mae"]) for target in targets if "mae" in target}


@contextlib.contextmanager
def _reading_model(location: str) -> Iterator[None]:
    """Name the model in errors about its files, as `ValueError`."""
    try:
        yield
    except pickle.UnpicklingError as error:  # torch's message advises to let it run
        raise ValueError(
            f"{location}: its weights are a pickle of more than numbers, which may run code; accepted: safetensors or "
            "numbers alone"
        ) from error
    except OSError as error:
        if os.path.isdir(location):
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(f"{location}: no such folder, and no repository of the Hub that answers ({first})") from error
    except _DAMAGED as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(f"{location}: the model's files cannot be read ({type(error).__name__}: {first})") from error


def _load_weights(auto_class: Any, location: str) -> Any:
    """The model of a folder or repository; its weights have to be numbers, and those that its config.json asks for.

    Raises:
        ValueError: files that cannot be read or do not belong together, or weights that are NaN or infinite.
    """
    with _reading_model(location):
        loaded, info = auto_class.from_pretrained(
            location, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True
        )
    other = [
        f"{name} {tuple(saved)} in place of {tuple(asked)}" for name, saved, asked in sorted(info["mismatched_keys"])
    ]
    other += [f"{name} is missing" for name in sorted(info["missing_keys"])]
    surplus = (name for name in sorted(info["unexpected_keys"]) if not name.startswith("error_head."))
    if wrong := [*other, *(f"{name} has no place" for name in surplus)]:
        more = f" and {len(wrong) - 1} more" * (len(wrong) > 1)
        raise ValueError(f"{location}: config.json does not belong to the weights ({wrong[0]}{more})")
    for name, weight in loaded.named_parameters():
        if not torch.isfinite(weight).all():
            raise ValueError(f"{location}: weight {name} holds NaN or infinity; train or export the model anew")
    return loaded


def _check_device(device: Device) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ValueError(f"device {device} cannot be used: {str(error).splitlines()[0]}") from error


def _model_type(location: str) -> str | None:
    """Type of a model; a model of vectors, which shares CrystalFramer's configuration, goes by its class."""
    with _reading_model(location):
        config = PreTrainedConfig.get_config_dict(location)[0]
        vectors = [name for name in config.get("architectures") or [] if name.endswith("ForAtomVectors")]
        return vectors[0] if vectors else config.get("model_type")


def check_property_model(name: ModelName) -> str:
    """As `resolve_model`, for models with a property head only.

    Raises:
        ValueError: there is no such model, or it is of another type.
        OSError: the Hub has no such repository, or cannot be reached.
    """
    location = resolve_model(name)
    accepted = [config_class.model_type for config_class, _ in _PROPERTY_CLASSES]
    if (model_type := _model_type(location)) not in accepted:
        raise ValueError(f"{location} holds a model of type {model_type!r}; accepted are {', '.join(accepted)}")
    return location


def load_property_model(
    model: PropertyModelLike | None = None,
    feature_extractor: CrystalFeatureExtractor | None = None,
    device: Device | None = None,
) -> tuple[CrystalformerForPropertyPrediction, CrystalFeatureExtractor]:
    """A model with a property head, in evaluation mode, and the feature extractor that belongs to it.

    Args:
        model: None for the embedded checkpoint that the pipeline uses, a name (see `resolve_model`), a loaded model,
            or a `CrystalPropertyPipeline`.
        feature_extractor: replaces the model's own; default settings where the model has none.
        device: torch device to move the model to; by default it stays where it is.

    Returns:
        Model and `CrystalFeatureExtractor`.

    Raises:
        TypeError: `model` is an object that is no crystal model with a property head.
        ValueError: the name is not known or names another kind of model, its files are damaged or its weights no
            numbers, or the device cannot be used.
        OSError: the Hub has no such repository, or cannot be reached.
    """
    loaded: Any = DEFAULT_MODEL if model is None else model
    if device is not None:
        _check_device(device)
    if isinstance(loaded, (str, os.PathLike)):
        location = check_property_model(loaded)
        loaded = _load_weights(AutoModelForCrystalPropertyPrediction, location)
        # a folder that only `model.save_pretrained` wrote is no error
        if feature_extractor is None and (not Path(location).is_dir() or _has(location, "preprocessor_config.json")):
            with _reading_model(location):
                feature_extractor = CrystalFeatureExtractor.from_pretrained(location)
    elif hasattr(loaded, "feature_extractor") and hasattr(loaded, "model"):  # a pipeline
        feature_extractor = feature_extractor or loaded.feature_extractor
        loaded = loaded.model
    if not hasattr(loaded, "encoder") or not hasattr(getattr(loaded, "config", None), "target_names"):
        raise TypeError(f"model is a {type(loaded).__name__}; a crystal model with a property head is accepted")
    if device is not None:
        loaded = loaded.to(device)
    return loaded.eval(), feature_extractor or CrystalFeatureExtractor()


def load_generator(
    model: GeneratorLike | None = None, tokenizer: Mat2SeqTokenizer | None = None, device: Device | None = None
) -> tuple[Mat2SeqForCausalLM, Mat2SeqTokenizer]:
    """A crystal generator, in evaluation mode, and its tokenizer.

    Args:
        model: None for the embedded checkpoint that the pipeline uses, a name (see `resolve_model`), a loaded model,
            or a `CrystalGenerationPipeline`.
        tokenizer: replaces the model's own; a loaded model needs it.
        device: torch device to move the model to; by default it stays where it is.

    Returns:
        Model and tokenizer.

    Raises:
        TypeError: `model` is an object that is no crystal generator.
        ValueError: the name is not known or names another kind of model, its files are damaged or its weights no
            numbers, a loaded model comes without its tokenizer, or the device cannot be used.
        OSError: the Hub has no such repository, or cannot be reached.
    """
    loaded: Any = DEFAULT_GENERATOR if model is None else model
    if device is not None:
        _check_device(device)
    if isinstance(loaded, (str, os.PathLike)):
        location = resolve_model(loaded)
        if Path(location).is_dir() and not _has(location, "tokenizer_config.json"):
            raise ValueError(f"{loaded} has no tokenizer, so it is no generator; embedded are {embedded_generators()}")
        if (model_type := _model_type(location)) != LlamaConfig.model_type:
            raise ValueError(
                f"{location} holds a generator of type {model_type!r}; accepted is llama, which has the grammar: "
                "AutoModelForCausalLM loads the folder as it is, and model.model_type=llama in the recipe trains one"
            )
        with _reading_model(location):
            tokenizer = tokenizer or Mat2SeqTokenizer.from_pretrained(location)
        loaded = _load_weights(AutoModelForCrystalGeneration, location)
    elif hasattr(loaded, "tokenizer") and hasattr(loaded, "model"):  # a pipeline
        tokenizer = tokenizer or loaded.tokenizer
        loaded = loaded.model
    if not hasattr(loaded, "generate_crystals"):
        raise TypeError(f"model is a {type(loaded).__name__}; a crystal generator is accepted")
    if tokenizer is None:
        raise ValueError("a generator in memory needs its tokenizer: pass tokenizer=")
    if device is not None:
        loaded = loaded.to(device)
    return loaded.eval(), tokenizer


def _has(folder: str, file: str) -> bool:
    return Path(folder, file).is_file()


def load_property_pipeline(model: PropertyModelLike | None = None, device: Device | None = None) -> Any:
    """The pipeline "crystal-property-prediction" with any model that `load_property_model` loads.

    Args:
        model: see `load_property_model`.
        device: torch device; None for an accelerator where there is one, else the CPU.

    Returns:
        `CrystalPropertyPipeline`.
    """
    from .pipelines.pipeline_crystal_property import CrystalPropertyPipeline

    loaded, feature_extractor = load_property_model(model, device=device)
    task: Any = "crystal-property-prediction"
    return CrystalPropertyPipeline(model=loaded, feature_extractor=feature_extractor, task=task, device=device)


def load_generation_pipeline(model: GeneratorLike | None = None, device: Device | None = None) -> Any:
    """The pipeline "crystal-generation" with any model that `load_generator` loads.

    Args:
        model: see `load_generator`.
        device: torch device; None for an accelerator where there is one, else the CPU.

    Returns:
        `CrystalGenerationPipeline`.
    """
    from .pipelines.pipeline_crystal_generation import CrystalGenerationPipeline

    loaded, tokenizer = load_generator(model, device=device)
    return CrystalGenerationPipeline(model=loaded, tokenizer=tokenizer, task="crystal-generation", device=device)
