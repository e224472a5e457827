"""Shards → rows: list input objects, and read each one, streaming, into rows of one fixed schema.

Every reader below turns one object into `Entry`s and never loses data silently: what cannot be read ends as an entry
with an error, so a truncated or unreadable shard still has a last row and the night can account for it.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hybrid_models.errors import BadSample, UsageError
from hybrid_models.inputs import Window
from pipelines import storage
from pipelines.limits import Limits
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
    ]
)
Begin = Callable[[int], None]
"""Is told the index of the row whose turn it is."""
BLOCK_BYTES = 16 << 20
BLOCK_ROWS = 2048
FOREIGN = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),  # first: it begins like UTF-16
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
BAD_DATA = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowException)


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
        why = "it is empty" if storage.exists(uri) else "there is nothing"
        raise NoShardsError(f"no shards found at {uri}: {why}; check the address, or write some with `hybrid prepare`")
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
        stem: str | None = None
        problem: str | None = None
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # a million members must not stay in memory
            if member.isdir():
                continue
            member_stem, suffix = _split_member(member.name)
            if stem is not None and (member_stem != stem or suffix in group):
                yield _group_entry(stem, group, problem)
                group, problem = {}, None
            stem = member_stem
            if not member.isreg():
                problem = f"UnsupportedMember: {member.name} is a link or device, not a file"
            elif member.size > options.limits.max_bytes:
                problem = f"MemberTooLarge: {member.name} has {member.size} bytes, limit {options.limits.max_bytes}"
            else:
                data = tar.extractfile(member)
                group[suffix] = data.read() if data is not None else b""
        if stem is not None:
            yield _group_entry(stem, group, problem)
        _check_tar_end(stream, tar.offset)


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
    """`(line, None)` or `(None, error)` for each line, in bounded memory; a text in another encoding is one error."""
    limit = options.limits.max_bytes
    first = True
    while raw := stream.readline(limit + 1):
        if first and (encoding := _foreign_encoding(raw)):
            yield None, f"TextDecodeError: {encoding}, not UTF-8: convert it with `iconv -f {encoding} -t UTF-8`"
            return
        if first:
            raw, first = raw.removeprefix(codecs.BOM_UTF8), False
        if len(raw) > limit:
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(limit)
            yield None, f"LineTooLong: a line has more than {limit} bytes"
            continue
        try:
            yield raw.decode("utf-8").rstrip("\r\n"), None
        except UnicodeDecodeError as error:
            yield None, f"TextDecodeError: not UTF-8: {error}"


def _foreign_encoding(beginning: bytes) -> str | None:
    """UTF-32 or UTF-16, by its mark, or by Latin letters that take two bytes each."""
    for name, marks in FOREIGN.items():
        if beginning.startswith(marks):
            return name
    even, odd = beginning[:64:2], beginning[1:64:2]
    return "UTF-16" if odd and any(even) != any(odd) and len(even) > 1 else None


def _read_txt(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Entry]:
    """One sentence a line; a blank line is a row, too, as other files may belong to it line by line."""
    for number, (line, error) in enumerate(_lines(stream, options)):
        yield Entry(f"{name}:{number}", fields={"text": line}, error=error)


def _read_jsonl(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Entry]:
    """One JSON object a line, blank lines left out; its `id`, if it has one, is the sample's."""
    for number, (line, error) in enumerate(_lines(stream, options)):
        if line is not None and not line.strip():
            continue
        sample_id = f"{name}:{number}"
        try:
            fields = {} if line is None else _json_object(line)
        except BadSample as bad:
            fields, error = {}, str(bad)
        yield Entry(str(fields.pop("id", sample_id)), fields=fields, error=error)


def _read_tsv(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Entry]:
    """The first line names the columns; no quoting. Blank lines are left out where there are several columns."""
    lines = _lines(stream, options)
    header, error = next(lines, (None, "EmptyShard: no header line"))
    if header is None:
        yield Entry(name, error=error)
        return
    columns = header.split("\t")
    for number, (line, problem) in enumerate(lines):
        if line is not None and not line.strip(" ") and len(columns) > 1:
            continue
        values = [] if line is None else line.split("\t")
        if problem is None and len(values) != len(columns):
            problem = f"ColumnCountError: {len(values)} columns, the header has {len(columns)}"
        fields: dict[str, Any] = dict(zip(columns, values, strict=False))
        yield Entry(str(fields.pop("id", f"{name}:{number}")), fields=fields, error=problem)


