"""`python -m tests.chaos.soak`: small nights, one after the other, and whether memory, disk or logs grow with them.

A Ray cluster, an MLflow server and an S3 store run all the time. Two writers fill nights of different dates of one
table at once, in jobs as a scheduler starts them; each does some nights in a row (`hybrid nightly --backfill`), so that
its own memory can be watched, too. Half of a job's nights are there already and are replaced, from other shards. One
writer's nights have so many files that they are packed before their commit, the other one's are packed afterwards.
Nights tidy, and so does `hybrid tables tidy --compact` all the time; an hour of a file's age takes them seconds
(`hurried`), so that files are removed. All that could grow is measured after the first night of each writer and after
each round of jobs. A reader asks for all nights over and over: it must never fail, and see each night as a whole.
"""

from __future__ import annotations

import datetime
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from os import environ
from pathlib import Path

import numpy as np
import psutil
import s3fs
import tyro

from pipelines import storage
from pipelines.cluster import connection
from pipelines.nights import query, tables
from pipelines.reading import units
from pipelines.staging import joining
from tests import tiny
from tests.chaos import growth, hurried
from tests.chaos.beside import Seen, over_and_over
from tests.chaos.growth import Measured, Places
from tests.servers import BUCKET, MlflowServer, RayNode, S3Server

