"""Checkpoints that travel inside the package, so that the pipelines run offline on a fresh machine."""

from pathlib import Path

_ROOT = Path(__file__).parent


def checkpoint_folder(name: str) -> Path:
    """Folder where the embedded checkpoint `name` belongs; does not check that it is there."""
    return _ROOT / name


def embedded_checkpoints() -> list[str]:
    """Names of the checkpoints in this installation, sorted."""
    return sorted(folder.parent.name for folder in _ROOT.glob("*/config.json"))


def embedded_checkpoint(name: str = "crystalformer-mp20") -> Path:
    """Folder of an embedded checkpoint, for `from_pretrained`.

    Args:
        name: one of `embedded_checkpoints()`.

    Returns:
        Folder with `config.json`, `model.safetensors`, `preprocessor_config.json`, `README.md` and `metrics.json`.

    Raises:
        ValueError: there is no such checkpoint in this installation.
    """
    if name not in embedded_checkpoints():
        raise ValueError(f"embedded checkpoint {name!r} not found; available: {embedded_checkpoints()}")
    return checkpoint_folder(name)
