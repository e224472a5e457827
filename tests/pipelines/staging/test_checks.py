"""Whether what is staged is complete, and good enough."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.reading.shards import Shard
from pipelines.staging.checks import Errors, RefusedError, check_errors, count_errors, incomplete, verify
from pipelines.staging.pieces import Piece, later_columns, shard_key
from pipelines.storage import FileInfo
from tests.pipelines.staging.test_pieces import SCHEMA


def test_rows_that_are_lost_with_an_error_are_counted(tmp_path: Path) -> None:
    def put(name: str, table: pa.Table) -> Piece:
        pq.write_table(table, tmp_path / name)
        return Piece(FileInfo(str(tmp_path / name), 1, ""), 0, len(table), True)

    torn = pa.table({"error": [None, "ReadError: torn", "ReadError: torn", "X: y"], "lost_rows": [None, 63, 0, None]})
    before = pa.table({"error": ["X: z", None]})  # of a version that did not know
    assert count_errors([put("a", torn), put("b", before)]) == Errors(Counter(ReadError=65, X=2), 63)
    assert later_columns(SCHEMA) == {"lost_rows", "object", "fields", "start_seconds", "end_seconds"}
    assert all(SCHEMA.field(name).nullable for name in later_columns(SCHEMA))


SHARDS = [Shard("s3://lake/a.tar", 1, "1"), Shard("s3://lake/b.tar", 1, "1"), Shard("s3://lake/c.tar", 1, "1")]


def put(folder: Path, shard: Shard, interval: str) -> None:
    storage.write_bytes(str(folder / f"{shard_key(shard)}-{interval}.parquet"), b"")


def test_complete_is_what_lies_there_from_the_first_row_to_the_last(tmp_path: Path) -> None:
    a, b, c = SHARDS
    assert incomplete(SHARDS, str(tmp_path)) == SHARDS
    put(tmp_path, a, "00000000-00000005")
    put(tmp_path, a, "00000005-00000007-end")
    put(tmp_path, b, "00000000-00000005")
    put(tmp_path, Shard(c.uri, 1, "another state"), "00000000-00000005-end")
    put(tmp_path, b, "00000005-00000008")
    put(tmp_path, b, "00000009-00000012-end")
    assert incomplete(SHARDS, str(tmp_path)) == [replace(b, first=8), c], "from the first row that is missing on"
    with pytest.raises(RuntimeError, match=r"^s3://lake/b\.tar is incomplete in .*: start the job again"):
        verify([a, b], str(tmp_path))
    put(tmp_path, a, "00000000-00000004")  # of a retried task: no part of the night
    assert [(piece.first, piece.stop) for piece in verify([a], str(tmp_path))] == [(0, 5), (5, 7)]


def test_the_share_of_bad_samples_is_bounded() -> None:
    errors = Counter({"ImageDecodeError": 3, "EmptyText": 2})
    check_errors(errors, 100, 0.05)
    check_errors(Counter(), 0, 0.0)
    with pytest.raises(RefusedError) as caught:
        check_errors(errors, 99, 0.05)
    assert str(caught.value) == (
        "5 of 99 samples are bad (most: 3 x ImageDecodeError), more than `max_error_fraction` 0.05: "
        "nothing was committed; mend the input or raise the limit"
    )
