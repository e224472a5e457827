import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hybrid_models.errors import BadSample
from hybrid_models.inputs import Cut, Visual
from pipelines import storage
from pipelines.reading.formats import text
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import Limits
from pipelines.reading.media import video
from pipelines.reading.media.clip import Clip
from pipelines.reading.media.decode import decode_media
from pipelines.reading.media.video import cut_clip
from pipelines.reading.rows import Trouble, lost_rows, read_blocks
from pipelines.reading.shards import Shard, list_shards
from tests.pipelines.reading.made import parquet, rows_of
from tests.pipelines.reading.media.test_decode import image_bytes
from tests.pipelines.reading.media.test_video import film, steady
from tests.tiny import jpeg, tar


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


def test_what_is_linked_to_from_a_folder_is_read(tmp_path: Path) -> None:
    """Shards and photographs, though links are younger than what they lead to."""
    storage.write_bytes(str(tmp_path / "real" / "x.txt"), b"a\nb\n")
    storage.write_bytes(str(tmp_path / "real" / "p.jpg"), jpeg(0))
    (tmp_path / "in").mkdir()
    for file in (tmp_path / "real").iterdir():
        os.utime(file, (1, 1))
        (tmp_path / "in" / file.name).symlink_to(file)
    read = [block for shard in list_shards(str(tmp_path / "in")) for block in read_blocks(shard, ReadOptions())]
    assert sum(map(len, read)) == 3
    assert all(error is None for block in read for error in block["error"].to_pylist())


def test_a_group_is_read_from_where_it_stopped(tmp_path: Path) -> None:
    for number in range(5):
        storage.write_bytes(str(tmp_path / f"{number}.jpg"), b"x")
    (group,) = list_shards(str(tmp_path))
    trouble = Trouble({3: "InputCrashed: died"})
    (table,) = read_blocks(group, ReadOptions(), trouble=trouble, first=2)
    assert table["index"].to_pylist() == [2, 3, 4]
    assert table["error"].to_pylist() == [None, "InputCrashed: died", None]
    storage.delete(str(tmp_path / "4.jpg"), storage.anything)
    (table,) = read_blocks(group, ReadOptions())
    assert table["error"].to_pylist()[4] == f"ObjectGone: {tmp_path}/4.jpg was removed after it had been listed"


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "x.jsonl", b'{"en": "cut \\ud83d"}\n{"id": "\\ud83d", "en": "b"}\n')
    assert json.loads(rows[0]["fields"]) == {"en": "cut ?"}
    assert rows[1]["sample_id"] == "?"


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


TEN_ROWS = Limits(max_shard_rows=10)
TOO_MANY = "TooManyRows: more than 10 rows (by default 200,000 and 16 for each of its {:,} bytes); "


@pytest.mark.parametrize(("count", "rows", "lost"), [(10, 10, None), (11, 1, 10), (5000, 1, 19)])
def test_parquet_rows_beyond_the_bound_are_one_error_row(tmp_path: Path, count: int, rows: int, lost: int) -> None:
    content = parquet(pa.table({"text": ["a"] * count}))
    found = rows_of(tmp_path, "x.parquet", content, limits=TEN_ROWS)
    assert (len(found), found[-1]["lost_rows"]) == (rows, lost)
    assert found[-1]["error"] == (lost and TOO_MANY.format(len(content)) + "`limits.max_shard_rows` allows more"), (
        "a footer is believed up to twice the bound"
    )


def test_a_compressed_text_with_too_many_lines_is_one_error_row(tmp_path: Path) -> None:
    for name, head in (("x.jsonl.gz", b""), ("x.tsv.gz", b"text\n")):
        line = b'{"text": "a"}\n'
        assert len(rows_of(tmp_path, name, gzip.compress(head + line * 10), limits=TEN_ROWS)) == 10
        content = gzip.compress(head + line * 5000)
        (row,) = rows_of(tmp_path, name, content, limits=TEN_ROWS)
        assert row["error"].startswith(TOO_MANY.format(len(content)))
        assert row["lost_rows"] == 4999


