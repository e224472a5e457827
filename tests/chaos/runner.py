"""Kills a chosen victim at a chosen point of a night, starts the night again, and compares it with an undisturbed one.

`python -m tests.chaos --runs 224 --seed 1` goes through the matrix of tasks, victims and points, and writes what came
of it to README.md. All choices of a run are drawn from the seed and the run's number: `--only 17` repeats one.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipelines.storage import StorageError
from tests import tiny
from tests.chaos import nights
from tests.chaos.nights import NEW, OLD, Task
from tests.chaos.proxy import Call
from tests.chaos.world import VICTIMS, Victim, World

TASKS = ("captions", "nowcasts", "translations", "windows")
ALWAYS_THERE = ("driver", "raylet", "S3", "MLflow")
"""Victims that live during the whole night; the others only while it is computed."""
MAX_STARTS = 4
START_SECONDS = 600
JOIN_SECONDS = 3.0
"""Within which a node has joined."""
COMMIT = re.compile(r"/_delta_log/0*[1-9]\d*\.json$")


# ---- points ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Point:
    """A moment of a night, told by what passes to the store.

    Args:
        matches: whether a call of this task is it.
        when: `before` the call is passed on, or `after` the store has done it.
        choices: the point is at one of so many matching calls.
        delay: how many seconds later, at most; the call waits only for a point without a delay.
        computing: whether samples are read and predicted then.
    """

    matches: Callable[[Task, Call], bool]
    when: str
    choices: int = 1
    delay: float = 0.0
    computing: bool = False


def _lists(folder: Callable[[Task], str]) -> Callable[[Task, Call], bool]:
    return lambda task, call: (call.prefix or "").rstrip("/") == _key(folder(task))


def _puts(pattern: str) -> Callable[[Task, Call], bool]:
    return lambda task, call: call.method == "PUT" and re.search(pattern, call.key) is not None


def _reads(task: Task, call: Call) -> bool:
    return call.method == "GET" and _key(task.shards) in call.key


def _key(uri: str) -> str:
    return uri.removeprefix("s3://").split("/", 1)[1]


POINTS = {
    "listing": Point(_lists(lambda task: task.shards), "before"),
    "grouping": Point(_lists(lambda task: task.shards), "after", delay=0.5),
    "reading": Point(_reads, "before", choices=nights.SHARDS, computing=True),
    "predicting": Point(_reads, "after", choices=nights.SHARDS, delay=1.0, computing=True),
    "joining": Point(_reads, "before", choices=nights.SHARDS, computing=True),  # see run
    "between files": Point(_puts(r"/ds=.*\.parquet$"), "after", choices=nights.SHARDS - 1, computing=True),
    "putting together": Point(_puts(r"/ds=.*-r\d+\.parquet$"), "before"),
    "before commit": Point(_puts(COMMIT.pattern), "before"),
    "after commit": Point(_puts(COMMIT.pattern), "after"),
    "checkpoint": Point(_puts(r"/_delta_log/.*checkpoint"), "before", choices=2),
    "tidying": Point(lambda task, call: False, "before"),  # see Trap
    "any time": Point(lambda task, call: True, "before", delay=1.0),
}


class Trap:
    """Watches a proxy and kills the victim when the point is reached, once."""

    def __init__(self, task: Task, point: str, tables: str, rng: random.Random, seconds: float, kill: Callable) -> None:
        self._task, self._name, self._point = task, point, POINTS[point]
        self._left = rng.randint(1, self._point.choices)
        delay = seconds if point == "any time" else self._point.delay
        self._delay = rng.uniform(0, delay) if delay else 0.0
        self._table = _key(f"{task.tables(tables)}/{task.table}")
        self._kill = kill
        self._committed = False
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1)
        self.killed: Future[bool] | None = None

    def __call__(self, call: Call, when: str) -> None:
        with self._lock:
            if self.killed is not None or not self._is_point(call, when):
                return
            self._left -= 1
            if self._left:
                return
            self.killed = self._pool.submit(self._spring)
        if not self._delay:
            # A server that is killed is away for a while; the call goes on when it has just been killed.
            threading.Event().wait(0.1)

    def _is_point(self, call: Call, when: str) -> bool:
        if self._name != "tidying":
            return when == self._point.when and self._point.matches(self._task, call)
        if when == "after" and COMMIT.search(call.key) and call.method == "PUT":
            self._committed = True
        night = (call.prefix or "").rstrip("/").removeprefix(f"{self._table}/ds=")
        return self._committed and when == "before" and re.fullmatch(r"[\d-]+", night) is not None

    def _spring(self) -> bool:
        time.sleep(self._delay)
        return bool(self._kill())


# ---- one run -----------------------------------------------------------------------------------------------------
class Accident(NamedTuple):
    """Who dies when: names of `VICTIMS` and `POINTS`."""

    victim: str
    point: str


@dataclass(frozen=True)
class Plan:
    """One run of the matrix."""

    number: int
    task: str
    accidents: tuple[Accident, ...]
    """What happens, each once, in this order."""
    replaces: bool
    """Whether the night replaces one of an older model."""


@dataclass
class Outcome:
    """What came of it."""

    plan: Plan
    hit: bool
    codes: list[int] = field(default_factory=list)
    computed: list[int] = field(default_factory=list)
    """Shards computed by each start that ended well."""
    seconds: float = 0.0
    problem: str = ""


def matrix(runs: int, seed: int) -> list[Plan]:
    """So many runs: every combination before one is repeated, in an order of the seed."""
    cells = [
        (task, Accident(victim, point))
        for point, spec in POINTS.items()
        for victim in VICTIMS
        for task in TASKS
        if victim in ALWAYS_THERE or spec.computing
    ]
    rng = random.Random(seed)
    chosen: list[tuple[str, Accident]] = []
    while len(chosen) < runs:
        chosen += rng.sample(cells, len(cells))
    drawn = [(task, cell, rng.random() < 0.5) for task, cell in chosen[:runs]]
    return [Plan(i, task, (cell,), half or cell.point == "checkpoint") for i, (task, cell, half) in enumerate(drawn)]


@dataclass(frozen=True)
class Reference:
    """An undisturbed night."""

    rows: nights.Rows
    seconds: float


def reference(world: World, task: Task) -> Reference:
    """Makes the task's data, its older night (tables `old`) and an undisturbed one (tables `whole`)."""
    nights.prepare(task)
    for which, tables in ((OLD, "old"), (NEW, "whole")):
        started = time.monotonic()
        code, _, said = finish(start(world, task.argv(tables, which, actors=1)))
        if code != 0:
            raise RuntimeError(f"an undisturbed night failed: {said}")
        seconds = time.monotonic() - started
    return Reference(nights.rows(task, "whole"), seconds)


