"""Whether the Triton kernels run, and why not where they do not."""

import importlib.util
import os

import torch
from transformers.utils import logging

__all__ = ["device_obstacle", "runs_triton"]

logger = logging.get_logger(__name__)

SMALLEST_CAPABILITY = (8, 0)  # Ampere; what the kernels are compiled for in tests


def device_obstacle(positions: torch.Tensor) -> str | None:
    """Why the Triton kernels cannot run on the device and with the precision of a tensor; none: they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    if positions.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if positions.device.type != "cuda" or torch.version.hip:
        return f"the kernels are for NVIDIA GPUs, the input is on {positions.device.type}"
    if torch.cuda.get_device_capability(positions.device) < SMALLEST_CAPABILITY:
        return "the GPU is older than compute capability 8.0"
    if positions.dtype != torch.float32:
        return f"geometry is in {positions.dtype}, the kernels sum in float32"
    return None


def runs_triton(
    attention_kernel: str, config_obstacle: str | None, positions: torch.Tensor, cell: torch.Tensor
) -> bool:
    """Resolve `config.attention_kernel` for one batch.

    `"triton"` and, on a GPU, `"fast"` take the Triton kernels. Where these cannot run the eager operations do, and a
    line in the log says why, once for each reason.

    Args:
        attention_kernel (`str`): `"fast"`, `"eager"`, `"triton"` or `"reference"`.
        config_obstacle (`str`, *optional*): why the kernels do not have what the model's configuration asks for.
        positions, cell (`torch.Tensor`): geometry of the batch.
    """
    wanted = attention_kernel == "triton" or (attention_kernel == "fast" and positions.device.type == "cuda")
    if not wanted:
        return False
    obstacle = config_obstacle or device_obstacle(positions)
    if obstacle is None and torch.is_grad_enabled() and (positions.requires_grad or cell.requires_grad):
        obstacle = "gradients with respect to positions or cells are asked for"
    if obstacle is not None:
        logger.warning_once(f"attention_kernel={attention_kernel!r} runs the eager operations: {obstacle}.")
    return obstacle is None
