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
    from .data import CrystalCollator as CrystalCollator
    from .data import load_crystal_dataset as load_crystal_dataset
    from .embeddings import embed as embed
    from .hub import export_pretrained as export_pretrained
    from .hub import render_model_card as render_model_card
    from .models.canonical_crystal import CanonicalCrystal as CanonicalCrystal
    from .models.canonical_crystal import canonicalize as canonicalize
    from .models.configuration_crystalformer import CrystalformerConfig as CrystalformerConfig
    from .models.configuration_crystalframer import CrystalFramerConfig as CrystalFramerConfig
    from .models.feature_extraction_crystal import CrystalFeatureExtractor as CrystalFeatureExtractor
    from .models.generation_mat2seq import Mat2SeqForCausalLM as Mat2SeqForCausalLM
    from .models.generation_prompts_mat2seq import CrystalPrompt as CrystalPrompt
    from .models.modeling_crystalformer import CrystalformerForPropertyPrediction as CrystalformerForPropertyPrediction
    from .models.modeling_crystalformer import CrystalformerModel as CrystalformerModel
    from .models.modeling_crystalframer import CrystalFramerForPropertyPrediction as CrystalFramerForPropertyPrediction
    from .models.modeling_crystalframer import CrystalFramerModel as CrystalFramerModel
    from .models.structures_crystal import CrystalInputError as CrystalInputError
    from .models.tokenization_mat2seq import DecodedCrystal as DecodedCrystal
    from .models.tokenization_mat2seq import Mat2SeqTokenizer as Mat2SeqTokenizer
    from .pipelines.pipeline_crystal_generation import CrystalGenerationPipeline as CrystalGenerationPipeline
    from .pipelines.pipeline_crystal_property import CrystalPropertyPipeline as CrystalPropertyPipeline
    from .training import CrystalTrainer as CrystalTrainer

__version__ = "0.1.0"

# public name -> module that defines it
_NAMES = {
    "AutoModelForCrystalGeneration": "auto_model",
    "AutoModelForCrystalPropertyPrediction": "auto_model",
    "CanonicalCrystal": "models.canonical_crystal",
    "CrystalCollator": "data",
    "CrystalFeatureExtractor": "models.feature_extraction_crystal",
    "CrystalFramerConfig": "models.configuration_crystalframer",
    "CrystalFramerForPropertyPrediction": "models.modeling_crystalframer",
    "CrystalFramerModel": "models.modeling_crystalframer",
    "CrystalGenerationPipeline": "pipelines.pipeline_crystal_generation",
    "CrystalInputError": "models.structures_crystal",
    "CrystalPrompt": "models.generation_prompts_mat2seq",
    "CrystalPropertyPipeline": "pipelines.pipeline_crystal_property",
    "CrystalTrainer": "training",
    "CrystalformerConfig": "models.configuration_crystalformer",
    "CrystalformerForPropertyPrediction": "models.modeling_crystalformer",
    "CrystalformerModel": "models.modeling_crystalformer",
    "DecodedCrystal": "models.tokenization_mat2seq",
    "Mat2SeqForCausalLM": "models.generation_mat2seq",
    "Mat2SeqTokenizer": "models.tokenization_mat2seq",
    "canonicalize": "models.canonical_crystal",
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
