"""The decoding child: in its jail it reads a shard by ranges that its worker gives it, and decodes it row by row."""

from __future__ import annotations

import fcntl
import io
import json
import mmap
import os
import pickle
import resource
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from hybrid_models.errors import BadSample
from pipelines import storage
from pipelines.cluster import logs
from pipelines.reading.limits import is_memory_error
from pipelines.reading.rows import DECODE, PHASES, Trouble, read_blocks
from pipelines.reading.sandbox.channel import Channel
from pipelines.reading.sandbox.protocol import END, NOTE, Task


def main(connection_fd: int, note_fd: int, lifeline: int, max_memory: int) -> None:
    """Serves tasks until the worker is gone; `sandbox.jail` calls it in its cell."""
    logs.configure()
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # a terminal may stop those who write to it from the background
    # The kernel sends SIGIO, which ends this process even while it hangs in a decoder, when the worker's end closes.
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    channel = Channel(socket.socket(fileno=connection_fd))
    note = mmap.mmap(note_fd, mmap.PAGESIZE)
    _settle_pyarrow()
    limit_memory(max_memory)
    while True:
        try:
            task: Task = pickle.loads(channel.receive())
        except EOFError:
            return
        try:
            _serve(task, channel, note)
            answer = END
        except Exception as error:
            kinds = {"MemoryError": is_memory_error(error), "ImportError": isinstance(error, ImportError)}
            kind = next((name for name, fits in kinds.items() if fits), type(error).__name__)
            answer = {"error": kind, "message": str(error)[:1000]}
        channel.send(json.dumps(answer).encode())


def _settle_pyarrow() -> None:
    """With the first list that it is given, pyarrow imports pandas if it is there: 0.4 s, which is no row's fault and
    which no row needs. Not found then, it is not looked for again; radar's reader imports it with its first row."""
    finder = _WithoutPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.Table.from_pylist([{"index": 0}])
    finally:
        sys.meta_path.remove(finder)


class _WithoutPandas:
    """Ends the search for pandas."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> None:
        """Says that there is none; of other modules, nothing."""
        if name == "pandas":
            raise ModuleNotFoundError("pandas is not looked for here", name=name)


class _Range(io.RawIOBase):
    """The shard, as the worker gives it."""

    def __init__(self, channel: Channel, size: int) -> None:
        super().__init__()
        self._channel, self._size, self._position = channel, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"a position of {start + offset} is before the file")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._position))
        if count == 0:
            return 0
        data = _asked(self._channel, {"read": [self._position, count]})
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _asked(channel: Channel, request: dict[str, Any]) -> bytes:
    """What the worker fetches: a group's object by its number, a range of a shard or clip.

    Raises:
        BadSample: what happened to the object.
    """
    channel.send(json.dumps(request).encode())
    problem, data = channel.receive().decode(), channel.receive()
    if problem:
        raise BadSample.of(problem)
    return data


def _serve(task: Task, channel: Channel, note: mmap.mmap) -> None:
    def tell(phase: str, index: int) -> None:
        note[: NOTE.size] = NOTE.pack(PHASES.index(phase), index)

    def member(number: int) -> bytes:
        return _asked(channel, {"member": number})

    source: Any = member
    if task.shard.cut or not task.shard.members:
        source = io.BufferedReader(_Range(channel, task.shard.size), storage.READ_BUFFER)
    poison = task.poison
    trouble = Trouble(poison.read, poison.demux, tuple(poison.decode), count=not poison.uncounted)
    for rows in read_blocks(task.shard, task.options, source, tell, trouble, task.skip, task.until):
        first = rows["index"][0].as_py()
        done = first + len(rows)
        if done <= task.skip:
            continue
        rows = _mark(rows.slice(max(0, task.skip - first)), task.poison.decode)
        block = _to_ipc(task.step(rows, partial(tell, DECODE)))
        channel.send(json.dumps({"done": done}).encode(), block)


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
    """Bounds this process's memory to what it has now and `extra` bytes, for good."""
    data = int(Path("/proc/self/statm").read_text().split()[5]) * mmap.PAGESIZE
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = data + extra if hard == resource.RLIM_INFINITY else min(data + extra, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
