"""Candidates from known crystals: the same anonymous cell contents, other elements put in."""

from pathlib import Path

from .index import PrototypeIndex

__all__ = ["DEFAULT_INDEX", "PrototypeIndex", "embedded_index"]

DEFAULT_INDEX = "mp20_train"  # what the default generator was trained on, and nothing else


def embedded_index(name: str = DEFAULT_INDEX) -> PrototypeIndex:
    """An index that travels inside the package.

    Raises:
        ValueError: there is no such index in this installation.
    """
    path = Path(__file__).parent / f"{name}.parquet"
    if not path.is_file():
        available = sorted(file.stem for file in path.parent.glob("*.parquet"))
        raise ValueError(f"embedded index {name!r} not found; available: {available}")
    return PrototypeIndex.load(path)
