"""Files and folders that are written under another name first; what killed processes left of them is removed."""

import os
import platform
import shutil
from glob import escape
from pathlib import Path

__all__ = ["partial_path", "remove_path"]


def partial_path(path: Path) -> Path:
    """The hidden name, of this process alone, under which `path` is written before `os.replace` gives it its own.

    Those of processes of this machine that have ended without a chance to clean up (`kill -9`) are removed.

    Args:
        path: file or folder to be written; its folder exists.
    """
    prefix = f".{path.name}.{platform.node()}-"
    for left_over in path.parent.glob(f"{escape(prefix)}*.partial"):
        number = left_over.name.removeprefix(prefix).removesuffix(".partial")
        if number.isdecimal() and not _runs(int(number)):
            remove_path(left_over)
    return path.with_name(f"{prefix}{os.getpid()}.partial")


def _runs(number: int) -> bool:
    """Whether this machine has a process of this number."""
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def remove_path(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
