# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""A process pool in which one job may fail, hang or kill its process without losing the others.

`concurrent.futures` gives up the whole pool when one worker dies and cannot stop a job that takes too long.
"""

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Literal

# what a pure computation raises on input it cannot digest; interrupts and exits go on their way
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
    """What became of one job.

    Attributes:
        value: What the function returned; None for a failure.
        failure: "error" (it raised), "timeout", "crash" (its process died), or None.
        reason: The failure in words.
    """

    value: Any = None
    failure: Literal["error", "timeout", "crash"] | None = None
    reason: str | None = None


def _attempt(function: Callable[[Any], Any], job: Any) -> Outcome:
    try:
        return Outcome(function(job))
    except FAILURES as error:
        return Outcome(None, "error", f"{type(error).__name__}: {error}")


def _serve(pipe: Any, function: Callable[[Any], Any], prepare: Callable[[], Any] | None) -> None:
    """Body of a worker process: answer jobs until the parent goes away."""
    if prepare is not None:
        prepare()
    pipe.send("ready")
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(_attempt(function, job))


class _Worker:
    """One process, its pipe and the job it has."""

    def __init__(self, function: Callable[[Any], Any], prepare: Callable[[], Any] | None):
        # a fork would copy the threads' locks of torch and tokenizers in whatever state they are
        context = multiprocessing.get_context("spawn")
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=_serve, args=(child, function, prepare), daemon=True)
        self.process.start()
        child.close()  # so that the death of the worker is seen as the end of the pipe
        self.ready = False
        self.job: int | None = None
        self.deadline: float | None = None

    def give(self, index: int, job: Any, time_limit: float | None) -> None:
        """Send job number `index`, to be answered within `time_limit` seconds; `OSError` if the process is gone."""
        self.job = index
        self.deadline = None if time_limit is None else time.monotonic() + time_limit
        self.pipe.send(job)

    def stop(self) -> None:
        """Kill the process, whatever it does, and free what it holds."""
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.process.close()


class JobPool:
    """Runs one function over many jobs, in this process or in others; use as a context manager.

    Args:
        function: Called with one job; it and the jobs must be picklable when processes are used.
        prepare: Called once in each process before its first job, for slow imports: its time is not limited.
        num_workers: Processes; 0 runs the jobs here, unless there is a time limit, which needs one process.
        time_limit: Seconds for one job, from when its process is ready; None for no limit.

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
        self._workers: list[_Worker] = []

    def __enter__(self) -> "JobPool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers = []

    def run(self, jobs: Sequence[Any]) -> list[Outcome]:
        """One outcome per job, in order.

        Raises:
            RuntimeError: if a process dies before it takes its first job.
        """
        if self._size == 0:
            return [_attempt(self._function, job) for job in jobs]
        outcomes: dict[int, Outcome] = {}
        waiting = deque(range(len(jobs)))
        while len(outcomes) < len(jobs):
            while len(self._workers) < min(self._size, len(jobs) - len(outcomes)):
                self._workers.append(_Worker(self._function, self._prepare))
            for worker in self._workers:
                if worker.ready and worker.job is None and waiting:
                    self._give(worker, waiting.popleft(), jobs, outcomes)
            self._collect(outcomes)
        return [outcomes[index] for index in range(len(jobs))]

    def _give(self, worker: _Worker, index: int, jobs: Sequence[Any], outcomes: dict[int, Outcome]) -> None:
        try:
            worker.give(index, jobs[index], self._time_limit)
        except OSError:  # it died idle
            self._end(worker, Outcome(None, "crash", "the process died"), outcomes)

    def _collect(self, outcomes: dict[int, Outcome]) -> None:
        """Wait for the next answer, death or deadline."""
        self._workers = [worker for worker in self._workers if not worker.pipe.closed]
        listening = {worker.pipe: worker for worker in self._workers if not worker.ready or worker.job is not None}
        deadlines = [worker.deadline for worker in listening.values() if worker.deadline is not None]
        timeout = max(min(deadlines) - time.monotonic(), 0.0) if deadlines else None
        spoken = connection.wait(list(listening), timeout) if listening else []
        for pipe, worker in listening.items():
            if pipe in spoken:
                self._receive(worker, outcomes)
        now = time.monotonic()
        for worker in self._workers:
            if not worker.pipe.closed and worker.deadline is not None and worker.deadline <= now:
                self._end(worker, Outcome(None, "timeout", f"more than {self._time_limit} s"), outcomes)
        self._workers = [worker for worker in self._workers if not worker.pipe.closed]

    def _receive(self, worker: _Worker, outcomes: dict[int, Outcome]) -> None:
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            code = worker.process.exitcode
            if worker.job is None:
                raise RuntimeError(
                    f"a worker process ended with exit code {code} before its first job; a script that uses workers "
                    'needs `if __name__ == "__main__":` around what it runs'
                ) from None
            self._end(worker, Outcome(None, "crash", f"its process ended with exit code {code}"), outcomes)
            return
        if worker.job is None:
            worker.ready = True
            return
        outcomes[worker.job] = message
        worker.job = worker.deadline = None

    def _end(self, worker: _Worker, outcome: Outcome, outcomes: dict[int, Outcome]) -> None:
        assert worker.job is not None
        outcomes[worker.job] = outcome
        worker.stop()
