"""Whether what is staged is complete, and good enough."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.reading.shards import Shard
from pipelines.staging.checks import RefusedError, check_errors, incomplete, verify

SHARDS = [Shard("s3://lake/a.tar", 1, "1"), Shard("s3://lake/b.tar", 1, "1"), Shard("s3://lake/c.tar", 1, "1")]


def put(folder: Path, shard: Shard, interval: str) -> None:
    storage.write_bytes(str(folder / f"{shard.key}-{interval}.parquet"), b"")


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
