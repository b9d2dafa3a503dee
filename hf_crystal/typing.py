"""Types of the arguments that many public functions share; importing it loads neither torch nor a reader."""

import os
from typing import TYPE_CHECKING, Any, Protocol, Union, runtime_checkable

from .crystals.reading import CrystalLike

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from .encoders.modeling_crystalformer import CrystalformerForPropertyPrediction
    from .encoders.modeling_crystalframer import CrystalFramerForPropertyPrediction
    from .mat2seq.modeling_mat2seq import Mat2SeqForCausalLM
    from .pipelines.pipeline_crystal_generation import CrystalGenerationPipeline
    from .pipelines.pipeline_crystal_property import CrystalPropertyPipeline

__all__ = [
    "CrystalLike",
    "Decoded",
    "Device",
    "Generator",
    "GeneratorLike",
    "ModelName",
    "PropertyModel",
    "PropertyModelLike",
]

# Unions of forward references: names are resolved by type checkers only.
Device = Union[str, int, "torch.device"]
# embedded checkpoint, folder, or repository of the Hub; see `hf_crystal.loading.resolve_model`
ModelName = Union[str, "os.PathLike[str]"]
# a loaded model with a property head
PropertyModel = Union["CrystalformerForPropertyPrediction", "CrystalFramerForPropertyPrediction"]
# what `hf_crystal.loading.load_property_model` takes
PropertyModelLike = Union[ModelName, PropertyModel, "CrystalPropertyPipeline"]
# a loaded language model over crystal sequences: `Mat2SeqForCausalLM`, or a stock one of transformers
Generator = Union["Mat2SeqForCausalLM", "PreTrainedModel"]
# what `hf_crystal.loading.load_generator` takes
GeneratorLike = Union[ModelName, "Mat2SeqForCausalLM", "CrystalGenerationPipeline"]


@runtime_checkable
class Decoded(Protocol):
    """A generated crystal, such as `DecodedCrystal`: its structure, or the reason why there is none."""

    @property
    def structure(self) -> Any:
        """`Structure` of pymatgen, or None."""

    @property
    def error(self) -> Any:
        """Reason, or None."""
