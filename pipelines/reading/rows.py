"""A shard → rows: reads it, streaming, into numbered rows of one fixed schema.

Nothing is lost silently: a shard that cannot be read to its end has a last row that says so, and the night can account
for it. How each kind of shard is read is in `reading.readers`; a group of lone objects has a row for each; a clip that
is cut has one for each window.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, cast

import pyarrow as pa

from hybrid_models.errors import BadSample
from pipelines import storage
from pipelines.reading import objects
from pipelines.reading.formats.entry import Entry, ReadOptions, json_object
from pipelines.reading.formats.text import whole_text
from pipelines.reading.limits import is_memory_error
from pipelines.reading.media.decode import FRAMES, pack_frames, sniff_media_type
from pipelines.reading.media.video import ClipWindow, cut_clip, is_cut
from pipelines.reading.raw import RAW_SCHEMA, raw_row
from pipelines.reading.readers import COUNTERS, READERS, suffix_of
from pipelines.reading.shards import Shard

Fetch = Callable[[int], bytes]
"""Number of a group's member → its bytes; raises as `objects.fetch` does."""
Begin = Callable[[int], None]
"""Is told the index of the row whose turn it is."""
Tell = Callable[[str, int], None]
"""Is told what is done, one of `PHASES`, and the index of the row whose turn it is."""
READ, DECODE, DEMUX = PHASES = ("read", "decode", "demux")
"""A row is read; a row, or a window, is decoded; the packets of a window are read."""
BLOCK_BYTES = 16 << 20
BLOCK_ROWS = 2048


def open_shard(shard: Shard) -> BinaryIO:
    """A shard, seekable, as it was listed.

    Raises:
        StorageError: the object changed or vanished since it was listed, or cannot be read; worth a new start.
    """
    uri = shard.members[0].uri if shard.cut else shard.uri
    check_as_listed(shard)
    try:
        return storage.open_input(uri)
    except FileNotFoundError:
        raise _removed(uri) from None


def check_as_listed(shard: Shard) -> None:
    """Refuses a shard that is another one than was listed.

    Raises:
        StorageError: the object changed or vanished, or cannot be looked up; worth a new start.
    """
    uri, etag = (shard.members[0].uri, shard.members[0].etag) if shard.cut else (shard.uri, shard.etag)
    try:
        if storage.info(uri).etag != etag:
            raise storage.StorageError(f"cannot read {uri}: it was replaced after it had been listed; start again")
    except FileNotFoundError:
        raise _removed(uri) from None


def _removed(uri: str) -> storage.StorageError:
    return storage.StorageError(f"cannot read {uri}: it was removed after it had been listed")


def read_entries(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Entry]:
    """All rows of a shard. Whatever keeps it from being read any further, other than the store, ends it with one error
    row that tells how many are lost; an empty shard gives one error row, too, so that it does not disappear.

    Raises:
        StorageError: the store failed.
        MemoryError: there was not enough memory for the next row.
    """
    reader = READERS[suffix_of(name) or ""]
    count = 0
    try:
        for entry in reader(stream, name, options):
            yield entry
            count += 1
    except (storage.StorageError, ImportError):
        raise
    except Exception as error:  # readers raise whatever they stumble over in broken bytes: no shorter list is safe
        if is_memory_error(error):
            raise MemoryError(str(error)) from error
        reason = str(error) if isinstance(error, BadSample) else f"ShardReadError: {type(error).__name__}: {error}"
        yield Entry(f"{name}:{count}", error=reason, lost_rows=lost_rows(stream, name, options, count + 1))
        return
    if count == 0:
        yield Entry(name, error="EmptyShard: there is no sample in this shard")


def lost_rows(stream: BinaryIO, name: str, options: ReadOptions, known: int) -> int | None:
    """How many rows a shard has after the first `known` ones; None where it does not tell."""
    counter = COUNTERS.get(suffix_of(name) or "")
    if counter is None:
        return None
    try:
        stream.seek(0)
        return max(0, counter(stream, name, options) - known)
    except (storage.StorageError, MemoryError):
        raise
    except Exception:  # what keeps the rows from being read may keep them from being counted
        return None


