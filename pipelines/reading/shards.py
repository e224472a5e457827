"""Shards → rows: list input objects, and read each one, streaming, into numbered rows of one fixed schema.

Nothing is lost silently: a shard that cannot be read to its end has a last row that says so, and the night can account
for it. How each kind of shard is read is in `reading.readers`; a group of lone objects is a shard of a row each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import pyarrow as pa

from hybrid_models.errors import BadSample, UsageError
from pipelines import storage
from pipelines.reading import objects
from pipelines.reading.formats.entry import MAX_ERROR, MAX_ID, Entry, ReadOptions, json_object
from pipelines.reading.limits import is_memory_error
from pipelines.reading.media import MEDIA_TYPES, sniff_media_type
from pipelines.reading.objects import Member
from pipelines.reading.readers import COUNTERS, READERS, suffix_of

RAW_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),  # URI of the shard
        pa.field("index", pa.int64(), nullable=False),  # position in the shard, from 0
        pa.field("last", pa.bool_(), nullable=False),  # true on the shard's final row
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("media", pa.large_binary()),  # a photograph's, clip's or array's bytes
        pa.field("media_type", pa.string()),  # its suffix, such as jpg
        pa.field("fields", pa.string()),  # the other members, a JSON object
        pa.field("error", pa.string()),  # why the row cannot be used
        pa.field("lost_rows", pa.int64()),  # rows after this one that could not be read, where that is known
        pa.field("object", pa.string()),  # address of the lone object that the row is of
    ]
)
Fetch = Callable[[int], bytes]
"""Number of a group's member → its bytes; raises as `objects.fetch` does."""
Begin = Callable[[int], None]
"""Is told the index of the row whose turn it is."""
BLOCK_BYTES = 16 << 20
BLOCK_ROWS = 2048


@dataclass(frozen=True)
class Shard:
    """One input object, or a group of lone ones, in the state in which it was listed."""

    uri: str
    """Of a group, a name that no object has: FOLDER/@DIGITS."""
    size: int
    etag: str
    members: tuple[Member, ...] = ()
    """The objects of a group."""

    @property
    def addresses(self) -> list[str]:
        """What it was made of."""
        return [member.uri for member in self.members] or [self.uri]


class NoShardsError(UsageError):
    """There are no shards at an address."""


def list_shards(uri: str) -> list[Shard]:
    """The shards at a folder, a glob pattern or a single object; photographs, clips and arrays there in groups.

    Raises:
        NoShardsError: there are none.
        UsageError: one has a suffix that nothing here reads.
    """
    files = storage.list_files(uri)
    if not files:
        why = "it is empty" if storage.exists(uri) else "there is nothing"
        raise NoShardsError(f"no shards found at {uri}: {why}; check the address, or write some with `hybrid prepare`")
    shards: list[Shard] = []
    lone: list[Member] = []
    root = _folder(uri, files)
    for file in files:
        if suffix_of(file.name) is not None:
            shards.append(Shard(file.uri, file.size, file.etag))
        elif objects.media_type_of(file.name) is not None:
            lone.append(Member(file.uri, file.size, file.etag, file.uri.removeprefix(root)))
        else:
            raise UsageError(
                f"{file.uri} is not a shard ({', '.join(READERS)}), nor a photograph, clip or array "
                f"({', '.join(MEDIA_TYPES)}): name what is to be read, such as {uri}/*.tar"
            )
    return [*shards, *grouped(root, lone)]


def _folder(uri: str, files: Sequence[storage.FileInfo]) -> str:
    """The folder, with its `/`, that an address names; that of a pattern is what no `*` stands for."""
    named = storage.absolute(uri)
    if all(file.uri.startswith(f"{named}/") for file in files):
        return f"{named}/"
    return storage.GLOB.split(named, maxsplit=1)[0].rpartition("/")[0] + "/"


def grouped(root: str, members: Sequence[Member]) -> list[Shard]:
    """Lone objects as shards, named below a root that ends with `/` or otherwise cannot be part of a longer name."""
    return [Shard(f"{root}@{each.digits}", each.size, each.etag, each.members) for each in objects.group(members)]


def lone(uri: str) -> Shard:
    """One object as a group, whatever group it was read in.

    Raises:
        FileNotFoundError: it is not there.
    """
    file = storage.info(uri)
    return Shard(f"{uri}@", file.size, file.etag, (Member(file.uri, file.size, file.etag, file.name),))


# ---- numbering and blocks ----------------------------------------------------------------------------------------
def open_shard(shard: Shard) -> BinaryIO:
    """A shard, seekable, as it was listed.

    Raises:
        StorageError: the object changed or vanished since it was listed, or cannot be read; worth a new start.
    """
    try:
        now = storage.info(shard.uri)
        if now.etag != shard.etag:
            message = f"cannot read {shard.uri}: it was replaced after it had been listed; start again"
            raise storage.StorageError(message)
        return storage.open_input(shard.uri)
    except FileNotFoundError:
        raise storage.StorageError(f"cannot read {shard.uri}: it was removed after it had been listed") from None


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


