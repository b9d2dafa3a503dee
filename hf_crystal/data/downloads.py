# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Source files of benchmarks: from a local path, or downloaded once and checked."""

import hashlib
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import logging

from .tables import cache_root

__all__ = ["Download", "fetch", "figshare"]

logger = logging.get_logger(__name__)

_BLOCK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Download:
    """A file on the web.

    Attributes:
        url: where it is.
        file_name: name to keep it under.
        sha256: digest that the file must have. None where the publisher states none that we could verify: the digest
            of the first download is then kept beside the file and later uses must match it, and the benchmark's
            official counts and ids are checked as well.
        citation: whom to cite, with the licence.
    """

    url: str
    file_name: str
    sha256: str | None
    citation: str


def figshare(number: int, file_name: str, citation: str) -> Download:
    """A file of JARVIS on figshare; its number is in jarvis-tools, `jarvis/db/figshare.py`. No digest is published."""
    return Download(f"https://ndownloader.figshare.com/files/{number}", file_name, None, citation)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _check_digest(path: Path, expected: str, told_by: str) -> None:
    found = _digest(path)
    if found != expected.lower():
        raise ValueError(
            f"{path} has SHA-256 {found}, but {told_by} says {expected}: the file is damaged or another version; "
            "delete it to download it again, or pass the right one with path="
        )


def fetch(
    source: Download,
    *,
    path: str | os.PathLike | None = None,
    sha256: str | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> Path:
    """Local copy of a source file.

    Args:
        source: what to download, where no `path` is given.
        path: a copy you already have; nothing is downloaded.
        sha256: digest to check instead of the one known here.
        cache_dir: folder for downloads.

    Returns:
        Path of the file.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the digest differs.
        ConnectionError: the download failed; the message says how to go on offline.
    """
    expected = sha256 or (source.sha256 if path is None else None)
    if path is not None:
        local = Path(path)
        if not local.is_file():
            raise FileNotFoundError(
                f"no such file: {local}. Download {source.url} or omit path= to have it downloaded"
            )
        if expected:
            _check_digest(local, expected, "the argument sha256")
        return local
    target = cache_root(cache_dir) / "downloads" / source.file_name
    recorded = target.with_name(target.name + ".sha256")
    if not target.is_file():
        _download(source.url, target)
        if expected is None:
            recorded.write_text(_digest(target) + "\n", encoding="utf-8")
    if expected is None and recorded.is_file():
        _check_digest(target, recorded.read_text(encoding="utf-8").strip(), f"{recorded.name}, written at download,")
    elif expected is not None:
        _check_digest(target, expected, "the benchmark's definition" if sha256 is None else "the argument sha256")
    return target


def _download(url: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=target.name, dir=target.parent)
    logger.warning(f"downloading {url} to {target}")
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "hf_crystal"})
        with os.fdopen(handle, "wb") as stream, urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
            shutil.copyfileobj(response, stream, _BLOCK_BYTES)
        os.replace(name, target)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise ConnectionError(
            f"{url} could not be downloaded ({error}). Without internet, get the file elsewhere and pass path=<file>"
        ) from error
    finally:
        if os.path.exists(name):
            os.unlink(name)
