"""Reading and decoding in a process of their own: an input that crashes it, hangs in it or eats its memory costs a row.

Native decoders (JPEG, H.264, HDF5, Parquet) run on bytes from strangers. A worker hands its shards to a child process,
which streams samples back. When the child dies, a note in shared memory tells at which row. That row is tried again; if
it fails `TRIES` times it becomes an error row, and the rest of the shard goes on.

The child is locked in (`reading.jail`): it has no keys, no network and no files. It asks its worker for ranges of
the shard, of which there are only so many. The child unpickles its worker's tasks; the worker takes nothing but JSON
and Arrow from the child, and checks both. An answer is a JSON header, which a block follows; a request for a range is a
header, too.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import psutil
import pyarrow as pa

from hybrid_models.errors import BadSample
from pipelines import storage
from pipelines.reading import jail
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import NO_MEMORY, Limits
from pipelines.reading.objects import Fetched, as_listed
from pipelines.reading.rows import DEMUX, PHASES, READ, Begin, last_row, open_shard, unwatched
from pipelines.reading.shards import Shard

log = logging.getLogger(__name__)
TRIES = 2
POLL_SECONDS = 1.0
STALLED = 10
"""A row may wait this many times its limit without computing (a decoder's threads that lost each other)."""
START_SECONDS = 60.0
"""What importing libraries may take."""
NOTE = struct.Struct("<qq")
STARTING = -1
"""Noted as the row before there is one."""
END: dict[str, Any] = {"end": True}
HEADER_BYTES = 1 << 16
RANGE_BYTES = 8 << 20
"""Most bytes of one answer to the child."""
READ_AGAIN = 16
"""A shard may be read so many times over, and `READ_FREELY` bytes more: footers and indexes are read twice."""
READ_FREELY = 256 << 20
READ_LEAST = 4 << 10
"""A request counts as at least so many bytes, so that there is an end to them, too."""

Step = Callable[[pa.Table, Begin], pa.Table]
"""Raw rows → what becomes of them."""


@dataclass(frozen=True)
class Poison:
    """Rows of a shard at which its process died too often, and why."""

    read: dict[int, str] = field(default_factory=dict)
    """The row cannot even be read, so it is the shard's last, if that is no group."""
    decode: dict[int, str] = field(default_factory=dict)
    demux: dict[int, str] = field(default_factory=dict)
    """The packets of a window cannot be read: its clip ends with it."""
    uncounted: set[int] = field(default_factory=set)
    """Of `read`, where counting the rows that follow was fatal, too."""


@dataclass(frozen=True)
class Task:
    """What a child does next."""

    shard: Shard
    options: ReadOptions
    step: Step
    skip: int
    """Rows that are done."""
    poison: Poison


def guarded(shard: Shard, options: ReadOptions, step: Step) -> Iterator[pa.Table]:
    """What `step` makes of a shard's rows, in a child process; whatever happens to it, no row is lost or repeated.

    Raises:
        StorageError: the store failed; worth a new start.
        RuntimeError: the machine failed: a library is missing, or no child can be started.
    """
    poison, failures, done, wasted = Poison(), Counter[tuple[str, int]](), shard.first, 0.0
    while True:
        child = _child(options.limits.max_memory)
        try:
            for stop, block in child.run(Task(shard, options, step, done, poison)):
                yield _own(block, shard)
                done = stop
        except ChildDiedError as death:
            wasted += death.seconds
            row = death.row if death.row == STARTING else max(death.row, done)
            failures[death.phase, row] += 1
            if failures[death.phase, row] >= TRIES:
                if row == STARTING:
                    raise RuntimeError(f"cannot read {shard.uri}: {death} before it began") from None
                if row in poison.uncounted:  # whatever it dies of, it is not to be read again
                    yield step(last_row(shard, done, poison.read[row], row - done), unwatched)
                    return
                _give_up(poison, death, row, wasted, options.limits, 0 if shard.cut else len(shard.members))
            continue
        except BaseException:
            child.kill()
            raise
        _idle.append(child)
        return


def _give_up(poison: Poison, death: ChildDiedError, row: int, wasted: float, limits: Limits, members: int) -> None:
    """A row becomes an error; where rows like it have cost too much, nothing after it is read: of a group's `members`
    each is an error, then."""
    reason = f"{death.kind}: {death} (tried {TRIES} times)"
    if members and wasted > limits.max_wasted_seconds:
        given_up = f"GroupGivenUp: {_given_up(wasted, limits)}; {reason}"
        poison.read.update({index: given_up for index in range(row, members) if index not in poison.read})
        return
    if row in poison.read:
        poison.uncounted.add(row)
    elif death.phase == READ:
        poison.read[row] = reason
    elif wasted > limits.max_wasted_seconds:
        poison.read[row] = f"ShardGivenUp: {_given_up(wasted, limits)}; {reason}"
    else:
        (poison.demux if death.phase == DEMUX else poison.decode)[row] = reason


def _given_up(wasted: float, limits: Limits) -> str:
    return f"its failing rows took {wasted:.0f} s, more than max_wasted_seconds={limits.max_wasted_seconds:g}"


def _own(block: pa.Table, shard: Shard) -> pa.Table:
    """Rows as this shard's and its objects', whatever the child calls them."""
    if "shard" not in block.column_names:
        return block
    sources = [shard.source(index) for index in block["index"].to_pylist()]
    for name, values in (("shard", pa.repeat(shard.uri, len(block))), ("object", pa.array(sources, pa.string()))):
        if (column := block.schema.get_field_index(name)) >= 0:
            block = block.set_column(column, block.schema.field(column), values)
    return block


_idle: list[Child] = []  # a worker process keeps its child from shard to shard: starting one takes half a second


def _child(max_memory: int) -> Child:
    """One that waits, or a new one; a bound on memory cannot be raised again."""
    fits = next((child for child in _idle if child.max_memory == max_memory), None)
    if fits is None:
        return Child(max_memory)
    _idle.remove(fits)
    return fits


@cache
def _tell_of_the_jail() -> None:
    if not jail.available():
        log.warning("decoding runs without its jail: %s", json.dumps(jail.status()))


class ChildDiedError(RuntimeError):
    """The child died, or had to be killed, at a row.

    Args:
        kind: the reason's name.
        message: what happened.
        phase: what it was doing.
        row: the row's index.
        seconds: what the try has cost.
    """

    def __init__(self, kind: str, message: str, phase: str, row: int, seconds: float) -> None:
        super().__init__(message)
        self.kind, self.phase, self.row, self.seconds = kind, phase, row, seconds


class _Served:
    """A shard's bytes for the child: what it asks for, as long as that is not more than reading can need.

    What happens to a lone clip meanwhile is its own row's trouble, not the job's.
    """

    def __init__(self, shard: Shard) -> None:
        self._lone = shard.members[0] if shard.cut else None
        self._stream = None if shard.cut else open_shard(shard)
        self._opened = False
        """As it was listed."""
        self._left = READ_AGAIN * shard.size + READ_FREELY

    def answer(self, asked: Mapping[str, Any]) -> list[bytes] | None:
        """An error's text, and the bytes from an offset, fewer at the end; None if too many were asked for.

        Raises:
            StorageError: the store failed.
        """
        offset, count = (int(number) for number in asked["read"])
        count = min(count, RANGE_BYTES)
        self._left -= max(count, READ_LEAST)
        if self._left < 0:
            return None
        try:
            with nullcontext() if self._lone is None else as_listed(self._lone, self._opened):
                data = self._read(offset, count)
            self._opened = True
            return [b"", data]
        except BadSample as bad:
            return [str(bad).encode(), b""]

    def _read(self, offset: int, count: int) -> bytes:
        if self._stream is None:
            assert self._lone is not None
            self._stream = storage.open_input(self._lone.uri)
        self._stream.seek(offset)
        return self._stream.read(count)

    def close(self) -> None:
        """The object is not needed any more."""
        if self._stream is not None:
            self._stream.close()


class _Handed:
    """A group's objects for the child: each one once, in order."""

    def __init__(self, shard: Shard, limits: Limits) -> None:
        self._fetched = Fetched(shard.members, limits)
        self._before = -1

    def answer(self, asked: Mapping[str, Any]) -> list[bytes] | None:
        """An error's text, and the bytes of the member asked for; None if it is not the one whose turn it is.

        Raises:
            StorageError: the store failed.
        """
        number = int(asked["member"])
        if number <= self._before:
            return None
        self._before = number
        try:
            return [b"", self._fetched.read(number)]
        except BadSample as bad:
            return [str(bad).encode(), b""]

    def close(self) -> None:
        """The objects are not needed any more."""
        self._fetched.close()


@dataclass
class _Clock:
    """What the row that is worked on has used."""

    at: tuple[str, int] | None = None
    cpu: float = 0.0
    """The child's seconds of CPU when the row was first seen."""
    waited: float = 0.0
    """Seconds that its worker has waited for it; what the store takes does not count."""
    looked: float = 0.0
    """When the clock was last looked at."""


class Child:
    """A child process, from this side.

    Args:
        max_memory: bytes that it may take beyond what it starts with.
    """

    def __init__(self, max_memory: int) -> None:
        _tell_of_the_jail()
        self.max_memory = max_memory
        ours, theirs = socket.socketpair()
        note = os.memfd_create("note")
        os.ftruncate(note, mmap.PAGESIZE)
        self._note = mmap.mmap(note, mmap.PAGESIZE)
        lifeline, self._lifeline = os.pipe()
        fds = (theirs.fileno(), note, lifeline)
        # A group of its own, as Ctrl-C is for its parent; not a session, which Linux schedules apart (autogroup): there
        # it starved beside a training. -P: the working directory is no place for code.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pipelines.reading.jail", *map(str, (*fds, max_memory))],
            env=jail.environment(os.environ, sys.path),
            pass_fds=fds, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, process_group=0,
        )  # fmt: skip
        theirs.close()
        os.close(note)
        os.close(lifeline)
        self._connection = Connection(ours.detach())
        self._clock = _Clock()
        self._waited = 0.0

    def run(self, task: Task) -> Iterator[tuple[int, pa.Table]]:
        """What the child makes of a task: how many rows are done, and the newest block of it.

        Raises:
            ChildDiedError: it died, hung, needed too much memory, or failed at a row.
            StorageError: the store failed.
            RuntimeError: the child lacks a library.
        """
        self._note[: NOTE.size] = NOTE.pack(0, STARTING)
        self._clock, self._waited = _Clock(), 0.0
        served: _Served | _Handed = (
            _Handed(task.shard, task.options.limits)
            if task.shard.members and not task.shard.cut
            else _Served(task.shard)
        )
        done = task.skip
        try:
            self._connection.send(task)
            while (answer := self._answer(task, served)) != END:
                block = pa.ipc.open_stream(self._connection.recv_bytes(task.options.limits.max_memory)).read_all()
                block.validate(full=True)
                if not done < answer["done"]:
                    raise ValueError(f"{answer['done']} rows are done after {done}")
                done, self._waited = answer["done"], 0.0
                yield done, block
        except (EOFError, ConnectionError):
            where = self._where()
            code = self.kill()
            what = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            self._died("InputCrashed", f"the process that worked on this row {what}", where)
        except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
            self._died("InputCrashed", f"the process that worked on this row answered nonsense: {error}")
        finally:
            served.close()

    def _answer(self, task: Task, served: _Served | _Handed) -> dict[str, Any]:
        """The child's next one, unless it is an error; requests for the shard's bytes are answered on the way."""
        while True:
            self._wait(task.options.limits)
            answer: dict[str, Any] = json.loads(self._connection.recv_bytes(HEADER_BYTES))
            if "error" in answer:
                self._fail(task.shard, answer)
            if not {"read", "member"} & set(answer):
                return answer
            parts = served.answer(answer)
            if parts is None:
                self._died("ReadsTooMuch", "the shard is read over and over again")
            for part in parts:
                self._connection.send_bytes(part)

    def _wait(self, limits: Limits) -> None:
        """Until there is a message, or a row has used up its time."""
        while True:
            began = time.monotonic()
            ready = self._connection.poll(POLL_SECONDS)
            now = time.monotonic()
            self._waited += now - began
            self._clock.waited += now - began
            if now - self._clock.looked >= POLL_SECONDS:
                self._look(limits, now)
            if ready:
                return

    def _look(self, limits: Limits, now: float) -> None:
        """At the clock, which starts anew with each row."""
        cpu, clock = self._cpu_seconds(), self._clock
        if clock.at != self._where():
            clock = self._clock = _Clock(self._where(), cpu)
        clock.looked = now
        most = max(limits.max_seconds, START_SECONDS) if self._where()[1] == STARTING else limits.max_seconds
        if cpu - clock.cpu > most or clock.waited > STALLED * most:
            self._died("InputHangs", f"this row needs more than max_seconds={limits.max_seconds}")

    def _cpu_seconds(self) -> float:
        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.Error:  # it has just died, which the connection will tell
            return 0.0
        return float(times.user + times.system)

    def _fail(self, shard: Shard, answer: dict[str, str]) -> NoReturn:
        kind, message = str(answer["error"]), str(answer["message"])
        if kind == "ImportError":
            self.kill()
            raise RuntimeError(f"cannot read {shard.uri}: {message}")
        if kind == "MemoryError":
            self._died("MemoryLimit", NO_MEMORY)
        self._died("UnexpectedError", f"{kind}: {message}")

    def _died(self, kind: str, message: str, where: tuple[str, int] | None = None) -> NoReturn:
        where = where or self._where()
        self.kill()
        raise ChildDiedError(kind, message, *where, self._waited)

    def _where(self) -> tuple[str, int]:
        phase, index = NOTE.unpack(self._note[: NOTE.size])
        return PHASES[phase] if 0 <= phase < len(PHASES) else READ, index

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
