import gzip
import io
import json
import tarfile
import unicodedata
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybrid_models.errors import UsageError
from hybrid_models.inputs import Window
from pipelines import storage
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import Limits
from pipelines.reading.shards import RAW_SCHEMA, NoShardsError, Shard, Trouble, list_shards, lost_rows, read_blocks
from tests.tiny import jpeg, tar


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("s3")


def rows_of(folder: Path, name: str, content: bytes, **options: object) -> list[dict]:
    """The rows of one shard with this content."""
    storage.write_bytes(str(folder / name), content)
    (shard,) = list_shards(str(folder / name))
    tables = list(read_blocks(shard, ReadOptions(**options)))  # type: ignore[arg-type]
    assert all(table.schema == RAW_SCHEMA for table in tables)
    rows = pa.concat_tables(tables).to_pylist()
    assert [row["index"] for row in rows] == list(range(len(rows)))
    assert [row["last"] for row in rows] == [False] * (len(rows) - 1) + [True]
    assert {row["shard"] for row in rows} == {str(folder / name)}
    return rows


def test_tar_members_with_one_stem_are_one_sample(tmp_path: Path) -> None:
    photo = jpeg(0)
    content = tar(
        [
            ("a/one.jpg", photo),
            ("a/one.json", b'{"captions": ["x", "y"]}'),
            ("two.JPG", photo),
            ("two.txt", "grün".encode()),
            ("three.txt", b"only text"),
        ]
    )
    rows = rows_of(tmp_path, "x.tar", content)
    assert [row["sample_id"] for row in rows] == ["a/one", "two", "three"]
    assert [row["media"] for row in rows] == [photo, photo, None]
    assert [json.loads(row["fields"]) for row in rows] == [
        {"captions": ["x", "y"]},
        {"text": "grün"},
        {"text": "only text"},
    ]
    assert [row["media_type"] for row in rows] == ["jpg", "jpg", None]


def test_repeated_members_are_rows_of_their_own(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "x.tar", tar([("a.jpg", b"1"), ("a.jpg", b"2"), ("b.jpg", b"3"), ("a.jpg", b"4")]))
    assert [(row["sample_id"], row["media"]) for row in rows] == [("a", b"1"), ("a", b"2"), ("b", b"3"), ("a", b"4")]


def test_a_tar_truncated_inside_a_member_keeps_the_rows_before(tmp_path: Path) -> None:
    content = tar([(f"{i}.jpg", bytes(5000)) for i in range(4)])
    rows = rows_of(tmp_path, "x.tar", content[: 512 * 30])
    assert [row["sample_id"] for row in rows[:2]] == ["0", "1"]
    assert [row["error"] for row in rows[:2]] == [None, None]
    assert rows[-1]["error"].startswith("ShardReadError")


def test_a_tar_truncated_between_members_is_noticed(tmp_path: Path) -> None:
    content = tar([("0.jpg", bytes(512)), ("1.jpg", bytes(512))])
    rows = rows_of(tmp_path, "x.tar", content[: 4 * 512])
    assert [row["error"] is None for row in rows] == [True, True, False]
    assert "no end mark" in rows[-1]["error"]


def test_a_broken_header_in_the_middle_is_noticed(tmp_path: Path) -> None:
    content = bytearray(tar([("0.jpg", bytes(512)), ("1.jpg", bytes(512)), ("2.jpg", bytes(512))]))
    content[2 * 512 + 148] ^= 0x55  # the second header's checksum
    rows = rows_of(tmp_path, "x.tar", bytes(content))
    assert rows[0]["error"] is None
    assert "no valid member header at byte 1024" in rows[-1]["error"]


@pytest.mark.parametrize("content", [b"", b"not a tar at all" * 100])
def test_an_unreadable_shard_is_one_error_row(tmp_path: Path, content: bytes) -> None:
    (row,) = rows_of(tmp_path, "x.tar", content)
    assert row["error"].startswith(("ShardReadError", "EmptyShard"))


