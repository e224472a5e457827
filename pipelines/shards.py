"""Shards → rows: list input objects, and read each one, streaming, into rows of one fixed schema.

Every reader below turns one object into `Entry`s and never loses data silently: what cannot be read ends as an entry
with an error, so a truncated or unreadable shard still has a last row and the night can account for it.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hybrid_models.errors import BadSample, UsageError
from hybrid_models.inputs import Window
from pipelines import storage
from pipelines.limits import Limits, is_memory_error
from pipelines.media import MEDIA_TYPES, sniff_media_type
from pipelines.radar import radar_windows

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
    ]
)
Begin = Callable[[int], None]
"""Is told the index of the row whose turn it is."""
BLOCK_BYTES = 16 << 20
BLOCK_ROWS = 2048
PARQUET_ROWS = 64
"""Rows of a Parquet shard that are decoded at once, fewer where they are large."""
MAX_ID = 1000
"""Characters of a sample's id."""
MAX_ERROR = 2000
"""Characters of an error row's reason."""


@dataclass(frozen=True)
class Shard:
    """One input object, in the state in which it was listed."""

    uri: str
    size: int
    etag: str


@dataclass(frozen=True)
class ReadOptions:
    """How rows are made of a shard.

    Args:
        window: how radar events are cut into samples; None for hybrids that read no radar.
        with_target: radar windows include the observed future, and only issue times that have one are samples.
        stride: every n-th issue time of a radar event is a sample.
        limits: bounds on one row.
    """

    window: Window | None = None
    with_target: bool = False
    stride: int = 1
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Entry:
    """One row of a shard, not yet numbered."""

    sample_id: str
    media: bytes | None = None
    media_type: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    lost_rows: int | None = None
    """How many rows after this one cannot be read, where that is known."""


class NoShardsError(UsageError):
    """There are no shards at an address."""


def list_shards(uri: str) -> list[Shard]:
    """The shards at a folder, a glob pattern or a single object.

    Raises:
        NoShardsError: there are none.
        UsageError: one has a suffix that nothing here reads.
    """
    files = storage.list_files(uri)
    if not files:
        raise NoShardsError(f"no shards found at {uri}: check the address, or write some with `hybrid prepare`")
    unknown = [file.uri for file in files if _suffix(file.name) is None]
    if unknown:
        known = ", ".join(READERS)
        raise UsageError(f"{unknown[0]} is not a shard: known kinds are {known}; name the shards, such as {uri}/*.tar")
    return [Shard(file.uri, file.size, file.etag) for file in files]


def _suffix(name: str) -> str | None:
    return next((suffix for suffix in READERS if name.lower().endswith(suffix)), None)


# ---- one reader per kind -----------------------------------------------------------------------------------------
def _read_tar(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Entry]:
    """WebDataset: consecutive members with the same stem are one sample. Nothing is ever extracted to disk."""
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        group: dict[str, bytes] = {}
        held = 0
        stem: str | None = None
        problem: str | None = None
        for member in _members(tar):
            member_stem, suffix = _split_member(member.name)
            if stem is not None and (member_stem != stem or suffix in group):
                yield _group_entry(stem, group, problem)
                group, held, problem = {}, 0, None
            stem = member_stem
            held += member.size
            if not member.isreg() or member.issparse():
                problem = f"UnsupportedMember: {member.name} is a link, device or sparse file"
            elif held > options.limits.max_bytes:
                problem = f"MemberTooLarge: {member.name} makes {held} bytes, limit {options.limits.max_bytes}"
            else:
                data = tar.extractfile(member)
                group[suffix] = data.read() if data is not None else b""
        if stem is not None:
            yield _group_entry(stem, group, problem)
        _check_tar_end(stream, tar.offset)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """All members but folders, one after the other: a size below zero would lead back to those before."""
    before = -1
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # a million members must not stay in memory
        if member.size < 0 or tar.offset <= before:
            raise tarfile.ReadError(f"{member.name[:MAX_ID]} has {member.size} bytes")
        before = tar.offset
        if not member.isdir():
            yield member


