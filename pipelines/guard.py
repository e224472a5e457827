"""Reading and decoding in a process of their own: an input that crashes it, hangs in it or eats its memory costs a row.

Native decoders (JPEG, H.264, HDF5, Parquet) run on bytes from strangers. A worker hands its shards to a child process,
which streams samples back. When the child dies, a note in shared memory tells at which row. That row is tried again; if
it fails `TRIES` times it becomes an error row, and the rest of the shard goes on.

The child unpickles its worker's tasks; the worker takes nothing but JSON and Arrow from the child. An answer is a JSON
header, which a block follows.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import psutil
import pyarrow as pa

from pipelines import logs
from pipelines.limits import Limits
from pipelines.shards import Begin, ReadOptions, Shard, read_blocks
from pipelines.storage import StorageError

TRIES = 2
POLL_SECONDS = 1.0
STALLED = 10
"""A row may wait this many times its limit without computing (a decoder's threads that lost each other)."""
NOTE = struct.Struct("<qq")
PHASES = ("read", "decode")
STARTING = -1
"""Noted as the row before there is one."""
END: dict[str, Any] = {"end": True}

Step = Callable[[pa.Table, Begin], pa.Table]
"""Raw rows → what becomes of them."""


@dataclass(frozen=True)
class Poison:
    """Rows of a shard at which its process died too often, and why."""

    read: dict[int, str] = field(default_factory=dict)
    """The row cannot even be read, so it is the shard's last."""
    decode: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What a child does next."""

    shard: Shard
    options: ReadOptions
    step: Step
    skip: int
    """Rows that are done."""
    poison: Poison


# ---- in the worker -----------------------------------------------------------------------------------------------
def guarded(shard: Shard, options: ReadOptions, step: Step) -> Iterator[pa.Table]:
    """What `step` makes of a shard's rows, in a child process; whatever happens to it, no row is lost or repeated.

    Raises:
        StorageError: the store failed; worth a new start.
        RuntimeError: the child failed in a way that is not the input's fault.
    """
    poison, failures, done = Poison(), Counter[tuple[str, int]](), 0
    while True:
        child = _idle.pop() if _idle else Child()
        try:
            for stop, block in child.run(Task(shard, options, step, done, poison)):
                yield block
                done = stop
        except ChildDiedError as death:
            row = death.row if death.row == STARTING else max(death.row, done)
            failures[death.phase, row] += 1
            if failures[death.phase, row] < TRIES:
                continue
            if row == STARTING:
                raise RuntimeError(f"cannot read {shard.uri}: {death} before it began") from None
            getattr(poison, death.phase)[row] = f"{death.kind}: {death} (tried {TRIES} times)"
            continue
        except BaseException:
            child.kill()
            raise
        _idle.append(child)
        return


_idle: list[Child] = []  # a worker process keeps its child from shard to shard: starting one takes half a second


class ChildDiedError(RuntimeError):
    """The child died, or had to be killed, at a row."""

    def __init__(self, kind: str, message: str, phase: str, row: int) -> None:
        super().__init__(message)
        self.kind, self.phase, self.row = kind, phase, row


class Child:
    """A child process, from this side."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        note = os.memfd_create("note")
        os.ftruncate(note, mmap.PAGESIZE)
        self._note = mmap.mmap(note, mmap.PAGESIZE)
        lifeline, self._lifeline = os.pipe()
        fds = (theirs.fileno(), note, lifeline)
        # A group of its own, as Ctrl-C is for its parent; not a session, which Linux schedules apart (autogroup): there
        # it starved beside a training.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.guard", *map(str, fds)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            pass_fds=fds, stdin=subprocess.DEVNULL, process_group=0,
        )  # fmt: skip
        theirs.close()
        os.close(note)
        os.close(lifeline)
        self._connection = Connection(ours.detach())

    def run(self, task: Task) -> Iterator[tuple[int, pa.Table]]:
        """What the child makes of a task: how many rows are done, and the newest block of it.

        Raises:
            ChildDiedError: it died, hung or needed too much memory.
            StorageError: the store failed.
            RuntimeError: anything else went wrong in the child.
        """
        self._note[: NOTE.size] = NOTE.pack(0, STARTING)
        try:
            self._connection.send(task)
            while (answer := self._answer(task.options.limits)) != END:
                yield answer["done"], pa.ipc.open_stream(self._connection.recv_bytes()).read_all()
        except (EOFError, ConnectionError):
            where = self._where()
            code = self.kill()
            what = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            raise ChildDiedError("InputCrashed", f"the process that worked on this row {what}", *where) from None

    def _answer(self, limits: Limits) -> dict[str, Any]:
        """The child's next one, unless it is an error."""
        self._wait(limits)
        answer: dict[str, Any] = json.loads(self._connection.recv_bytes())
        if "error" in answer:
            self._fail(answer)
        return answer

    def _wait(self, limits: Limits) -> None:
        """Until there is a message, or a row has used up its time."""
        row, seconds, since = None, 0.0, 0.0
        while not self._connection.poll(POLL_SECONDS):
            phase, index = self._where()
            if row != (phase, index):
                row, seconds, since = (phase, index), self._cpu_seconds(), time.monotonic()
            used = self._cpu_seconds() - seconds
            # Waiting for the store is no hang: the store's client has its own timeouts.
            stalled = phase == "decode" and time.monotonic() - since > STALLED * limits.max_seconds
            if used > limits.max_seconds or stalled:
                self.kill()
                raise ChildDiedError(
                    "InputHangs", f"this row needs more than max_seconds={limits.max_seconds}", phase, index
                )

    def _cpu_seconds(self) -> float:
        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.Error:  # it has just died, which the connection will tell
            return 0.0
        return times.user + times.system

    def _fail(self, answer: dict[str, str]) -> NoReturn:
        where = self._where()
        self.kill()
        if answer["error"] == "MemoryError":
            raise ChildDiedError("MemoryLimit", "this row needs more memory than max_memory allows", *where)
        kind = StorageError if answer["error"] == "StorageError" else RuntimeError
        raise kind(answer["message"])

    def _where(self) -> tuple[str, int]:
        phase, index = NOTE.unpack(self._note[: NOTE.size])
        return PHASES[phase], index

    def kill(self) -> int:
        """Ends the child; returns its exit code, negative for a signal."""
        if self._connection.closed:
            return self._process.wait()
        try:
            self._process.wait(timeout=0.1)  # it may be dying by itself: of what?
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._connection.close()
        os.close(self._lifeline)
        self._note.close()
        return self._process.wait()