def test_links_and_oversized_members_are_error_rows(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name, size in (("big.jpg", 2000), ("../up.jpg", 10)):
            member = tarfile.TarInfo(name)
            member.size = size
            archive.addfile(member, io.BytesIO(bytes(size)))
    rows = rows_of(tmp_path, "x.tar", buffer.getvalue(), limits=Limits(max_bytes=1000))
    assert [(row["error"] or "").split(":")[0] for row in rows] == ["UnsupportedMember", "MemberTooLarge", ""]
    assert rows[2]["sample_id"] == "../up"  # a name only: nothing is ever extracted


def test_pickles_in_a_tar_are_not_media(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, "x.tar", tar([("a.pkl", b"x")]))
    assert row["error"].startswith("UnsupportedMember: pkl")


def test_jsonl(tmp_path: Path) -> None:
    lines = ['{"id": "q", "en": "a"}', '{"en": "b"}', "[1]", "{broken", '{"id": 7}']
    rows = rows_of(tmp_path, "x.jsonl", "\n".join(lines).encode())
    assert [row["sample_id"] for row in rows] == ["q", "x.jsonl:1", "x.jsonl:2", "x.jsonl:3", "7"]
    assert json.loads(rows[0]["fields"]) == {"en": "a"}
    assert [row["error"] is None for row in rows] == [True, True, False, False, True]
    assert "expected an object, found list" in rows[2]["error"]


def test_txt_keeps_every_line_and_names_bad_ones(tmp_path: Path) -> None:
    content = "eins\r\n\nzwei ü\n".encode() + b"\xff\xfe\n" + b"x" * 50 + b"\nlast"
    rows = rows_of(tmp_path, "x.txt", content, limits=Limits(max_bytes=20))
    texts = [json.loads(row["fields"])["text"] for row in rows]
    assert texts == ["eins", "", "zwei ü", None, None, "last"]
    assert rows[3]["error"].startswith("TextDecodeError")
    assert rows[4]["error"] == "LineTooLong: a line has more than 20 bytes"


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


def test_blocks_are_bounded(tmp_path: Path) -> None:
    content = tar([(f"{i:03d}.npy", np.random.default_rng(i).bytes(1 << 20)) for i in range(40)])
    storage.write_bytes(str(tmp_path / "x.tar"), content)
    (shard,) = list_shards(str(tmp_path / "x.tar"))
    blocks = list(read_blocks(shard, ReadOptions()))
    assert [len(block) for block in blocks] == [16, 16, 8]
    assert max(block.nbytes for block in blocks) < 17 << 20


def test_a_shard_replaced_after_listing_is_refused(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "x.txt"), b"new")
    with pytest.raises(storage.StorageError, match="replaced after it had been listed"):
        list(read_blocks(Shard(str(tmp_path / "x.txt"), 3, "old"), ReadOptions()))
    with pytest.raises(storage.StorageError, match="removed after it had been listed"):
        list(read_blocks(Shard(str(tmp_path / "gone.txt"), 3, "old"), ReadOptions()))


def test_listing_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(NoShardsError, match=r"^no shards found at .*: it is empty; check the address"):
        list_shards(str(tmp_path))
    for nothing in ("none", "*.txt"):
        with pytest.raises(NoShardsError, match=r"^no shards found at .*: there is nothing; check the address"):
            list_shards(str(tmp_path / nothing))
    storage.write_bytes(str(tmp_path / "x.doc"), b"")
    with pytest.raises(UsageError, match=r"x\.doc is not a shard: known kinds are \.tar, "):
        list_shards(str(tmp_path))


def test_damaged_parquet_pages_and_footers_are_error_rows(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["a b c" * 200] * 500}), buffer, compression="snappy", use_dictionary=False)
    for number, position in enumerate((4, 20, -9)):
        content = bytearray(buffer.getvalue())
        for offset in range(4):
            content[position + offset] ^= 0xFF
        rows = rows_of(tmp_path, f"{number}.parquet", bytes(content))
        assert rows[-1]["error"].startswith("ShardReadError"), position


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "x.jsonl", b'{"en": "cut \\ud83d"}\n{"id": "\\ud83d", "en": "b"}\n')
    assert json.loads(rows[0]["fields"]) == {"en": "cut ?"}
    assert rows[1]["sample_id"] == "?"


def test_a_member_name_that_is_not_utf8(tmp_path: Path) -> None:
    content = tar([("caf\udce9.txt", b"text")])
    (row,) = rows_of(tmp_path, "x.tar", content)
    assert row["sample_id"] == "caf?"


def test_a_radar_file_over_the_limit_is_not_read_whole(tmp_path: Path) -> None:
    window = Window(past_frames=2, horizon_minutes=10)
    (row,) = rows_of(tmp_path, "x.nc", bytes(5000), window=window, limits=Limits(max_bytes=1000))
    assert row["error"].startswith("MediaTooLarge")


