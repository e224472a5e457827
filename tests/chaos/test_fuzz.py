"""Seeded mutations of a good file for every decoder: no exception, no crash, no lost row, known reasons only.

Some know nothing of the format, some its structure (`mutants`); `make fuzz` runs thousands of these.
"""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hybrid_models.inputs import Cut
from pipelines import storage
from pipelines.reading.limits import Limits
from pipelines.reading.samples import Decode
from pipelines.reading.sandbox import guard
from pipelines.reading.sandbox.guard import guarded
from pipelines.reading.shards import list_shards
from tests import tiny
from tests.chaos import fuzz
from tests.chaos.intruder import Echo
from tests.chaos.mutants import FORMATS, mutant
from tests.pipelines.reading.media.test_decode import clip_bytes, image_bytes
from tests.pipelines.reading.media.test_radar import event_bytes

FILES = 200
MUTANTS = 20
LIMITS = Limits(
    max_bytes=1 << 20, max_pixels=1_000_000, max_frames=200, max_array_bytes=1 << 24, max_seconds=20, max_memory=1 << 30
)


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Flips bits, cuts, repeats, removes, or overwrites with what parsers stumble over."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(0, max(1, len(data))))
        size = int(rng.integers(1, 1 + min(64, max(1, len(data)))))
        match int(rng.integers(0, 6)):
            case 0:
                data[at : at + 1] = bytes([data[at] ^ (1 << int(rng.integers(0, 8)))]) if data else b"\0"
            case 1:
                del data[at:]
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size]
            case 4:
                data[at : at + size] = rng.bytes(size)
            case _:
                data[at : at + 4] = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0"][size % 4]
    return bytes(data)


def arrays(kind: str) -> bytes:
    buffer = io.BytesIO()
    values = np.arange(3 * 8 * 8, dtype=np.float32).reshape(3, 8, 8)
    np.save(buffer, values) if kind == "npy" else np.savez_compressed(buffer, values)
    return buffer.getvalue()


def parquet() -> bytes:
    buffer = io.BytesIO()
    table = pa.table({"id": ["a", "b", "c"], "text": ["x", None, "z"], "image": [tiny.jpeg(i) for i in range(3)]})
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def photograph(kind: str) -> bytes:
    return image_bytes(Image.open(io.BytesIO(tiny.jpeg(1, size=40))), kind)


LINES = "".join(json.dumps({"id": f"r{i}", "en": f"sentence {i} äöü 雨"}) + "\n" for i in range(6)).encode()
TSV = b"id\ten\tde\n" + b"".join(f"r{i}\tsentence {i}\tSatz {i} äöü\n".encode() for i in range(6))
MEMBERS: dict[str, Callable[[], bytes]] = {
    "jpg": lambda: photograph("JPEG"),
    "png": lambda: photograph("PNG"),
    "webp": lambda: photograph("WEBP"),
    "gif": lambda: photograph("GIF"),
    "bmp": lambda: photograph("BMP"),
    "tiff": lambda: photograph("TIFF"),
    "avif": lambda: photograph("AVIF"),
    "jp2": lambda: photograph("JPEG2000"),
    "heic": lambda: photograph("HEIF"),
    "mp4": lambda: clip_bytes("mp4", "libx264", [40, 120, 200]),
    "webm": lambda: clip_bytes("webm", "libvpx-vp9", [40, 120, 200]),
    "avi": lambda: clip_bytes("avi", "mpeg4", [40, 120, 200]),
    "npy": lambda: arrays("npy"),
    "npz": lambda: arrays("npz"),
    "json": lambda: json.dumps({"text": "äöü", "captions": ["a", "b"], "n": [1, {"x": None}]}).encode(),
}
SHARDS: dict[str, Callable[[], bytes]] = {
    "tar": lambda: tiny.tar([(f"folder/{i}.jpg", tiny.jpeg(i)) for i in range(3)] + [("folder/2.json", b"{}")]),
    "parquet": parquet,
    "jsonl": lambda: LINES,
    "jsonl.gz": lambda: gzip.compress(LINES),
    "txt": lambda: LINES,
    "txt.gz": lambda: gzip.compress(LINES),
    "tsv": lambda: TSV,
    "tsv.gz": lambda: gzip.compress(TSV),
    "nc": lambda: event_bytes([5 * t for t in range(6)]),
}
REASONS = {
    "ArrayDecodeError", "ArrayTooLarge", "ColumnCountError", "EmptyShard", "ImageDecodeError",
    "ImageTooLarge", "JsonDecodeError", "LineTooLong", "MediaTooLarge", "MemberTooLarge", "ShardReadError",
    "TextDecodeError", "TooFewFrames", "UnsupportedMedia", "UnsupportedMember", "VideoDecodeError", "VideoTooLarge",
    "AmbiguousColumns", "RadarDecodeError", "RadarTimeError", "RadarVariableError",
}  # fmt: skip
COSTLY = {
    "IdTooLong", "InputCrashed", "InputHangs", "MemoryLimit", "OutputTooLarge", "ShardTakesTooLong", "ShardTooLarge",
    "TooManyColumns", "TooManyRows",
}  # fmt: skip
"""Reasons of mutants that were made to cost more than they may."""


