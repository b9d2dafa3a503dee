"""What the Triton operators share: their namespace in `torch.library`, types of sums, the autocast rule.

Every operator has a fake implementation (shapes only), a gradient formula made of other operators, and an autocast
rule (float32: they are sums of exponentials, which PyTorch keeps in float32 too; whoever wants bfloat16 queries, keys
and values passes them outside an autocast region, as the models do, and gets float32 sums).
Triton is imported when an operator runs for the first time: loading these files needs torch alone.

On a CPU the operators work in Triton's interpreter (TRITON_INTERPRET=1 before Triton is imported), for tests. They
have not run on a GPU yet: tests/kernels compile them for NVIDIA sm_80 and sm_90 and run them in the interpreter.
"""

from typing import Any

import torch

__all__ = ["NAMESPACE", "accumulator", "power_of_two", "sum_in_float32"]

NAMESPACE = "hf_crystal"
_AUTOCAST_RULES = torch.library.Library(NAMESPACE, "FRAGMENT")


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below a number."""
    return 1 << max(0, number - 1).bit_length()


def accumulator(tensor: torch.Tensor) -> Any:
    """Triton's type of sums: float64 for float64 (in the interpreter), else float32."""
    from .attention_triton import tl

    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


def sum_in_float32(name: str) -> None:
    """Registers the autocast rule of one operator (custom operators of torch 2.6 have no method for it yet)."""
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    halves = (torch.bfloat16, torch.float16)

    def rule(device: str) -> Any:
        """The operator with float32 arguments, autocast being off."""

        def in_float32(*arguments: Any) -> Any:
            """The operator of arguments that are not in half precision."""
            with torch.autocast(device, enabled=False):
                is_half = [isinstance(a, torch.Tensor) and a.dtype in halves for a in arguments]
                return operator(*(a.float() if half else a for a, half in zip(arguments, is_half, strict=True)))

        return in_float32

    _AUTOCAST_RULES.impl(name, rule("cuda"), "AutocastCUDA")
    _AUTOCAST_RULES.impl(name, rule("cpu"), "AutocastCPU")
