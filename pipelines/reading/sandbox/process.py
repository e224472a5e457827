"""A child process from its worker's side: it is given tasks and bytes, watched, and ended."""

from __future__ import annotations

import json
import math
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import psutil
import pyarrow as pa

from hybrid_models.errors import UsageError
from pipelines.reading.limits import NO_MEMORY, Limits
from pipelines.reading.rows import PHASES, READ
from pipelines.reading.sandbox import jail
from pipelines.reading.sandbox.channel import Channel, Ready
from pipelines.reading.sandbox.protocol import END, HEADER_BYTES, NOTE, STARTING, Task
from pipelines.reading.sandbox.serving import Serving, serving
from pipelines.reading.shards import Shard
from pipelines.reading.units import SPAN

POLL_SECONDS = 1.0
STALLED = 10
"""A row may wait this many times its limit without computing (a decoder's threads that lost each other)."""
NONSENSE = (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError, pa.ArrowException)
"""What reading an answer raises that no child of ours would give."""
START_SECONDS = 60.0
"""What importing libraries may take."""


class ChildDiedError(RuntimeError):
    """The child died, or had to be killed, at a row."""

    def __init__(self, kind: str, message: str, phase: str, row: int, seconds: float) -> None:
        super().__init__(message)
        self.kind, self.phase, self.row, self.seconds = kind, phase, row, seconds


@dataclass
class _Clock:
    """What the row that is worked on, or all of a task, has used."""

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
        mode: of its jail, one of `jail.MODES`.

    Raises:
        UsageError: all of the jail is required, and this machine lacks a part of it.
    """

    def __init__(self, max_memory: int, mode: str) -> None:
        jail.ensure(mode)
        self.max_memory, self.mode = max_memory, mode
        ours, theirs = socket.socketpair()
        note = os.memfd_create("note")
        os.ftruncate(note, mmap.PAGESIZE)
        self._note = mmap.mmap(note, mmap.PAGESIZE)
        lifeline, self._lifeline = os.pipe()
        fds = (theirs.fileno(), note, lifeline)
        # A group of its own, as Ctrl-C is for its parent; not a session, which Linux schedules apart (autogroup): there
        # it starved beside a training. -P: the working directory is no place for code.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pipelines.reading.sandbox.jail", *map(str, (*fds, max_memory))],
            env=jail.environment(os.environ, sys.path, mode),
            pass_fds=fds, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, process_group=0,
        )  # fmt: skip
        theirs.close()
        os.close(note)
        os.close(lifeline)
        self._channel = Channel(ours, self._wait)
        self._clock = _Clock()
        self._limits = Limits()
        self._waited = 0.0
        self._task, self._most = _Clock(), math.inf
        self.spent = 0.0
        """Seconds of CPU that the task took up to the last look, or a tenth of those that its worker waited for it."""

    def run(self, task: Task, most: float = math.inf) -> Iterator[tuple[int, pa.Table]]:
        """What the child makes of a task: how many rows are done, and the newest block of it.

        Raises:
            ChildDiedError: it died, hung, needed too much memory, or failed at a row.
            StorageError: the store failed.
            RuntimeError: the child lacks a library.
        """
        self._note[: NOTE.size] = NOTE.pack(0, STARTING)
        self._clock, self._limits, self._waited = _Clock(), task.options.limits, 0.0
        self._task, self._most, self.spent = _Clock(cpu=self._cpu_seconds()), most, 0.0
        served = serving(task.shard, task.options.limits)
        done = task.skip
        try:
            self._channel.send(pickle.dumps(task))
            while (answer := self._answer(task, served)) != END:
                block = pa.ipc.open_stream(self._channel.receive(self._limits.max_memory)).read_all()
                block.validate(full=True)
                if not block.schema.equals(task.step.schema):
                    raise ValueError("a table with other columns")
                _check_rows(block, task, done, answer["done"])
                done, self._waited = answer["done"], 0.0
                yield done, block
        except (EOFError, ConnectionError):
            where = self._where()
            code = self.kill()
            what = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            self._died("InputCrashed", f"the process that worked on this row {what}", where)
        except UsageError:  # of the store's client: no answer of the child's
            raise
        except NONSENSE as error:
            self._died("InputCrashed", f"the process that worked on this row answered nonsense: {error}")
        finally:
            served.close()

    def _answer(self, task: Task, served: Serving) -> dict[str, Any]:
        """The child's next one, unless it is an error; requests for the shard's bytes are answered on the way."""
        while True:
            answer: dict[str, Any] = json.loads(self._channel.receive(HEADER_BYTES))
            if "error" in answer:
                self._fail(task.shard, answer)
            if not {"read", "member"} & set(answer):
                return answer
            parts = served.answer(answer)
            if parts is None:
                self._died("ReadsTooMuch", "the shard is read over and over again")
            self._channel.send(*parts)

    def _wait(self, ready: Ready) -> None:
        """Until the child's end is ready, or a row has used up its time."""
        while True:
            began = time.monotonic()
            done = ready(POLL_SECONDS)
            now = time.monotonic()
            self._waited += now - began
            for clock in (self._clock, self._task):
                clock.waited += now - began
            if now - self._clock.looked >= POLL_SECONDS:
                self._look(self._limits, now)
            if done:
                return

    def _look(self, limits: Limits, now: float) -> None:
        """At the clock, which starts anew with each row."""
        cpu, clock = self._cpu_seconds(), self._clock
        if clock.at != self._where():
            clock = self._clock = _Clock(self._where(), cpu)
        clock.looked = now
        self.spent = max(cpu - self._task.cpu, self._task.waited / STALLED)
        if self.spent > self._most:
            self._died("ShardTakesTooLong", f"its shard needs more than {self._most:,.1f} s")
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
        if self._channel.closed:
            return self._process.wait()
        try:
            self._process.wait(timeout=0.1)  # it may be dying by itself: of what?
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._channel.close()
        os.close(self._lifeline)
        self._note.close()
        return self._process.wait()


def _check_rows(block: pa.Table, task: Task, done: int, stop: Any) -> None:
    """A block has rows from those that are done up to those that it says are done, and none that is not wanted; of a
    group, each of one of its objects.

    Raises:
        ValueError: another one.
    """
    shard = task.shard
    allowed = min(SPAN, task.options.limits.shard_rows(shard.size) + 1)
    most = len(shard.members) if shard.members and not shard.cut else allowed
    most = most if task.until is None else min(most, task.until)
    if not (isinstance(stop, int) and done < stop <= most):
        raise ValueError(f"{stop} rows are done after {done}")
    if "index" in block.column_names and not all(index in range(done, stop) for index in block["index"].to_pylist()):
        raise ValueError(f"rows are not of those from {done} to {stop}")
