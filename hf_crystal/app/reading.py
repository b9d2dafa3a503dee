"""Reading what strangers send, in separate processes: a text that freezes or swells ends its process, not the page."""

import importlib
import logging
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..crystals.reading import ACCEPTED_FORMS, as_record
from ..crystals.record import CrystalInputError, CrystalRecord
from ..evaluation.pools import JobPool

__all__ = ["MAX_ATOMS", "MAX_BYTES", "CrystalReaders", "cost_of", "description_of", "keep_silent", "limit_memory"]

MAX_ATOMS = 1000  # larger cells would keep a small server busy for minutes
MAX_BYTES = 5_000_000
_SECONDS = 5.0  # for one crystal; a good one takes milliseconds
_SECONDS_OF_A_REQUEST = 20.0
_ACCEPTED = "the content of a CIF, POSCAR, extended XYZ or JSON (pymatgen, JARVIS, OPTIMADE) file"  # no objects, paths
_DENSE = 4.0  # Å³ per atom: hydrides under pressure have less, little else has
_MEMORY = 1 << 30  # bytes, on top of what the process has before it reads


def cost_of(record: CrystalRecord) -> float:
    """Atoms of usual density that cost as much as a crystal: neighbors are as many as the crystal is dense."""
    if not all(record.pbc):
        return record.num_atoms
    return record.num_atoms * max(1.0, _DENSE * record.num_atoms / record.volume)


def _prepare() -> None:
    """Import what is needed, as the time of a job is limited; then limit the memory."""
    for module in ("gemmi", "hf_crystal.mat2seq.canonicalize"):
        importlib.import_module(module)
    keep_silent()
    limit_memory()


def keep_silent() -> None:
    """Let no warning about a crystal reach standard error: answers have them, and nothing of a request is kept."""
    logging.getLogger("hf_crystal").setLevel(logging.ERROR)


def limit_memory() -> None:
    """Let this process have 1 GiB more than it has now, where the system knows such a limit."""
    status = Path("/proc/self/statm")
    if not status.is_file():
        return
    import resource

    used = int(status.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def description_of(record: CrystalRecord) -> dict[str, Any]:
    """Formula, size, space group and canonical sequence of a crystal.

    Raises:
        ValueError: it has no sequence: it is disordered, or its primitive cell too large.
    """
    from ..mat2seq.canonicalize import canonicalize
    from ..mat2seq.space_groups import space_group

    canonical = canonicalize(record)
    group = space_group(canonical.space_group)
    return {
        "formula": record.formula,
        "num_atoms": record.num_atoms,
        "num_atoms_primitive": sum(canonical.composition.values()),
        "volume": record.volume,
        "space_group": group.symbol,
        "space_group_number": group.number,
        "crystal_system": group.crystal_system,
        "sequence": canonical.to_text(),
        "warnings": list(record.warnings),
    }


def _read(job: tuple[str, str | Path, Callable[[CrystalRecord], Any] | None]) -> Any:
    """The crystal or what `then` makes of it, or the reason why there is none."""
    name, source, then = job
    try:
        record = as_record(source, name=name, max_atoms=MAX_ATOMS, nested=True, disorder="mix", partly_periodic=True)
        if cost_of(record) > MAX_ATOMS:
            return (
                f"{record.num_atoms} atoms in {record.volume:.4g} Å³; accepted: up to {MAX_ATOMS} atoms, fewer where "
                f"a cell has less than {_DENSE:g} Å³ per atom"
            )
        return record if then is None else then(record)
    except CrystalInputError as error:
        return error.reason.replace(ACCEPTED_FORMS, _ACCEPTED)
    except ValueError as error:
        return str(error)


class CrystalReaders:
    """Two processes that read crystals; they start with the first one and end with this object.

    Args:
        seconds: time for one crystal.
    """

    def __init__(self, seconds: float = _SECONDS):
        self._pool = JobPool(_read, prepare=_prepare, num_workers=2, time_limit=seconds)
        weakref.finalize(self, self._pool.__exit__)

    def read(
        self, sources: Sequence[tuple[str, str | Path]], then: Callable[[CrystalRecord], Any] | None = None
    ) -> Iterator[tuple[str, Any]]:
        """Name and `CrystalRecord`, or name and reason (`str`), in order.

        Args:
            sources: names, and files or texts; a text is never the name of a file.
            then: a function of a module that makes something else of each crystal, in the same process.
        """
        end = time.monotonic() + _SECONDS_OF_A_REQUEST
        for name, source in sources:  # one after the other, so that others have their turn in between
            size = source.stat().st_size if isinstance(source, Path) else len(source)
            if size > MAX_BYTES:
                yield name, f"{size} bytes; accepted: up to {MAX_BYTES}"
            elif time.monotonic() > end:
                yield name, f"not read: those before it took more than {_SECONDS_OF_A_REQUEST:g} s"
            else:
                outcome = self._pool.run([(name, source, then)])[0]
                failed = outcome.failure and f"cannot be read ({outcome.failure}: {outcome.reason})"
                yield name, failed or outcome.value
