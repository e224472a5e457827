"""One reader for each kind of shard: a stream → entries, in bounded memory.

A reader never loses data silently: a row that cannot be used is an entry with an error. Where it cannot go on it
raises, whatever it is that it stumbled over; a counter then tells how many rows there would have been.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hybrid_models.errors import BadSample
from hybrid_models.inputs import Window
from pipelines import storage
from pipelines.reading.limits import Limits
from pipelines.reading.media import MEDIA_TYPES, sniff_media_type
from pipelines.reading.radar import radar_windows

PARQUET_ROWS = 64
"""Rows of a Parquet shard that are decoded at once, fewer where they are large."""
PARQUET_BYTES = 16 << 20
MAX_ID = 1000
"""Characters of a sample's id."""
MAX_ERROR = 2000
"""Characters of an error row's reason."""
FOREIGN = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),  # first: it begins like UTF-16
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}


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


def _read_tar(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Entry]:
    """WebDataset: consecutive members with the same stem are one sample. Nothing is ever extracted to disk."""
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        group: dict[str, bytes] = {}
        held = 0
        stem: str | None = None
        problem: str | None = None
        try:
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
        except Exception:
            if stem is not None and (group or problem):  # what there is of it is whole
                yield _group_entry(stem, group, problem)
            raise
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
    """`(line, None)` or `(None, error)` for each line, in bounded memory.

    Raises:
        BadSample: the text is in another encoding.
    """
    limit = options.limits.max_bytes
    first = True
    while raw := stream.readline(limit + 1):
        if first and (encoding := _foreign_encoding(raw)):
            fix = f"convert it with `iconv -f {encoding} -t UTF-8`"
            raise BadSample("TextDecodeError", f"{encoding}, not UTF-8: {fix}")
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
    metadata = pq.read_metadata(stream)
    file = pq.ParquetFile(stream, metadata=metadata, buffer_size=storage.READ_BUFFER, read_dictionary=_shared(metadata))
    for group in range(metadata.num_row_groups):
        batches = file.iter_batches(_batch_rows(metadata.row_group(group)), row_groups=[group], use_threads=False)
        for batch in batches:
            for row in _parquet_rows(batch):
                yield _parquet_entry(row, f"{name}:{number}", options)
                number += 1


def _shared(metadata: pq.FileMetaData) -> list[str]:
    """Columns that stay as they are stored: a dictionary may hold one large value for many rows."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    kept = {
        chunk.path_in_schema
        for group in groups
        for chunk in (group.column(i) for i in range(group.num_columns))
        if chunk.has_dictionary_page and chunk.physical_type == "BYTE_ARRAY"
    }
    kinds = (pa.binary(), pa.string())
    return [field.name for field in metadata.schema.to_arrow_schema() if field.name in kept and field.type in kinds]


def _batch_rows(group: pq.RowGroupMetaData) -> int:
    """Rows whose values have some megabytes together. Of values in a list or struct that a dictionary holds, each row
    may have the largest."""
    size = max(1, group.total_byte_size // max(1, group.num_rows))
    for chunk in (group.column(i) for i in range(group.num_columns)):
        if "." in chunk.path_in_schema and chunk.has_dictionary_page and chunk.physical_type == "BYTE_ARRAY":
            size = max(size, chunk.total_uncompressed_size)
    return max(1, min(PARQUET_ROWS, PARQUET_BYTES // size))


def _parquet_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows as Python values, one at a time. A value that Python does not know (a year of five digits, text that is no
    UTF-8) costs itself only: who asks for it is told why it is not there."""
    names = batch.schema.names
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadSample("AmbiguousColumns", f"there are two columns '{twice}'; keep one")
    for i in range(len(batch)):
        yield {name: _parquet_value(column[i]) for name, column in zip(names, batch.columns, strict=True)}


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


def suffix_of(name: str) -> str | None:
    """Which reader an object has, by its name."""
    return next((suffix for suffix in READERS if name.lower().endswith(suffix)), None)
