import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import Limits
from pipelines.reading.rows import BLOCK_ROWS
from pipelines.reading.sandbox import guard, jail, process
from pipelines.reading.sandbox.process import Child, ChildDiedError
from pipelines.reading.sandbox.protocol import Poison, Task
from tests import tiny
from tests.pipelines.reading.sandbox.made import ALWAYS, LIMITS, rows, shard


def test_good_rows_come_from_one_other_process(tmp_path: Path) -> None:
    first, second = rows(shard(tmp_path, "x", "y")), rows(shard(tmp_path, "z", name="b.txt"))
    assert [(row["index"], row["text"], row["error"]) for row in first] == [(0, "x", None), (1, "y", None)]
    assert [row["shard"] for row in first] == [str(tmp_path / "a.txt")] * 2, "whatever the child calls it"
    assert len({row["pid"] for row in first + second}) == 1, "the child is kept from shard to shard"
    assert first[0]["pid"] != os.getpid()
    assert os.getpgid(first[0]["pid"]) != os.getpgid(0), "Ctrl-C is for the parent"
    assert os.getsid(first[0]["pid"]) == os.getsid(0), "a session of its own would starve beside others"


def test_the_child_knows_nothing_of_its_workers_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    guard._idle.clear()
    (row,) = rows(shard(tmp_path, "x"))
    seen = Path(f"/proc/{row['pid']}/environ").read_text()
    assert "canary" not in seen
    assert {entry.split("=")[0] for entry in filter(None, seen.split("\0"))} <= {
        *jail.PASSED_ON, *jail.OWN_ENV, jail.SWITCH, "PYTHONPATH",
    }  # fmt: skip


def test_a_child_that_died_while_it_waited_is_replaced(tmp_path: Path) -> None:
    one = shard(tmp_path, "x")
    (first,) = rows(one)
    os.kill(first["pid"], signal.SIGKILL)
    (second,) = rows(one)
    assert second["error"] is None
    assert second["pid"] != first["pid"]


def test_a_child_that_cannot_begin_is_the_machines_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"ended with code 1 before it began"):
        rows(shard(tmp_path, "x"))


def test_slow_rows_that_wait_are_no_hang(tmp_path: Path) -> None:
    found = rows(shard(tmp_path, *["slow"] * 8), limits=Limits(max_seconds=1.0))
    assert [row["error"] for row in found] == [None] * 8


def test_a_child_ends_with_its_worker_even_in_the_middle_of_a_hang(tmp_path: Path) -> None:
    one = shard(tmp_path, "spin")
    code = f"""
from pipelines.reading.sandbox.guard import guarded
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.shards import list_shards
from tests.pipelines.hostile import CrashingLimits, Hostile
list(guarded(list_shards({one.uri!r})[0], ReadOptions(), Hostile()))
"""
    worker = subprocess.Popen([sys.executable, "-c", code], cwd=tiny.ROOT)
    deadline = time.monotonic() + 60
    while not (children := psutil.Process(worker.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    while children[0].cpu_times().user < 5 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert children[0].cpu_times().user >= 5, "it spins"
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_more_rows_than_are_wanted_are_nonsense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a child that was taken over."""
    dumps = pickle.dumps
    monkeypatch.setattr(process.pickle, "dumps", lambda task: dumps(replace(task, until=None)))
    child = Child(LIMITS.max_memory, "auto")
    task = Task(shard(tmp_path, "x", "y", "z"), ReadOptions(limits=LIMITS), ALWAYS, 0, Poison(), 2)
    with pytest.raises(ChildDiedError, match="answered nonsense: 3 rows are done after 0"):
        list(child.run(task))


def test_a_task_may_take_so_much_time_of_the_child_and_none_of_it_is_its_consumers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "STALLED", 1)
    monkeypatch.setattr(process, "POLL_SECONDS", 0.1)
    child = Child(LIMITS.max_memory, "auto")

    def task(*lines: str) -> Task:
        return Task(shard(tmp_path, *lines), ReadOptions(limits=Limits()), ALWAYS, 0, Poison(), None)

    list(child.run(task("x")))
    started = time.monotonic()
    for done, _ in child.run(task(*["x"] * 4 * BLOCK_ROWS), 2.0):
        assert done % BLOCK_ROWS == 0
        time.sleep(1)
    assert time.monotonic() - started > 4
    with pytest.raises(ChildDiedError, match=r"its shard needs more than 0\.5 s") as death:
        list(child.run(task(*["slow"] * 60), 0.5))
    assert (death.value.kind, death.value.phase) == ("ShardTakesTooLong", "decode")
    assert 0.5 < child.spent < 10


def test_rows_beyond_the_bound_of_a_shard_are_nonsense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a child that was taken over."""
    dumps = pickle.dumps
    free = ReadOptions(limits=LIMITS)
    monkeypatch.setattr(process.pickle, "dumps", lambda task: dumps(replace(task, options=free)))
    bounded = ReadOptions(limits=replace(LIMITS, max_shard_rows=1))
    child = Child(LIMITS.max_memory, "auto")
    with pytest.raises(ChildDiedError, match="answered nonsense: 3 rows are done after 0"):
        list(child.run(Task(shard(tmp_path, "x", "y", "z"), bounded, ALWAYS, 0, Poison(), None)))
