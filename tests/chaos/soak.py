"""`python -m tests.chaos.soak`: a small table night after night, and whether memory, disk or logs grow with it.

A Ray cluster and an MLflow server run all the time. Jobs come one after the other, as a scheduler starts them; each
does some nights in a row (`hybrid nightly --backfill`), so that its own memory can be watched, too. The last nights are
done again, with other shards. After each job all that could grow is measured. A straight line through what was measured
after the warm-up tells how much a night adds.
"""

from __future__ import annotations

import datetime
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import tyro

from pipelines.cluster import connection
from tests import tiny
from tests.servers import MlflowServer, RayNode

README = Path(__file__).with_name("README.md")
START, END = "<!-- soak -->\n", "<!-- end of soak -->\n"
FIRST = datetime.date(2026, 1, 1)
TASK = "translations"
SHARDS, ROWS = 2, 20
NIGHT_SECONDS = 600
START_SECONDS = 240
GROWS_BY = 0.0005
"""Of its mean a night: what grows slower, a tenth in 200 nights, is called flat."""


@dataclass(frozen=True)
class Options:
    """What is run."""

    nights: int = 200
    """Nights."""
    each: int = 10
    """Nights of one job."""
    warm_up: int = 40
    """Nights before the first measurement that counts."""
    write: bool = True
    """Put the table into README.md."""


@dataclass(frozen=True)
class World:
    """What runs all the time."""

    folder: Path
    mlflow: MlflowServer
    node: RayNode

    @property
    def env(self) -> dict[str, str]:
        """Of a night."""
        own = {
            "RAY_ADDRESS": self.node.address,
            "RAY_AUTH_MODE": "disabled",
            "MLFLOW_TRACKING_URI": self.mlflow.uri,
            "TMPDIR": str(self.temporary),
        }
        return {**tiny.environment(self.folder), **connection.LOCAL_CLUSTER, **own}

    @property
    def temporary(self) -> Path:
        """Where nights and the cluster's workers put their temporary files."""
        return self.folder / "tmp"


# ---- nights ------------------------------------------------------------------------------------------------------
def date(number: int) -> str:
    """Of a night, from 0."""
    return (FIRST + datetime.timedelta(days=number)).isoformat()


@dataclass(frozen=True)
class Ran:
    """A job: its seconds, and its driver's memory in MB."""

    seconds: float
    peak: float
    grown: float
    """From the second quarter of its time to the last."""