def unwatched(index: int) -> None:
    """A `Begin` for those whom nobody watches."""


def untold(phase: str, index: int) -> None:
    """A `Tell` for those whom nobody watches."""


@dataclass(frozen=True)
class Trouble:
    """What is known of a shard that its reader did not survive.

    Args:
        unreadable: index → reason; such a row is not read but an error, and the shard's last if it is no group.
        ended: index → reason; a clip whose windows are rows ends with this one.
        undecodable: such a window is not decoded; whoever decodes rows says why.
        count: whether the rows that are lost with it are counted; that may have been fatal, too.
    """

    unreadable: Mapping[int, str] = field(default_factory=dict)
    ended: Mapping[int, str] = field(default_factory=dict)
    undecodable: Collection[int] = ()
    count: bool = True


def read_blocks(
    shard: Shard,
    options: ReadOptions,
    source: BinaryIO | Fetch | None = None,
    tell: Tell = untold,
    trouble: Trouble = Trouble(),
    first: int = 0,
    until: int | None = None,
) -> Iterator[pa.Table]:
    """The shard's numbered rows in tables of `RAW_SCHEMA`, each of bounded size.

    Args:
        shard: what to read.
        options: how.
        source: the shard, opened, or who fetches a group's members; by default it is opened here.
        tell: is told the index of each row before it is read.
        trouble: rows that cannot be read.
        first: rows before this one need not come.
        until: after `first`, the first row that does not come any more; the one before it is the last.

    Raises:
        StorageError: the store failed, or the shard is not what was listed.
    """
    if shard.members and not shard.cut:
        fetch = cast("Fetch | None", source) or (lambda number: objects.fetch(shard.members[number], options.limits))
        members = range(first, len(shard.members) if until is None else min(until, len(shard.members)))
        yield from _blocks(_members(shard, options, fetch, tell, trouble, members))
        return
    with open_shard(shard) if source is None else cast(BinaryIO, source) as opened:
        reading = _Reading(shard, options, opened, tell, trouble, first)
        entries = _windows_of_one(reading) if shard.cut else _entries(reading)
        yield from _blocks(_numbered(reading, entries, first if shard.cut else 0, until))


def _blocks(rows: Iterable[dict[str, Any]]) -> Iterator[pa.Table]:
    held: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        held.append(row)
        size += sum(len(row[name] or b"") for name in ("media", "fields", "sample_id", "error"))
        if size >= BLOCK_BYTES or len(held) >= BLOCK_ROWS:
            yield pa.Table.from_pylist(held, schema=RAW_SCHEMA)
            held, size = [], 0
    if held:
        yield pa.Table.from_pylist(held, schema=RAW_SCHEMA)


def _members(
    shard: Shard, options: ReadOptions, fetch: Fetch, tell: Tell, trouble: Trouble, wanted: range
) -> Iterator[dict[str, Any]]:
    """A row for each of the wanted ones of a group's objects; one that cannot be read costs itself only."""
    for index in wanted:
        member = shard.members[index]
        tell(READ, index)
        fields: dict[str, Any] = {}
        try:
            fields = json_object(member.fields)
            if index in trouble.unreadable:
                raise BadSample.of(trouble.unreadable[index])
            data, kind = fetch(index), objects.media_type_of(member.uri)
            if objects.is_text(member.uri):
                entry = Entry(member.sample_id, fields={"text": whole_text(data), **fields})
            else:
                entry = Entry(member.sample_id, data, kind or sniff_media_type(data), fields)
        except BadSample as bad:
            entry = Entry(member.sample_id, fields=fields, error=str(bad), lost_rows=member.lost_rows)
        yield raw_row(shard, index, index == len(shard.members) - 1, entry, options)


def last_row(shard: Shard, index: int, reason: str, lost: int) -> pa.Table:
    """A row of `RAW_SCHEMA` that ends a shard of which no more can be read, nor counted."""
    entry = Entry(f"{shard.name}:{index}", error=reason, lost_rows=lost or None)
    return pa.Table.from_pylist([raw_row(shard, index, True, entry, ReadOptions())], schema=RAW_SCHEMA)


