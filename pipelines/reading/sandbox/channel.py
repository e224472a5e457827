"""Messages between worker and child. The worker waits for no part of one without looking at its clock: a child that was
taken over may begin a message, or ask for one, and leave it at that."""

from __future__ import annotations

import io
import select
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

LENGTH = struct.Struct("!Q")
CHUNK_BYTES = 1 << 16
"""Read at once; what is beyond a message waits for the next one."""

Ready = Callable[[float | None], bool]
"""Whether a socket is ready within so many seconds; None waits until it is."""


def without_end(ready: Ready) -> None:
    """Waits as long as it takes."""
    ready(None)


class Channel:
    """One end of a stream socket; each message follows its length, in eight bytes.

    Args:
        end: the socket, which the channel owns.
        wait: returns when what it is given is true, or raises what ends the waiting.
    """

    def __init__(self, end: socket.socket, wait: Callable[[Ready], None] = without_end) -> None:
        self._end, self._wait = end, wait
        self._readable, self._writable = (_ready(end, event) for event in (select.POLLIN, select.POLLOUT))
        self._chunk = memoryview(bytearray(CHUNK_BYTES))
        self._read = self._chunk[:0]
        """What was read and not received yet."""

    def send(self, *messages: Any) -> None:
        """Sends messages, bytes or whatever has a buffer, at once as far as there is room.

        Raises:
            ConnectionError: the other end is closed.
        """
        parts: deque[memoryview] = deque()
        for message in messages:
            content = memoryview(message).cast("B")
            parts += [memoryview(LENGTH.pack(len(content))), content]
        while parts:
            self._wait(self._writable)
            sent = self._end.sendmsg(parts, (), socket.MSG_DONTWAIT)
            while parts and sent >= len(parts[0]):
                sent -= len(parts.popleft())
            if sent:
                parts[0] = parts[0][sent:]

    def receive(self, most: float = float("inf")) -> bytes:
        """The next message.

        Raises:
            EOFError: the other end is closed.
            ValueError: it is longer than `most` bytes.
        """
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size))
        if length > most:
            raise ValueError(f"a message of {length:,} bytes")
        return self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        found = io.BytesIO()  # which gives away what it holds, without a copy
        while count:
            if not self._read:
                self._wait(self._readable)
                self._read = self._chunk[: self._end.recv_into(self._chunk)]
                if not self._read:
                    raise EOFError
            found.write(self._read[:count])
            count, self._read = max(0, count - len(self._read)), self._read[count:]
        return found.getvalue()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._end.fileno() < 0

    def close(self) -> None:
        """The other end reads no more."""
        self._end.close()


def _ready(end: socket.socket, event: int) -> Ready:
    polled = select.poll()
    polled.register(end, event)
    return lambda seconds: bool(polled.poll(None if seconds is None else 1000 * seconds))
