"""Which processes of a captioning night take how much CPU for a photograph, beside what the bare loop takes; or how
much memory, at the moment when all together have the most, in a night and in a larger one.

    python -m tests.benchmarks.processes
    python -m tests.benchmarks.processes --memory

Photographs, model and nights are those of `captioning`. Of CPU the slope between two sizes counts, so that what a night
starts is left out; of memory the median of nights in turn.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import tyro

from pipelines.cluster import connection
from pipelines.models import artifacts
from pipelines.reading.shards import list_shards
from tests.benchmarks import captioning

GROWTH = 8
KNOWN = ("sandbox.jail", "raylet", "gcs_server", "log_monitor", "dashboard.py", "monitor.py", captioning.SERVER)
"""What command lines of processes have, and none of the others."""
IDLE = "ray::IDLE"
STORE = "the object store"


@dataclass(frozen=True)
class Options:
    """What to measure."""

    memory: bool = False
    """Memory instead of CPU."""
    rounds: int = 3
    """How many nights of each size, for memory."""


class Watched:
    """CPU seconds of this process and those that it has started, which are looked at each second, as some end."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}
        self.kinds: dict[int, str] = {}
        self._done = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def now(self) -> dict[int, float]:
        """Of each process that ever was."""
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            try:
                times, kind = process.cpu_times(), kind_of(process.pid, process.cmdline())
            except psutil.Error:  # it has just ended
                continue
            self.seconds[process.pid] = times.user + times.system
            if kind != IDLE or process.pid not in self.kinds:
                self.kinds[process.pid] = kind
        return dict(self.seconds)

    def stop(self) -> None:
        """It is not looked any more."""
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(1):
            self.now()


def kind_of(pid: int, command: list[str]) -> str:
    """What a process is."""
    if pid == os.getpid():
        return "driver"
    line = " ".join(command)
    if line.startswith("ray::"):
        return line.split("(")[0].strip()
    return next((name for name in KNOWN if name in line), line[:40])


def growth(watched: Watched, first: dict[int, float], second: dict[int, float], last: dict[int, float]) -> Counter[str]:
    """Seconds by which the second of two nights has taken more than the first, by kind of process.

    Args:
        watched: both.
        first: before the first night.
        second: between the two.
        last: after the second.
    """
    more: Counter[str] = Counter()
    for pid, seconds in last.items():
        between = second.get(pid, 0.0)
        more[watched.kinds[pid]] += (seconds - between) - (between - first.get(pid, 0.0))
    return more


# ---- memory ------------------------------------------------------------------------------------------------------
@contextmanager
def most() -> Iterator[list[Counter[str]]]:
    """MiB by kind of process when all of them, looked at each second, have the most; as `captioning.peak_memory` counts
    them."""
    found, before = [Counter[str]()], captioning.shared_memory()

    def look() -> None:
        now = memory() + Counter({STORE: captioning.shared_memory() - before})
        found[0] = max(found[0], now, key=Counter.total)

    with captioning.each_second(look):
        yield found


def memory() -> Counter[str]:
    """MiB of this process and its descendants but the S3 server, without shared memory and mapped files."""
    found: Counter[str] = Counter()
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            info, kind = process.memory_info(), kind_of(process.pid, process.cmdline())
        except psutil.Error:
            continue
        if kind != captioning.SERVER:
            found[kind] += (info.rss - info.shared) / 2**20
    return found


def middle(peaks: Sequence[Counter[str]]) -> Counter[str]:
    """The one whose total is the median."""
    wanted = statistics.median_low(peak.total() for peak in peaks)
    return next(peak for peak in peaks if peak.total() == wanted)


def print_memory(rounds: int) -> None:
    """MiB at the peak by kind, of nights of both sizes."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        photos, model = captioning.prepared(scratch, "", "")
        artifact = artifacts.read(model)
        with captioning.store(scratch / "s3") as lake, connection.connect():
            sizes = (1, captioning.GROWTH)
            shards = {n: list_shards(captioning.copies(photos, f"{lake}/{n}", n)) for n in sizes}
            captioning.night(shards[1], artifact, str(scratch / "first"))
            peaks: dict[int, list[Counter[str]]] = {n: [] for n in sizes}
            for number in range(rounds):
                for n in sizes if number % 2 else sizes[::-1]:
                    with most() as found:
                        captioning.night(shards[n], artifact, str(scratch / f"night-{n}-{number}"))
                    peaks[n].append(found[0])
    few, many = (middle(peaks[n]) for n in sizes)
    for n in sizes:
        totals = ", ".join(f"{peak.total():,.0f}" for peak in peaks[n])
        print(f"{n * captioning.IMAGES:,} photographs: {totals} MiB")
    print(f"medians: {many.total() / few.total():.3f} times as much, of which")
    for kind in sorted(few | many, key=lambda kind: few[kind] - many[kind]):
        print(f"{few[kind]:8,.0f} {many[kind]:8,.0f} MiB: {kind}")


# ---- CPU ---------------------------------------------------------------------------------------------------------
def main(options: Options) -> None:
    """Prints it."""
    if options.memory:
        print_memory(options.rounds)
    else:
        print_cpu()


def print_cpu() -> None:
    """Milliseconds for a photograph."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        photos, model = captioning.prepared(scratch, "", "")
        with captioning.store(scratch / "s3") as lake:
            shards = {n: list_shards(captioning.copies(photos, f"{lake}/{n}", n)) for n in (1, GROWTH)}
            loop = captioning.loops(photos, model, captioning.CORES)
            artifact = artifacts.read(model)
            with connection.connect():
                watched = Watched()
                captioning.night(shards[1], artifact, str(scratch / "first"))
                first = watched.now()
                few, short, _ = captioning.night(shards[1], artifact, str(scratch / "small"))
                second = watched.now()
                many, long, _ = captioning.night(shards[GROWTH], artifact, str(scratch / "large"))
                watched.stop()
                more = growth(watched, first, second, watched.now())
            loop = (loop + captioning.loops(photos, model, captioning.CORES)) / 2
    count = many - few
    print(f"{1000 * captioning.CORES / loop:6.2f} ms of a core for a photograph: the bare loop")
    print(f"{1000 * captioning.CORES * (long - short) / count:6.2f} ms: the pipeline, of which")
    for kind, seconds in more.most_common():
        print(f"{1000 * seconds / count:6.2f} ms: {kind}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