@dataclass(frozen=True)
class _Reading:
    """One shard that is read from a stream."""

    shard: Shard
    options: ReadOptions
    stream: BinaryIO
    tell: Tell
    trouble: Trouble
    first: int

    def lost_after(self, index: int) -> int | None:
        """How many rows are lost with one that cannot be read, where that is known: of windows it is not."""
        if self.options.cut is not None or not self.trouble.count:
            return None
        return lost_rows(self.stream, self.shard.name, self.options, index + 1)


def _numbered(reading: _Reading, entries: Iterator[Entry], index: int, until: int | None) -> Iterator[dict[str, Any]]:
    unreadable, limits, stored = reading.trouble.unreadable, reading.options.limits, reading.shard.size

    def read(index: int) -> Entry | None:
        if index == until:
            return None
        reading.tell(READ, index)
        if index - 1 in unreadable or index > limits.shard_rows(stored):
            return None
        if index in unreadable:
            lost = reading.lost_after(index)
            return Entry(f"{reading.shard.name}:{index}", error=unreadable[index], lost_rows=lost)
        entry = next(entries, None)
        try:
            if entry is not None:
                limits.check_rows(index + 1, stored)
        except BadSample as bad:
            return Entry(f"{reading.shard.name}:{index}", error=str(bad), lost_rows=reading.lost_after(index))
        return entry

    entry = read(index)
    while entry is not None:
        following = read(index + 1)
        yield raw_row(reading.shard, index, following is None, entry, reading.options)
        entry, index = following, index + 1


# ---- windows of clips ----------------------------------------------------------------------------------------------
def _entries(reading: _Reading) -> Iterator[Entry]:
    """A shard's rows; where clips are cut, a row for each window."""
    cuts = reading.options.cut is not None and reading.options.visual is not None
    index = 0
    for entry in read_entries(reading.stream, reading.shard.name, reading.options):
        if not cuts or entry.media is None or not is_cut(entry.media_type):
            yield entry
            index += 1
            continue
        for window in _windows(reading, entry, io.BytesIO(entry.media), index, 0):
            yield window
            index += 1
        reading.tell(READ, index)


def _windows_of_one(reading: _Reading) -> Iterator[Entry]:
    """The windows of a lone clip, from the first one that is needed."""
    (member,) = reading.shard.members
    try:
        entry = Entry(member.sample_id, media_type=objects.media_type_of(member.uri), fields=json_object(member.fields))
    except BadSample as bad:
        yield Entry(member.sample_id, error=str(bad))
        return
    yield from _windows(reading, entry, reading.stream, 0, reading.first)


def _windows(reading: _Reading, clip: Entry, stream: BinaryIO, index: int, number: int) -> Iterator[Entry]:
    """A clip's windows, the first of which would be row `index`, from the one of a number on."""
    options, trouble = reading.options, reading.trouble
    assert options.cut is not None
    assert options.visual is not None

    def wanted(number: int) -> bool:
        row = index + number
        if row < reading.first or row in trouble.undecodable:
            return False
        reading.tell(DECODE, row)
        return True

    windows = cut_clip(stream, clip.media_type or "", options.visual, options.cut, options.limits, number, wanted)
    for row in itertools.count(index + number):
        if row in trouble.ended:
            start = options.cut.start(row - index)
            yield _window_entry(clip, ClipWindow(row - index, start, None, error=BadSample.of(trouble.ended[row])))
            return
        reading.tell(DEMUX, row)
        window = next(windows, None)
        if window is None:
            return
        yield _window_entry(clip, window)


def _window_entry(clip: Entry, window: ClipWindow) -> Entry:
    """A window as a row, whose id is a media fragment's (https://www.w3.org/TR/media-frags/): `a.mp4#t=10,20`."""
    span = ",".join(f"{round(time, 3):.12g}" for time in (window.start, window.end) if time is not None)
    whole = window.number == 0 and window.end is None
    return replace(
        clip,
        sample_id=clip.sample_id if whole else f"{clip.sample_id}#t={span}",
        media=None if window.frames is None else pack_frames(window.frames),
        media_type=None if window.frames is None else FRAMES,
        error=None if window.error is None else str(window.error),
        start_seconds=None if whole else window.start,
        end_seconds=window.end,
    )
