"""Shards made to do harm: every row is accounted for, nothing is extracted or executed, memory stays bounded."""

from __future__ import annotations

import datetime
import decimal
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybrid_models.nowcaster.config import NowcasterConfig
from hybrid_models.nowcaster.nowcaster import Nowcaster
from pipelines import storage
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import Limits
from pipelines.reading.samples import Decode
from pipelines.reading.sandbox import guard
from pipelines.reading.sandbox.guard import guarded
from pipelines.reading.shards import list_shards
from tests import tiny
from tests.chaos.fuzz import alarm
from tests.chaos.mutants import archives, columns, events
from tests.pipelines.reading.media.test_decode import clip_bytes
from tests.pipelines.reading.media.test_radar import event_bytes

MANY = 50_000
PATIENCE = 100
"""Seconds after which a shard is taken to hang."""


@pytest.fixture(scope="module", autouse=True)
def no_children_left() -> Iterator[None]:
    yield
    end_children()


def end_children() -> None:
    while guard._idle:
        guard._idle.pop().kill()


def rows(uri: str, decode: Decode, window: Any = None) -> list[dict[str, Any]]:
    """All rows of one shard, checked to be numbered and ended as they must."""
    (shard,) = list_shards(uri)
    options = ReadOptions(window, limits=decode.limits)
    with alarm(PATIENCE):
        found = [row for block in guarded(shard, options, decode) for row in block.to_pylist()]
    assert [row["index"] for row in found] == list(range(len(found)))
    assert [row["last"] for row in found] == [False] * (len(found) - 1) + [True]
    return found


def kinds(found: list[dict[str, Any]]) -> Counter[str]:
    return Counter((row["error"] or "ok").split(":")[0] for row in found)


def photos(**limits: Any) -> Decode:
    hybrid = tiny.captioner()
    return Decode(hybrid.preprocess(hybrid.config, hybrid.assets), Limits(**limits))


def sentences(**limits: Any) -> Decode:
    hybrid = tiny.translator()
    return Decode(hybrid.preprocess(hybrid.config, hybrid.assets), Limits(**limits))


def rain() -> Decode:
    hybrid = tiny.nowcaster()
    return Decode(hybrid.preprocess(hybrid.config, hybrid.assets), Limits(max_seconds=3))