def _read_parquet(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Entry]:
    """One binary column (or struct with `bytes`, as Hugging Face datasets have) is the media; the rest are fields."""
    number = 0
    try:
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=64):
            for row in batch.to_pylist():
                yield _parquet_entry(row, f"{name}:{number}", options)
                number += 1
    except OSError as error:  # damaged pages; what the store itself cannot read is a StorageError
        raise pa.ArrowInvalid(str(error)) from error


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
        with gzip.GzipFile(fileobj=stream) as plain:
            yield from reader(plain, name, options)  # type: ignore[arg-type]

    return read


Reader = Callable[[BinaryIO, str, ReadOptions], Iterator[Entry]]
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


def is_event(uri: str) -> bool:
    """Whether a shard is a radar event, whose rows are windows that share frames."""
    return uri.lower().endswith(".nc")


# ---- numbering and blocks ----------------------------------------------------------------------------------------
def read_entries(shard: Shard, options: ReadOptions) -> Iterator[Entry]:
    """All rows of a shard. Data that cannot be read any further ends the shard with one error row; an empty shard
    gives one error row, too, so that it does not disappear.

    Raises:
        StorageError: the object changed or vanished since it was listed, or cannot be read; worth a new start.
    """
    try:
        now = storage.info(shard.uri)
    except FileNotFoundError:
        raise storage.StorageError(f"cannot read {shard.uri}: it was removed after it had been listed") from None
    if now.etag != shard.etag:
        raise storage.StorageError(f"cannot read {shard.uri}: it was replaced after it had been listed; start again")
    reader = READERS[_suffix(now.name) or ""]
    count = 0
    try:
        with storage.open_input(shard.uri) as stream:
            for entry in reader(stream, now.name, options):
                yield entry
                count += 1
    except BAD_DATA as error:
        yield Entry(f"{now.name}:{count}", error=f"ShardReadError: {type(error).__name__}: {error}")
        return
    if count == 0:
        yield Entry(now.name, error="EmptyShard: there is no sample in this shard")


def unwatched(index: int) -> None:
    """A `Begin` for those whom nobody watches."""


def read_blocks(
    shard: Shard,
    options: ReadOptions,
    begin: Begin = unwatched,
    unreadable: Mapping[int, str] = MappingProxyType({}),
) -> Iterator[pa.Table]:
    """The shard's numbered rows in tables of `RAW_SCHEMA`, each of bounded size.

    Args:
        shard: what to read.
        options: how.
        begin: is told the index of each row before it is read.
        unreadable: index → reason; such a row is not read but the shard's last, an error.
    """
    rows: list[dict[str, Any]] = []
    size = 0
    for row in _numbered(shard, options, begin, unreadable):
        rows.append(row)
        size += len(row["media"] or b"") + len(row["fields"])
        if size >= BLOCK_BYTES or len(rows) >= BLOCK_ROWS:
            yield pa.Table.from_pylist(rows, schema=RAW_SCHEMA)
            rows, size = [], 0
    if rows:
        yield pa.Table.from_pylist(rows, schema=RAW_SCHEMA)


def _numbered(
    shard: Shard, options: ReadOptions, begin: Begin, unreadable: Mapping[int, str]
) -> Iterator[dict[str, Any]]:
    entries = read_entries(shard, options)

    def read(index: int) -> Entry | None:
        begin(index)
        if index - 1 in unreadable:
            return None
        if index in unreadable:
            return Entry(f"{shard.uri.rsplit('/', 1)[-1]}:{index}", error=unreadable[index])
        return next(entries, None)

    entry, index = read(0), 0
    while entry is not None:
        following = read(index + 1)
        yield {
            "shard": shard.uri,
            "index": index,
            "last": following is None,
            "sample_id": _utf8(entry.sample_id),
            "media": entry.media,
            "media_type": entry.media_type,
            "fields": _utf8(json.dumps(entry.fields, default=str, ensure_ascii=False)),
            "error": None if entry.error is None else _utf8(entry.error),
        }
        entry, index = following, index + 1


def _utf8(text: str) -> str:
    """Text that Arrow can hold: half of a surrogate pair (a cut emoji, an undecodable file name) becomes `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")
