"""`hf-crystal info`: what is installed."""

import json
import platform
from importlib import metadata

EXAMPLE = "Example: hf-crystal info"
_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "pymatgen", "moyopy", "ase")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def info() -> None:
    """Show versions, devices and the embedded checkpoints."""
    import torch

    from .. import __version__
    from ..checkpoints import checkpoint_folder, embedded_checkpoints, embedded_generators

    print(f"hf_crystal {__version__}, Python {platform.python_version()}")
    for package in _PACKAGES:
        print(f"  {package:13}{_version(package)}")
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    print(f"devices: cpu ({torch.get_num_threads()} threads){''.join(f', {name}' for name in devices)}")
    print("embedded checkpoints:")
    for name in embedded_checkpoints():
        config = json.loads((checkpoint_folder(name) / "config.json").read_text(encoding="utf-8"))
        targets = ", ".join(
            f"{target} ({unit})" for target, unit in zip(config["target_names"], config["target_units"], strict=True)
        )
        print(f"  {name}: {targets}")
    for name in embedded_generators():
        print(f"  {name}: crystal generation")
