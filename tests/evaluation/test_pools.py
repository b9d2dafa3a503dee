import os
import time

import psutil
import pytest
from crystals_for_metrics import doubled

from hf_crystal.evaluation.pools import JobPool, Outcome


def test_failing_hanging_and_dying_jobs_leave_the_others_alone():
    with JobPool(doubled, num_workers=2, time_limit=1.0) as pool:
        outcomes = pool.run([1, "raise", 2, "hang", 3, "die", 4])
        assert [outcome.value for outcome in outcomes] == [2, None, 4, None, 6, None, 8]
        assert [outcome.failure for outcome in outcomes] == [None, "error", None, "timeout", None, "crash", None]
        assert outcomes[1].reason == "ValueError: asked to"
        assert outcomes[5].reason == "its process ended with exit code 7"
        assert [outcome.value for outcome in pool.run([5, 6])] == [10, 12]  # the pool lives on


def test_processes_killed_while_they_wait_are_replaced():
    with JobPool(doubled, num_workers=2, time_limit=1.0) as pool:
        assert pool.run([1]) == [Outcome(2)]
        first = pool._pool
        for process in psutil.Process().children():
            if "spawn_main" in " ".join(process.cmdline()):
                process.kill()
        deadline = time.monotonic() + 30
        while first.active and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not first.active
        assert pool.run([2, 3]) == [Outcome(4), Outcome(6)]


def slow_start() -> None:
    time.sleep(1.5)


def test_the_start_of_a_process_is_not_limited():
    with JobPool(doubled, prepare=slow_start, time_limit=1.0) as pool:
        assert pool.run([1]) == [Outcome(2)]


def broken_start() -> None:
    os._exit(3)


def test_a_process_that_cannot_start_is_an_error_and_no_endless_loop():
    with (
        JobPool(doubled, prepare=broken_start, num_workers=1) as pool,
        pytest.raises(RuntimeError, match="ended twice"),
    ):
        pool.run([1])


def test_without_workers_jobs_run_here():
    with JobPool(doubled) as pool:
        assert pool.run([1, "raise"]) == [Outcome(2), Outcome(None, "error", "ValueError: asked to")]
        assert pool.run([]) == []


def test_interrupts_are_not_swallowed():
    def interrupt(_):
        raise KeyboardInterrupt

    with JobPool(interrupt) as pool, pytest.raises(KeyboardInterrupt):
        pool.run([1])


@pytest.mark.parametrize("arguments", [{"num_workers": -1}, {"time_limit": 0.0}, {"time_limit": -1.0}])
def test_impossible_settings_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        JobPool(doubled, **arguments)
