"""Registration with the Auto classes and the pipelines of transformers.

To add a model: one line in each table that concerns it. Every registration runs right after transformers has
imported the module that holds the Auto class, so nothing heavy happens on `import hf_crystal`.
"""

import functools
import importlib
from typing import Any

from ._import_hooks import when_imported
from .checkpoints import DEFAULT_GENERATOR, DEFAULT_MODEL, checkpoint_folder

# configuration file ("folder.file") and class; its model type is an attribute of the class
CONFIGS = (
    ("encoders.configuration_crystalformer", "CrystalformerConfig"),
    ("encoders.configuration_crystalframer", "CrystalFramerConfig"),
)
# Auto class of transformers, configuration class, our file, our class
CLASSES = (
    ("AutoModel", "CrystalformerConfig", "encoders.modeling_crystalformer", "CrystalformerModel"),
    ("AutoModel", "CrystalFramerConfig", "encoders.modeling_crystalframer", "CrystalFramerModel"),
    # the property heads under a name that transformers knows, for remote code
    (
        "AutoModelForSequenceClassification",
        "CrystalformerConfig",
        "encoders.modeling_crystalformer",
        "CrystalformerForPropertyPrediction",
    ),
    (
        "AutoModelForSequenceClassification",
        "CrystalFramerConfig",
        "encoders.modeling_crystalframer",
        "CrystalFramerForPropertyPrediction",
    ),
    ("AutoFeatureExtractor", "CrystalformerConfig", "encoders.feature_extraction_crystal", "CrystalFeatureExtractor"),
    ("AutoFeatureExtractor", "CrystalFramerConfig", "encoders.feature_extraction_crystal", "CrystalFeatureExtractor"),
)
# task, our file, our class, our Auto class, embedded checkpoint for `model=None`
PIPELINES = (
    (
        "crystal-property-prediction",
        "pipelines.pipeline_crystal_property",
        "CrystalPropertyPipeline",
        "AutoModelForCrystalPropertyPrediction",
        DEFAULT_MODEL,
    ),
    (
        "crystal-generation",
        "pipelines.pipeline_crystal_generation",
        "CrystalGenerationPipeline",
        "AutoModelForCrystalGeneration",
        DEFAULT_GENERATOR,
    ),
)

# module of transformers that defines an Auto class, where it is not modeling_auto
_AUTO_MODULES = {"AutoFeatureExtractor": "feature_extraction_auto", "AutoTokenizer": "tokenization_auto"}


class _PackagePipelineWins:
    """`custom_pipelines` of a repository, hidden while this package is installed.

    An exported repository names its own pipeline file in `config.json`, and `pipeline()` then demands
    `trust_remote_code=True`. Where the package is imported its own classes are used for configuration and model
    without that flag (transformers' rule), and this does the same for the pipeline.
    """

    def __get__(self, instance: object, owner: type | None = None) -> dict[str, Any]:
        return {}

    def __set__(self, instance: object, value: object) -> None:
        pass


def _module(file: str) -> str:
    return f"{__package__}.{file}"


def _load(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def config_module(name: str) -> str:
    """Full name of the module that defines a configuration class."""
    return _module(next(file for file, config_name in CONFIGS if config_name == name))


def property_classes() -> list[tuple[Any, Any]]:
    """Configuration class and class with a property head of every encoder of this package."""
    return [
        (_load(config_module(config_name), config_name), _load(_module(file), name))
        for auto_name, config_name, file, name in CLASSES
        if auto_name == "AutoModelForSequenceClassification"
    ]


def _register_config(name: str) -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    config_class = _load(config_module(name), name)
    config_class.custom_pipelines = _PackagePipelineWins()
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)


def _register_class(auto_module: str, auto_name: str, config_name: str, file: str, name: str) -> None:
    config_class = _load(config_module(config_name), config_name)
    _load(auto_module, auto_name).register(config_class, _load(_module(file), name), exist_ok=True)


def _register_pipeline(task: str, file: str, name: str, auto_name: str, checkpoint: str) -> None:
    from transformers.pipelines import PIPELINE_REGISTRY

    PIPELINE_REGISTRY.register_pipeline(
        task,
        pipeline_class=_load(_module(file), name),
        pt_model=_load(f"{__package__}.loading", auto_name),
        default={"model": (str(checkpoint_folder(checkpoint)), "main")},
    )


def _register_tokenizer() -> None:
    _load(_module("mat2seq.tokenization_mat2seq"), "register_mat2seq_tokenizer")()


def register_auto_classes() -> None:
    """Register every class of this package with transformers: at once where that is loaded, else when it is."""
    auto = "transformers.models.auto"
    for file, name in CONFIGS:
        register = functools.partial(_register_config, name)
        when_imported(f"{auto}.configuration_auto", [_module(file)], register)
    for auto_name, config_name, file, name in CLASSES:
        auto_module = f"{auto}.{_AUTO_MODULES.get(auto_name, 'modeling_auto')}"
        needed = [config_module(config_name), _module(file)]
        when_imported(
            auto_module, needed, functools.partial(_register_class, auto_module, auto_name, config_name, file, name)
        )
    when_imported(f"{auto}.tokenization_auto", [_module("mat2seq.tokenization_mat2seq")], _register_tokenizer)
    for task, file, name, auto_name, checkpoint in PIPELINES:
        needed = [_module(file), f"{__package__}.loading"]
        register = functools.partial(_register_pipeline, task, file, name, auto_name, checkpoint)
        when_imported("transformers.pipelines", needed, register)