def test_a_shard_that_is_not_counted_first_ends_at_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "COUNTED_FIRST", 1)
    lines, members = b"a\n" * 12, tar([(f"{i:02d}.txt", b"a") for i in range(12)])
    for name, content in (("x.txt", lines), ("x.txt.gz", gzip.compress(lines)), ("x.tar", members)):
        rows = rows_of(tmp_path, name, content, limits=TEN_ROWS)
        assert [row["error"] for row in rows[:-1]] == [None] * 10
        assert rows[-1]["error"].startswith(TOO_MANY.format(len(content)))
        assert (rows[-1]["lost_rows"], rows[-1]["sample_id"]) == (1, f"{name}:10")
        assert len(rows_of(tmp_path, name, content, limits=Limits(max_shard_rows=12))) == 12


def test_windows_of_clips_are_rows_within_the_bound(tmp_path: Path) -> None:
    archive, _, clip, _ = sorted(mixed(tmp_path), key=lambda shard: shard.uri.rsplit(".")[-1] != "tar")
    for shard, lost in ((archive, None), (clip, None)):
        read = ReadOptions(visual=VISUAL, cut=CUT, limits=Limits(max_shard_rows=1))
        first, second = [row for block in read_blocks(shard, read) for row in block.to_pylist()]
        assert first["error"] is None
        assert second["error"].startswith("TooManyRows: more than 1 rows")
        assert (second["last"], second["lost_rows"]) == (True, lost)


@pytest.mark.parametrize("name", ["x.parquet", "x.txt.gz", "x.jsonl.gz"])
def test_rows_that_compress_well_are_all_read(tmp_path: Path, name: str) -> None:
    line = "a dog runs over the green grass"
    lines = "\n".join([json.dumps({"text": line}) if "json" in name else line] * 100_000)
    content = gzip.compress(lines.encode())
    content = parquet(pa.table({"text": [line] * 100_000})) if name.endswith("parquet") else content
    assert len(content) < 15_000
    rows = rows_of(tmp_path, name, content)
    assert [row["error"] for row in rows] == [None] * 100_000


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


# ---- windows of clips ----------------------------------------------------------------------------------------------
VISUAL, CUT = Visual(24, 32, 4), Cut(1.0, 1.0)


def mixed(folder: Path) -> list[Shard]:
    """A photograph and two clips that lie there alone, and a tar with a photograph, a clip and a photograph."""
    photo, two, three = (
        image_bytes(Image.new("RGB", (64, 48), "red"), "PNG"),
        film("mp4", steady(50)),
        film("mkv", steady(65)),
    )
    storage.write_bytes(str(folder / "in/a.png"), photo)
    storage.write_bytes(str(folder / "in/b.mp4"), two)
    storage.write_bytes(str(folder / "in/c.mkv"), three)
    content = tar(list({"1.png": photo, "2.mkv": three, "2.json": b'{"camera": 7}', "3.png": photo}.items()))
    storage.write_bytes(str(folder / "in/d.tar"), content)
    return list_shards(str(folder / "in"), cut=True)


def cut_rows(shard: Shard, **options: Any) -> list[dict]:
    read = ReadOptions(visual=VISUAL, cut=CUT)
    return [row for block in read_blocks(shard, read, **options) for row in block.to_pylist()]


