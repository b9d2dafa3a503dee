"""Crystal-structure models for Hugging Face transformers.

Importing this package makes `AutoConfig`, `AutoModel`, `AutoModelForSequenceClassification`, `AutoFeatureExtractor`,
`AutoTokenizer` and `pipeline` of transformers know the classes listed below; there is no other side effect. Names are
loaded when first used (PEP 562), so the import itself costs a few milliseconds and does not load torch.
"""

import importlib
from typing import TYPE_CHECKING

from .auto import register_auto_classes

if TYPE_CHECKING:
    from . import evaluation as evaluation
    from .auto_model import AutoModelForCrystalGeneration as AutoModelForCrystalGeneration
    from .auto_model import AutoModelForCrystalPropertyPrediction as AutoModelForCrystalPropertyPrediction
    from .checkpoints import embedded_checkpoint as embedded_checkpoint
    from .crystals.reading import CrystalInputError as CrystalInputError
    from .data import CrystalCollator as CrystalCollator
    from .data import load_crystal_dataset as load_crystal_dataset
    from .embeddings import embed as embed
    from .encoders.configuration_crystalformer import CrystalformerConfig as CrystalformerConfig
    from .encoders.configuration_crystalframer import CrystalFramerConfig as CrystalFramerConfig
    from .encoders.feature_extraction_crystal import CrystalFeatureExtractor as CrystalFeatureExtractor
    from .encoders.modeling_crystalformer import (
        CrystalformerForPropertyPrediction as CrystalformerForPropertyPrediction,
    )
    from .encoders.modeling_crystalformer import CrystalformerModel as CrystalformerModel
    from .encoders.modeling_crystalframer import (
        CrystalFramerForPropertyPrediction as CrystalFramerForPropertyPrediction,
    )
    from .encoders.modeling_crystalframer import CrystalFramerModel as CrystalFramerModel
    from .hub import export_pretrained as export_pretrained
    from .hub import render_model_card as render_model_card
    from .mat2seq.canonicalize import CanonicalCrystal as CanonicalCrystal
    from .mat2seq.canonicalize import canonicalize as canonicalize
    from .mat2seq.modeling_mat2seq import Mat2SeqForCausalLM as Mat2SeqForCausalLM
    from .mat2seq.prompts import CrystalPrompt as CrystalPrompt
    from .mat2seq.tokenization_mat2seq import DecodedCrystal as DecodedCrystal
    from .mat2seq.tokenization_mat2seq import Mat2SeqTokenizer as Mat2SeqTokenizer
    from .pipelines.pipeline_crystal_generation import CrystalGenerationPipeline as CrystalGenerationPipeline
    from .pipelines.pipeline_crystal_property import CrystalPropertyPipeline as CrystalPropertyPipeline
    from .training import CrystalTrainer as CrystalTrainer

__version__ = "0.1.0"

# public name -> module that defines it
_NAMES = {
    "AutoModelForCrystalGeneration": "auto_model",
    "AutoModelForCrystalPropertyPrediction": "auto_model",
    "CanonicalCrystal": "mat2seq.canonicalize",
    "CrystalCollator": "data",
    "CrystalFeatureExtractor": "encoders.feature_extraction_crystal",
    "CrystalFramerConfig": "encoders.configuration_crystalframer",
    "CrystalFramerForPropertyPrediction": "encoders.modeling_crystalframer",
    "CrystalFramerModel": "encoders.modeling_crystalframer",
    "CrystalGenerationPipeline": "pipelines.pipeline_crystal_generation",
    "CrystalInputError": "crystals.reading",
    "CrystalPrompt": "mat2seq.prompts",
    "CrystalPropertyPipeline": "pipelines.pipeline_crystal_property",
    "CrystalTrainer": "training",
    "CrystalformerConfig": "encoders.configuration_crystalformer",
    "CrystalformerForPropertyPrediction": "encoders.modeling_crystalformer",
    "CrystalformerModel": "encoders.modeling_crystalformer",
    "DecodedCrystal": "mat2seq.tokenization_mat2seq",
    "Mat2SeqForCausalLM": "mat2seq.modeling_mat2seq",
    "Mat2SeqTokenizer": "mat2seq.tokenization_mat2seq",
    "canonicalize": "mat2seq.canonicalize",
    "embed": "embeddings",
    "embedded_checkpoint": "checkpoints",
    "export_pretrained": "hub",
    "load_crystal_dataset": "data",
    "render_model_card": "hub",
}
# sub-packages that are part of the public interface
_SUBMODULES = ("evaluation",)

__all__ = ["__version__", *sorted([*_NAMES, *_SUBMODULES])]


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name in _SUBMODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted({*globals(), *__all__})


register_auto_classes()
