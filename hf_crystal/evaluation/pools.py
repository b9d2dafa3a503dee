# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""A process pool in which one job may fail, hang or kill its process without losing the others.

The processes are pebble's: `concurrent.futures` gives up the whole pool when one worker dies and cannot stop a job
that takes too long.
"""

import multiprocessing
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Literal

from pebble import ProcessExpired, ProcessPool

# what a pure computation raises on input it cannot digest; interrupts and exits pass through
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Outcome:
    """Result of one job: a value or a failure.

    Attributes:
        value: What the function returned; None for a failure.
        failure: "error" (it raised), "timeout", "crash" (its process died), or None.
        reason: Description of the failure.
    """

    value: Any = None
    failure: Literal["error", "timeout", "crash"] | None = None
    reason: str | None = None


def _attempt(function: Callable[[Any], Any], job: Any) -> Outcome:
    try:
        return Outcome(function(job))
    except FAILURES as error:
        return Outcome(None, "error", f"{type(error).__name__}: {error}")


class JobPool:
    """Runs one function over many jobs, in this process or in others; use as a context manager, from any thread.

    Args:
        function: Called with one job; it and the jobs must be picklable when processes are used.
        prepare: Called once in each process before its first job, for slow imports: its time is not limited.
        num_workers: Processes; 0 runs the jobs here, unless there is a time limit, which needs one process.
        time_limit: Seconds for one job, from when a process takes it; None for no limit.

    Raises:
        ValueError: for a negative number of workers or a time limit that is not positive.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        *,
        prepare: Callable[[], Any] | None = None,
        num_workers: int = 0,
        time_limit: float | None = None,
    ):
        if num_workers < 0:
            raise ValueError(f"num_workers is {num_workers}; expected 0 (this process) or more")
        if time_limit is not None and not time_limit > 0:
            raise ValueError(f"time_limit is {time_limit}; expected seconds above 0, or None for no limit")
        self._function, self._prepare, self._time_limit = function, prepare, time_limit
        self._size = max(num_workers, 0 if time_limit is None else 1)
        self._pool: ProcessPool | None = None
        self._starting = threading.Lock()

    def __enter__(self) -> "JobPool":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def run(self, jobs: Sequence[Any]) -> list[Outcome]:
        """One outcome per job, in order; processes that were killed while they waited are replaced.

        Raises:
            RuntimeError: if the processes die again when they were replaced.
        """
        if self._size == 0:
            return [_attempt(self._function, job) for job in jobs]
        for _ in range(2):
            pool = self._running()
            try:
                scheduled = [pool.schedule(self._function, (job,), timeout=self._time_limit) for job in jobs]
                return [self._outcome(future) for future in scheduled]
            except RuntimeError as error:  # the whole pool has ended: pebble does not outlive an idle process
                failure = error
                with self._starting:
                    if self._pool is pool:
                        self.__exit__()
        raise RuntimeError(
            "the worker processes ended twice before a job was done; a script that uses workers needs "
            '`if __name__ == "__main__":` around what it runs'
        ) from failure

    def _running(self) -> ProcessPool:
        with self._starting:
            if self._pool is None:
                # a fork would copy the threads' locks of torch and tokenizers in whatever state they are
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPool(self._size, initializer=self._prepare, context=context)
            return self._pool

    def _outcome(self, future: Future) -> Outcome:
        """Wait for one job.

        Raises:
            BrokenProcessPool: if the processes have ended.
        """
        try:
            return Outcome(future.result())
        except BrokenProcessPool:
            raise
        except ProcessExpired as expired:
            return Outcome(None, "crash", f"its process ended with exit code {expired.exitcode}")
        except TimeoutError:
            return Outcome(None, "timeout", f"more than {self._time_limit} s")
        except FAILURES as error:
            return Outcome(None, "error", f"{type(error).__name__}: {error}")
