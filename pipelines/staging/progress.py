"""How far a computation is, told while it runs: by a bar on a terminal or in the log elsewhere, and as a metric."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pipelines.cluster import counters, logs, words
from pipelines.reading.units import Part

log = logging.getLogger(__name__)
TOLD_SECONDS, LOOKED_SECONDS = 60.0, 1.0
"""How often the log tells it, and how often bar and metric do."""
SURE = 1.5
"""Times the share that was done at first must be done before a pace is told by it: less is chance."""
BAR = "{desc} {percentage:3.0f}% |{bar:20}| {elapsed}{postfix}"


@dataclass(frozen=True)
class Work:
    """What is to be done, task by task. Ray begins tasks in their order, in which they are about done, too: what so
    many tasks have in common stands at their number, from none to all."""

    name: str
    """How Ray's metrics call it."""
    sizes: Sequence[int]
    """Bytes of the shards of so many tasks."""
    begun: Sequence[int]
    """Units that they read, or a part of."""
    complete: Sequence[int]
    """Units of which no other task reads any more."""

    @classmethod
    def of(cls, name: str, bundles: Sequence[Sequence[Part]]) -> Work:
        """Of tasks that read these parts."""
        last = {part.unit: number for number, bundle in enumerate(bundles) for part in bundle}
        seen: set[str] = set()
        sizes, begun, complete = [0], [0], [0]
        for number, bundle in enumerate(bundles):
            units = {part.unit for part in bundle}
            seen |= units
            sizes.append(sizes[-1] + sum(part.shard.size for part in bundle))
            begun.append(len(seen))
            complete.append(complete[-1] + sum(last[unit] == number for unit in units))
        return cls(name, sizes, begun, complete)

    @property
    def tasks(self) -> int:
        """How many."""
        return len(self.sizes) - 1

    @property
    def units(self) -> int:
        """How many."""
        return self.begun[-1]


@dataclass(frozen=True)
class Done:
    """What has been done of it."""

    running: int
    finished: int
    """Tasks of reading."""
    read: int
    written: int
    """Rows, of which the second number have come to where they are written."""

    def bytes(self, work: Work) -> float:
        """Of shards, as far as their rows have come."""
        through = min(1.0, self.written / self.read) if self.read else 0.0
        return through * work.sizes[min(self.finished, work.tasks)]

    def share(self, work: Work) -> float:
        """Of the bytes."""
        return self.bytes(work) / max(1, work.sizes[-1])

    def units(self, work: Work) -> Units:
        """By the tasks whose rows have come."""
        through = bisect_right(work.sizes, self.bytes(work)) - 1
        finished = work.complete[min(through, self.finished)]
        begun = work.begun[min(self.finished + self.running, work.tasks)]
        return Units(work.units - begun, begun - finished, finished)


@dataclass(frozen=True)
class Units:
    """How many there are of each kind."""

    waiting: int
    """No task reads them yet."""
    running: int
    finished: int
    """All of their rows have come to where they are written, as far as Ray Data tells."""


class Progress(ExecutionCallback):
    """What Ray Data calls at each step of its loop."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._looked = time.monotonic()
        self._told = self._looked
        self._began: tuple[float, float] | None = None
        """When the first task was done, and the share that was done then: what comes before is start-up."""
        self._open = ExitStack()
        self._bar = self._open.enter_context(_bar(work.name))

    def on_execution_step(self, executor: Any) -> None:
        """Counts, and tells."""
        now = time.monotonic()
        if now < self._looked + LOOKED_SECONDS:
            return
        self._looked = now
        try:
            done = look(executor)
        except (AttributeError, IndexError, TypeError) as error:  # it may look otherwise: the work goes on
            self._looked = math.inf
            log.warning("%s: Ray Data does not tell how far it is: %s", self._work.name, error)
            return
        self._tell(done, now)

    def _tell(self, done: Done, now: float) -> None:
        work, units, share = self._work, done.units(self._work), done.share(self._work)
        counters.gauge_units(work.name, units.waiting, units.running, units.finished)
        if self._began is None and share:
            self._began = now, share
        left = seconds_left(self._began, now, share)
        line = (
            f"{units.finished} of {words.count(work.units, 'unit')}, {words.count(done.written, 'row')}, {_said(left)}"
        )
        if not self._bar.disable:
            self._bar.n = share
            self._bar.set_postfix_str(line)
        elif now >= self._told + TOLD_SECONDS:
            self._told = now
            fields = {"units": work.units, "units_done": units.finished, "rows": done.written, "seconds_left": left}
            log.info("%s: %s", work.name, line, extra=fields)

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing waits any more."""
        self._end()

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing waits any more."""
        self._end()

    def _end(self) -> None:
        self._open.close()
        counters.gauge_units(self._work.name, 0, 0, 0)


@contextmanager
def _bar(name: str) -> Iterator[tqdm[Any]]:
    """A bar on a terminal, above which the log's lines are written; what collects logs is not shown any."""
    shown = sys.stderr.isatty() and os.environ.get(logs.FORMAT) != "json"
    with ExitStack() as stack:
        bar = tqdm(desc=name, total=1.0, disable=not shown, file=sys.stderr, bar_format=BAR, leave=False)
        stack.enter_context(bar)
        if shown:
            stack.enter_context(logging_redirect_tqdm())
        yield bar


@contextmanager
def telling(work: Work) -> Iterator[None]:
    """Of a dataset that is made inside, it is told how far it is, whenever it is executed; Ray has no bars of it."""
    context: Any = ray.data.DataContext.get_current()
    before = context.custom_execution_callback_classes, context.enable_progress_bars
    context.custom_execution_callback_classes = [*before[0], partial(Progress, work)]
    context.enable_progress_bars = False
    try:
        yield
    finally:
        context.custom_execution_callback_classes, context.enable_progress_bars = before


def look(executor: Any) -> Done:
    """What Ray Data knows of its first and its last stage."""
    stages = [stage for stage in executor._topology if stage.input_dependencies]  # the first one holds the tasks
    reading, writing = stages[0].metrics, stages[-1].metrics
    return Done(
        reading.num_tasks_running, reading.num_tasks_finished, reading.rows_task_outputs_generated,
        writing.num_row_inputs_received,
    )  # fmt: skip


def seconds_left(began: tuple[float, float] | None, now: float, share: float) -> float | None:
    """How long the rest takes at the pace since the first task was done; None while that tells nothing.

    Args:
        began: when that was, and the share that was done then; None while none is.
        now: on the same clock.
        share: what is done now.
    """
    if began is None or share <= SURE * began[1]:
        return None
    return (1 - share) * (now - began[0]) / (share - began[1])


def _said(seconds: float | None) -> str:
    return "time left not known yet" if seconds is None else f"about {words.duration(seconds)} left"
