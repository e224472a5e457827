"""Lines: plain text, JSON lines, tab-separated values, all of them compressed or not."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO

from hybrid_models.errors import BadSample
from pipelines import storage
from pipelines.reading.formats.entry import Entry, Reader, ReadOptions, check_columns, json_object, stored_bytes
from pipelines.reading.limits import Limits

COUNTED_FIRST = 16 << 20
"""Bytes of a compressed file whose lines are counted before they are read."""
FOREIGN = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),  # first: it begins like UTF-16
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}


def _lines(stream: BinaryIO, options: ReadOptions) -> Iterator[tuple[str | None, str | None]]:
    """`(line, None)` or `(None, error)` for each line, in bounded memory.

    Raises:
        BadSample: the text is in another encoding.
    """
    limit = options.limits.max_bytes
    first = True
    while raw := stream.readline(limit + 1):
        if first:
            first, marked = False, len(raw)
            raw = _begun(raw)
            if len(raw) < marked and not raw.endswith(b"\n"):  # what the mark took is no part of the line's length
                raw += stream.readline(marked - len(raw))
        if len(raw) > limit:
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(limit)
            yield None, f"LineTooLong: a line has more than {limit} bytes"
            continue
        try:
            yield raw.decode("utf-8").rstrip("\r\n"), None
        except UnicodeDecodeError as error:
            yield None, f"TextDecodeError: not UTF-8: {error}"


def whole_text(data: bytes) -> str:
    """An object that is one text, without the end of its last line.

    Raises:
        BadSample: it is in another encoding.
    """
    try:
        return _begun(data).decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise BadSample("TextDecodeError", f"not UTF-8: {error}") from None


def _begun(beginning: bytes) -> bytes:
    """What a text begins with, without a mark of its encoding, which must be UTF-8."""
    if encoding := _foreign_encoding(beginning):
        fix = f"convert it with `iconv -f {encoding} -t UTF-8`"
        raise BadSample("TextDecodeError", f"{encoding}, not UTF-8: {fix}")
    return beginning.removeprefix(codecs.BOM_UTF8)


def _foreign_encoding(beginning: bytes) -> str | None:
    """UTF-32 or UTF-16, by its mark, or by Latin letters that take two bytes each."""
    for name, marks in FOREIGN.items():
        if beginning.startswith(marks):
            return name
    even, odd = beginning[:64:2], beginning[1:64:2]
    return "UTF-16" if odd and any(even) != any(odd) and len(even) > 1 else None


def read_txt(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Entry]:
    """One sentence a line; a blank line is a row, too, as other files may belong to it line by line."""
    for number, (line, error) in enumerate(_lines(stream, options)):
        yield Entry(f"{name}:{number}", fields={"text": line}, error=error)


def read_jsonl(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Entry]:
    """One JSON object a line, blank lines left out; its `id`, if it has one, is the sample's."""
    for number, (line, error) in enumerate(_lines(stream, options)):
        if line is not None and not line.strip():
            continue
        sample_id = f"{name}:{number}"
        try:
            fields = {} if line is None else json_object(line)
        except BadSample as bad:
            fields, error = {}, str(bad)
        named = fields.pop("id", None)
        yield Entry(sample_id if named is None else str(named), fields=fields, error=error)


def read_tsv(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Entry]:
    """The first line names the columns; no quoting. Blank lines are left out where there are several columns."""
    lines = _lines(stream, options)
    header, error = next(lines, (None, "EmptyShard: no header line"))
    if error is not None or header is None:
        raise BadSample.of(f"{error}")
    columns = header.split("\t")
    check_columns([column for column in columns if column], len(columns))
    for number, (line, problem) in enumerate(lines):
        if line is not None and not line.strip(" ") and len(columns) > 1:
            continue
        values = [] if line is None else line.split("\t")
        if problem is None and len(values) != len(columns):
            problem = f"ColumnCountError: {len(values)} columns, the header has {len(columns)}"
        fields: dict[str, Any] = dict(zip(columns, values, strict=False))
        yield Entry(str(fields.pop("id", f"{name}:{number}")), fields=fields, error=problem)


def gzipped(reader: Reader) -> Reader:
    def read(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Entry]:
        _check_lines(stream, options)
        yield from reader(_inflated(stream, options), name, options)

    return read


def _check_lines(stream: BinaryIO, options: ReadOptions) -> None:
    """Raises `BadSample` for more lines, or bytes, than a small file may have, so that no row of a bomb is predicted.

    One line may be a header; blank lines count. A large file is bounded while it is read.
    """
    stored, lines, plain = stored_bytes(stream), 0, _inflated(stream, options)
    if stored > COUNTED_FIRST:
        return
    with suppress(EOFError, gzip.BadGzipFile, zlib.error):  # the rows before the damage are good
        while chunk := plain.read(storage.READ_BUFFER):
            lines += chunk.count(b"\n")
            options.limits.check_rows(lines - 1, stored)


def _inflated(stream: BinaryIO, options: ReadOptions) -> BinaryIO:
    return io.BufferedReader(_Inflated(stream, options.limits), storage.READ_BUFFER)


class _Inflated(io.RawIOBase):
    """What is in a gzip file, and no more of it than allowed."""

    def __init__(self, stream: BinaryIO, limits: Limits) -> None:
        super().__init__()
        self._stored = stored_bytes(stream)
        self._stream = gzip.GzipFile(fileobj=stream)
        ratio = limits.shard_bytes(self._stored)
        self._most, self._given = min(limits.max_shard_bytes, ratio), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read1(len(buffer))  # what is there: a file that was cut off gives its beginning
        self._given += len(data)
        if self._given > self._most:
            options = f"`limits.max_shard_bytes` and `limits.max_compression_ratio` (of its {self._stored:,} bytes)"
            raise BadSample("ShardTooLarge", f"more than {self._most:,} bytes decompressed; {options} allow more")
        buffer[: len(data)] = data
        return len(data)


def count_lines(stream: BinaryIO, name: str, options: ReadOptions) -> int:
    """Lines that end, up to the bound on bytes, and one that does not; in a `.tsv` the first one is no row."""
    plain = _inflated(stream, options) if name.lower().endswith(".gz") else stream
    count, end = 0, b"\n"
    with suppress(BadSample):
        while chunk := plain.read(storage.READ_BUFFER):
            count, end = count + chunk.count(b"\n"), chunk[-1:]
    return count + (end != b"\n") - (".tsv" in name.lower())
