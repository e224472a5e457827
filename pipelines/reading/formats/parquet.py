"""Parquet files: the one binary column is the media, the rest are fields."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from hybrid_models.errors import BadSample
from pipelines import storage
from pipelines.reading.formats.entry import MAX_ERROR, Entry, ReadOptions, check_columns, stored_bytes
from pipelines.reading.media.decode import sniff_media_type

PARQUET_ROWS = 64
"""Rows of a Parquet shard that are decoded at once, fewer where they are large."""
PARQUET_BYTES = 16 << 20


def read_parquet(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Entry]:
    """One binary column (or struct with `bytes`, as Hugging Face datasets have) is the media; the rest are fields."""
    number, stored = 0, stored_bytes(stream)
    metadata = pq.read_metadata(stream)
    _check_plain(stream, metadata)
    options.limits.check_rows(metadata.num_rows, stored)  # before any data is read
    check_columns(metadata.schema.to_arrow_schema().names, metadata.num_columns)
    file = pq.ParquetFile(stream, metadata=metadata, buffer_size=storage.READ_BUFFER, read_dictionary=_shared(metadata))
    for group in range(metadata.num_row_groups):
        batches = file.iter_batches(_batch_rows(metadata.row_group(group)), row_groups=[group], use_threads=False)
        for batch in batches:
            for row in _parquet_rows(batch):
                yield parquet_entry(row, f"{name}:{number}", options)
                number += 1


def _check_plain(stream: BinaryIO, metadata: pq.FileMetaData) -> None:
    """Raises `BadSample` (`EncryptedParquet`) for encrypted columns: Arrow aborts the process that asks about one."""
    stream.seek(-8, os.SEEK_END)  # the footer's length, before four bytes of magic
    if int.from_bytes(stream.read(4), "little") == metadata.serialized_size + 28:  # with the signature of such a file
        raise BadSample("EncryptedParquet", "its columns are encrypted: store it without encryption")


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
    return int(max(1, min(PARQUET_ROWS, PARQUET_BYTES // size)))


def _parquet_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows as Python values, one at a time. A value that Python does not know (a year of five digits, text that is no
    UTF-8) costs itself only: who asks for it is told why it is not there."""
    for i in range(len(batch)):
        yield {name: _parquet_value(column[i]) for name, column in zip(batch.schema.names, batch.columns, strict=True)}


def _parquet_value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except Exception as error:
        return {"unreadable": f"{type(error).__name__}: {error}"[:MAX_ERROR]}


def count_parquet(stream: BinaryIO, name: str, options: ReadOptions) -> int:
    """What the footer says, which is not to be believed beyond twice what is read: so many lost rows end a night."""
    rows = pq.ParquetFile(stream).metadata.num_rows
    return int(min(rows, 2 * options.limits.shard_rows(stored_bytes(stream))))


def parquet_entry(row: dict[str, Any], sample_id: str, options: ReadOptions) -> Entry:
    """A row by columns → its entry: the one column of bytes is the media, whatever its name."""
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
