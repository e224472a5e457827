"""Each registered kind of shard and of media is decoded in the jail, whose allow list must have what it calls."""

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines import storage
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import Limits
from pipelines.reading.media.decode import MEDIA_TYPES
from pipelines.reading.readers import READERS
from pipelines.reading.samples import Decode
from pipelines.reading.sandbox import guard, jail
from pipelines.reading.sandbox.guard import guarded
from pipelines.reading.shards import list_shards
from tests import tiny
from tests.chaos.intruder import Echo
from tests.chaos.mutants import columns, events
from tests.pipelines.reading.media.test_decode import clip_bytes, image_bytes

pytestmark = pytest.mark.skipif(jail.in_force("auto") != jail.WHOLE, reason="this machine has no whole decoding jail")

LIMITS = Limits()
FRAME = np.arange(64 * 48 * 3, dtype=np.uint8).reshape(64, 48, 3)


def photo(kind: str) -> bytes:
    return image_bytes(Image.fromarray(FRAME), kind)


def array(save: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    save(buffer, np.stack([FRAME] * 3))
    return buffer.getvalue()


GREYS = list(range(20, 220, 8))
LINES = b'{"text": "ein Hund"}\n' * 3
MEDIA = {
    "jpg": lambda: photo("JPEG"),
    "jpeg": lambda: photo("JPEG"),
    "png": lambda: photo("PNG"),
    "webp": lambda: photo("WEBP"),
    "bmp": lambda: photo("BMP"),
    "tif": lambda: photo("TIFF"),
    "tiff": lambda: photo("TIFF"),
    "avif": lambda: photo("AVIF"),
    "jp2": lambda: photo("JPEG2000"),
    "heic": lambda: photo("HEIF"),
    "heif": lambda: photo("HEIF"),
    "gif": lambda: clip_bytes("gif", "gif", GREYS, "rgb8"),
    "mp4": lambda: clip_bytes("mp4", "libx264", GREYS),
    "mov": lambda: clip_bytes("mov", "mpeg4", GREYS),
    "mkv": lambda: clip_bytes("matroska", "libx264", GREYS),
    "webm": lambda: clip_bytes("webm", "libvpx-vp9", GREYS),
    "avi": lambda: clip_bytes("avi", "mpeg4", GREYS),
    "npy": lambda: array(np.save),
    "npz": lambda: array(np.savez_compressed),
}
SHARDS = {
    ".tar": lambda: tiny.tar([("a.jpg", tiny.jpeg(1)), ("b.mp4", MEDIA["mp4"]())]),
    ".parquet": lambda: columns.written(
        pa.table({"text": ["ein Hund"] * 5000, "number": list(range(5000))}), compression="zstd"
    ),
    ".jsonl": lambda: LINES,
    ".jsonl.gz": lambda: gzip.compress(LINES),
    ".txt": lambda: b"ein Hund\n" * 3,
    ".txt.gz": lambda: gzip.compress(b"ein Hund\n" * 3),
    ".tsv": lambda: b"text\tlabel\nein Hund\tdog\n",
    ".tsv.gz": lambda: gzip.compress(b"text\tlabel\nein Hund\tdog\n"),
    ".nc": lambda: events.event(lambda file: None, libver="latest"),
}


def test_each_registered_kind_is_tried() -> None:
    assert set(SHARDS) == set(READERS)
    assert set(MEDIA) == set(MEDIA_TYPES)


def decoded(uri: Path, content: bytes) -> list[dict]:
    """The rows of an object, from a fresh child that the kernel has locked in."""
    storage.write_bytes(str(uri), content)
    (shard,) = list_shards(str(uri))
    blocks = list(guarded(shard, ReadOptions(Echo.window, limits=LIMITS), Decode(Echo(), LIMITS)))
    status = Path(f"/proc/{guard._idle[0]._process.pid}/status").read_text()
    assert "\nSeccomp:\t2\n" in status, "it ran under the filter"
    return [row for block in blocks for row in block.to_pylist()]


@pytest.mark.parametrize("suffix", READERS)
def test_a_shard_is_read_in_the_jail(suffix: str, tmp_path: Path) -> None:
    rows = decoded(tmp_path / f"a{suffix}", SHARDS[suffix]())
    assert [row["error"] for row in rows] == [None] * len(rows)
    assert rows[-1]["last"]


@pytest.mark.parametrize("kind", MEDIA_TYPES)
def test_a_photograph_clip_or_array_is_decoded_in_the_jail(kind: str, tmp_path: Path) -> None:
    (row,) = decoded(tmp_path / f"a.{kind}", MEDIA[kind]())
    assert (row["error"], row["last"]) == (None, True)
    assert row["sample"] is not None
