import gzip
import io
import json
import unicodedata
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import Limits
from pipelines.reading.rows import RAW_SCHEMA, Trouble, lost_rows, read_blocks
from pipelines.reading.shards import NoShardsError, Shard, list_shards, lone
from tests.pipelines.reading.made import parquet, rows_of
from tests.tiny import tar


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("s3")


@pytest.mark.parametrize("content", [b"", b"not a tar at all" * 100])
def test_an_unreadable_shard_is_one_error_row(tmp_path: Path, content: bytes) -> None:
    (row,) = rows_of(tmp_path, "x.tar", content)
    assert row["error"].startswith(("ShardReadError", "EmptyShard"))


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
    with pytest.raises(UsageError, match=r"x\.doc is not a shard \(\.tar, .*\), nor a photograph, clip or array \("):
        list_shards(str(tmp_path))


def test_lone_objects_are_rows_beside_those_of_shards(place: str) -> None:
    for name in ("a.jpg", "deep/b.MP4", "deep/c.npy", "_hidden.jpg", "x.txt"):
        storage.write_bytes(f"{place}/in/{name}", f"{name}\n".encode())
    text, group = list_shards(f"{place}/in")
    assert (text.uri, text.members, text.addresses) == (f"{place}/in/x.txt", (), [f"{place}/in/x.txt"])
    assert group.uri == f"{place}/in/@"
    names = ["a.jpg", "deep/b.MP4", "deep/c.npy"]
    assert group.addresses == [f"{place}/in/{name}" for name in names]
    (table,) = read_blocks(group, ReadOptions())
    assert table.schema == RAW_SCHEMA
    rows = table.to_pylist()
    assert [row["sample_id"] for row in rows] == names
    assert [row["object"] for row in rows] == group.addresses
    assert [(row["index"], row["last"], row["media_type"]) for row in rows] == [
        (0, False, "jpg"), (1, False, "mp4"), (2, True, "npy"),
    ]  # fmt: skip
    assert [row["media"] for row in rows] == [f"{name}\n".encode() for name in names]
    for pattern, expected in ((f"{place}/in/*.jpg", ["a.jpg"]), (f"{place}/in/a.jpg", ["a.jpg"]),
                              (f"{place}/in/deep/b*", ["b.MP4"]), (f"{place}/in/*/*.npy", ["deep/c.npy"])):  # fmt: skip
        (one,) = list_shards(pattern)
        assert [member.sample_id for member in one.members] == expected, pattern
    (again,) = read_blocks(lone(f"{place}/in/deep/b.MP4"), ReadOptions())
    assert again["media"].to_pylist() == [b"deep/b.MP4\n"]


def test_a_group_is_read_from_where_it_stopped(tmp_path: Path) -> None:
    for number in range(5):
        storage.write_bytes(str(tmp_path / f"{number}.jpg"), b"x")
    (group,) = list_shards(str(tmp_path))
    trouble = Trouble({3: "InputCrashed: died"})
    (table,) = read_blocks(group, ReadOptions(), trouble=trouble, first=2)
    assert table["index"].to_pylist() == [2, 3, 4]
    assert table["error"].to_pylist() == [None, "InputCrashed: died", None]
    storage.delete(str(tmp_path / "4.jpg"))
    (table,) = read_blocks(group, ReadOptions())
    assert table["error"].to_pylist()[4] == f"ObjectGone: {tmp_path}/4.jpg was removed after it had been listed"


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "x.jsonl", b'{"en": "cut \\ud83d"}\n{"id": "\\ud83d", "en": "b"}\n')
    assert json.loads(rows[0]["fields"]) == {"en": "cut ?"}
    assert rows[1]["sample_id"] == "?"


# ---- what is lost, and what only seems so ---------------------------------------------------------------------------


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
    for uri in (f"{place}/photos", folder, f"{folder}/", f"{place}/photos/**", f"{place}/photos/ds=2026-01-3?/**"):
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
