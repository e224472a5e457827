"""What the child is given of a shard: ranges, of which there are only so many, or a group's objects."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Protocol

from hybrid_models.errors import BadSample
from pipelines import storage
from pipelines.reading.limits import Limits
from pipelines.reading.objects import Fetched, as_listed
from pipelines.reading.rows import check_as_listed, open_shard
from pipelines.reading.shards import Shard

RANGE_BYTES = 8 << 20
"""Most bytes of one answer to the child."""
READ_AGAIN = 16
"""A shard may be read so many times over, and `READ_FREELY` bytes more: footers and indexes are read twice."""
READ_FREELY = 256 << 20
READ_LEAST = 4 << 10
"""A request counts as at least so many bytes, so that there is an end to them, too."""


class Serving(Protocol):
    """A shard's bytes for the child."""

    def answer(self, asked: Mapping[str, Any]) -> list[bytes] | None:
        """An error's text, and the bytes asked for; None if they may not be asked for.

        Raises:
            StorageError: the store failed.
        """

    def close(self) -> None:
        """The bytes are not needed any more."""


def serving(shard: Shard, limits: Limits) -> Serving:
    """Objects of a group are handed over, anything else is read by ranges."""
    return Handed(shard, limits) if shard.members and not shard.cut else Served(shard)


class Served:
    """A shard's bytes for the child: what it asks for, as long as that is not more than reading can need.

    What happens to a lone clip meanwhile is its own row's trouble, not the job's. A shard on a disk that is written
    over while it is read ends the job: a store refuses to read on in another object, a disk does not.
    """

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._lone = shard.members[0] if shard.cut else None
        self._stream = None if shard.cut else open_shard(shard)
        self._opened = False
        """As it was listed."""
        self._left = READ_AGAIN * shard.size + READ_FREELY

    def answer(self, asked: Mapping[str, Any]) -> list[bytes] | None:
        """An error's text, and the bytes from an offset, fewer at the end; None if too many were asked for, or none.

        Raises:
            StorageError: the store failed, or the shard was replaced.
        """
        offset, count = (int(number) for number in asked["read"])
        count = min(count, RANGE_BYTES)
        self._left -= max(count, READ_LEAST)
        if self._left < 0 or offset < 0 or count < 0:
            return None
        try:
            with nullcontext() if self._lone is None else as_listed(self._lone, self._opened):
                data = self._read(offset, count)
            self._opened = True
            if self._lone is None and storage.is_local(self._shard.uri):
                check_as_listed(self._shard)
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


class Handed:
    """A group's objects for the child: each one once, in order."""

    def __init__(self, shard: Shard, limits: Limits) -> None:
        self._fetched = Fetched(shard.members, limits)
        self._count, self._before = len(shard.members), -1

    def answer(self, asked: Mapping[str, Any]) -> list[bytes] | None:
        """An error's text, and the bytes of the member asked for; None if it is not one whose turn it is.

        Raises:
            StorageError: the store failed.
        """
        number = int(asked["member"])
        if not self._before < number < self._count:
            return None
        self._before = number
        try:
            return [b"", self._fetched.read(number)]
        except BadSample as bad:
            return [str(bad).encode(), b""]

    def close(self) -> None:
        """The objects are not needed any more."""
        self._fetched.close()
