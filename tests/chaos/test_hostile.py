"""Shards made to do harm: every row is accounted for, nothing is extracted or executed, memory stays bounded."""

from __future__ import annotations

import datetime
import decimal
import io
import pickle
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import guard, storage
from pipelines.guard import guarded
from pipelines.limits import Limits
from pipelines.samples import Decode
from pipelines.shards import ReadOptions, list_shards
from tests import tiny
from tests.pipelines.test_radar import event_bytes

MANY = 50_000


@pytest.fixture(autouse=True)
def no_children_left() -> Iterator[None]:
    yield
    while guard._idle:
        guard._idle.pop().kill()


def rows(uri: str, decode: Decode, window: Any = None) -> list[dict[str, Any]]:
    """All rows of one shard, checked to be numbered and ended as they must."""
    (shard,) = list_shards(uri)
    options = ReadOptions(window, limits=decode.limits)
    found = [row for block in guarded(shard, options, decode) for row in block.to_pylist()]
    assert [row["index"] for row in found] == list(range(len(found)))
    assert [row["last"] for row in found] == [False] * (len(found) - 1) + [True]
    return found


def kinds(found: list[dict[str, Any]]) -> Counter[str]:
    return Counter((row["error"] or "ok").split(":")[0] for row in found)


def photos() -> Decode:
    hybrid = tiny.captioner()
    return Decode(hybrid.preprocess(hybrid.config, hybrid.assets), Limits())


def sentences() -> Decode:
    hybrid = tiny.translator()
    return Decode(hybrid.preprocess(hybrid.config, hybrid.assets), Limits())


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
    storage.write_bytes(str(tmp_path / "in/x.tar"), buffer.getvalue())
    before = set(tmp_path.rglob("*"))
    found = rows(str(tmp_path / "in/x.tar"), photos())
    assert kinds(found) == {"ok": 3, "UnsupportedMember": 5}
    assert set(tmp_path.rglob("*")) == before, "nothing is extracted"


def test_a_header_that_lies_about_its_size(tmp_path: Path) -> None:
    member = tarfile.TarInfo("liar.jpg")
    member.size = 200 << 20
    good = tiny.tar([("good.jpg", tiny.jpeg(0))])
    whole = good[: 512 * (1 + -(-len(tiny.jpeg(0)) // 512))]  # a header and its data, without the end mark
    storage.write_bytes(str(tmp_path / "x.tar"), whole + member.tobuf() + tiny.jpeg(1))
    found = rows(str(tmp_path / "x.tar"), photos())
    assert kinds(found) == {"ok": 1, "ShardReadError": 1}


def test_very_many_tiny_members_need_little_memory(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "x.tar"), tiny.tar((f"{i:07d}.jpg", b"") for i in range(MANY)))
    (shard,) = list_shards(str(tmp_path / "x.tar"))
    count, peak, last = 0, 0, None
    for block in guarded(shard, ReadOptions(), photos()):
        children = [p for p in psutil.Process().children() if "pipelines.jail" in " ".join(p.cmdline())]
        peak = max([peak, *(child.memory_info().rss for child in children)])
        assert set(block["error"].to_pylist()) == {"ImageDecodeError: not a JPEG, PNG, WebP or GIF image"}
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
    storage.write_bytes(str(tmp_path / "x.txt"), b"\n".join(lines) + b"\n")
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
    storage.write_bytes(str(tmp_path / "x.tar"), tiny.tar(members))
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
        str(tmp_path / "x.nc"), event_bytes([0, 5, 10, 15, 20], rain=rain.astype(np.float32), rain_attrs=attrs)
    )
    found = rows(str(tmp_path / "x.nc"), decode, decode.preprocess.window)
    assert len(found) == 3
    assert found[0]["error"] is None, "its frames are whole"
    if not np.isnan(value):
        assert all(row["error"] for row in found[1:]), "not rain, and not missing either"
