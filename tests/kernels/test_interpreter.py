"""Runs the kernel tests in Triton's interpreter, on the CPU: it must be chosen before Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

from kernel_cases import require_triton

FOLDER = Path(__file__).parent
DEVICE_TESTS = ["test_attention_kernels.py", "test_angle_kernels.py", "test_encoder_kernels.py"]


def test_kernels_in_the_interpreter():
    require_triton()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *(str(FOLDER / n) for n in DEVICE_TESTS),
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=FOLDER.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout.splitlines()[-1]


def test_every_device_test_is_listed():
    needs_device = {path.name for path in FOLDER.glob("test_*.py") if "kernel_device()" in path.read_text()}
    assert needs_device - {"test_interpreter.py"} == set(DEVICE_TESTS)