@dataclass(frozen=True)
class Trouble:
    """What is known of a shard that its reader did not survive.

    Args:
        unreadable: index → reason; such a row is not read but an error, and the shard's last if it is no group.
        count: whether the rows that are lost with it are counted; that may have been fatal, too.
    """

    unreadable: Mapping[int, str] = field(default_factory=dict)
    count: bool = True


def read_blocks(
    shard: Shard,
    options: ReadOptions,
    source: BinaryIO | Fetch | None = None,
    begin: Begin = unwatched,
    trouble: Trouble = Trouble(),
    first: int = 0,
) -> Iterator[pa.Table]:
    """The shard's numbered rows in tables of `RAW_SCHEMA`, each of bounded size.

    Args:
        shard: what to read.
        options: how.
        source: the shard, opened, or who fetches a group's members; by default it is opened here.
        begin: is told the index of each row before it is read.
        trouble: rows that cannot be read.
        first: rows before this one need not come.

    Raises:
        StorageError: the store failed, or the shard is not what was listed.
    """
    if shard.members:
        fetch = cast("Fetch | None", source) or (lambda number: objects.fetch(shard.members[number], options.limits))
        yield from _blocks(_members(shard, options, fetch, begin, trouble, first))
        return
    with open_shard(shard) if source is None else cast(BinaryIO, source) as opened:
        yield from _blocks(_numbered(shard, options, opened, begin, trouble))


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
    shard: Shard, options: ReadOptions, fetch: Fetch, begin: Begin, trouble: Trouble, first: int
) -> Iterator[dict[str, Any]]:
    """A row for each of a group's objects; one that cannot be read costs itself only."""
    for index in range(first, len(shard.members)):
        member = shard.members[index]
        begin(index)
        fields: dict[str, Any] = {}
        try:
            fields = json_object(member.fields)
            if index in trouble.unreadable:
                raise BadSample.of(trouble.unreadable[index])
            media, kind = fetch(index), objects.media_type_of(member.uri)
            entry = Entry(member.sample_id, media, kind or sniff_media_type(media), fields)
        except BadSample as bad:
            entry = Entry(member.sample_id, fields=fields, error=str(bad), lost_rows=member.lost_rows)
        row = raw_row(shard, index, index == len(shard.members) - 1, entry, options)
        yield {**row, "object": member.uri}


def last_row(shard: Shard, index: int, reason: str, lost: int) -> pa.Table:
    """A row of `RAW_SCHEMA` that ends a shard of which no more can be read, nor counted."""
    entry = Entry(f"{shard.uri.rsplit('/', 1)[-1]}:{index}", error=reason, lost_rows=lost or None)
    return pa.Table.from_pylist([raw_row(shard, index, True, entry, ReadOptions())], schema=RAW_SCHEMA)


def _numbered(
    shard: Shard, options: ReadOptions, stream: BinaryIO, begin: Begin, trouble: Trouble
) -> Iterator[dict[str, Any]]:
    name = shard.uri.rsplit("/", 1)[-1]
    entries = read_entries(stream, name, options)

    def read(index: int) -> Entry | None:
        begin(index)
        if index - 1 in trouble.unreadable:
            return None
        if index in trouble.unreadable:
            lost = lost_rows(stream, name, options, index + 1) if trouble.count else None
            return Entry(f"{name}:{index}", error=trouble.unreadable[index], lost_rows=lost)
        return next(entries, None)

    entry, index = read(0), 0
    while entry is not None:
        following = read(index + 1)
        yield raw_row(shard, index, following is None, entry, options)
        entry, index = following, index + 1


def raw_row(shard: Shard, index: int, last: bool, entry: Entry, options: ReadOptions) -> dict[str, Any]:
    """An entry as a row of `RAW_SCHEMA`."""
    try:
        fields = _fields_json(entry, options)
    except BadSample as bad:
        entry = Entry(f"{shard.uri.rsplit('/', 1)[-1]}:{index}", error=str(bad))
        fields = "{}"
    return {
        "shard": shard.uri,
        "index": index,
        "last": last,
        "sample_id": _utf8(entry.sample_id),
        "media": entry.media,
        "media_type": entry.media_type,
        "fields": fields,
        "error": None if entry.error is None else _utf8(entry.error[:MAX_ERROR]),
        "lost_rows": entry.lost_rows,
        "object": None,
    }


def _fields_json(entry: Entry, options: ReadOptions) -> str:
    """A row's fields as JSON.

    Raises:
        BadSample: they, or the row's id, are beyond all measure.
    """
    if len(entry.sample_id) > MAX_ID:
        raise BadSample("IdTooLong", f"the id has {len(entry.sample_id):,} characters, at most {MAX_ID} are allowed")
    try:
        text = json.dumps(entry.fields, default=str, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadSample("FieldError", f"{type(error).__name__}: {error}") from error
    if entry.error is None and len(text) > (most := options.limits.max_bytes):
        raise BadSample("FieldsTooLarge", f"{len(text):,} characters are more than max_bytes={most:,}")
    return _utf8(text)


def _utf8(text: str) -> str:
    """Text that Arrow can hold: half of a surrogate pair (a cut emoji, an undecodable file name) becomes `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")
