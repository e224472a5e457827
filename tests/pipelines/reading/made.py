"""Shards that tests make, read."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.raw import RAW_SCHEMA
from pipelines.reading.rows import read_blocks
from pipelines.reading.shards import list_shards


def rows_of(folder: Path, name: str, content: bytes, **options: object) -> list[dict]:
    """The rows of one shard with this content."""
    storage.write_bytes(str(folder / name), content, storage.anything)
    (shard,) = list_shards(str(folder / name))
    tables = list(read_blocks(shard, ReadOptions(**options)))  # type: ignore[arg-type]
    assert all(table.schema == RAW_SCHEMA for table in tables)
    rows = pa.concat_tables(tables).to_pylist()
    assert [row["index"] for row in rows] == list(range(len(rows)))
    assert [row["last"] for row in rows] == [False] * (len(rows) - 1) + [True]
    assert {row["shard"] for row in rows} == {str(folder / name)}
    return rows


def parquet(table: pa.Table, **options: object) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()
