"""What could grow in a soak: memory, files and logs, measured after each round of it, and at most during it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipelines import storage
from pipelines.nights import tables
from pipelines.reading.sandbox import jail
from tests.servers import MlflowServer, RayNode

RAYLET = r"raylet/raylet"
WORKER = r"^ray::"
DECODER = re.escape(jail.__name__)
DECODERS = "decoders at once"
GROWS_BY = 0.0005
"""Of its mean a night: what grows slower, a tenth in 200 nights, is called flat."""
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Places:
    """Where it is measured."""

    node: RayNode
    mlflow: MlflowServer
    tables: str
    """URI of the folder of tables."""
    table: str
    """URI of the one that is filled."""
    temporary: Path


# ---- processes ---------------------------------------------------------------------------------------------------
def resident(process: psutil.Process) -> int:
    """Bytes of memory; none of one that has just ended."""
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def named(processes: Sequence[psutil.Process], pattern: str) -> list[psutil.Process]:
    """Those whose command fits."""
    found = []
    for process in processes:
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if re.search(pattern, command):
            found.append(process)
    return found


def _memory(processes: Sequence[psutil.Process], pattern: str) -> int:
    return sum(map(resident, named(processes, pattern)))


def _open_files(process: psutil.Process) -> int:
    try:
        return int(process.num_fds())
    except psutil.Error:
        return 0


@contextmanager
def most(node: RayNode) -> Iterator[dict[str, float]]:
    """What processes that end with a job's last task take at most until the end of the block, in MB: looked at all the
    time. There are none of them between jobs."""
    found = dict[str, float]()
    stop = threading.Event()

    def look() -> None:
        there = node.workers()
        workers, decoders = ([resident(process) for process in named(there, kind)] for kind in (WORKER, DECODER))
        now = {
            "workers at most, MB": sum(workers) / 2**20,
            "a worker at most, MB": max(workers, default=0) / 2**20,
            "workers at once": len(workers),
            "a decoder at most, MB": max(decoders, default=0) / 2**20,
            DECODERS: len(decoders),
        }
        found.update({name: max(value, found.get(name, 0.0)) for name, value in now.items()})

    def all_the_time() -> None:
        look()
        while not stop.wait(LOOK_SECONDS):
            look()

    thread = threading.Thread(target=all_the_time)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


# ---- files -------------------------------------------------------------------------------------------------------
def _size(folder: Path) -> int:
    """Bytes of all files below; those that vanish meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if not path.is_dir() else 0
        except FileNotFoundError:
            continue
    return total


def now(places: Places) -> dict[str, float]:
    """All that could grow, between two jobs: MB, or counts."""
    there = places.node.workers()
    stored = storage.list_all(places.tables)
    log = [file for file in stored if file.uri.startswith(storage.join(places.table, tables.LOG))]
    data = [file for file in stored if file.uri.startswith(storage.join(places.table, "ds="))]
    pages = [file for file in stored if file.uri.startswith(storage.join(places.tables, "reports"))]
    megabytes = {
        "raylet": _memory(there, RAYLET),
        "GCS": _memory(there, r"gcs_server"),
        "dashboard and agents": _memory(there, r"dashboard|agent"),
        "idle workers": _memory(there, WORKER),
        "MLflow's server": _memory(psutil.Process().children(recursive=True), r"mlflow(\.| )server|uvicorn"),
        "Ray's folder": _size(Path(places.node.scratch)),
        "/dev/shm": psutil.disk_usage("/dev/shm").used,
        "temporary files": _size(places.temporary),
        "table's log": sum(file.size for file in log),
        "table's data": sum(file.size for file in data),
        "pages": sum(file.size for file in pages),
        "MLflow's database": (places.mlflow.folder / "mlflow.db").stat().st_size,
        "MLflow's artifacts": _size(places.mlflow.folder / "artifacts"),
    }
    counts = {
        "files of the log": len(log),
        "files of the data": len(data),
        "processes of Ray": len(there),
        "open files of the raylet": sum(map(_open_files, named(there, RAYLET))),
    }
    return {**{f"{name}, MB": value / 2**20 for name, value in megabytes.items()}, **counts}


# ---- the table ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Measured:
    """All of it, after so many nights."""

    nights: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Trend:
    """How one figure went."""

    name: str
    first: float
    middle: float
    last: float
    a_night: float
    """Slope of the straight line through what was measured from the middle on."""

    @property
    def verdict(self) -> str:
        """`flat`, or what a night adds."""
        mean = (self.middle + self.last) / 2
        if abs(self.a_night) <= GROWS_BY * mean or abs(self.last - self.middle) < 0.1:
            return "flat"
        return f"{self.a_night:+.3g} a night"


def trends(measured: Sequence[Measured]) -> list[Trend]:
    """One for each figure."""
    half = measured[len(measured) // 2 :]
    nights: Any = [one.nights for one in half]
    found = []
    for name in measured[0].figures:
        values = [one.figures[name] for one in half]
        slope = float(np.polyfit(nights, values, 1)[0]) if len(values) > 1 else 0.0
        found.append(Trend(name, measured[0].figures[name], values[0], values[-1], slope))
    return found


def table(measured: Sequence[Measured]) -> str:
    """As Markdown: at the beginning, in the middle, in the end."""
    first, middle, last = measured[0], measured[len(measured) // 2], measured[-1]
    lines = [
        f"| what | after {first.nights} nights | after {middle.nights} | after {last.nights} | from there to the end |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {t.name} | {t.first:,.1f} | {t.middle:,.1f} | {t.last:,.1f} | {t.verdict} |" for t in trends(measured)
    ]
    return "\n".join([*lines, ""])
