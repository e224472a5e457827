"""Lines of text, JSON and tab-separated values."""

import codecs
import gzip
import json
from pathlib import Path

import pytest

from pipelines.reading.formats import text
from pipelines.reading.limits import Limits
from tests.pipelines.reading.made import rows_of


def test_jsonl(tmp_path: Path) -> None:
    lines = ['{"id": "q", "en": "a"}', '{"en": "b"}', "[1]", "{broken", '{"id": 7}']
    rows = rows_of(tmp_path, "x.jsonl", "\n".join(lines).encode())
    assert [row["sample_id"] for row in rows] == ["q", "x.jsonl:1", "x.jsonl:2", "x.jsonl:3", "7"]
    assert json.loads(rows[0]["fields"]) == {"en": "a"}
    assert [row["error"] is None for row in rows] == [True, True, False, False, True]
    assert "expected an object, found list" in rows[2]["error"]


def test_an_id_that_is_null_is_none(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "x.jsonl", b'{"id": null, "en": "a"}\n{"id": null, "en": "b"}\n')
    assert [row["sample_id"] for row in rows] == ["x.jsonl:0", "x.jsonl:1"]
    assert [row["fields"] for row in rows] == ['{"en": "a"}', '{"en": "b"}']


def test_txt_keeps_every_line_and_names_bad_ones(tmp_path: Path) -> None:
    content = "eins\r\n\nzwei ü\n".encode() + b"\xff\xfe\n" + b"x" * 50 + b"\nlast"
    rows = rows_of(tmp_path, "x.txt", content, limits=Limits(max_bytes=20))
    texts = [json.loads(row["fields"])["text"] for row in rows]
    assert texts == ["eins", "", "zwei ü", None, None, "last"]
    assert rows[3]["error"].startswith("TextDecodeError")
    assert rows[4]["error"] == "LineTooLong: a line has more than 20 bytes"


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("length", [19, 20, 21, 22, 23, 24, 30, 60])
def test_a_line_is_as_long_with_a_mark_before_it(tmp_path: Path, mark: bytes, length: int) -> None:
    rows = rows_of(tmp_path, "x.txt", mark + b"a" * length + b"\nlast", limits=Limits(max_bytes=20))
    told = "FieldsTooLarge" if length < 20 else "LineTooLong"  # for the names of fields there is no room
    assert [(row["error"] or "").partition(":")[0] for row in rows] == [told, ""]


ROWS = {
    ".txt": "eins\nzwei ü\n",
    ".jsonl": '{"id": "a", "text": "eins"}\n{"id": "b", "text": "zwei ü"}\n',
    ".tsv": "id\ttext\na\teins\nb\tzwei ü\n",
}


@pytest.mark.parametrize("suffix", ROWS)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_marks_and_ends_of_lines(tmp_path: Path, suffix: str, mark: str, end: str) -> None:
    content = (mark + ROWS[suffix].replace("\n", end)).encode()
    for name, stored in ((f"x{suffix}", content), (f"x{suffix}.gz", gzip.compress(content))):
        rows = rows_of(tmp_path, name, stored)
        assert [json.loads(row["fields"]) for row in rows] == [{"text": "eins"}, {"text": "zwei ü"}]
        assert [row["error"] for row in rows] == [None, None]
        assert [row["sample_id"] for row in rows] == ([f"{name}:0", f"{name}:1"] if suffix == ".txt" else ["a", "b"])


