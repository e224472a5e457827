import socket
import threading
from collections.abc import Iterator

import pyarrow as pa
import pytest

from pipelines.reading.sandbox.channel import LENGTH, Channel, Ready


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    yield channel, theirs
    channel.close()
    theirs.close()


@pytest.mark.parametrize("size", [0, 1, 8, 1 << 18, (5 << 20) + 3])
def test_what_is_sent_is_received(ends: tuple[Channel, socket.socket], size: int) -> None:
    channel, theirs = ends
    content = bytes(range(256)) * (size // 256 + 1)
    received: list[bytes] = []
    other = Channel(theirs)
    reader = threading.Thread(target=lambda: received.extend(other.receive() for _ in range(3)))
    reader.start()
    channel.send(content[:size])
    channel.send(pa.py_buffer(content[:size]))
    channel.send(b"end")
    reader.join(20)
    assert received == [content[:size], content[:size], b"end"]


def test_messages_that_go_at_once_come_one_by_one(ends: tuple[Channel, socket.socket]) -> None:
    channel, theirs = ends
    messages = [b"", b"a", bytes(70_000), b"", b"b" * 65_528, bytes(300_000), b"end", b""]
    sender = threading.Thread(target=channel.send, args=messages)
    sender.start()
    other = Channel(theirs)
    assert [other.receive() for _ in messages] == messages
    sender.join(20)


def test_the_end_of_the_other_one_is_told(ends: tuple[Channel, socket.socket]) -> None:
    channel, theirs = ends
    theirs.sendall(LENGTH.pack(5) + b"hel")
    theirs.close()
    with pytest.raises(EOFError):
        channel.receive()
    with pytest.raises(ConnectionError):
        channel.send(b"x")
    assert not channel.closed
    channel.close()
    assert channel.closed


def test_a_message_is_no_longer_than_it_may_be(ends: tuple[Channel, socket.socket]) -> None:
    channel, theirs = ends
    theirs.sendall(LENGTH.pack(1 << 60))
    with pytest.raises(ValueError, match="a message of 1,152,921,504,606,846,976 bytes"):
        channel.receive(1000)


def test_each_part_of_a_message_is_waited_for_as_its_owner_waits() -> None:
    """A length, its content, and room for what is sent: who waits may give up at each of them."""

    class GaveUpError(Exception):
        pass

    def give_up(ready: Ready) -> None:
        if not ready(0.01):
            raise GaveUpError

    ours, theirs = socket.socketpair()
    channel = Channel(ours, give_up)
    with pytest.raises(GaveUpError):
        channel.receive()
    theirs.sendall(LENGTH.pack(3) + b"ab")
    with pytest.raises(GaveUpError):
        channel.receive()
    with pytest.raises(GaveUpError):
        channel.send(bytes(1 << 22))
    channel.close()
    theirs.close()