def _count_tar(stream: BinaryIO, name: str, options: ReadOptions) -> int:
    """How many rows `_read_tar` would make, from the members' headers alone."""
    count = 0
    stem: str | None = None
    suffixes: set[str] = set()
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in _members(tar):
            member_stem, suffix = _split_member(member.name)
            if member_stem != stem or suffix in suffixes:
                count, suffixes = count + 1, set()
            stem = member_stem
            suffixes.add(suffix)
        _check_tar_end(stream, tar.offset)
    return count


def _check_tar_end(stream: BinaryIO, offset: int) -> None:
    """An archive ends with zero blocks; `tarfile` takes any broken header in the middle for the end as well."""
    stream.seek(offset)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise EOFError("the archive has no end mark: it is truncated")
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"no valid member header at byte {offset}")


def _split_member(name: str) -> tuple[str, str]:
    folder, _, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), suffix.lower()


def _group_entry(stem: str, group: dict[str, bytes], problem: str | None) -> Entry:
    if problem is not None:
        return Entry(stem, error=problem)
    fields: dict[str, Any] = {}
    try:
        if "txt" in group:
            fields["text"] = group["txt"].decode("utf-8")
        if "json" in group:
            fields.update(_json_object(group["json"]))
    except BadSample as error:
        return Entry(stem, error=str(error))
    except UnicodeDecodeError as error:
        return Entry(stem, error=f"TextDecodeError: {stem}.txt is not UTF-8: {error}")
    media_type = next((suffix for suffix in group if suffix in MEDIA_TYPES), None)
    if media_type is None and not fields:
        return Entry(stem, error=f"UnsupportedMember: {', '.join(group) or 'nothing'} holds no image, clip or text")
    return Entry(stem, group[media_type] if media_type else None, media_type, fields)


