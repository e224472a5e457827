"""Ray's own metrics of what is staged, for Prometheus; infra/grafana/hybrid.json draws them.

Ray exports each counter as `ray_NAME_total`, each gauge as `ray_NAME`, from every node (`--metrics-export-port`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from ray.util.metrics import Counter, Gauge

ROWS, ERRORS, SECONDS, BYTES = "hybrid_rows", "hybrid_errors", "hybrid_stage_seconds", "hybrid_staged_bytes"
COUNTERS = {
    ROWS: ("rows that were staged", ("table",)),
    ERRORS: ("error rows among them, by reason", ("table", "kind")),
    SECONDS: ("seconds of decoding, predicting and writing, of all processes", ("table", "stage")),
    BYTES: ("bytes that were staged", ("table",)),
}
"""What is counted, and its labels."""
UNITS = "hybrid_units"
GAUGES = {UNITS: ("units, each of some small shards or a large one: waiting, running and finished", ("table", "state"))}
"""What goes up and down, and its labels."""


@cache
def _counter(name: str) -> Counter:
    """Made where it is used: in a worker of Ray."""
    description, labels = COUNTERS[name]
    return Counter(name, description, labels)


@cache
def _gauge(name: str) -> Gauge:
    description, labels = GAUGES[name]
    return Gauge(name, description, labels)


def gauge_units(table: str, waiting: int, running: int, finished: int) -> None:
    """Tells how many units there are; all zero when nothing is computed.

    Args:
        table: as in `count_staged`.
        waiting: not begun yet.
        running: now.
        finished: of this computation.
    """
    for state, number in (("waiting", waiting), ("running", running), ("finished", finished)):
        _gauge(UNITS).set(number, tags={"table": table, "state": state})


def count_staged(table: str, rows: int, errors: Mapping[str, int], seconds: Mapping[str, float], size: int) -> None:
    """Counts what a writer has put into the store.

    Args:
        table: the table, or what else is staged: `features`, `evaluations`.
        rows: how many.
        errors: error rows by reason.
        seconds: by stage.
        size: bytes.
    """
    _count(ROWS, rows, table=table)
    _count(BYTES, size, table=table)
    for kind, number in errors.items():
        _count(ERRORS, number, table=table, kind=kind)
    for stage, spent in seconds.items():
        _count(SECONDS, spent, table=table, stage=stage)


def _count(name: str, amount: float, **labels: str) -> None:
    if amount > 0:  # Ray refuses to count nothing
        _counter(name).inc(amount, tags=labels)
