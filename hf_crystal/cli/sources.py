"""Where crystals come from on the command line: files of any form, globs, folders, standard input."""

import atexit
import functools
import glob
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

FILES_HELP = (
    "CIF, POSCAR, extended XYZ, JSON files, tables (CSV, JSON lines, parquet), databases and trajectories of ASE, "
    "globs, folders; - reads any of these from stdin."
)


def find_sources(patterns: Sequence[str]) -> list[str]:
    """Files that the words of a command line name.

    Args:
        patterns: files, globs, folders (searched at every depth), `-` for standard input.

    Returns:
        File names in the order given, sorted within a glob or folder; `-` as it is.

    Raises:
        ValueError: a word names nothing, or `-` comes twice.
    """
    from ..data.sources import STRUCTURE_SUFFIXES, TABLE_SUFFIXES, folder_files

    sources: list[str] = []
    for pattern in patterns:
        path = Path(pattern)
        if pattern == "-":
            if "-" in sources:
                raise ValueError("standard input (-) can be read once")
            sources.append("-")
        elif path.is_dir():
            files, others = folder_files(path)
            if not files:
                suffixes = ", ".join((*STRUCTURE_SUFFIXES, *TABLE_SUFFIXES))
                raise ValueError(f"no crystal files in folder {pattern}; looked for {suffixes} and CSV of crystals")
            if others:
                print(f"hf-crystal: {others}", file=sys.stderr)
            sources += map(str, files)
        elif path.exists():
            sources.append(pattern)
        else:
            found = sorted(file for file in glob.glob(pattern, recursive=True) if Path(file).is_file())
            if not found:
                raise ValueError(f"no such file: {pattern}")
            sources += found
    return sources


@functools.lru_cache(maxsize=1)
def _kept_input(stream: TextIO) -> Path:
    """Standard input as a file, which can be looked at twice; it is removed at the end."""
    folder = tempfile.mkdtemp(prefix="hf_crystal-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = Path(folder) / "-"
    with file.open("wb") as kept:
        while piece := stream.buffer.read(1 << 20):
            kept.write(piece)
    return file


def _file(source: str) -> Path:
    return _kept_input(sys.stdin) if source == "-" else Path(source)


def count_crystals(sources: Sequence[str]) -> int:
    """How many crystals the sources hold.

    Raises:
        ValueError: the only source is a table without crystals; so this is called before a model is loaded.
    """
    from ..data.sources import count_crystals, iter_crystals

    if len(sources) == 1:
        return count_crystals(_file(sources[0]))
    total = 0
    for source in sources:
        try:
            total += count_crystals(_file(source))
        except (ValueError, OSError):  # rows, and one with the reason
            total += sum(1 for _ in iter_crystals(_file(source)))
    return total


def read_crystals(sources: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Name and crystal, one after the other; a table is read in pieces, blocks of a CIF and frames each come alone.

    Args:
        sources: what `find_sources` returned.

    Yields:
        The name for the output, and something that `CrystalFeatureExtractor` reads.
    """
    from ..data.sources import iter_crystals

    for source in sources:
        yield from iter_crystals(_file(source), source)