@pytest.fixture(scope="module", autouse=True)
def no_children_left() -> Iterator[None]:
    yield
    while guard._idle:
        guard._idle.pop().kill()


def read(uri: str, cut: Cut | None = None) -> dict[str, list[dict[str, Any]]]:
    """Rows of all shards at a URI, by shard."""
    decode = Decode(Echo(), LIMITS, cut=cut)
    found: dict[str, list[dict[str, Any]]] = {}
    for shard in list_shards(uri, cut is not None):
        found[shard.uri] = [row for block in guarded(shard, decode.options(), decode) for row in block.to_pylist()]
    return found


def check(rows: list[dict[str, Any]]) -> Counter[str]:
    """Every row is there once, and the bad ones have a reason that is known."""
    assert [row["index"] for row in rows] == list(range(len(rows)))
    assert [row["last"] for row in rows] == [False] * (len(rows) - 1) + [True]
    assert all((row["sample"] is None) == (row["error"] is not None) for row in rows)
    return Counter(row["error"].split(":", 1)[0] for row in rows if row["error"])


@pytest.mark.parametrize("kind", MEMBERS)
def test_mutated_members(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(sum(kind.encode()))
    good = MEMBERS[kind]()
    members = [(f"{i:04d}.{kind}", mutate(good, rng)) for i in range(FILES)]
    storage.write_bytes(str(tmp_path / "fuzz.tar"), tiny.tar([("good." + kind, good), *members]), storage.anything)
    (rows,) = read(str(tmp_path)).values()
    assert len(rows) == FILES + 1
    assert rows[0]["error"] is None
    errors = check(rows)
    assert set(errors) <= REASONS, errors
    assert errors.total() > FILES / 20, "the mutations must hurt"


@pytest.mark.parametrize("kind", sorted({"mp4", "mov", "mkv", "webm", "avi"} & set(MEMBERS)))
def test_windows_of_mutated_clips(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(sum(kind.encode()))
    good = MEMBERS[kind]()
    clips = {f"{number:04d}.{kind}": mutate(good, rng) for number in range(FILES)}
    for name, clip in clips.items():
        storage.write_bytes(str(tmp_path / "in" / name), clip, storage.anything)
    storage.write_bytes(
        str(tmp_path / "in/all.tar"), tiny.tar([*clips.items(), ("last.txt", b"text")]), storage.anything
    )
    errors: Counter[str] = Counter()
    found = read(str(tmp_path / "in"), Cut(0.1, 0.1))
    assert len(found) == FILES + 1
    for rows in found.values():
        errors += check(rows)
    (archive,) = (rows for uri, rows in found.items() if uri.endswith("all.tar"))
    assert archive[-1]["sample_id"] == "last", "no clip costs what comes after it"
    alone = sum(len(rows) for uri, rows in found.items() if not uri.endswith("all.tar"))
    assert len(archive) == alone + 1, "a clip has the same windows wherever it lies"
    assert set(errors) <= REASONS, errors
    assert errors.total() > FILES / 20, "the mutations must hurt"


@pytest.mark.parametrize("kind", SHARDS)
def test_mutated_shards(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(sum(kind.encode()))
    good = SHARDS[kind]()
    for number in range(FILES):
        storage.write_bytes(str(tmp_path / f"{number:04d}.{kind}"), mutate(good, rng), storage.anything)
    errors: Counter[str] = Counter()
    found = read(str(tmp_path))
    assert len(found) == FILES
    for rows in found.values():
        assert rows
        errors += check(rows)
    assert set(errors) <= REASONS, errors
    assert errors.total() > FILES / 20, "the mutations must hurt"


@pytest.mark.parametrize("kind", FORMATS)
def test_mutants_that_know_the_format(kind: str, tmp_path: Path) -> None:
    for number in range(MUTANTS):
        made = mutant(kind, number, seed=7)
        (tmp_path / made.name).write_bytes(made.content)
    errors: Counter[str] = Counter()
    found = read(str(tmp_path))
    assert len(found) == MUTANTS
    for uri, rows in found.items():
        assert fuzz.complaint(rows) == "", uri
        errors += check(rows)
    assert set(errors) <= REASONS | COSTLY, errors
    assert errors, "the mutations must hurt"


def test_a_mutant_can_be_made_again() -> None:
    assert mutant("mp4", 5, seed=1) == mutant("mp4", 5, seed=1)
    assert mutant("mp4", 5, seed=1).content != mutant("mp4", 5, seed=2).content
