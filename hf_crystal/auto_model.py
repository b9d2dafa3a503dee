"""The package's own Auto classes: any crystal model with a property head, any crystal generator."""

from collections import OrderedDict
from typing import Any

from transformers import LlamaConfig
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .encoders.configuration_crystalformer import CrystalformerConfig
from .encoders.configuration_crystalframer import CrystalFramerConfig
from .encoders.modeling_crystalformer import CrystalformerForPropertyPrediction
from .encoders.modeling_crystalframer import CrystalFramerForPropertyPrediction
from .mat2seq.modeling_mat2seq import Mat2SeqForCausalLM

MODEL_FOR_CRYSTAL_PROPERTY_PREDICTION_MAPPING = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForCrystalPropertyPrediction(_BaseAutoModelClass):
    """Loads whichever crystal model with a property head a folder or repository holds."""

    _model_mapping: Any = MODEL_FOR_CRYSTAL_PROPERTY_PREDICTION_MAPPING


AutoModelForCrystalPropertyPrediction.register(CrystalformerConfig, CrystalformerForPropertyPrediction, exist_ok=True)
AutoModelForCrystalPropertyPrediction.register(CrystalFramerConfig, CrystalFramerForPropertyPrediction, exist_ok=True)

MODEL_FOR_CRYSTAL_GENERATION_MAPPING = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForCrystalGeneration(_BaseAutoModelClass):
    """Loads a language model over crystal sequences, with `generate_crystals`; the folder is a stock Llama's."""

    _model_mapping: Any = MODEL_FOR_CRYSTAL_GENERATION_MAPPING


AutoModelForCrystalGeneration.register(LlamaConfig, Mat2SeqForCausalLM, exist_ok=True)
