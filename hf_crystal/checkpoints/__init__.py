"""Checkpoints that travel inside the package, so that the pipelines run offline on a fresh machine."""

import difflib
import os
from pathlib import Path
from typing import Any

# what the pipelines, the commands and the web page use where no model is named
DEFAULT_MODEL, DEFAULT_GENERATOR = "crystalformer-mp", "mat2seq-mp20"
OWNER = "hf_crystal/"  # of our repositories, before the name of a checkpoint
_ROOT = Path(__file__).parent
_LIKE = 0.85  # similarity (difflib) from which a name is taken for a misspelled one


def checkpoint_folder(name: str) -> Path:
    """Folder where the embedded checkpoint `name` belongs; does not check that it is there."""
    return _ROOT / name


def embedded_checkpoints() -> list[str]:
    """Names of the property models in this installation, sorted."""
    return sorted(folder.parent.name for folder in _ROOT.glob("*/preprocessor_config.json"))


def embedded_generators() -> list[str]:
    """Names of the crystal generators in this installation, sorted."""
    return sorted(folder.parent.name for folder in _ROOT.glob("*/tokenizer_config.json"))


def embedded_checkpoint(name: str = DEFAULT_MODEL) -> Path:
    """Folder of an embedded checkpoint, for `from_pretrained`.

    Args:
        name: one of `embedded_checkpoints()` or `embedded_generators()`.

    Returns:
        Folder with `config.json`, `model.safetensors`, `README.md`, `metrics.json`, and `preprocessor_config.json`
        or the files of a tokenizer.

    Raises:
        ValueError: there is no such checkpoint in this installation.
    """
    available = [*embedded_checkpoints(), *embedded_generators()]
    if name not in available:
        raise ValueError(f"embedded checkpoint {name!r} not found; available: {available}")
    return checkpoint_folder(name)


def folder_of_name(name: object) -> Any:
    """Folder of an embedded checkpoint where `name` is one and no model folder of that name is here; else `name`.

    The name of its repository, as its card has it, is a name of the embedded one, too.

    Raises:
        ValueError: a name that is almost that of one: the Hub, which would be asked, has none such.
    """
    if not isinstance(name, (str, os.PathLike)) or Path(name, "config.json").is_file():
        return name
    embedded = (*embedded_checkpoints(), *embedded_generators())
    own = os.fspath(name).removeprefix(OWNER)
    if own in embedded:
        return str(checkpoint_folder(own))
    like = difflib.get_close_matches(os.fspath(name), embedded, 1, _LIKE)
    if like and "/" not in os.fspath(name) and not Path(name).exists():
        raise ValueError(f"no embedded checkpoint {name}; did you mean {like[0]}? Embedded are {', '.join(embedded)}")
    return name
