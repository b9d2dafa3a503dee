"""Reading what strangers send, in separate processes: a text that freezes or swells ends its process, not the page."""

import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..crystals.reading import as_record
from ..crystals.record import CrystalInputError, CrystalRecord
from ..evaluation.pools import JobPool

__all__ = ["MAX_ATOMS", "MAX_BYTES", "CrystalReaders", "limit_memory"]

MAX_ATOMS = 1000  # larger cells would keep a small server busy for minutes
MAX_BYTES = 5_000_000
_SECONDS = 5.0  # for one crystal; a good one takes milliseconds
_SECONDS_OF_A_REQUEST = 20.0
_MEMORY = 1 << 30  # bytes, on top of what the process has before it reads


def limit_memory() -> None:
    """Let this process have 1 GiB more than it has now, where the system knows such a limit."""
    status = Path("/proc/self/statm")
    if not status.is_file():
        return
    import resource

    used = int(status.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _read(job: tuple[str, str | Path]) -> CrystalRecord | str:
    """The crystal, or the reason why there is none."""
    name, source = job
    try:
        return as_record(source, name=name, max_atoms=MAX_ATOMS, nested=True, disorder="mix")
    except CrystalInputError as error:
        return error.reason


class CrystalReaders:
    """Two processes that read crystals; they start with the first one and end with this object.

    Args:
        seconds: time for one crystal.
    """

    def __init__(self, seconds: float = _SECONDS):
        self._pool = JobPool(_read, prepare=limit_memory, num_workers=2, time_limit=seconds)
        weakref.finalize(self, self._pool.__exit__)

    def read(self, sources: Sequence[tuple[str, str | Path]]) -> Iterator[tuple[str, CrystalRecord | str]]:
        """Name and crystal, or name and reason, in order.

        Args:
            sources: names, and files or texts; a text is never the name of a file.
        """
        end = time.monotonic() + _SECONDS_OF_A_REQUEST
        for name, source in sources:  # one after the other, so that others have their turn in between
            size = source.stat().st_size if isinstance(source, Path) else len(source)
            if size > MAX_BYTES:
                yield name, f"{size} bytes; this page reads {MAX_BYTES}"
            elif time.monotonic() > end:
                yield name, f"not read: those before it took more than {_SECONDS_OF_A_REQUEST:g} s"
            else:
                outcome = self._pool.run([(name, source)])[0]
                failed = outcome.failure and f"cannot be read ({outcome.failure}: {outcome.reason})"
                yield name, failed or outcome.value