# ---- what is lost, and what only seems so ---------------------------------------------------------------------------
def parquet(table: pa.Table, **options: object) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def test_the_last_row_of_a_broken_shard_tells_what_is_lost(tmp_path: Path) -> None:
    pages = bytearray(parquet(pa.table({"text": [f"{i:04d}" * 50 for i in range(100)]}), row_group_size=25))
    start = pq.ParquetFile(io.BytesIO(bytes(pages))).metadata.row_group(1).column(0).dictionary_page_offset
    pages[start : start + 8] = b"\xff" * 8
    rows = rows_of(tmp_path, "x.parquet", bytes(pages))
    assert [row["error"] for row in rows[:-1]] == [None] * 25
    assert rows[-1]["error"].startswith("ShardReadError: ")
    assert [row["lost_rows"] for row in rows] == [None] * 25 + [74]

    packed = gzip.compress(b"a\n" * 50_000)[:-20]
    assert rows_of(tmp_path, "x.txt.gz", packed)[-1]["lost_rows"] is None, "nobody knows"


@pytest.mark.parametrize(
    ("name", "content", "count"),
    [
        ("x.txt", b"a\nb\nc", 3),
        ("x.txt", b"a\nb\nc\n", 3),
        ("x.jsonl", b"{}\n" * 5, 5),
        ("x.jsonl.gz", gzip.compress(b"{}\n" * 5, mtime=0), 5),
        ("x.tsv", b"en\nb\nc\n", 2),
        ("x.tar", tar([("a.jpg", b"1"), ("a.txt", b"x"), ("a.jpg", b"2"), ("c/d.jpg", b"3"), ("d.jpg", b"4")]), 4),
        ("x.parquet", parquet(pa.table({"text": ["a"] * 7})), 7),
    ],
)
def test_rows_are_counted_as_they_are_read(tmp_path: Path, name: str, content: bytes, count: int) -> None:
    assert len(rows_of(tmp_path, name, content)) == count
    assert lost_rows(io.BytesIO(content), name, ReadOptions(), 1) == count - 1
    (shard,) = list_shards(str(tmp_path / name))
    (block,) = read_blocks(shard, ReadOptions(), trouble=Trouble({0: "InputCrashed: it died"}))
    assert block.select(["index", "last", "error", "lost_rows"]).to_pylist() == [
        {"index": 0, "last": True, "error": "InputCrashed: it died", "lost_rows": count - 1}
    ]
    (block,) = read_blocks(shard, ReadOptions(), trouble=Trouble({0: "InputCrashed: it died"}, count=False))
    assert block["lost_rows"].to_pylist() == [None]


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


def test_headers_that_lead_back_or_lie(tmp_path: Path) -> None:
    good = tar([("a.jpg", b"1"), ("b.jpg", b"2")])
    member = tarfile.TarInfo("back.jpg")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (-1024).to_bytes(12, "big", signed=True)  # base 256, see the GNU tar manual, "Extensions"
    header[148:156] = b"%06o\0 " % sum(header[:148] + b" " * 8 + header[156:])
    rows = rows_of(tmp_path, "x.tar", good[:2048] + bytes(header) + good[2048:])
    assert [row["sample_id"] for row in rows] == ["a", "b", "x.tar:2"]
    assert rows[2]["error"] == "ShardReadError: ReadError: back.jpg has -1024 bytes"

    sparse = tarfile.TarInfo("sparse.jpg")
    sparse.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1000000000000"}
    rows = rows_of(tmp_path, "y.tar", sparse.tobuf(tarfile.PAX_FORMAT) + good)
    assert rows[0]["error"] == "UnsupportedMember: sparse.jpg is a link, device or sparse file"
    assert [row["sample_id"] for row in rows[1:]] == ["a", "b"]


def test_members_of_one_sample_are_bounded_together(tmp_path: Path) -> None:
    content = tar([("a.jpg", bytes(600)), ("a.txt", b"x" * 600), ("b.jpg", bytes(600))])
    rows = rows_of(tmp_path, "x.tar", content, limits=Limits(max_bytes=1000))
    assert [row["error"] for row in rows] == ["MemberTooLarge: a.txt makes 1200 bytes, limit 1000", None]


