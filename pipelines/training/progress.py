"""Training progress from workers to the person at the terminal: bars on a terminal, one line an epoch in a log file."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from tqdm import tqdm

log = logging.getLogger(__name__)
POLL_SECONDS = 0.5
LOG_SECONDS = 60.0
Event = tuple[str, int, int, dict[str, float], str]


@ray.remote(num_cpus=0)
class Reporter:
    """Collects what the first worker tells; the driver fetches it."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def update(self, event: str, epoch: int, step: int, values: dict[str, float], text: str = "") -> None:
        """Notes an event: `start` of an epoch, `step`, the end of an `epoch`, or a `damage` that the text describes."""
        self._events.append((event, epoch, step, values, text))

    def take(self) -> list[Event]:
        """Events since the last call."""
        events, self._events = self._events, []
        return events


@contextmanager
def followed(title: str, epochs: int) -> Iterator[Any]:
    """Shows what arrives at the yielded actor until the block ends."""
    actor = Reporter.remote()  # type: ignore[attr-defined]
    done = threading.Event()
    thread = threading.Thread(target=_follow, args=(actor, done, title, epochs), daemon=True)
    thread.start()
    try:
        yield actor
    finally:
        done.set()
        thread.join(timeout=10)
        ray.kill(actor)


def _follow(actor: Any, done: threading.Event, title: str, epochs: int) -> None:
    bar = tqdm(desc=title, disable=not sys.stderr.isatty(), unit="step", file=sys.stderr, leave=False)
    base, logged, asked = 0, time.monotonic(), None
    while True:
        finished = done.wait(POLL_SECONDS)
        try:
            asked = asked or actor.take.remote()
            events, asked = ray.get(asked, timeout=10), None
        except ray.exceptions.GetTimeoutError:  # a busy machine: this answer is waited for again, it has all till then
            events = []
        except ray.exceptions.RayError as error:
            log.warning("progress is not shown any longer: %s", error)
            break
        for event, epoch, step, values, text in events:
            if event == "damage":
                log.warning("%s: %s; going on from the one before", title, text)
            elif event == "start":
                base = step - int(values["done"])
                bar.reset(total=int(values["steps"]))
                bar.set_description(f"{title} epoch {epoch + 1}/{epochs}")
            elif event == "step":
                bar.n = step - base
                loss, speed = f"{values['loss']:.3f}", f"{values['samples_per_second']:.0f}"
                bar.set_postfix(loss=loss, per_s=speed)
                if bar.disable and time.monotonic() > logged + LOG_SECONDS:
                    log.info(
                        "%s: epoch %d/%d, step %d, loss %s, %s samples/s", title, epoch + 1, epochs, step, loss, speed
                    )
                    logged = time.monotonic()
            else:
                shown_values = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
                with bar.external_write_mode(file=sys.stderr):
                    log.info("%s: epoch %d/%d, step %d: %s", title, epoch, epochs, step, shown_values)
        if finished:
            break
    bar.close()