def nightly(world: World, first: int, last: int) -> Ran:
    """A job of some nights.

    Raises:
        RuntimeError: it did not end well.
    """
    argv = tiny.command(
        "nightly", TASK, "--input", f"{world.folder}/in/ds={{ds}}", "--tables", f"{world.folder}/tables",
        "--backfill", f"{date(first)}..{date(last)}", "--model", f"{world.folder}/model", "--retain-hours", "1",
    )  # fmt: skip
    started, seen = time.monotonic(), list[float]()
    log = world.folder / "night.log"
    with log.open("wb") as said:
        driver = psutil.Popen(argv, cwd=world.folder, env=world.env, stdout=said, stderr=said)
        while driver.poll() is None:
            seen.append(_resident(driver) / 2**20)
            if time.monotonic() - started > NIGHT_SECONDS * (last - first + 1):
                driver.kill()
            time.sleep(0.2)
    if driver.returncode != 0:
        raise RuntimeError(f"a job ended with exit code {driver.returncode}: {log.read_text()[-2000:]}")
    quarter = max(1, len(seen) // 4)
    grown = float(np.mean(seen[-quarter:-1] or seen) - np.mean(seen[quarter : 2 * quarter] or seen))
    return Ran(time.monotonic() - started, max(seen), grown)


# ---- what could grow ---------------------------------------------------------------------------------------------
def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it has just ended
        return 0


def _size(*folders: Path) -> int:
    """Bytes of all files below; those that vanish meanwhile count nothing."""
    total = 0
    for folder in folders:
        for path in folder.rglob("*"):
            try:
                total += path.lstat().st_size if not path.is_dir() else 0
            except FileNotFoundError:
                continue
    return total


def _named(processes: Sequence[psutil.Process], pattern: str) -> int:
    """Memory of the processes whose command fits."""
    total = 0
    for process in processes:
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        total += _resident(process) if re.search(pattern, command) else 0
    return total


def measure(world: World) -> dict[str, float]:
    """All that could grow: MB, or counts of files."""
    ray = world.node.workers()
    table = world.folder / "tables" / TASK
    log = table / "_delta_log"
    megabytes = {
        "raylet": _named(ray, r"raylet/raylet"),
        "GCS": _named(ray, r"gcs_server"),
        "dashboard and agents": _named(ray, r"dashboard|agent"),
        "workers": _named(ray, r"^ray::"),
        "decoders": _named(ray, r"pipelines\.(jail|guard)"),
        "MLflow's server": _named(psutil.Process().children(recursive=True), r"mlflow(\.| )server|uvicorn"),
        "Ray's folder": _size(Path(world.node.scratch)),
        "/dev/shm": psutil.disk_usage("/dev/shm").used,
        "temporary files": _size(world.temporary),
        "table's log": _size(log),
        "table's data": _size(*table.glob("ds=*")),
        "pages": _size(world.folder / "tables" / "reports"),
        "MLflow's database": (world.mlflow.folder / "mlflow.db").stat().st_size,
        "MLflow's artifacts": _size(world.mlflow.folder / "artifacts"),
    }
    counts = {
        "files of the log": len(list(log.iterdir())),
        "files of the data": sum(1 for _ in table.glob("ds=*/*/*.parquet")),
        "processes of Ray": len(ray),
        "open files of the raylet": sum(_open_files(p) for p in ray if _named([p], r"raylet/raylet")),
    }
    return {**{f"{name}, MB": value / 2**20 for name, value in megabytes.items()}, **counts}


def _open_files(process: psutil.Process) -> int:
    try:
        return int(process.num_fds())
    except psutil.Error:
        return 0


# ---- the table ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Trend:
    """How one figure went."""

    name: str
    first: float
    last: float
    a_night: float
    """Slope of the straight line through what was measured."""

    @property
    def verdict(self) -> str:
        """`flat`, or what a night adds."""
        mean = (self.first + self.last) / 2
        if abs(self.a_night) <= GROWS_BY * mean or abs(self.last - self.first) < 0.1:
            return "flat"
        return f"{self.a_night:+.3g} a night"


def trends(nights: Sequence[int], measured: Sequence[Mapping[str, float]]) -> list[Trend]:
    """One for each figure."""
    found = []
    for name in measured[0]:
        values = [one[name] for one in measured]
        slope = float(np.polyfit(nights, values, 1)[0]) if len(values) > 1 else 0.0
        found.append(Trend(name, values[0], values[-1], slope))
    return found


def table(nights: Sequence[int], measured: Sequence[Mapping[str, float]], options: Options, minutes: float) -> str:
    """What is written to README.md."""
    lines = [
        f"`make soak NIGHTS={options.nights}`: {options.nights} nights of {SHARDS * ROWS} rows in {minutes:.0f} "
        f"minutes, {options.each} to a job; the last ones again.",
        "",
        f"| what | after {nights[0]} nights | after {nights[-1]} | trend |",
        "|---|---|---|---|",
    ]
    lines += [f"| {t.name} | {t.first:,.1f} | {t.last:,.1f} | {t.verdict} |" for t in trends(nights, measured)]
    return "\n".join([*lines, ""])


def write_table(text: str) -> None:
    """Puts the results between the marks in README.md."""
    readme = README.read_text()
    README.write_text(readme.split(START)[0] + START + text + END + readme.split(END)[1])


# ---- all of it ---------------------------------------------------------------------------------------------------
def soak(world: World, options: Options) -> tuple[list[int], list[dict[str, float]]]:
    """Job after job; what was measured after which night."""
    nights: list[int] = []
    measured: list[dict[str, float]] = []
    starts = [*range(0, options.nights, options.each), options.nights - options.each]
    for job, first in enumerate(starts):
        last = first + options.each - 1
        for number in range(first, last + 1):
            seed = number + 10_000 * (job == len(starts) - 1)
            tiny.write_sentences(f"{world.folder}/in/ds={date(number)}", SHARDS, ROWS, seed)
        ran = nightly(world, first, last)
        own = {
            "seconds of a night": ran.seconds / options.each,
            "driver at most, MB": ran.peak,
            "driver's growth in a job, MB": ran.grown,
        }
        one = {**own, **measure(world)}
        print(last + 1, {name: round(value, 2) for name, value in one.items()}, file=sys.stderr, flush=True)
        if last + 1 >= min(options.warm_up, options.nights):
            nights.append(last + 1)
            measured.append(one)
    return nights[:-1], measured[:-1]


def main() -> None:
    """Exit code 1 if a night failed."""
    options = tyro.cli(Options, description=__doc__)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak") as scratch, ExitStack() as stack:
        folder = Path(scratch).resolve()
        mlflow = MlflowServer(folder / "mlflow").start(START_SECONDS)
        stack.callback(mlflow.kill)
        world = World(folder, mlflow, RayNode(folder / "ray", 2))
        world.temporary.mkdir()
        world.node.start(START_SECONDS, world.env)
        stack.callback(world.node.kill)
        tiny.write_translator(f"{folder}/model")
        nights, measured = soak(world, options)
    text = table(nights, measured, options, (time.monotonic() - began) / 60)
    print(text)
    if options.write:
        write_table(text)


if __name__ == "__main__":
    main()
