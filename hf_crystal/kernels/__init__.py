"""Triton kernels of the encoders' attention and frames: opt-in, `attention_kernel="triton"`.

They have not run on a GPU: the tests run them in Triton's interpreter and compile them for NVIDIA GPUs. Eager
operations are the default on every device until a run of `scripts/bench_gpu.py` shows that these kernels are equal and
faster. They do not travel with exported models, which reach them only where this package is installed.
"""