@pytest.mark.parametrize("suffix", ROWS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_encoding_is_said_once(tmp_path: Path, suffix: str, encoding: str) -> None:
    rows = rows_of(tmp_path, f"x{suffix}", (ROWS[suffix] * 1000).encode(encoding))
    name = encoding[:6].upper()
    expected = f"TextDecodeError: {name}, not UTF-8: convert it with `iconv -f {name} -t UTF-8`"
    assert [row["error"] for row in rows] == [expected]


def test_blank_lines(tmp_path: Path) -> None:
    """They are rows where there is nothing but lines; elsewhere they mean nothing."""
    rows = rows_of(tmp_path, "x.jsonl", b'{"en": "a"}\n\n \t\r\n{"en": "b"}\n\n\n')
    assert [(row["sample_id"], row["error"]) for row in rows] == [("x.jsonl:0", None), ("x.jsonl:3", None)]
    rows = rows_of(tmp_path, "x.tsv", b"en\tde\na\tb\n\n  \r\n\t\n\n")
    assert [(row["sample_id"], row["error"]) for row in rows] == [("x.tsv:0", None), ("x.tsv:3", None)]
    assert json.loads(rows[1]["fields"]) == {"en": "", "de": ""}
    rows = rows_of(tmp_path, "y.tsv", b"en\na\n\nb\n")
    assert [json.loads(row["fields"])["en"] for row in rows] == ["a", "", "b"]
    rows = rows_of(tmp_path, "x.txt", b"a\n\nb\n\n")
    assert [json.loads(row["fields"])["text"] for row in rows] == ["a", "", "b", ""]
    (row,) = rows_of(tmp_path, "z.jsonl", b"\n\n\n")
    assert row["error"] == "EmptyShard: there is no sample in this shard"


def test_gzip_and_its_truncation(tmp_path: Path) -> None:
    packed = gzip.compress(b"".join(b"%d\n" % i for i in range(50_000)))
    assert len(rows_of(tmp_path, "x.txt.gz", packed)) == 50_000
    rows = rows_of(tmp_path, "y.txt.gz", packed[:-5000])
    assert 100 < len(rows) < 50_000
    assert rows[-1]["error"].startswith("ShardReadError: EOFError")
    (row,) = rows_of(tmp_path, "z.txt.gz", b"no gzip")
    assert row["error"].startswith("ShardReadError: BadGzipFile")


def test_tsv(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "x.tsv", b"id\ten\tde\n1\ta\tb\n2\ta\n3\ta\t\n")
    assert [row["sample_id"] for row in rows] == ["1", "2", "3"]
    assert json.loads(rows[0]["fields"]) == {"en": "a", "de": "b"}
    assert rows[1]["error"] == "ColumnCountError: 2 columns, the header has 3"
    assert json.loads(rows[2]["fields"]) == {"en": "a", "de": ""}


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("Größe\ttext".encode("latin-1"), "TextDecodeError: not UTF-8"),
        (b"x" * 50 + b"\ttext", "LineTooLong: a line has more than 40 bytes"),
        (b"text\ttext", "AmbiguousColumns: there are two columns 'text'; keep one"),
        ("Größe\ttext".encode("utf-16-le"), "TextDecodeError: UTF-16, not UTF-8"),
    ],
)
def test_rows_below_a_header_that_cannot_be_read_are_counted(tmp_path: Path, header: bytes, told: str) -> None:
    content = header + b"\n" + b"1\tx\n" * 1000
    for name, stored in (("x.tsv", content), ("x.tsv.gz", gzip.compress(content))):
        (row,) = rows_of(tmp_path, name, stored, limits=Limits(max_bytes=40))
        assert row["error"].startswith(told)
        assert row["lost_rows"] == 999, "it stands for one of the thousand"


def test_what_is_in_a_gzip_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = gzip.compress(b"a" * 99 + b"\n") * 100
    told = (
        "more than {:,} bytes decompressed; `limits.max_shard_bytes` and `limits.max_compression_ratio` (of its {:,} "
    )
    (row,) = rows_of(tmp_path, "x.txt.gz", content, limits=Limits(max_shard_bytes=5000))
    assert row["error"] == f"ShardTooLarge: {told.format(5000, len(content))}bytes) allow more"
    monkeypatch.setattr("pipelines.reading.limits.FREE_BYTES", 1000)
    (row,) = rows_of(tmp_path, "x.txt.gz", content, limits=Limits(max_compression_ratio=2))
    assert row["error"].startswith(f"ShardTooLarge: {told.format(1000 + 2 * len(content), len(content))}")
    assert len(rows_of(tmp_path, "x.txt.gz", content)) == 100
    monkeypatch.setattr(text, "COUNTED_FIRST", 1)
    rows = rows_of(tmp_path, "x.txt.gz", content, limits=Limits(max_shard_bytes=5000))
    assert 30 < len(rows) <= 51
    assert rows[-1]["error"].startswith("ShardTooLarge: ")


def test_a_header_with_too_many_columns_is_refused(tmp_path: Path) -> None:
    columns = "\t".join(f"c{i}" for i in range(200_000))
    (row,) = rows_of(tmp_path, "x.tsv", f"{columns}\na\n".encode())
    assert row["error"] == "TooManyColumns: 200,000, at most 4,096 are read; keep those that are needed"