def _json_object(text: bytes | str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadSample("JsonDecodeError", str(error)) from error
    if not isinstance(value, dict):
        raise BadSample("JsonDecodeError", f"expected an object, found {type(value).__name__}")
    return value


def _lines(stream: BinaryIO, options: ReadOptions) -> Iterator[tuple[str | None, str | None]]:
    """`(line, None)` or `(None, error)` for each line, in bounded memory."""
    limit = options.limits.max_bytes
    while raw := stream.readline(limit + 1):
        if len(raw) > limit:
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(limit)
            yield None, f"LineTooLong: a line has more than {limit} bytes"
            continue
        try:
            yield raw.decode("utf-8").rstrip("\r\n"), None
        except UnicodeDecodeError as error:
            yield None, f"TextDecodeError: not UTF-8: {error}"


def _read_txt(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Entry]:
    """One sentence a line."""
    for number, (line, error) in enumerate(_lines(stream, options)):
        yield Entry(f"{name}:{number}", fields={"text": line}, error=error)


def _read_jsonl(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Entry]:
    """One JSON object a line; its `id`, if it has one, is the sample's."""
    for number, (line, error) in enumerate(_lines(stream, options)):
        sample_id = f"{name}:{number}"
        try:
            fields = {} if line is None else _json_object(line)
        except BadSample as bad:
            fields, error = {}, str(bad)
        yield Entry(str(fields.pop("id", sample_id)), fields=fields, error=error)


def _read_tsv(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Entry]:
    """The first line names the columns; no quoting."""
    lines = _lines(stream, options)
    header, error = next(lines, (None, "EmptyShard: no header line"))
    if header is None:
        yield Entry(name, error=error)
        return
    columns = header.split("\t")
    for number, (line, problem) in enumerate(lines):
        values = [] if line is None else line.split("\t")
        if problem is None and len(values) != len(columns):
            problem = f"ColumnCountError: {len(values)} columns, the header has {len(columns)}"
        fields: dict[str, Any] = dict(zip(columns, values, strict=False))
        yield Entry(str(fields.pop("id", f"{name}:{number}")), fields=fields, error=problem)


def _read_parquet(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Entry]:
    """One binary column (or struct with `bytes`, as Hugging Face datasets have) is the media; the rest are fields."""
    number = 0
    file = pq.ParquetFile(stream, buffer_size=storage.READ_BUFFER)
    for group in range(file.num_row_groups):
        stored = file.metadata.row_group(group)
        size = BLOCK_BYTES * stored.num_rows // max(1, stored.total_byte_size)
        batches = file.iter_batches(max(1, min(PARQUET_ROWS, size)), row_groups=[group], use_threads=False)
        for batch in batches:
            for row in _parquet_rows(batch):
                yield _parquet_entry(row, f"{name}:{number}", options)
                number += 1


def _parquet_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows as Python values. A value that Python does not know (a year of five digits, text that is no UTF-8) costs
    itself only: who asks for it is told why it is not there."""
    names = batch.schema.names
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadSample("AmbiguousColumns", f"there are two columns '{twice}'; keep one")
    columns = [_parquet_values(column) for column in batch.columns]
    yield from (dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))


def _parquet_values(column: pa.Array) -> list[Any]:
    try:
        return cast("list[Any]", column.to_pylist())
    except Exception:  # of one of its values: which?
        return [_parquet_value(scalar) for scalar in column]


def _parquet_value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except Exception as error:
        return {"unreadable": f"{type(error).__name__}: {error}"[:MAX_ERROR]}


def _count_parquet(stream: BinaryIO, name: str, options: ReadOptions) -> int:
    """What the footer says, which is not to be believed beyond a row a byte."""
    rows = pq.ParquetFile(stream).metadata.num_rows
    return int(min(rows, stream.seek(0, io.SEEK_END)))


def _parquet_entry(row: dict[str, Any], sample_id: str, options: ReadOptions) -> Entry:
    for column in ("id", "sample_id", "key"):
        if isinstance(row.get(column), str | int):
            sample_id = str(row.pop(column))
            break
    media: dict[str, bytes] = {}
    fields: dict[str, Any] = {}
    for column, value in row.items():
        content = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(content, bytes):
            media[column] = content
        else:
            fields[column] = value
    if len(media) > 1:
        return Entry(sample_id, error=f"AmbiguousColumns: {', '.join(media)} are all binary; keep one")
    content = next(iter(media.values()), None)
    if content is not None and len(content) > options.limits.max_bytes:
        return Entry(sample_id, error=f"MemberTooLarge: {len(content)} bytes, limit {options.limits.max_bytes}")
    return Entry(sample_id, content, None if content is None else sniff_media_type(content), fields)


def _read_netcdf(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Entry]:
    """A CF NetCDF radar event: every issue time with enough past frames is a sample."""
    if options.window is None:
        yield Entry(name, error="UnsupportedMedia: this hybrid does not read radar events")
        return
    stem = name.removesuffix(".nc")
    data = stream.read(options.limits.max_bytes + 1)  # one byte too many is refused by `radar_windows`
    for item in radar_windows(data, options.window, options.with_target, options.stride, options.limits):
        sample_id = f"{stem}/{item.issue_time}" if item.issue_time else stem
        if item.error is not None or item.frames is None:
            yield Entry(sample_id, error=str(item.error))
            continue
        fields = {
            "issue_time": item.issue_time,
            "step_minutes": item.step_minutes,
            "km_per_pixel": item.km_per_pixel,
        }
        yield Entry(sample_id, npy_bytes(item.frames), "npy", fields)


def npy_bytes(array: np.ndarray) -> bytes:
    """An array in NumPy's own format, without pickling."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _gzipped(reader: Reader) -> Reader:
    def read(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Entry]:
        yield from reader(_inflated(stream, options), name, options)

    return read


def _inflated(stream: BinaryIO, options: ReadOptions) -> BinaryIO:
    return io.BufferedReader(_Inflated(stream, options.limits.max_shard_bytes), storage.READ_BUFFER)


class _Inflated(io.RawIOBase):
    """What is in a gzip file, and no more of it than allowed."""

    def __init__(self, stream: BinaryIO, most: int) -> None:
        super().__init__()
        self._stream = gzip.GzipFile(fileobj=stream)
        self._most, self._given = most, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read1(len(buffer))  # what is there: a file that was cut off gives its beginning
        self._given += len(data)
        if self._given > self._most:
            raise BadSample("ShardTooLarge", f"more than max_shard_bytes={self._most:,} bytes after decompression")
        buffer[: len(data)] = data
        return len(data)


def _count_lines(stream: BinaryIO, name: str, options: ReadOptions) -> int:
    """Lines that end, and one that does not; in a `.tsv` the first one is no row."""
    plain = _inflated(stream, options) if name.lower().endswith(".gz") else stream
    count, end = 0, b"\n"
    while chunk := plain.read(storage.READ_BUFFER):
        count, end = count + chunk.count(b"\n"), chunk[-1:]
    return count + (end != b"\n") - (".tsv" in name.lower())


Reader = Callable[[BinaryIO, str, ReadOptions], Iterator[Entry]]
Counter = Callable[[BinaryIO, str, ReadOptions], int]
"""How many rows a whole shard would have."""
READERS: dict[str, Reader] = {
    ".tar": _read_tar,
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _gzipped(_read_jsonl),
    ".txt": _read_txt,
    ".txt.gz": _gzipped(_read_txt),
    ".tsv": _read_tsv,
    ".tsv.gz": _gzipped(_read_tsv),
    ".nc": _read_netcdf,
}
COUNTERS: dict[str, Counter] = {
    ".tar": _count_tar,
    ".parquet": _count_parquet,
    **{suffix: _count_lines for suffix in READERS if suffix.startswith((".jsonl", ".txt", ".tsv"))},
}


def is_event(uri: str) -> bool:
    """Whether a shard is a radar event, whose rows are windows that share frames."""
    return uri.lower().endswith(".nc")


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
    reader = READERS[_suffix(name) or ""]
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
    counter = COUNTERS.get(_suffix(name) or "")
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
        unreadable: index → reason; such a row is not read but the shard's last, an error.
        count: whether the rows that are lost with it are counted; that may have been fatal, too.
    """

    unreadable: Mapping[int, str] = field(default_factory=dict)
    count: bool = True


def read_blocks(
    shard: Shard,
    options: ReadOptions,
    stream: BinaryIO | None = None,
    begin: Begin = unwatched,
    trouble: Trouble = Trouble(),
) -> Iterator[pa.Table]:
    """The shard's numbered rows in tables of `RAW_SCHEMA`, each of bounded size.

    Args:
        shard: what to read.
        options: how.
        stream: the shard, opened; by default it is opened here.
        begin: is told the index of each row before it is read.
        trouble: rows that cannot be read.

    Raises:
        StorageError: the store failed, or the shard is not what was listed.
    """
    rows: list[dict[str, Any]] = []
    size = 0
    with open_shard(shard) if stream is None else stream as opened:
        for row in _numbered(shard, options, opened, begin, trouble):
            rows.append(row)
            size += sum(len(row[name] or b"") for name in ("media", "fields", "sample_id", "error"))
            if size >= BLOCK_BYTES or len(rows) >= BLOCK_ROWS:
                yield pa.Table.from_pylist(rows, schema=RAW_SCHEMA)
                rows, size = [], 0
    if rows:
        yield pa.Table.from_pylist(rows, schema=RAW_SCHEMA)


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
        yield _raw_row(shard, index, following is None, entry, options)
        entry, index = following, index + 1


def _raw_row(shard: Shard, index: int, last: bool, entry: Entry, options: ReadOptions) -> dict[str, Any]:
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
