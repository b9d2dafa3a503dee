"""Official checkpoints to Hugging Face folders."""

from .official_encoders import (
    build_model,
    convert_official_checkpoint,
    convert_state_dict,
    infer_config,
    read_official_checkpoint,
)

__all__ = [
    "build_model",
    "convert_official_checkpoint",
    "convert_state_dict",
    "infer_config",
    "read_official_checkpoint",
]