def test_members_that_are_no_files_or_point_elsewhere(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    photo = tiny.jpeg(0)
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("/absolute.jpg", "../../up.jpg", "a/../../b.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(photo)
            archive.addfile(member, io.BytesIO(photo))
        types = {"sym": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "char": tarfile.CHRTYPE, "block": tarfile.BLKTYPE,
                 "fifo": tarfile.FIFOTYPE}  # fmt: skip
        for name, kind in types.items():
            member = tarfile.TarInfo(f"{name}.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    storage.write_bytes(str(tmp_path / "in/x.tar"), buffer.getvalue(), storage.anything)
    before = set(tmp_path.rglob("*"))
    found = rows(str(tmp_path / "in/x.tar"), photos())
    assert kinds(found) == {"ok": 3, "UnsupportedMember": 5}
    assert set(tmp_path.rglob("*")) == before, "nothing is extracted"


def test_a_header_that_lies_about_its_size(tmp_path: Path) -> None:
    member = tarfile.TarInfo("liar.jpg")
    member.size = 200 << 20
    good = tiny.tar([("good.jpg", tiny.jpeg(0))])
    whole = good[: 512 * (1 + -(-len(tiny.jpeg(0)) // 512))]  # a header and its data, without the end mark
    storage.write_bytes(str(tmp_path / "x.tar"), whole + member.tobuf() + tiny.jpeg(1), storage.anything)
    found = rows(str(tmp_path / "x.tar"), photos())
    assert kinds(found) == {"ok": 1, "ShardReadError": 1}


def test_very_many_tiny_members_need_little_memory(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "x.tar"), tiny.tar((f"{i:07d}.jpg", b"") for i in range(MANY)), storage.anything)
    (shard,) = list_shards(str(tmp_path / "x.tar"))
    end_children()
    count, peak, last = 0, 0, None
    for block in guarded(shard, ReadOptions(), photos()):
        children = [p for p in psutil.Process().children() if "pipelines.reading.sandbox.jail" in " ".join(p.cmdline())]
        peak = max([peak, *(child.memory_info().rss for child in children)])
        assert set(block["error"].to_pylist()) == {"ImageDecodeError: the file is empty"}
        count, last = count + len(block), block["last"][-1].as_py()
    assert (count, last) == (MANY, True)
    assert peak < 600 << 20


def test_text_that_nobody_would_write(tmp_path: Path) -> None:
    lines = [
        b"x" * (10 << 20),
        b"\0\0\0",
        b"\xff\xfe\xfd",
        "\u202e\U0010ffff\u200f".encode(),
        b"<script>alert(1)</script>",
        b"ein Hund",
    ]
    storage.write_bytes(str(tmp_path / "x.txt"), b"\n".join(lines) + b"\n", storage.anything)
    found = rows(str(tmp_path / "x.txt"), sentences())
    assert len(found) == 6
    assert [row["error"] is None for row in found][-2:] == [True, True]
    assert found[0]["error"].startswith("TextTooLong")
    assert found[2]["error"].startswith("TextDecodeError")


def test_parquet_of_every_other_type(tmp_path: Path) -> None:
    table = pa.table(
        {
            "when": [datetime.datetime(2026, 1, 1)] * 2,
            "price": [decimal.Decimal("1.50")] * 2,
            "tree": [{"a": [1, None]}] * 2,
            "map": pa.array([[("k", 1)]] * 2, pa.map_(pa.string(), pa.int32())),
            "word": pa.array(["ein", "Hund"]).dictionary_encode(),
            "nothing": pa.nulls(2),
            "half": pa.array(np.array([1, 2], np.float16)),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    assert kinds(rows(str(tmp_path / "x.parquet"), sentences())) == {"TextMissing": 2}
    pq.write_table(table.append_column("text", pa.array(["der Hund", None])), tmp_path / "x.parquet")
    assert kinds(rows(str(tmp_path / "x.parquet"), sentences())) == {"ok": 1, "TextMissing": 1}


class Bomb:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickles_are_not_executed(tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    array = io.BytesIO()
    np.save(array, np.array([Bomb(tmp_path / "exploded")], dtype=object), allow_pickle=True)
    members = [("a.pkl", bomb), ("b.pt", bomb), ("c.pth", bomb), ("d.npy", array.getvalue()), ("e.jpg", bomb)]
    storage.write_bytes(str(tmp_path / "x.tar"), tiny.tar(members), storage.anything)
    pq.write_table(pa.table({"image": [bomb, array.getvalue()]}), tmp_path / "x.parquet")
    for name, count in (("x.tar", 5), ("x.parquet", 2)):
        found = rows(str(tmp_path / name), photos())
        assert len(found) == count
        assert all(row["error"] for row in found)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)
    assert (tmp_path / "exploded").exists(), "the bomb works"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -5.0, 1e30])
def test_impossible_rain(value: float, tmp_path: Path) -> None:
    hybrid = tiny.nowcaster()
    decode = Decode(hybrid.preprocess(hybrid.config, {}), Limits())
    rain = np.ones((5, 32, 32), np.float32)
    rain[3, 8:16, 8:16] = value
    attrs = {"units": "mm/h"}
    storage.write_bytes(
        str(tmp_path / "x.nc"),
        event_bytes([0, 5, 10, 15, 20], rain=rain.astype(np.float32), rain_attrs=attrs),
        storage.anything,
    )
    found = rows(str(tmp_path / "x.nc"), decode, decode.preprocess.window)
    assert len(found) == 3
    assert found[0]["error"] is None, "its frames are whole"
    if not np.isnan(value):
        assert all(row["error"] for row in found[1:]), "not rain, and not missing either"


# ---- tar: headers that lead nowhere ------------------------------------------------------------------------------
SPARSE_MAP = archives.record(b"GNU.sparse.map", b"0,x,9")
HEADERS = {
    "sparse map": archives.extended(SPARSE_MAP + archives.record(b"GNU.sparse.size", b"9")) + archives.member(b"s.jpg"),
    "sparse 1.0": archives.extended(
        archives.record(b"GNU.sparse.major", b"1") + archives.record(b"GNU.sparse.minor", b"0")
        + archives.record(b"GNU.sparse.realsize", b"x")
    ) + archives.member(b"s.jpg", b"none\n"),
    "PAX size": archives.extended(archives.record(b"size", b"-1024")) + archives.member(b"s.jpg"),
    "negative size": archives.member(b"s.jpg", size=archives.binary(-512)),
    "huge size": archives.member(b"s.jpg", size=archives.binary(1 << 90)),
    "long names": archives.member(b"long", b"a.jpg\0", kind=b"L") * 3000 + archives.member(b"s.jpg"),
    "PAX headers": archives.extended(archives.record(b"path", b"a.jpg")) * 3000 + archives.member(b"s.jpg"),
}  # fmt: skip


@pytest.mark.parametrize("which", HEADERS)
def test_a_tar_header_that_leads_nowhere_ends_its_shard_after_the_rows_before_it(which: str, tmp_path: Path) -> None:
    archive = archives.member(b"first.jpg") + archives.between(HEADERS[which])
    storage.write_bytes(str(tmp_path / "x.tar"), archive, storage.anything)
    first, *others = rows(str(tmp_path / "x.tar"), photos())
    assert (first["sample_id"], first["error"]) == ("first", None)
    assert 1 <= len(others) <= 3, "whatever the header says, there are four members"
    assert [row["error"].partition(": ")[0] for row in others if row["error"]], "it is told"


# ---- Parquet: values that Python does not know -------------------------------------------------------------------
UNKNOWN_VALUES = {
    "a date beyond the year 9999": pa.array([3_000_000, 0], pa.int32()).view(pa.date32()),
    "a time beyond the year 9999": pa.array([1 << 60, 0]).view(pa.timestamp("us")),
    "fields of one name": pa.StructArray.from_arrays([pa.array([1, 2]), pa.array([3, 4])], ["a", "a"]),
    "text that is no UTF-8": columns.raw_strings([b"\xff\xfe", b"x"]),
    "a time zone that is none": pa.array([5, 6]).view(pa.timestamp("us", "Nowhere/Else")),
}


@pytest.mark.parametrize("what", UNKNOWN_VALUES)
def test_a_value_in_a_column_that_nobody_reads_costs_nothing(what: str, tmp_path: Path) -> None:
    table = pa.table({"text": ["ein Hund", "eine Katze"], "other": UNKNOWN_VALUES[what]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert kinds(rows(str(tmp_path / "x.parquet"), sentences())) == {"ok": 2}


def test_a_sentence_that_is_no_utf_8_costs_itself(tmp_path: Path) -> None:
    table = pa.table({"text": columns.raw_strings([b"ein Hund", b"\xff\xfe", b"eine Katze"])})
    pq.write_table(table, tmp_path / "x.parquet")
    found = rows(str(tmp_path / "x.parquet"), sentences())
    assert [row["error"] is None for row in found] == [True, False, True]


@pytest.mark.parametrize("stored_once", [False, True])
def test_large_clips_in_one_parquet_shard_are_one_row_each(stored_once: bool, tmp_path: Path) -> None:
    """All of them together are larger than the memory that decoding may take, even where a dictionary holds one."""
    clip = clip_bytes("avi", "rawvideo", [i % 200 for i in range(900)])
    assert 64 * len(clip) > 250_000_000
    table = pa.table({"clip": pa.array([clip] * 64, pa.large_binary())})
    pq.write_table(table, tmp_path / "x.parquet", use_dictionary=stored_once)
    assert kinds(rows(str(tmp_path / "x.parquet"), photos(max_memory=160 << 20))) == {"ok": 64}


# ---- NetCDF ------------------------------------------------------------------------------------------------------
def test_rain_in_another_file_is_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(1, 129)) * 100)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (secret, pipe):
        elsewhere = [(str(place), 0, h5py.h5f.UNLIMITED)]
        content = events.event_of(
            lambda file, where=elsewhere: file.create_dataset("rainfall_rate", (6, 32, 32), "u1", external=where)
        )
        storage.write_bytes(str(tmp_path / "x.nc"), content, storage.anything)
        (row,) = rows(str(tmp_path / "x.nc"), rain(), rain().preprocess.window)
        assert row["error"].startswith("RadarDecodeError: ")


BAD_EVENT = {"RadarDecodeError", "RadarVariableError", "ShardReadError"}
BROKEN_EVENTS = {
    "a scale that is text": lambda file: file["rainfall_rate"].attrs.create("scale_factor", "0.01"),
    "a scale that is a list": lambda file: file["rainfall_rate"].attrs.create("scale_factor", np.array([1.0, 2.0])),
    "an offset that is a structure": lambda file: file["rainfall_rate"].attrs.create(
        "add_offset", np.array((1, 2.0), [("a", "i4"), ("b", "f8")])
    ),
}


@pytest.mark.parametrize("what", BROKEN_EVENTS)
def test_an_attribute_of_another_type_costs_its_event(what: str, tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "x.nc"), events.event(BROKEN_EVENTS[what]), storage.anything)
    assert set(kinds(rows(str(tmp_path / "x.nc"), rain(), rain().preprocess.window))) <= BAD_EVENT


@pytest.mark.parametrize("dtype", [np.dtype([("a", "f4"), ("b", "f4")]), h5py.string_dtype(), h5py.vlen_dtype("f4")])
def test_rain_that_is_no_number_costs_its_event(dtype: Any, tmp_path: Path) -> None:
    content = events.event_of(lambda file: file.create_dataset("rainfall_rate", (6, 32, 32), dtype))
    storage.write_bytes(str(tmp_path / "x.nc"), content, storage.anything)
    assert set(kinds(rows(str(tmp_path / "x.nc"), rain(), rain().preprocess.window))) <= BAD_EVENT


def one_chunk_of_gigabytes(file: h5py.File) -> h5py.Dataset:
    """Six frames of 32 x 32 in chunks of 1.6 GB, each 1.6 MB as stored."""
    packed = zlib.compressobj(9)
    chunk = b"".join([*(packed.compress(bytes(1 << 20)) for _ in range(1526)), packed.flush()])
    rain = file.create_dataset(
        "rainfall_rate", (6, 32, 32), "u1", chunks=(1, 40_000, 40_000), maxshape=(None,) * 3, compression="gzip"
    )
    for frame in range(6):
        rain.id.write_direct_chunk((frame, 0, 0), chunk)
    return rain


def a_billion_chunks(file: h5py.File) -> h5py.Dataset:
    rain = file.create_dataset("rainfall_rate", (6, 13_000, 13_000), "u1", chunks=(1, 1, 1))
    rain[5, 12_999, 12_999] = 1
    return rain


@pytest.mark.parametrize("make", [one_chunk_of_gigabytes, a_billion_chunks])
def test_chunks_of_gigabytes_or_by_the_billion_cost_their_event(make: Any, tmp_path: Path) -> None:
    decode = Decode(rain().preprocess, Limits(max_seconds=2, max_memory=1 << 30))
    storage.write_bytes(str(tmp_path / "x.nc"), events.event_of(make), storage.anything)
    assert (tmp_path / "x.nc").stat().st_size < 10_000_000
    start = time.monotonic()
    (row,) = rows(str(tmp_path / "x.nc"), decode, decode.preprocess.window)
    assert row["error"].split(":")[0] in ("RadarDecodeError", "MemoryLimit", "InputHangs")
    assert time.monotonic() - start < 30


def test_a_chunk_that_is_declared_to_have_terabytes_costs_its_event(tmp_path: Path) -> None:
    sides = struct.pack("<III", 1, 4951, 9320)
    content = events.event_of(
        lambda file: file.create_dataset(
            "rainfall_rate", (6, 32, 32), "u1", chunks=(1, 4951, 9320), maxshape=(None,) * 3
        )
    )
    assert content.count(sides) == 1
    storage.write_bytes(
        str(tmp_path / "x.nc"), content.replace(sides, struct.pack("<III", 1, 2**31 - 1, 2**31 - 1)), storage.anything
    )
    (row,) = rows(str(tmp_path / "x.nc"), rain(), rain().preprocess.window)
    assert row["error"].startswith("RadarDecodeError: ")


def test_seconds_for_minutes_make_more_lead_times_than_fit(tmp_path: Path) -> None:
    """Five seconds a step and an hour ahead are 720 lead times."""
    config = NowcasterConfig(past_frames=3, horizon_minutes=60, height=256, width=256, patch=8, hidden_dims=(8,))
    decode = Decode(Nowcaster.preprocess(config, {}), Limits())
    packed = np.ones((5, 256, 256), np.uint16)
    content = event_bytes([t / 12 for t in range(5)], rain=packed)
    storage.write_bytes(str(tmp_path / "x.nc"), content, storage.anything)
    assert kinds(rows(str(tmp_path / "x.nc"), decode, decode.preprocess.window)) == {"OutputTooLarge": 3}
    storage.write_bytes(str(tmp_path / "x.nc"), event_bytes([5 * t for t in range(5)], rain=packed), storage.anything)
    assert kinds(rows(str(tmp_path / "x.nc"), decode, decode.preprocess.window)) == {"ok": 3}, "12 lead times"


# ---- text --------------------------------------------------------------------------------------------------------
def test_names_of_a_megabyte_need_little_memory(tmp_path: Path) -> None:
    lines = [json.dumps({"id": f"{i} " + "x" * 1_100_000, "text": "ein Hund"}).encode() + b"\n" for i in range(200)]
    storage.write_bytes(str(tmp_path / "x.jsonl.gz"), gzip.compress(b"".join(lines), 1), storage.anything)
    found = rows(str(tmp_path / "x.jsonl.gz"), sentences(max_memory=128 << 20))
    assert len(found) == 200
    assert max(len(row["sample_id"]) for row in found) < 10_000


# ---- shards that end early ---------------------------------------------------------------------------------------
def parquet_damaged_at(group: int) -> bytes:
    """40 rows in four groups, one of which holds other bytes than were written."""
    table = pa.table({"text": tiny.sentences(40)})
    content = bytearray(columns.written(table, row_group_size=10, use_dictionary=False, compression="zstd"))
    start = pq.ParquetFile(io.BytesIO(bytes(content))).metadata.row_group(group).column(0).data_page_offset
    content[start : start + 60] = b"\xff" * 60
    return bytes(content)


@pytest.mark.parametrize("group", [0, 2])
def test_a_shard_that_cannot_be_read_on_says_how_many_rows_are_lost(group: int, tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "x.parquet"), parquet_damaged_at(group), storage.anything)
    found = rows(str(tmp_path / "x.parquet"), sentences())
    assert kinds(found) == Counter({"ok": 10 * group, "ShardReadError": 1})
    assert [row["lost_rows"] for row in found] == [None] * 10 * group + [39 - 10 * group]


def test_lost_rows_count_as_bad_ones(tmp_path: Path, ray_cluster: str) -> None:
    model = tiny.write_translator(str(tmp_path / "model"))
    tiny.write_sentences(str(tmp_path / "in"), shards=1, rows=60)
    storage.write_bytes(str(tmp_path / "in/x.parquet"), parquet_damaged_at(0), storage.anything)
    command = ("infer", "translations", "--input", str(tmp_path / "in"), "--tables", str(tmp_path / "tables"),
               "--ds", "2026-01-31", "--model", model, "--resources.min-actors", "1")  # fmt: skip
    refused = tiny.hybrid_here(*command, cwd=tmp_path)
    assert refused.code == 3, "40 of 100 rows are more than one in twenty"
    assert "40 of 100" in refused.stderr
    allowed = tiny.hybrid_here(*command, "--max-error-fraction", "0.4", cwd=tmp_path)
    assert allowed.code == 0, allowed.stderr


def row_bombs() -> dict[str, bytes]:
    """Twenty million rows of one sentence, and a hundred thousand columns."""
    count = 20_000_000
    same = pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), ["a dog runs"])
    wide = pa.table({f"c{i}": pa.array([1], pa.int8()) for i in range(100_000)})
    return {
        "rows.parquet": columns.written(pa.table({"en": same}), row_group_size=count),
        "rows.jsonl.gz": gzip.compress(b'{"en": "a dog runs"}\n' * (count // 20)) * 20,
        "wide.parquet": columns.written(wide, use_dictionary=False, compression="none"),
    }


def test_bombs_of_rows_and_columns_are_one_error_row_within_seconds(tmp_path: Path) -> None:
    decode = sentences()
    for name, content in row_bombs().items():
        storage.write_bytes(str(tmp_path / name), content, storage.anything)
        started = time.monotonic()
        (row,) = rows(str(tmp_path / name), decode)
        assert time.monotonic() - started < 30
        assert row["error"].startswith(("TooManyRows: ", "ShardTooLarge: ", "TooManyColumns: 100,000, "))
        assert row["lost_rows"] == 0 or row["lost_rows"] > 1_000_000
