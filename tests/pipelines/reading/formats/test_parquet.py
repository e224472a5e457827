"""Parquet files."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pipelines.reading.made import encrypted_parquet, parquet, rows_of
from tests.tiny import jpeg


def test_parquet_with_plain_and_hugging_face_columns(tmp_path: Path) -> None:
    photo = jpeg(1)
    table = pa.table({"id": ["a", "b"], "image": [{"bytes": photo, "path": "p"}] * 2, "captions": [["x"], []]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    rows = rows_of(tmp_path, "x.parquet", buffer.getvalue())
    assert [(row["sample_id"], row["media"] == photo, row["media_type"]) for row in rows] == [
        ("a", True, "jpg"),
        ("b", True, "jpg"),
    ]
    assert json.loads(rows[0]["fields"]) == {"captions": ["x"]}
    (row,) = rows_of(tmp_path, "y.parquet", buffer.getvalue()[:-20])
    assert row["error"].startswith("ShardReadError: Arrow")


def test_two_binary_columns_are_ambiguous(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"x": [b"1"], "y": [b"2"]}), buffer)
    (row,) = rows_of(tmp_path, "x.parquet", buffer.getvalue())
    assert row["error"] == "AmbiguousColumns: x, y are all binary; keep one"


def test_damaged_parquet_pages_and_footers_are_error_rows(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["a b c" * 200] * 500}), buffer, compression="snappy", use_dictionary=False)
    for number, position in enumerate((4, 20, -9)):
        content = bytearray(buffer.getvalue())
        for offset in range(4):
            content[position + offset] ^= 0xFF
        rows = rows_of(tmp_path, f"{number}.parquet", bytes(content))
        assert rows[-1]["error"].startswith("ShardReadError"), position


@pytest.mark.parametrize(
    ("plain_footer", "reason"),
    [
        (True, "EncryptedParquet: its columns are encrypted: store it without encryption"),
        (False, "ShardReadError: OSError: Could not read encrypted metadata, "),
    ],
)
def test_encrypted_parquet_is_one_error_row_that_says_so(plain_footer: bool, reason: str, tmp_path: Path) -> None:
    """Arrow aborts the process that asks for an encrypted column of a readable footer."""
    content = encrypted_parquet(pa.table({"id": ["a", "b"], "text": ["x", "y"]}), "text", plain_footer)
    (row,) = rows_of(tmp_path, "x.parquet", content)
    assert row["error"].startswith(reason)


def test_values_that_python_does_not_know_cost_themselves_only(tmp_path: Path) -> None:
    text = pa.array([b"good", b"\xff\xfe bad"], pa.binary()).view(pa.string())
    far = pa.array([0, 10**15], pa.int64()).cast(pa.timestamp("s"))
    twice = pa.StructArray.from_arrays([pa.array([1, 2]), pa.array([3, 4])], names=["a", "a"])
    table = pa.table({"id": ["p", "q"], "text": text, "when": far, "twice": twice})
    rows = rows_of(tmp_path, "x.parquet", parquet(table))
    assert [row["error"] for row in rows] == [None, None]
    fields = [json.loads(row["fields"]) for row in rows]
    assert (fields[0]["text"], fields[0]["when"]) == ("good", "1970-01-01 00:00:00")
    assert fields[1]["text"]["unreadable"].startswith("UnicodeDecodeError")
    assert fields[1]["when"]["unreadable"].startswith(("OverflowError", "ValueError"))
    assert "duplicate" in fields[0]["twice"]["unreadable"]
    (row,) = rows_of(tmp_path, "y.parquet", parquet(pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"])))
    assert row["error"] == "AmbiguousColumns: there are two columns 'a'; keep one"


def test_large_parquet_rows_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    read = pq.ParquetFile.iter_batches

    def watch(self: pq.ParquetFile, batch_size: int, **options: object) -> object:
        sizes.append(batch_size)
        return read(self, batch_size, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watch)
    for size in (10, 1 << 20, 20 << 20):
        clip = np.random.default_rng(0).bytes(size)
        content = parquet(pa.table({"clip": [clip] * 4}), use_dictionary=False)
        assert len(rows_of(tmp_path, "x.parquet", content)) == 4
    assert sizes == [64, 15, 1]


def test_a_file_with_too_many_columns_is_refused_by_its_footer(tmp_path: Path) -> None:
    wide = parquet(pa.table({f"c{i}": pa.array([1, 2], pa.int8()) for i in range(5000)}))
    nested = parquet(pa.table({"a": [{f"c{i}": 1 for i in range(5000)}] * 2}))
    for number, content in enumerate((wide, nested)):
        (row,) = rows_of(tmp_path, f"{number}.parquet", content)
        assert row["error"] == "TooManyColumns: 5,000, at most 4,096 are read; keep those that are needed"
        assert row["lost_rows"] == 1