def test_ids_and_fields_beyond_all_measure_are_error_rows(tmp_path: Path) -> None:
    deep = "[" * 500 + "]" * 500
    lines = [json.dumps({"id": "x" * 1001, "en": "a"}), '{"id": "deep", "en": ' + deep + "}", '{"en": "b"}']
    rows = rows_of(tmp_path, "x.jsonl", "\n".join(lines).encode())
    assert rows[0]["sample_id"] == "x.jsonl:0"
    assert rows[0]["error"] == "IdTooLong: the id has 1,001 characters, at most 1000 are allowed"
    assert rows[2]["error"] is None
    table = pa.table({"text": ["a" * 2000, "b"]})
    rows = rows_of(tmp_path, "x.parquet", parquet(table), limits=Limits(max_bytes=1000))
    assert [(row["error"] or "").split(":")[0] for row in rows] == ["FieldsTooLarge", ""]


def test_what_is_in_a_gzip_file_is_bounded(tmp_path: Path) -> None:
    content = gzip.compress(b"a" * 99 + b"\n") * 100
    rows = rows_of(tmp_path, "x.txt.gz", content, limits=Limits(max_shard_bytes=5000))
    assert 30 < len(rows) <= 51
    assert rows[-1]["error"] == "ShardTooLarge: more than max_shard_bytes=5,000 bytes after decompression"


def test_a_folder_as_people_have_it(place: str) -> None:
    """What consoles, file managers and Spark leave in folders is no shard, unless it is named itself."""
    folder = f"{place}/photos/ds=2026-01-31"
    for name in ("a.txt", "sub/b.txt"):
        storage.write_bytes(f"{folder}/{name}", b"hi\n")
    litter = [
        "_SUCCESS",
        ".a.txt.crc",
        "a.txt.crc",
        "._a.txt",
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        "sub/Desktop.ini",
    ]
    for name in [*litter, "__MACOSX/._a.txt", "_started.txt"]:
        storage.write_bytes(f"{folder}/{name}", b"x")
    if place.startswith("s3://"):
        for name in ("photos/", "photos/ds=2026-01-31/", "photos/ds=2026-01-31/sub/", "photos/sub_$folder$"):
            put_marker(f"{place}/{name}")
    expected = [f"{folder}/a.txt", f"{folder}/sub/b.txt"]
    for uri in (f"{place}/photos", folder, f"{folder}/", f"{place}/photos/*/*", f"{place}/photos/ds=2026-01-3?/*"):
        assert [shard.uri for shard in list_shards(uri)] == expected, uri
    for name in ("._a.txt", "_started.txt"):
        assert [shard.uri for shard in list_shards(f"{folder}/{name}")] == [f"{folder}/{name}"]
    with pytest.raises(UsageError, match="_SUCCESS is not a shard"):
        list_shards(f"{folder}/_SUCCESS")


def test_a_folder_of_nothing_but_its_marker_is_empty(s3: str) -> None:
    put_marker(f"{s3}/photos/ds=2026-01-31/")
    for uri in (f"{s3}/photos/ds=2026-01-31", f"{s3}/photos"):
        with pytest.raises(NoShardsError, match=r": it is empty; check the address"):
            list_shards(uri)


NAMES = [
    "a b", "100%20percent", "[2026] album", "what?", "5 * 5", "#1+2&3=4;~!", "[", "a]b", "it's \"quoted\"", "日本",
    unicodedata.normalize("NFC", "Kätzchen"), unicodedata.normalize("NFD", "Kätzchen"),
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_as_people_have_them(place: str, name: str) -> None:
    """A folder or object that exists is meant, whatever its name would be as a pattern."""
    place = f"{place}/{NAMES.index(name)}"
    for folder in (name, "other"):
        for file in (name, "x"):
            storage.write_bytes(f"{place}/{folder}/{file}.txt", b"hi\n")
    both = sorted([f"{place}/{name}/{name}.txt", f"{place}/{name}/x.txt"])
    for uri in (f"{place}/{name}", f"{place}/{name}/", f"{place}/{name}/*.txt", f"{place}/{name}/*"):
        assert [shard.uri for shard in list_shards(uri)] == both, uri
    assert [shard.uri for shard in list_shards(both[0])] == both[:1]
    assert len(list_shards(place)) == 4
    assert [shard.uri for shard in list_shards(f"{place}/o?her/[xyz].txt")] == [f"{place}/other/x.txt"]
    for uri in both:
        (shard,) = list_shards(uri)
        assert [row["error"] for block in read_blocks(shard, ReadOptions()) for row in block.to_pylist()] == [None]


def put_marker(uri: str) -> None:
    """What a console's "create folder" makes: an empty object whose name ends with a slash."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    fsspec.filesystem("s3").call_s3("put_object", Bucket=bucket, Key=key, Body=b"")