# ---- in the child ------------------------------------------------------------------------------------------------
def main(connection_fd: int, note_fd: int, lifeline: int) -> None:
    """Serves tasks until the worker is gone."""
    logs.configure()
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # a terminal may stop those who write to it from the background
    # The kernel sends SIGIO, which ends this process even while it hangs in a decoder, when the worker's end closes.
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    connection = Connection(connection_fd)
    note = mmap.mmap(note_fd, mmap.PAGESIZE)
    while True:
        try:
            task: Task = connection.recv()
        except EOFError:
            return
        try:
            _serve(task, connection, note)
            answer = END
        except Exception as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        connection.send_bytes(json.dumps(answer).encode())


def _serve(task: Task, connection: Connection, note: mmap.mmap) -> None:
    limit_memory(task.options.limits.max_memory)

    def noting(phase: str) -> Begin:
        def begin(index: int) -> None:
            note[: NOTE.size] = NOTE.pack(PHASES.index(phase), index)

        return begin

    for rows in read_blocks(task.shard, task.options, noting("read"), task.poison.read):
        first = rows["index"][0].as_py()
        done = first + len(rows)
        if done <= task.skip:
            continue
        rows = _mark(rows.slice(max(0, task.skip - first)), task.poison.decode)
        block = _to_ipc(task.step(rows, noting("decode")))
        connection.send_bytes(json.dumps({"done": done}).encode())
        connection.send_bytes(block)


def _mark(rows: pa.Table, reasons: Mapping[int, str]) -> pa.Table:
    """Rows that are not to be decoded any more get their error."""
    index = rows["index"].to_pylist()
    if not any(i in reasons for i in index):
        return rows
    errors = [reasons.get(i, error) for i, error in zip(index, rows["error"].to_pylist(), strict=True)]
    column = rows.schema.get_field_index("error")
    return rows.set_column(column, rows.schema.field(column), pa.array(errors, pa.string()))


def _to_ipc(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def limit_memory(extra: int) -> None:
    """Bounds this process's memory to what it has now and `extra` bytes."""
    data = psutil.Process().memory_info().data
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = data + extra
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
