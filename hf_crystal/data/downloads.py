# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""Source files of benchmarks: from a local path, or downloaded once and checked."""

import os
from dataclasses import dataclass
from pathlib import Path

import pooch

from .tables import cache_root

__all__ = ["Download", "fetch", "figshare"]


@dataclass(frozen=True)
class Download:
    """A file on the web.

    Attributes:
        url: where it is.
        file_name: name to keep it under.
        sha256: digest that the file must have. None where the publisher states none that we could verify: the digest
            of the first download is then kept beside the file and later uses must match it, and the benchmark's
            official counts and ids are checked as well.
        citation: whom to cite, with the license.
    """

    url: str
    file_name: str
    sha256: str | None
    citation: str


def figshare(number: int, file_name: str, citation: str) -> Download:
    """A file of JARVIS on figshare; its number is in jarvis-tools, `jarvis/db/figshare.py`. No digest is published."""
    return Download(f"https://ndownloader.figshare.com/files/{number}", file_name, None, citation)


def fetch(
    source: Download,
    *,
    path: str | os.PathLike | None = None,
    sha256: str | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> Path:
    """Local copy of a source file; downloaded by pooch to another name first, so that it is whole or absent.

    Args:
        source: what to download, where no `path` is given.
        path: a copy you already have; nothing is downloaded.
        sha256: digest to check instead of the one known here.
        cache_dir: folder for downloads.

    Returns:
        Path of the file.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the digest differs. A copy in the cache that differs is downloaded again first.
        ConnectionError: the download failed; the message says what to do offline.
    """
    if path is not None:
        local = Path(path)
        if not local.is_file():
            raise FileNotFoundError(
                f"no such file: {local}. Download {source.url} or omit path= to have it downloaded"
            )
        if sha256 and (found := pooch.file_hash(str(local))) != sha256.lower():
            raise ValueError(f"{local} has SHA-256 {found}, but the argument sha256 says {sha256}")
        return local
    folder = cache_root(cache_dir) / "downloads"
    recorded = folder / f"{source.file_name}.sha256"
    expected = sha256 or source.sha256
    if expected is None and recorded.is_file():
        expected = recorded.read_text(encoding="utf-8").strip()
    try:
        target = Path(pooch.retrieve(source.url, expected, source.file_name, folder))
    except OSError as error:  # the errors of requests are such
        raise ConnectionError(
            f"{source.url} could not be downloaded ({error}). Without internet, get the file elsewhere and pass "
            "path=<file>"
        ) from error
    if expected is None:
        recorded.write_text(pooch.file_hash(str(target)) + "\n", encoding="utf-8")
    return target
