import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.readers import COUNTERS, READERS, is_event, suffix_of
from tests import tiny


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": ["eins", "zwei", "drei"]}), buffer)
    return buffer.getvalue()


LINES = {
    ".txt": b"eins\nzwei\ndrei\n",
    ".tsv": b"id\ttext\na\teins\nb\tzwei\nc\tdrei\n",
    ".jsonl": "".join(json.dumps({"id": name, "text": "x"}) + "\n" for name in "abc").encode(),
}
SHARDS = {
    ".tar": tiny.tar([(f"{name}.jpg", tiny.jpeg(number)) for number, name in enumerate("abc")]),
    ".parquet": parquet(),
    **LINES,
    **{f"{suffix}.gz": gzip.compress(content) for suffix, content in LINES.items()},
}


def test_each_kind_but_radar_has_a_counter() -> None:
    assert set(SHARDS) == set(READERS) - {".nc"} == set(COUNTERS)


@pytest.mark.parametrize("suffix", SHARDS)
def test_a_counter_counts_what_its_reader_reads(suffix: str) -> None:
    entries = list(READERS[suffix](io.BytesIO(SHARDS[suffix]), f"x{suffix}", ReadOptions()))
    assert [entry.error for entry in entries] == [None] * 3
    assert COUNTERS[suffix](io.BytesIO(SHARDS[suffix]), f"x{suffix}", ReadOptions()) == 3


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("s3://lake/a.tar", ".tar"), ("A.TAR", ".tar"), ("a.b.jsonl.gz", ".jsonl.gz"), ("a.jsonl", ".jsonl"),
        ("x.parquet", ".parquet"), ("event.NC", ".nc"), ("a.tar.gz", None), ("a.csv", None), ("tar", None), ("", None),
    ],
)  # fmt: skip
def test_the_name_tells_the_reader(name: str, suffix: str | None) -> None:
    assert suffix_of(name) == suffix
    assert is_event(name) == (suffix == ".nc")
