"""The child's own parts; what it does as a process is in test_guard."""

import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pyarrow as pa
import pytest

from pipelines.reading.sandbox import child
from pipelines.reading.sandbox.channel import Channel

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def shard() -> Iterator[tuple[child._Range, list[list[int]]]]:
    """A shard behind a connection, and the ranges that the worker's end was asked for."""
    ours, theirs = map(Channel, socket.socketpair())
    asked: list[list[int]] = []

    def serve(channel: Channel) -> None:
        while True:
            try:
                first, count = json.loads(channel.receive())["read"]
            except EOFError:
                return
            asked.append([first, count])
            channel.send(b"")
            channel.send(CONTENT[first : first + count])

    worker = threading.Thread(target=serve, args=(theirs,), daemon=True)
    worker.start()
    yield child._Range(ours, len(CONTENT)), asked
    ours.close()
    worker.join(5)


def test_a_shard_is_read_by_ranges_that_lie_in_it(shard: tuple[child._Range, list[list[int]]]) -> None:
    stream, asked = shard
    assert stream.seek(-10, io.SEEK_END) == len(CONTENT) - 10
    assert stream.read(100) == CONTENT[-10:]
    assert stream.read(1) == b""
    assert stream.seek(len(CONTENT) + 999) == len(CONTENT) + 999
    assert stream.read(1) == b"", "beyond its end there is nothing, and nothing is asked for"
    stream.seek(256)
    assert stream.seek(-6, io.SEEK_CUR) == stream.tell() == 250
    assert stream.read(8) == CONTENT[250:258]
    with pytest.raises(ValueError, match="a position of -1 is before the file"):
        stream.seek(-1)
    assert asked == [[len(CONTENT) - 10, 10], [250, 8]]


def test_all_of_it_is_there_behind_a_buffer(shard: tuple[child._Range, list[list[int]]]) -> None:
    assert io.BufferedReader(shard[0], 1000).read() == CONTENT


def test_rows_that_are_not_to_be_decoded_have_their_reason() -> None:
    rows = pa.table({"index": [3, 4, 5], "error": pa.array([None, "X: old", None], pa.string())})
    assert child._mark(rows, {9: "Y: no"}) is rows
    marked = child._mark(rows, {3: "Y: a", 4: "Y: b"})
    assert marked["error"].to_pylist() == ["Y: a", "Y: b", None]
    assert marked.schema == rows.schema


def test_memory_is_bounded_for_good() -> None:
    """In a process of its own: the bound cannot be raised again."""
    script = """
import resource
from pipelines.reading.sandbox.child import limit_memory
limit_memory(64 << 20)
kept = bytearray(16 << 20)
try:
    bytearray(256 << 20)
except MemoryError:
    print("bounded")
try:
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print("raised by root" if __import__("os").geteuid() == 0 else "raised")
except ValueError:
    print("for good")
before = resource.getrlimit(resource.RLIMIT_DATA)[1]
limit_memory(1 << 40)
print(resource.getrlimit(resource.RLIMIT_DATA)[1] <= before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, _, last = done.stdout.split("\n")[:3]
    assert (first, last) == ("bounded", "True")


def test_a_child_waits_for_pandas_only_where_radar_needs_it() -> None:
    script = (
        "import sys; from pipelines.reading.sandbox import child; child._settle_pyarrow(); import pyarrow as pa; "
        "print(pa.Table.from_pylist([{'a': 1}])['a'].to_pylist(), 'pandas' in sys.modules); import xarray; "
        "print('pandas' in sys.modules, pa.array([None, 'x']).to_pylist())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[1] False", "True [None, 'x']"]
