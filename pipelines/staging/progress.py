"""How far a computation is, told while it runs: in the log now and then, and as a metric."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback

from pipelines.cluster import counters, words

log = logging.getLogger(__name__)
TOLD_SECONDS, COUNTED_SECONDS = 60.0, 5.0
"""How often it is told, and counted."""


@dataclass(frozen=True)
class Work:
    """What is to be done, task by task, each of some shards."""

    name: str
    """How Ray's metrics call it."""
    sizes: Sequence[int]
    """Bytes of each task's shards."""


@dataclass(frozen=True)
class Done:
    """What has been done of it."""

    running: int
    finished: int
    """Tasks."""
    read: int
    written: int
    """Rows, of which the second number have come to where they are written."""

    def share(self, work: Work) -> float:
        """Of the bytes, as far as their rows have come."""
        through = min(1.0, self.written / self.read) if self.read else 0.0
        size = [0, *accumulate(work.sizes)]
        return through * size[min(self.finished, len(work.sizes))] / max(1, size[-1])


class Progress(ExecutionCallback):
    """What Ray Data calls at each step of its loop.

    Args:
        work: all of it.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._counted = time.monotonic()
        self._told = self._counted
        self._began: tuple[float, float] | None = None
        """When the first task was done, and the share that was done then: what comes before is start-up."""

    def on_execution_step(self, executor: Any) -> None:
        """Counts, and tells."""
        now = time.monotonic()
        if now < self._counted + COUNTED_SECONDS:
            return
        self._counted = now
        try:
            done = look(executor)
        except (AttributeError, IndexError, TypeError) as error:  # it may look otherwise: the work goes on
            self._counted = math.inf
            log.warning("%s: Ray Data does not tell how far it is: %s", self._work.name, error)
            return
        waiting = len(self._work.sizes) - done.running - done.finished
        counters.gauge_tasks(self._work.name, waiting, done.running, done.finished)
        share = done.share(self._work)
        if self._began is None and share:
            self._began = now, share
        if now >= self._told + TOLD_SECONDS:
            self._told = now
            log.info(
                "%s: %d of %d tasks, %d rows, %s", self._work.name, done.finished, len(self._work.sizes), done.written,
                time_left(self._began, now, share),
            )  # fmt: skip

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing waits any more."""
        self._end()

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing waits any more."""
        self._end()

    def _end(self) -> None:
        counters.gauge_tasks(self._work.name, 0, 0, 0)


@contextmanager
def telling(work: Work) -> Iterator[None]:
    """Of a dataset that is made inside, it is told how far it is, whenever it is executed."""
    context: Any = ray.data.DataContext.get_current()
    before = context.custom_execution_callback_classes
    context.custom_execution_callback_classes = [*before, partial(Progress, work)]
    try:
        yield
    finally:
        context.custom_execution_callback_classes = before


def look(executor: Any) -> Done:
    """What Ray Data knows of its first and its last stage."""
    stages = [stage for stage in executor._topology if stage.input_dependencies]  # the first one holds the tasks
    reading, writing = stages[0].metrics, stages[-1].metrics
    return Done(
        reading.num_tasks_running, reading.num_tasks_finished, reading.rows_task_outputs_generated,
        writing.num_row_inputs_received,
    )  # fmt: skip


def time_left(began: tuple[float, float] | None, now: float, share: float) -> str:
    """How long the rest takes at the pace since the first task was done, in words.

    Args:
        began: when that was, and the share that was done then; None while none is.
        now: on the same clock.
        share: what is done now.
    """
    if began is None or share <= began[1]:
        return "time left not known yet"
    seconds = (1 - share) * (now - began[0]) / (share - began[1])
    return f"about {words.duration(seconds)} left"
