"""Which processes of a captioning night take how much CPU for a photograph, beside what the bare loop takes.

    python -m tests.benchmarks.processes

Photographs, model and nights are those of `captioning`; the slope between two sizes counts, so that what a night starts
is left out.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections import Counter
from pathlib import Path

import psutil

from pipelines.cluster import connection
from pipelines.models import artifacts
from pipelines.reading.shards import list_shards
from tests.benchmarks import captioning

GROWTH = 8
KNOWN = ("sandbox.jail", "raylet", "gcs_server", "log_monitor", "dashboard.py", "monitor.py", captioning.SERVER)
"""What command lines of processes have, and none of the others."""
IDLE = "ray::IDLE"


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


def main() -> None:
    """Prints milliseconds for a photograph."""
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
    main()
