"""Lone objects — photographs, clips and arrays that lie in no shard — in groups, which are read as one shard each.

An object that comes, goes or changes is a matter of its own group, and of nothing else (`grouping`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import cache, partial

from hybrid_models.errors import BadSample
from pipelines import storage
from pipelines.cluster import counters
from pipelines.reading import grouping
from pipelines.reading.grouping import Hashed
from pipelines.reading.limits import Limits
from pipelines.reading.media.decode import MEDIA_TYPES
from pipelines.reading.media.video import is_cut

GROUP_OBJECTS = 256
GROUP_BYTES = 64 << 20
"""Objects and bytes of a group at most; a larger object is a group of its own. A clip counts as `CLIP` objects."""
CLIP = 16
"""As many objects as a clip counts for: decoding it takes as long as so many photographs, and more."""
AHEAD = 16
"""Objects that are fetched at once, before they are asked for."""
AHEAD_BYTES = 64 << 20
FORBIDDEN = 8
"""So many objects that are refused, one after the other, are no matter of these objects: the night stops, so that not
all of its rows say what was true for a while only. Archived ones do not count."""
OF_THE_MOMENT = frozenset({"ObjectForbidden", "ObjectGone", "ObjectChanged"})
"""Kinds of errors that may be over another time, though the object is as it was listed: the same night again reads it
anew."""


@dataclass(frozen=True, slots=True)
class Member:
    """One object of a group, in the state in which it was listed.

    Args:
        uri: its address; of a manifest's row that names none, that of the row.
        size: bytes.
        etag: changes whenever the content does.
        sample_id: of its row.
        fields: of its row, a JSON object.
        problem: why it is not read; else empty.
        lost_rows: how many rows after it are lost with it, where that is known.
    """

    uri: str
    size: int
    etag: str
    sample_id: str
    fields: str = "{}"
    problem: str = ""
    lost_rows: int | None = None


@dataclass(frozen=True)
class Group:
    """Objects that are read together.

    Args:
        digits: what their hashes begin with; all of them for an object that is alone since it is large.
        members: in the order of their addresses.
    """

    digits: str
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(member.size for member in self.members)

    @property
    def etag(self) -> str:
        """Changes whenever one of them does, or which they are."""
        digest = hashlib.sha256()
        for member in self.members:
            digest.update(repr(astuple(member)).encode())
        return digest.hexdigest()


def media_type_of(name: str) -> str | None:
    """The media type of an object by its name, if it is a photograph, a clip or an array."""
    suffix = name.rpartition(".")[2].lower()
    return suffix if suffix in MEDIA_TYPES else None


def is_text(name: str) -> bool:
    """Whether an object that a manifest names is a text: one row. Elsewhere such a file is a shard of its lines."""
    return name.lower().endswith(".txt")


def group(members: Sequence[Member], cut: bool = False) -> list[Group]:
    """Members in groups of bounded size, each of them in one; of two at one address each, too."""
    together: list[Hashed[Member]] = []
    alone: list[Group] = []
    for digits, member in grouping.hashed(members, _uri):
        if member.size > GROUP_BYTES or (cut and to_be_cut(member)):
            alone.append(Group(digits, (member,)))
        else:
            together.append((digits, member))
    return [*(Group(digits, own) for digits, own in grouping.split(together, _uri, _small)), *alone]


def to_be_cut(member: Member) -> bool:
    """Whether an object becomes windows, where clips do."""
    return not member.problem and is_cut(media_type_of(member.uri))


def _uri(member: Member) -> str:
    return member.uri


def _small(members: Sequence[Hashed[Member]]) -> bool:
    """Whether they are no more than a group may have."""
    count = sum(CLIP if is_cut(media_type_of(member.uri)) else 1 for _, member in members)
    return count <= GROUP_OBJECTS and sum(member.size for _, member in members) <= GROUP_BYTES


def fetch(member: Member, limits: Limits) -> bytes:
    """An object's bytes, as it was listed.

    Raises:
        BadSample: it is not to be read, is too large, vanished, or was replaced.
        StorageError: the store failed; worth a new start.
    """
    return Fetched([member], limits).read(0)


@contextmanager
def as_listed(member: Member, opened: bool = False) -> Iterator[None]:
    """Whatever is read of an object inside is of its state when it was listed.

    Args:
        member: the object.
        opened: it was in this state when it was opened; a store refuses to read on in another one, a disk does not.

    Raises:
        BadSample: it vanished, was replaced, or is not given to us.
        StorageError: the store failed; worth a new start.
    """
    try:
        try:
            yield
        except storage.StorageError:  # a store may refuse to read on in an object that was replaced
            if storage.info(member.uri).etag == member.etag:
                raise
            raise _changed(member) from None
        needed = not opened or storage.is_local(member.uri)
        if (
            needed and storage.info(member.uri).etag != member.etag
        ):  # afterwards: what was read before is what was listed
            raise _changed(member)
    except FileNotFoundError:
        raise _gone(member) from None
    except storage.ForbiddenError as reason:
        raise refused(reason) from None
    given()


def _gone(member: Member) -> BadSample:
    return BadSample("ObjectGone", f"{member.uri} was removed after it had been listed")


def forbidden(reason: storage.ForbiddenError) -> BadSample:
    """The error row of an object that its store does not give to us."""
    return BadSample("ObjectForbidden", f"{reason}: allow it to be read, or take it from the input")


class _Refusals:
    """Of this process, one after the other, whatever group they were in: a large object is alone in one."""

    count = 0


@cache
def _refusals() -> _Refusals:
    return _Refusals()


def refused(reason: storage.ForbiddenError) -> BadSample:
    """The error row of an object that was refused when it was read.

    Raises:
        ForbiddenError: too many were, one after the other.
    """
    if isinstance(reason, storage.ArchivedError):
        return forbidden(reason)
    seen = _refusals()
    seen.count += 1
    if seen.count >= FORBIDDEN:
        seen.count = 0  # this process may read for another night
        told = f"{reason}, as were {FORBIDDEN - 1} before it: check the keys, or who may read what"
        raise storage.ForbiddenError(told) from reason
    return forbidden(reason)


def given() -> None:
    """An object was read: none is refused any more."""
    _refusals().count = 0


def _changed(member: Member) -> BadSample:
    return BadSample("ObjectChanged", f"{member.uri} was replaced after it had been listed: start again")


class Fetched:
    """A group's objects, fetched ahead of who asks for them in order."""

    def __init__(self, members: Sequence[Member], limits: Limits) -> None:
        self._members, self._limits = members, limits
        self._coming: dict[int, Future[bytes | None]] = {}

    def read(self, number: int) -> bytes:
        """The bytes of one of them, as it was listed.

        Raises:
            BadSample: it is not to be read, is too large, vanished, was replaced, or is not given to us.
            StorageError: the store failed, or gives us nothing any more; worth a new start.
        """
        held = 0
        for ahead in range(number, min(number + AHEAD, len(self._members))):
            member = self._members[ahead]
            held += member.size
            if ahead > number and held > AHEAD_BYTES:
                break
            if ahead not in self._coming and self._refusal(member) is None:
                self._coming[ahead] = storage.start_reading(_file(member))
        return self._arrived(self._members[number], number)

    def _arrived(self, member: Member, number: int) -> bytes:
        if (refusal := self._refusal(member)) is not None:
            raise refusal
        try:
            data = storage.finish_reading(
                _file(member), self._coming.pop(number), partial(counters.count_retries, "store")
            )
        except FileNotFoundError:
            raise _gone(member) from None
        except storage.ForbiddenError as reason:
            raise refused(reason) from None
        if data is None:
            raise _changed(member)
        given()
        return data

    def _refusal(self, member: Member) -> BadSample | None:
        """Why an object is not read."""
        if member.problem:
            return BadSample.of(member.problem)
        if member.size > (most := self._limits.max_bytes):
            return BadSample("MediaTooLarge", f"{member.size:,} bytes are more than max_bytes={most:,}")
        return None

    def close(self) -> None:
        """None is needed any more."""
        for reading in self._coming.values():
            reading.cancel()


def _file(member: Member) -> storage.FileInfo:
    return storage.FileInfo(member.uri, member.size, member.etag)
