"""Versions of saved configurations and tokenizers: one update function per step, applied on loading.

The weights of a checkpoint are read by name; what its settings mean may change between versions of this package. Such
a change adds a function `update_v{n}_v{n+1}(values) -> values` to the list beside the class, and with it the version.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["update_checkpoint"]

Update = Callable[[dict[str, Any]], dict[str, Any]]


def update_checkpoint(values: Mapping[str, Any], updates: Sequence[Update], what: str) -> dict[str, Any]:
    """Settings of a checkpoint in the newest version, `len(updates) + 1`.

    Args:
        values: Settings as saved. Without a `checkpoint_version` they are of version 1.
        updates: `update_v1_v2`, `update_v2_v3`, … in this order.
        what: What is loaded, for the error.

    Raises:
        ValueError: `checkpoint_version` is newer than this code, or no version at all.
    """
    version, newest = values.get("checkpoint_version", 1), len(updates) + 1
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"checkpoint_version={version!r} of {what}: accepted are the integers 1 to {newest}.")
    if version > newest:
        raise ValueError(
            f"checkpoint_version={version} of {what} is newer than this code, which reads 1 to {newest}: "
            "pip install --upgrade hf_crystal."
        )
    updated = dict(values)
    for update in updates[version - 1 :]:
        updated = update(updated)
    return {**updated, "checkpoint_version": newest}