README = Path(__file__).with_name("README.md")
START, END = "<!-- soak -->\n", "<!-- end of soak -->\n"
FIRST = (datetime.date(2026, 1, 1), datetime.date(2036, 1, 1))
"""Of each writer."""
TASK = "translations"
LAKE = f"s3://{BUCKET}/soak"
SHARDS, ROWS = (joining.LEAST_FILES, joining.LEAST_FILES - 1), 2
"""Of a night of each writer: the first one's shards, each a unit of its own, are packed before the commit; those of the
second are too few, and are packed when the table is tidied."""
PADDING = "x" * (units.UNIT_BYTES // ROWS + 1)
RETAIN_HOURS = 24
STAGES = {"computing": "stage_wall", "packing": "pack_wall", "committing": "commit_wall"}
"""Parts of a night whose seconds are looked at, by the names that its summary has for them."""
NIGHT_SECONDS = 600
START_SECONDS = 240
READ_PAUSE, TIDY_PAUSE = 0.1, 10.0


@dataclass(frozen=True)
class Options:
    """What is run."""

    minutes: float = 15.0
    """For so long new rounds are begun."""
    each: int = 6
    """Nights of one job; the first half of them has been done before."""
    hour: float = 5.0
    """Seconds that an hour of a file's age takes: nothing is removed until 24 of them are over."""
    write: bool = True
    """Put the table into README.md."""


@dataclass(frozen=True)
class World:
    """What runs all the time."""

    folder: Path
    store: S3Server
    mlflow: MlflowServer
    node: RayNode
    hour: float

    @property
    def env(self) -> dict[str, str]:
        """Of a night."""
        own = {
            "RAY_ADDRESS": self.node.address,
            "RAY_AUTH_MODE": "disabled",
            "MLFLOW_TRACKING_URI": self.mlflow.uri,
            "TMPDIR": str(self.places.temporary),
        }
        return {**tiny.environment(self.folder), **connection.LOCAL_CLUSTER, **self.store.env(), **own}

    @property
    def places(self) -> Places:
        """Where it is measured."""
        return Places(self.node, self.mlflow, f"{LAKE}/tables", f"{LAKE}/tables/{TASK}", self.folder / "tmp")


# ---- writers -----------------------------------------------------------------------------------------------------
def date(writer: int, number: int) -> str:
    """Of a night, from 0."""
    return (FIRST[writer] + datetime.timedelta(days=number)).isoformat()


def write_shards(writer: int, number: int, edition: int) -> None:
    """A night's input; its rows' ids tell which edition of it they are of."""
    for shard in range(SHARDS[writer]):
        lines = [
            json.dumps({"id": f"{edition}-{shard}-{row}", "text": text, "padding": PADDING})
            for row, text in enumerate(tiny.sentences(ROWS, 1000 * edition + shard))
        ]
        storage.write_bytes(
            f"{LAKE}/in/ds={date(writer, number)}/part-{shard}.jsonl", "\n".join(lines).encode(), storage.anything
        )


@dataclass(frozen=True)
class Ran:
    """A job: its seconds, its driver's memory in MB, and what it removed."""

    seconds: float
    peak: float
    grown: float
    """From the third quarter of its time, when all libraries are loaded, to the last."""
    removed: int
    """Files, by the tidying of its nights."""
    stages: dict[str, float]
    """Seconds by stage of all its nights together, as they tell them."""


def nightly(world: World, writer: int, first: int, count: int) -> Ran:
    """A job of some nights.

    Raises:
        RuntimeError: it did not end well.
    """
    argv = hurried.command(
        world.hour, "nightly", TASK, "--input", f"{LAKE}/in/ds={{ds}}", "--tables", f"{LAKE}/tables",
        "--backfill", f"{date(writer, first)}..{date(writer, first + count - 1)}", "--model", f"{LAKE}/model",
        "--retain-hours", str(RETAIN_HOURS),
    )  # fmt: skip
    started, seen = time.monotonic(), list[float]()
    log, summary = world.folder / f"night-{writer}.log", world.folder / f"night-{writer}.json"
    with log.open("wb") as said, summary.open("wb") as told:
        driver = psutil.Popen(argv, cwd=world.folder, env=world.env, stdout=told, stderr=said)
        while driver.poll() is None:
            seen.append(growth.resident(driver) / 2**20)
            if time.monotonic() - started > NIGHT_SECONDS * count:
                driver.kill()
            time.sleep(0.2)
    if driver.returncode != 0:
        raise RuntimeError(f"a job ended with exit code {driver.returncode}: {log.read_text()[-2000:]}")
    done = json.loads(summary.read_text().splitlines()[-1])
    quarter = max(1, len(seen) // 4)
    grown = float(np.mean(seen[-quarter:-1] or seen) - np.mean(seen[-2 * quarter : -quarter] or seen))
    removed = sum(night["files_removed"] for night in done["nights"])
    stages = {name: sum(night["seconds"][name] for night in done["nights"]) for name in STAGES.values()}
    return Ran(time.monotonic() - started, max(seen), grown, removed, stages)


def rounds(each: int) -> Iterator[tuple[int, int]]:
    """The first night of a writer's job, and how many it has: one at first, then so many, of which half are new."""
    yield 0, 1
    for first in itertools.count(0, each - each // 2):
        yield first, each


def round_of(world: World, edition: int, first: int, count: int) -> list[Ran]:
    """A job of each writer, at the same time."""
    for writer in range(len(FIRST)):
        for number in range(first, first + count):
            write_shards(writer, number, edition)
    with ThreadPoolExecutor() as threads:
        jobs = [threads.submit(nightly, world, writer, first, count) for writer in range(len(FIRST))]
        return [job.result() for job in jobs]


# ---- beside them -------------------------------------------------------------------------------------------------
SQL = (
    "SELECT ds, count(*) AS n, count(DISTINCT sample_id) AS ids, "
    f"count(DISTINCT split_part(sample_id, '-', 1)) AS editions FROM {TASK}_all GROUP BY ds"
)


def nights_there() -> int:
    """How many a reader finds.

    Raises:
        RuntimeError: one of them is not whole.
    """
    if tables.open_table(f"{LAKE}/tables/{TASK}") is None:
        return 0
    found = query.query(SQL, f"{LAKE}/tables", [TASK]).to_pylist()
    for night in found:
        rows = SHARDS[night["ds"] >= date(1, 0)] * ROWS
        if night != {"ds": night["ds"], "n": rows, "ids": rows, "editions": 1}:
            raise RuntimeError(f"not a whole night: {night}")
    return len(found)


def tidied(world: World) -> int:
    """Files that `hybrid tables tidy` removes now.

    Raises:
        RuntimeError: it did not end well.
    """
    if tables.open_table(f"{LAKE}/tables/{TASK}") is None:
        return 0
    argv = hurried.command(
        world.hour, "tables", "tidy", "--compact", "--tables", f"{LAKE}/tables", "--retain-hours", str(RETAIN_HOURS)
    )
    done = subprocess.run(argv, cwd=world.folder, env=world.env, capture_output=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.decode()[-2000:])
    return int(json.loads(done.stdout.splitlines()[-1])["removed"][TASK]["files"])


# ---- all of it ---------------------------------------------------------------------------------------------------
@dataclass
class Soaked:
    """What came of it."""

    reader: Seen[int]
    tidying: Seen[int]
    measured: list[Measured] = field(default_factory=list)
    nights: int = 0
    removed: int = 0
    """Files, by the tidying of nights; others are by that of the table."""
    minutes: float = 0.0

    @property
    def removed_in_all(self) -> int:
        """Files."""
        return self.removed + sum(self.tidying.found)

    def text(self, options: Options) -> str:
        """What is written to README.md."""
        more = "" if options.hour == Options.hour else f", an hour of a file's age in {options.hour:g} seconds"
        return (
            f"`make soak MINUTES={options.minutes:g}`{more}: {self.nights} nights of {ROWS * SHARDS[0]} "
            f"and {ROWS * SHARDS[1]} rows in {self.minutes:.0f} minutes, by two writers, {options.each} to a job. "
            f"{self.removed_in_all} files were removed meanwhile. A reader asked {len(self.reader.found)} times, at "
            f"most {max(self.reader.seconds, default=0.0):.1f} s long; it never failed and saw whole nights only.\n\n"
        ) + growth.table(self.measured)

    @property
    def problem(self) -> str:
        """What is wrong; empty if nothing is."""
        for who, seen in (("a reader", self.reader), ("tidying", self.tidying)):
            if seen.wrong:
                return f"{who} failed {len(seen.wrong)} times: {seen.wrong[0]}"
        if not all(measured.figures[growth.DECODERS] for measured in self.measured):
            return "no decoder was seen: who looks for it does not know it"
        return "" if self.removed_in_all and self.reader.found else "nothing was removed, or read: take more minutes"


def soak(world: World, options: Options) -> Soaked:
    """Round after round, until the time is over."""
    began = time.monotonic()
    with (
        over_and_over(nights_there, READ_PAUSE) as reader,
        over_and_over(lambda: tidied(world), TIDY_PAUSE) as tidying,
    ):
        done = Soaked(reader, tidying)
        for edition, (first, count) in enumerate(rounds(options.each)):
            asked = len(reader.seconds)
            with growth.most(world.node) as most:
                ran = round_of(world, edition, first, count)
            done.removed += sum(job.removed for job in ran)
            done.nights += len(ran) * count
            own = {
                "seconds of a night": max(job.seconds for job in ran) / count,
                **{f"{name}, seconds": max(job.stages[told] for job in ran) / count for name, told in STAGES.items()},
                "a reader's question, ms": 1000 * float(np.mean(reader.seconds[asked:] or 0.0)),
                "a driver at most, MB": max(job.peak for job in ran),
                "a driver's growth in a job, MB": max(job.grown for job in ran),
            }
            measured = Measured(done.nights, {**own, **most, **growth.now(world.places)})
            done.measured.append(measured)
            told = {name: round(value, 2) for name, value in measured.figures.items()}
            wrong = [*reader.wrong, *tidying.wrong][:1]
            print(done.nights, done.removed_in_all, len(reader.found), wrong, told, file=sys.stderr, flush=True)
            if time.monotonic() > began + 60 * options.minutes:
                break
    done.minutes = (time.monotonic() - began) / 60
    return done


@contextmanager
def running(hour: float) -> Iterator[World]:
    """All servers; this process's own S3 variables lead to the store."""
    with tempfile.TemporaryDirectory(prefix="soak") as scratch, ExitStack() as stack:
        folder = Path(scratch).resolve()
        store = S3Server(folder / "store").start(START_SECONDS)
        stack.callback(store.kill)
        environ.update(store.env())
        s3fs.S3FileSystem.clear_instance_cache()
        mlflow = MlflowServer(folder / "mlflow").start(START_SECONDS)
        stack.callback(mlflow.kill)
        world = World(folder, store, mlflow, RayNode(folder / "ray", 2), hour)
        world.places.temporary.mkdir()
        world.node.start(START_SECONDS, world.env)
        stack.callback(world.node.kill)
        yield world


def write_table(text: str) -> None:
    """Puts the results between the marks in README.md."""
    readme = README.read_text()
    README.write_text(readme.split(START)[0] + START + text + END + readme.split(END)[1])


def main() -> None:
    """Exit code 1 if a night failed, or a reader did, or saw a part of a night; or if nothing was removed."""
    options = tyro.cli(Options, description=__doc__)
    with running(options.hour) as world:
        tiny.write_translator(f"{LAKE}/model")
        done = soak(world, options)
    text = done.text(options)
    print(text)
    if done.problem:
        sys.exit(done.problem)
    if options.write:
        write_table(text)


if __name__ == "__main__":
    main()
