"""Ray's own metrics of what is computed and staged, for Prometheus; infra/grafana/hybrid.json draws them.

Ray exports each counter as `ray_NAME_total`, each gauge as `ray_NAME`, from every node (`--metrics-export-port`).
Outside of a cluster nothing is counted, and Ray is not loaded for it.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Literal

from pipelines.cluster import connection

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge

ROWS, ERRORS, SECONDS, BYTES = "hybrid_rows", "hybrid_errors", "hybrid_stage_seconds", "hybrid_staged_bytes"
RETRIES = "hybrid_retries"
COUNTERS = {
    ROWS: ("rows that were staged", ("table",)),
    ERRORS: ("error rows among them, by reason", ("table", "kind")),
    SECONDS: ("seconds of decoding, predicting and writing, of all processes", ("table", "stage")),
    BYTES: ("bytes that were staged", ("table",)),
    RETRIES: ("what was tried again: a row in a decoder, rows in a model, reading a store, a commit", ("where",)),
}
"""What is counted, and its labels."""
UNITS, BUSY = "hybrid_units", "hybrid_model_busy"
GAUGES = {
    UNITS: ("units, each of some small shards or a large one: waiting, running and finished", ("table", "state")),
    BUSY: ("share of the time that a process with a model computes, on a GPU or not", ("table",)),
}
"""What goes up and down, and its labels."""
BUSY_SECONDS = 5.0
"""The time whose share is told: Ray forgets what it was told twenty seconds ago."""
Where = Literal["decoder", "model", "store", "commit"]


@cache
def _counter(name: str) -> Counter:
    """Made where it is used: in a worker of Ray."""
    from ray.util.metrics import Counter

    description, labels = COUNTERS[name]
    return Counter(name, description, labels)


@cache
def _gauge(name: str) -> Gauge:
    from ray.util.metrics import Gauge

    description, labels = GAUGES[name]
    return Gauge(name, description, labels)


def gauge_units(table: str, waiting: int, running: int, finished: int) -> None:
    """Tells how many units there are; all zero when nothing is computed."""
    for state, number in (("waiting", waiting), ("running", running), ("finished", finished)):
        _gauge(UNITS).set(number, tags={"table": table, "state": state})


def count_staged(table: str, rows: int, errors: Mapping[str, int], seconds: Mapping[str, float], size: int) -> None:
    """Counts what a writer has put into the store."""
    _count(ROWS, rows, table=table)
    _count(BYTES, size, table=table)
    for kind, number in errors.items():
        _count(ERRORS, number, table=table, kind=kind)
    for stage, spent in seconds.items():
        _count(SECONDS, spent, table=table, stage=stage)


def count_retries(where: Where, number: int = 1) -> None:
    """Counts what is tried again.

    Args:
        where: a row that a decoding child died of, rows that a model failed on or died of, a request to the store, or a
            commit that came after another writer's.
        number: how many.
    """
    _count(RETRIES, number, where=where)


def _count(name: str, amount: float, **labels: str) -> None:
    if amount > 0 and connection.connected():  # Ray refuses to count nothing
        _counter(name).inc(amount, tags=labels)


class Busy:
    """Which share of its time a process computes, told as long as this lives.

    Args:
        table: as in `count_staged`; without one, or outside of a cluster, nobody is told.
    """

    def __init__(self, table: str = "") -> None:
        self._lock = threading.Lock()
        self._spent = 0.0
        self._since: float | None = None
        """When what is computed now was begun."""
        if table and connection.connected():
            threading.Thread(target=_tell_busy, args=(weakref.ref(self), table), daemon=True).start()

    @contextmanager
    def computing(self) -> Iterator[None]:
        """What is done inside counts."""
        with self._lock:
            self._since = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._spent, self._since = self._so_far(), None

    def seconds(self) -> float:
        """How long it has computed so far."""
        with self._lock:
            return self._so_far()

    def _so_far(self) -> float:
        return self._spent + (time.monotonic() - self._since if self._since is not None else 0.0)


def _tell_busy(whose: weakref.ref[Busy], table: str) -> None:
    """A share of the last seconds, again and again: one since the start would hide that a process waits now."""
    began, before = time.monotonic(), 0.0
    while True:
        time.sleep(BUSY_SECONDS)
        busy = whose()
        if busy is None:
            return
        now, spent = time.monotonic(), busy.seconds()
        _gauge(BUSY).set(min(1.0, (spent - before) / (now - began)), tags={"table": table})
        began, before = now, spent
        del busy
