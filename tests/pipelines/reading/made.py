"""Shards that tests make, read."""

import base64
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.parquet import encryption

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


class _Kms(encryption.KmsClient):
    """Keeps no secret: each key is wrapped as it is."""

    def __init__(self) -> None:
        super().__init__()

    def wrap_key(self, key: bytes, name: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, wrapped: bytes, name: str) -> bytes:
        return base64.b64decode(wrapped)


def encrypted_parquet(table: pa.Table, column: str, plain_footer: bool) -> bytes:
    """A Parquet file with an encrypted column, whose footer is readable or encrypted, too."""
    factory = encryption.CryptoFactory(lambda config: _Kms())
    wanted = encryption.EncryptionConfiguration("footer", column_keys={"key": [column]}, plaintext_footer=plain_footer)
    keys = factory.file_encryption_properties(encryption.KmsConnectionConfig(), wanted)
    return parquet(table, encryption_properties=keys)