def test_a_clip_has_a_row_for_each_window_wherever_it_lies(tmp_path: Path) -> None:
    archive, photo, *clips = sorted(mixed(tmp_path), key=lambda shard: (not shard.uri.endswith("tar"), shard.cut))
    assert [shard.cut for shard in clips] == [True, True]
    told = {
        shard.addresses[0].rsplit("/", 1)[-1]: [
            (row["index"], row["sample_id"], row["start_seconds"], row["end_seconds"], row["last"])
            for row in cut_rows(shard)
        ]
        for shard in (photo, *clips, archive)
    }
    assert told["a.png"] == [(0, "a.png", None, None, True)]
    assert told["b.mp4"] == [(0, "b.mp4#t=0,1", 0.0, 1.0, False), (1, "b.mp4#t=1,2", 1.0, 2.0, True)]
    assert told["c.mkv"] == [
        (0, "c.mkv#t=0,1", 0.0, 1.0, False),
        (1, "c.mkv#t=1,2", 1.0, 2.0, False),
        (2, "c.mkv#t=2,2.6", 2.0, 2.6, True),
    ]
    assert told["d.tar"] == [
        (0, "1", None, None, False),
        (1, "2#t=0,1", 0.0, 1.0, False),
        (2, "2#t=1,2", 1.0, 2.0, False),
        (3, "2#t=2,2.6", 2.0, 2.6, False),
        (4, "3", None, None, True),
    ]
    alone = next(shard for shard in clips if shard.addresses[0].endswith("mkv"))
    windows = cut_rows(alone)
    assert [row["object"] for row in windows] == [alone.addresses[0]] * 3
    assert [row["media"] for row in windows] == [row["media"] for row in cut_rows(archive)[1:4]]
    assert {row["fields"] for row in cut_rows(archive)[1:4]} == {'{"camera": 7}'}
    expected = [window.frames for window in cut_clip(io.BytesIO(film("mkv", steady(65))), "mkv", VISUAL, CUT)]
    for row, frames in zip(windows, expected, strict=True):
        assert frames is not None
        decoded = decode_media(row["media"], row["media_type"], VISUAL)
        np.testing.assert_array_equal(decoded.array, frames.pixels)
        np.testing.assert_array_equal(decoded.times, frames.times)


def test_windows_are_read_from_where_they_stopped(tmp_path: Path) -> None:
    for shard in mixed(tmp_path):
        whole = cut_rows(shard)
        for first in range(1, len(whole)):
            later = {row["index"]: row for row in cut_rows(shard, first=first)}
            assert [later[index] for index in range(first, len(whole))] == whole[first:]


def test_rows_after_a_clip_that_is_given_up_have_the_same_numbers_from_wherever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(*_: Any) -> None:
        raise BadSample("VideoDecodeError", "damaged")

    monkeypatch.setattr(Clip, "sample", bad)
    monkeypatch.setattr(video, "MAX_FAILED", 5)
    content = tar([("a.txt", b"a"), ("clip.mp4", film("mp4", steady(300))), ("z.txt", b"z")])
    storage.write_bytes(str(tmp_path / "a.tar"), content)
    (archive,) = list_shards(str(tmp_path / "a.tar"), cut=True)
    whole = cut_rows(archive)
    assert [row["sample_id"] for row in whole] == ["a", *(f"clip#t={n},{n + 1}" for n in range(12)), "z"]
    assert [row["error"] is None for row in whole] == [True, *[False] * 12, True]
    for first in range(1, len(whole)):
        later = [row for row in cut_rows(archive, first=first) if row["index"] >= first]
        assert [(row["index"], row["sample_id"]) for row in later] == [
            (row["index"], row["sample_id"]) for row in whole[first:]
        ]


def test_without_windows_a_clip_is_one_row(tmp_path: Path) -> None:
    mixed(tmp_path)
    shards = list_shards(str(tmp_path / "in"))
    assert not any(shard.cut for shard in shards)
    rows = [
        row for shard in shards for block in read_blocks(shard, ReadOptions(visual=VISUAL)) for row in block.to_pylist()
    ]
    assert sorted(row["sample_id"] for row in rows) == ["1", "2", "3", "a.png", "b.mp4", "c.mkv"]
    assert {(row["start_seconds"], row["end_seconds"]) for row in rows} == {(None, None)}


def test_what_is_no_clip_is_one_error_row_where_clips_are_cut(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "in/a.mp4"), b"no clip at all")
    storage.write_bytes(str(tmp_path / "in/b.tar"), tar(list({"1.mp4": b"", "2.txt": b"text"}.items())))
    archive, alone = list_shards(str(tmp_path / "in"), cut=True)
    (row,) = cut_rows(alone)
    assert (row["sample_id"], row["last"], row["start_seconds"]) == ("a.mp4", True, None)
    assert row["error"].startswith("VideoDecodeError: ")
    first, second = cut_rows(archive)
    assert (first["sample_id"], first["error"].split(":")[0]) == ("1", "VideoDecodeError")
    assert (second["sample_id"], second["error"], second["last"]) == ("2", None, True)
