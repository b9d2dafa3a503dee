"""Run a script with FSDP2 on CPU processes: `torchrun fsdp_on_cpu.py SCRIPT WORDS`.

torch shards a model over CPU processes (gloo) as it does over GPUs; only accelerate reads FSDP settings on GPUs alone.
"""

import runpy
import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

_original = AcceleratorState.__init__


def _read_settings_on_cpus_too(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    _original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU and fsdp_plugin is not None:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    AcceleratorState.__init__ = _read_settings_on_cpus_too
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
