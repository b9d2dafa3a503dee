"""What a command shows while it works: one progress bar on standard error, and nothing of the libraries' own."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_SECONDS_BEFORE_BAR = 2.0
_SECONDS_BETWEEN_UPDATES = 0.1
Item = TypeVar("Item")


def quiet_transformers() -> None:
    """Keep the libraries' progress bars and notices out of a command's output."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # rows and the closing line have it
    warnings.filterwarnings("ignore", message=".*: not in the training data of", category=UserWarning)


@contextlib.contextmanager
def counter(total: int | None, unit: str, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A function to be told how many items are finished; after two seconds a bar shows it, where there is a terminal.

    Args:
        total: how many there will be, `done` included; None if nobody knows.
        unit: word for one item.
        done: items finished in an earlier run.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    rate = TextColumn("{task.fields[rate]:.3g} " + f"{unit}/s")
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(f"{unit}s"), rate, TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task("", total=total, completed=done, rate=0.0)
    start = updated = time.monotonic()

    def tell(count: int) -> None:
        """So many items are finished."""
        nonlocal updated
        now = time.monotonic()
        if now - updated > _SECONDS_BETWEEN_UPDATES and now - start > _SECONDS_BEFORE_BAR:
            bar.start()
            bar.update(task, completed=done + count, rate=count / (now - start))
            updated = now

    try:
        yield tell
    finally:
        bar.stop()


def track(items: Iterable[Item], total: int | None, unit: str, done: int = 0) -> Iterator[Item]:
    """Hand items through and count them; see `counter` for the arguments.

    Yields:
        The items.
    """
    with counter(total, unit, done) as tell:
        for count, item in enumerate(items, start=1):
            tell(count)
            yield item
