"""Every kernel compiles for NVIDIA GPUs, also where there is none, and fits their registers."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
from kernel_cases import INTERPRETS, require_triton

from hf_crystal.kernels import angles as kernels_angles
from hf_crystal.kernels import attention as kernels_attention

require_triton()
if INTERPRETS:
    pytest.skip("Triton compiles nothing in its interpreter", allow_module_level=True)

POINTERS = {
    "*i64": {"row_start", "key_start", "entry_start", "seed"},
    "*i32": {"edge_key", "key_order", "edge_query"},
    "*bf16 or *fp32": {"query", "key", "value", "grad_query", "grad_key", "grad_value"},
}
# a few bytes of spilled registers cost nothing; more means that a tile is too large
LARGEST_STACK = 64


def published_kernels():
    """Every kernel with the constants of the published models: name -> (kernel, constants, options)."""
    import triton.language as tl

    from hf_crystal.kernels import angles_triton as angles
    from hf_crystal.kernels import attention_triton as attention

    base = kernels_attention.attention_constants(torch.empty(1, 8, 16), 64, 14.0, 1.0)
    by_key = {name: base[name] for name in kernels_attention.KEY_CONSTANTS}
    frames = {"HEADS": 8, "TOLERANCE": 0.01, "COLLINEAR": 0.9999, "PERPENDICULAR": 1e-5}
    warps = {"num_warps": kernels_angles.ANGLE_WARPS}
    kernels = {
        "attention_backward_keys": (attention.attention_backward_keys, by_key, {}),
        "choose_max_frames": (angles.choose_max_frames, {**frames, "BLOCK_EDGES": kernels_angles.FRAME_EDGES}, {}),
    }
    for edges in (False, True):
        forward, backward = {**base, "STORES_EDGES": edges}, {**base, "HAS_WEIGHT_GRAD": edges}
        kernels[f"attention_forward, edges {edges}"] = (attention.attention_forward, forward, {})
        kernels[f"attention_backward_rows, edges {edges}"] = (attention.attention_backward_rows, backward, {})
        angular = kernels_angles.angular_constants(8, 64, 4.0, edges)
        kernels[f"angular_forward, opposite {edges}"] = (angles.angular_forward, angular, warps)
        kernels[f"angular_backward, opposite {edges}"] = (angles.angular_backward, angular, warps)
    for _, constants, _ in kernels.values():
        constants["ACCUMULATE"] = tl.float32
    return kernels


def compile_kernel(kernel, constants, options, capability: int, dtype: str, precision: str):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    if "PRECISION" in kernel.arg_names:
        constants = {**constants, "PRECISION": precision}
    signature = {}
    for name in kernel.arg_names:
        kinds = [kind for kind, names in POINTERS.items() if name in names]
        kind = f"*{dtype}" if kinds == ["*bf16 or *fp32"] else kinds[0] if kinds else "*fp32"
        signature[name] = "constexpr" if name in constants else "i32" if name == "num_edges" else kind
    source = ASTSource(kernel, signature, constants)
    return compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def stack_bytes(cubin: bytes, folder: Path) -> int:
    """Spilled registers, as NVIDIA's tool in Triton's wheel reads them from the machine code."""
    import triton

    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", usage).group(1))


@pytest.mark.parametrize(
    ("capability", "dtype", "precision"),
    [(80, "fp32", "tf32x3"), (90, "fp32", "tf32x3"), (90, "bf16", "tf32")],
    ids=str,
)
def test_kernels_compile_to_machine_code(capability, dtype, precision, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name, (kernel, constants, options) in published_kernels().items():
        compiled = compile_kernel(kernel, constants, options, capability, dtype, precision)
        assert len(compiled.asm["cubin"]) > 1000, name
        assert compiled.metadata.shared <= 48 * 1024, name  # what every GPU gives a program without asking
        assert stack_bytes(compiled.asm["cubin"], tmp_path) <= LARGEST_STACK, name
        # contractions run on tensor cores
        assert ("mma" in compiled.asm["ptx"]) == ("PRECISION" in kernel.arg_names), name
