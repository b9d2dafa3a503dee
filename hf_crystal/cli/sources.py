"""Where crystals come from on the command line: files, globs, folders, standard input, parquet tables."""

import glob
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_SUFFIXES = (".cif", ".mcif", ".vasp", ".poscar", ".contcar", ".xyz", ".extxyz", ".json", ".parquet")
_PREFIXES = ("poscar", "contcar")
NAME_COLUMNS = ("material_id", "jid", "id", "name")


def _is_crystal_file(path: Path) -> bool:
    name = path.name.lower().removesuffix(".gz")
    return path.is_file() and (name.endswith(_SUFFIXES) or name.startswith(_PREFIXES))


def find_sources(patterns: Sequence[str]) -> list[str]:
    """Files that the words of a command line name.

    Args:
        patterns: files, globs, folders (searched at every depth), `-` for standard input.

    Returns:
        File names in the order given, sorted within a glob or folder; `-` as it is.

    Raises:
        ValueError: a word names nothing, or `-` comes twice.
    """
    sources: list[str] = []
    for pattern in patterns:
        path = Path(pattern)
        if pattern == "-":
            if "-" in sources:
                raise ValueError("standard input (-) can be read once")
            sources.append("-")
        elif path.is_dir():
            found = sorted(str(file) for file in path.rglob("*") if _is_crystal_file(file))
            if not found:
                raise ValueError(f"no crystal files in folder {pattern}; looked for {', '.join(_SUFFIXES)}")
            sources += found
        elif path.exists():
            sources.append(pattern)
        else:
            found = sorted(file for file in glob.glob(pattern, recursive=True) if Path(file).is_file())
            if not found:
                raise ValueError(f"no such file: {pattern}")
            sources += found
    return sources


def _open_parquet(file: str) -> tuple[Any, tuple[str, ...]]:
    """A parquet file and its columns that hold crystals; `ValueError` where there are none."""
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    from ..crystals.record import CRYSTAL_COLUMNS

    try:
        table = ParquetFile(file)
    except ArrowInvalid as error:
        raise ValueError(f"{file} is not a parquet file: {error}") from error
    names = set(table.schema_arrow.names)
    for columns in (CRYSTAL_COLUMNS, ("cif",), ("structure",), ("atoms",)):
        if names.issuperset(columns):
            return table, columns
    raise ValueError(
        f"{file} has columns {sorted(names)[:12]}; needed are {', '.join(CRYSTAL_COLUMNS)}, "
        "or one of cif, structure, atoms"
    )


def _parquet_rows(file: str) -> Iterator[tuple[str, Any]]:
    """Rows of a table; of a damaged file, or damaged part of it, the reason in place of each crystal."""
    from ..crystals.record import CrystalInputError, printable

    try:
        table, columns = _open_parquet(file)
    except (ValueError, OSError) as error:
        yield printable(file), CrystalInputError(str(error))
        return
    names = set(table.schema_arrow.names)
    label = next((name for name in NAME_COLUMNS if name in names), None)
    wanted = [*columns, *([label] if label else [])]
    number = end = 0
    for group in range(table.num_row_groups):
        end += table.metadata.row_group(group).num_rows
        reason = "the file holds fewer rows than it counts"
        try:
            for batch in table.iter_batches(batch_size=1024, row_groups=[group], columns=wanted):
                for row in batch.to_pylist():
                    name = row.pop(label) if label else f"{Path(file).name}:{number}"
                    number += 1
                    yield str(name), row  # a dict, so that text in a cell is never the name of a file
        except (ValueError, OSError) as error:
            reason = f"this part of the parquet file cannot be read: {error}"
        while number < end:
            yield f"{Path(file).name}:{number}", CrystalInputError(reason)
            number += 1


def count_crystals(sources: Sequence[str]) -> int:
    """How many crystals the sources hold.

    Raises:
        ValueError: the only source is a parquet file without crystals; so this is called before a model is loaded.
    """
    if len(sources) == 1 and sources[0].endswith(".parquet"):
        return _open_parquet(sources[0])[0].metadata.num_rows
    return sum(map(_count, sources))


def _count(source: str) -> int:
    from ..crystals.reading import crystals_in

    if source == "-":
        return 1
    if not source.endswith(".parquet"):
        return sum(1 for _ in crystals_in(Path(source)))
    try:
        return _open_parquet(source)[0].metadata.num_rows
    except (ValueError, OSError):
        return 1  # a row with the reason


def read_crystals(sources: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Name and crystal, one after the other; a table is read in pieces, blocks of a CIF and frames each come alone.

    Args:
        sources: what `find_sources` returned.

    Yields:
        The name for the output, and something that `CrystalFeatureExtractor` reads.
    """
    from ..crystals.reading import crystals_in
    from ..crystals.record import printable

    for source in sources:
        if source == "-":
            yield "-", sys.stdin.buffer.read()  # bytes, which are never the name of a file
        elif source.endswith(".parquet"):
            yield from _parquet_rows(source)
        else:
            for part, crystal in crystals_in(Path(source)):
                yield printable(f"{source}:{part}" if part else source), crystal