def start(world: World, argv: Sequence[str]) -> subprocess.Popen:
    """The job as a real process."""
    return subprocess.Popen(
        tiny.command(*argv), cwd=world.folder, env=world.env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(job: subprocess.Popen, seconds: float = START_SECONDS) -> tuple[int, dict[str, Any], str]:
    """Exit code, summary and stderr."""
    try:
        stdout, stderr = job.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        job.kill()
        stdout, stderr = job.communicate()
        return -1, {}, f"it did not end in {seconds} s: {stderr[-1000:]}"
    return job.returncode, json.loads(stdout.splitlines()[-1]) if job.returncode == 0 else {}, stderr


def run(world: World, plan: Plan, seed: int, whole: Reference, actors: int = 0) -> Outcome:
    """One night with its accidents, with so many model processes; by default one on each node."""
    task, tables = Task(plan.task), f"run-{seed}-{plan.number}"
    points = {accident.point for accident in plan.accidents}
    if plan.replaces:
        nights.copy_tables(task, "old", tables)
    if "checkpoint" in points:
        nights.lengthen_log(task, tables)
    rng = random.Random(f"{seed}-{plan.number}")
    outcome, began = Outcome(plan, hit=False), time.monotonic()
    job: list[subprocess.Popen] = []

    def trap(accident: Accident) -> Trap:
        kill = VICTIMS[accident.victim]
        spring = _joining(kill) if accident.point == "joining" else kill
        return Trap(task, accident.point, tables, rng, whole.seconds, lambda: spring(world, job[0], rng))

    traps = [trap(accident) for accident in plan.accidents]
    with reader(task, tables, {len(whole.rows)}, may_fail=any(who == "S3" for who, _ in plan.accidents)) as seen:
        while not outcome.codes or (outcome.codes[-1] != 0 and len(outcome.codes) < MAX_STARTS):
            job[:] = [start(world, task.argv(tables, actors=actors))]
            world.proxy.watcher = lambda call, when: [trap(call, when) for trap in traps]
            code, summary, said = finish(job[0])
            world.proxy.watcher = None
            outcome.codes.append(code)
            outcome.computed += [summary["shards_computed"]] if summary else []
            kills = [trap.killed.result() for trap in traps if trap.killed is not None]
            outcome.hit = len(kills) == len(traps) and all(kills)
            outcome.problem = outcome.problem or complaint(code, said)
            (world.folder / f"run-{plan.number}-{len(outcome.codes)}.txt").write_text(said)
    world.remove_workers()
    outcome.problem = outcome.problem or verdict(task, tables, outcome, whole, seen)
    outcome.seconds = time.monotonic() - began
    return outcome


def _joining(kill: Victim) -> Victim:
    """The same while one more node joins."""

    def spring(world: World, job: subprocess.Popen, rng: random.Random) -> bool:
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(world.add_worker)
            time.sleep(rng.uniform(0, JOIN_SECONDS))
            killed = kill(world, job, rng)
            coming.result()
        return killed

    return spring


def complaint(code: int, said: str) -> str:
    """What is wrong with how one start ended: only a kill, or one line that says what failed, is right."""
    last = (said.strip().splitlines() or [""])[-1]
    if code in (0, -9):
        return ""
    if code != 1 or not last.startswith("hybrid: failed: "):
        return f"exit code {code}: {last}"
    return "a stack trace" if "Traceback" in said else ""


def verdict(task: Task, tables: str, outcome: Outcome, whole: Reference, seen: list[str]) -> str:
    """What is wrong with a night in the end."""
    if outcome.codes[-1] != 0:
        return f"not done after {MAX_STARTS} starts"
    return nights.difference(whole.rows, nights.rows(task, tables)) or "; ".join(seen)


@contextmanager
def reader(task: Task, tables: str, allowed: set[int], may_fail: bool) -> Iterator[list[str]]:
    """Reads the table over and over; yields the list of what it saw that was no whole night."""
    stop, seen = threading.Event(), []

    def look() -> None:
        while not stop.wait(0.5):
            try:
                state = nights.state(task, tables)
            except Exception as error:
                if not (may_fail and isinstance(error, StorageError)):
                    seen.append(f"a reader failed: {type(error).__name__}: {error}")
                continue
            if state != (0, 0) and not (state[0] in allowed and state[1] == 1):
                seen.append(f"a reader saw {state[0]} rows of {state[1]} fingerprints")

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def main(world: World, plans: Sequence[Plan], seed: int) -> Iterator[Outcome]:
    """All runs, one after the other; says on stderr what came of each."""
    wholes = {name: reference(world, Task(name)) for name in sorted({plan.task for plan in plans})}
    for plan in plans:
        outcome = run(world, plan, seed, wholes[plan.task])
        print(
            f"{plan.number:4} {plan.task:12} {plan.accidents[0].victim:9} {plan.accidents[0].point:13} "
            f"{'hit' if outcome.hit else 'not hit':7} codes {outcome.codes} computed {outcome.computed} "
            f"{outcome.seconds:5.1f} s {outcome.problem or 'right'}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        yield outcome
