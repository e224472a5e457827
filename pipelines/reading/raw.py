"""A row as it was read, before anything is decoded: the schema that all formats are brought to."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from hybrid_models.errors import BadSample
from pipelines.reading.formats.entry import MAX_ERROR, MAX_ID, Entry, ReadOptions
from pipelines.reading.shards import Shard

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
        pa.field("start_seconds", pa.float64()),  # of a window of a clip, from its first frame
        pa.field("end_seconds", pa.float64()),
    ]
)


def raw_row(shard: Shard, index: int, last: bool, entry: Entry, options: ReadOptions) -> dict[str, Any]:
    """An entry as a row of `RAW_SCHEMA`."""
    try:
        fields = _fields_json(entry, options)
    except BadSample as bad:
        entry = Entry(f"{shard.name}:{index}", error=str(bad))
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
        "object": shard.source(index),
        "start_seconds": entry.start_seconds,
        "end_seconds": entry.end_seconds,
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
