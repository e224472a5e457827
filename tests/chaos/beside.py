"""What goes on all the time beside what a test does: a reader that asks over and over, files that are removed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class Seen(Generic[T]):
    """What came of it."""

    found: list[T] = field(default_factory=list)
    """By each time that it did not fail."""
    wrong: list[str] = field(default_factory=list)
    """Why it failed."""
    seconds: list[float] = field(default_factory=list)
    """That each time took."""


@contextmanager
def over_and_over(work: Callable[[], T], pause: float = 0.02) -> Iterator[Seen[T]]:
    """Does it in a thread of its own until the end of the block, whatever comes of it.

    Args:
        work: what is done.
        pause: seconds between two times.
    """
    seen, stop = Seen[T](), threading.Event()

    def all_the_time() -> None:
        while not stop.wait(pause):
            started = time.monotonic()
            try:
                seen.found.append(work())
            except Exception as error:
                seen.wrong.append(f"{type(error).__name__}: {error}")
            seen.seconds.append(time.monotonic() - started)

    thread = threading.Thread(target=all_the_time)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
