"""Registration with the Auto classes and the pipelines of transformers.

To add a model: one line in each table that concerns it. Every registration runs right after transformers has
imported the module that holds the Auto class, so nothing heavy happens on `import hf_crystal`.
"""

import functools
import importlib
import json
import os
from pathlib import Path
from typing import Any

from ._import_hooks import when_imported
from .checkpoints import DEFAULT_GENERATOR, DEFAULT_MODEL, checkpoint_folder, folder_of_name

# configuration file ("folder.file") and class; its model type is an attribute of the class
CONFIGS = (
    ("encoders.configuration_crystalformer", "CrystalformerConfig"),
    ("encoders.configuration_crystalframer", "CrystalFramerConfig"),
    ("encoders.configuration_crystal_potential", "CrystalPotentialConfig"),
)
VECTORS_AUTO_CLASS = "AutoModelForTokenClassification"
# Auto class of transformers, configuration class, our file, our class
CLASSES = (
    ("AutoModel", "CrystalformerConfig", "encoders.modeling_crystalformer", "CrystalformerModel"),
    ("AutoModel", "CrystalFramerConfig", "encoders.modeling_crystalframer", "CrystalFramerModel"),
    # a potential is one piece: its encoder is Crystalformer's
    (
        "AutoModel",
        "CrystalPotentialConfig",
        "encoders.modeling_crystal_potential",
        "CrystalformerForPotentialEnergy",
    ),
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
    (
        "AutoModelForSequenceClassification",
        "CrystalPotentialConfig",
        "encoders.modeling_crystal_potential",
        "CrystalformerForPotentialEnergy",
    ),
    # the same for vectors of atoms: a value for each of a sequence
    (
        VECTORS_AUTO_CLASS,
        "CrystalFramerConfig",
        "encoders.modeling_atom_vectors",
        "CrystalFramerForAtomVectors",
    ),
    ("AutoFeatureExtractor", "CrystalformerConfig", "encoders.feature_extraction_crystal", "CrystalFeatureExtractor"),
    ("AutoFeatureExtractor", "CrystalFramerConfig", "encoders.feature_extraction_crystal", "CrystalFeatureExtractor"),
    (
        "AutoFeatureExtractor",
        "CrystalPotentialConfig",
        "encoders.feature_extraction_crystal",
        "CrystalFeatureExtractor",
    ),
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


def take_names(owner: Any) -> None:
    """Let `from_pretrained` of a class take names of embedded checkpoints, as the command line does."""
    inherited = owner.from_pretrained.__func__
    if getattr(inherited, "takes_names", False):
        return

    @functools.wraps(inherited)
    def from_pretrained(cls: type, *args: object, **kwargs: object) -> Any:
        return inherited(cls, *_folders(args), **_folders(kwargs))

    from_pretrained.takes_names = True  # type: ignore[attr-defined]
    owner.from_pretrained = classmethod(from_pretrained)


def _folders(given: Any) -> Any:
    """Arguments with the folder of an embedded checkpoint in place of its name."""
    if isinstance(given, tuple):
        return (folder_of_name(given[0]), *given[1:]) if given else given
    name = "pretrained_model_name_or_path"
    return {**given, name: folder_of_name(given[name])} if name in given else given


def _auto_takes_names(module: str, name: str) -> None:
    take_names(_load(module, name))


def _field(location: object, file: str, name: str) -> Any:
    """Field of a JSON file of a local folder; None where there is none."""
    path = Path(location, file) if isinstance(location, (str, os.PathLike)) else None
    return json.loads(path.read_text(encoding="utf-8")).get(name) if path is not None and path.is_file() else None


def _holds_generator(location: object) -> bool:
    """Whether a local folder holds a Llama over crystal sequences, by its tokenizer."""
    is_ours = _field(location, "tokenizer_config.json", "tokenizer_class") == "Mat2SeqTokenizer"
    return is_ours and _field(location, "config.json", "model_type") == "llama"


def _causal_lm_knows_generators() -> None:
    """Let `AutoModelForCausalLM` load a generator with its grammar; `LlamaConfig` stays stock Llama's."""
    auto_class = _load("transformers.models.auto.modeling_auto", "AutoModelForCausalLM")
    stock = auto_class.from_pretrained.__func__

    @functools.wraps(stock)
    def from_pretrained(cls: type, *args: object, **kwargs: object) -> Any:
        args, kwargs = _folders(args), _folders(kwargs)
        if not _holds_generator(args[0] if args else kwargs.get("pretrained_model_name_or_path")):
            return stock(cls, *args, **kwargs)
        return _load(_module("loading"), "AutoModelForCrystalGeneration").from_pretrained(*args, **kwargs)

    auto_class.from_pretrained = classmethod(from_pretrained)


def _task_of(location: object) -> str | None:
    """The task of a folder of this package."""
    if _holds_generator(location):
        return "crystal-generation"
    types = {_load(config_module(name), name).model_type for _, name in CONFIGS}
    return "crystal-property-prediction" if _field(location, "config.json", "model_type") in types else None


def _pipeline_takes_names() -> None:
    """Let `pipeline` take names of embedded checkpoints, know their task, and prefer this package's classes."""
    module: Any = importlib.import_module("transformers.pipelines")
    stock = module.pipeline

    @functools.wraps(stock)
    def pipeline(task: str | None = None, model: object = None, *args: object, **kwargs: object) -> Any:
        model = folder_of_name(model)
        task = task or _task_of(model)
        own = next((_load(_module(file), name) for known, file, name, *_ in PIPELINES if known == task), None)
        # a repository that names its own pipeline file would ask for trust_remote_code
        if own is not None and len(args) < 14 and kwargs.get("pipeline_class") is None:
            kwargs["pipeline_class"] = own
        return stock(task, model, *args, **kwargs)

    module.pipeline = pipeline


def _take_names_and_save_code(file: str, name: str) -> None:
    """Prepare a class of this package whose folders are to load where the package is not installed."""
    owner = _load(_module(file), name)
    take_names(owner)
    stock = owner.save_pretrained
    if getattr(stock, "saves_code", False):
        return

    @functools.wraps(stock)
    def save_pretrained(self: object, save_directory: str | os.PathLike[str], *args: object, **kwargs: object) -> Any:
        written = stock(self, save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            folder = Path(save_directory)
            # beside an adapter of PEFT there is no config.json, but the feature extractor's file
            beside = [path for path in (folder / "config.json", folder / "preprocessor_config.json") if path.is_file()]
            for weights in folder.glob("*.safetensors") if beside else ():  # safetensors lets nobody else read them
                weights.chmod(beside[0].stat().st_mode)
            write_code = _load(f"{__package__}.hub.properties", "write_code")
            write_code(folder, getattr(self, "config", None), type(self))
        return written

    save_pretrained.saves_code = True  # type: ignore[attr-defined]
    owner.save_pretrained = save_pretrained


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
    names = {"configuration_auto": "AutoConfig", "feature_extraction_auto": "AutoFeatureExtractor"}
    names |= {"tokenization_auto": "AutoTokenizer"}
    for file, name in names.items():
        when_imported(f"{auto}.{file}", (), functools.partial(_auto_takes_names, f"{auto}.{file}", name))
    for name in ("AutoModel", "AutoModelForSequenceClassification", VECTORS_AUTO_CLASS):
        when_imported(f"{auto}.modeling_auto", (), functools.partial(_auto_takes_names, f"{auto}.modeling_auto", name))
    when_imported(f"{auto}.modeling_auto", (), _causal_lm_knows_generators)
    generator = ("mat2seq.modeling_mat2seq", "Mat2SeqForCausalLM")
    for file, name in dict.fromkeys([*((file, name) for *_, file, name in CLASSES), generator]):
        when_imported(_module(file), (), functools.partial(_take_names_and_save_code, file, name))
    for file, name in [*CONFIGS, ("mat2seq.tokenization_mat2seq", "Mat2SeqTokenizer")]:
        when_imported(_module(file), (), functools.partial(_auto_takes_names, _module(file), name))
    when_imported("transformers.pipelines", (), _pipeline_takes_names)
    for task, file, name, auto_name, checkpoint in PIPELINES:
        needed = [_module(file), f"{__package__}.loading"]
        register = functools.partial(_register_pipeline, task, file, name, auto_name, checkpoint)
        when_imported("transformers.pipelines", needed, register)
