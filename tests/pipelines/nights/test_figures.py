"""What a page shows of a night is how the night itself predicted."""

from __future__ import annotations

import base64
import io
import re
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybrid_models.explanations import Gaze
from pipelines import storage
from pipelines.nights import figures, report
from tests import tiny
from tests.pipelines.reading.media.test_decode import png_chunk, png_of_size


@pytest.mark.parametrize("decoding", [{}, {"beam_size": 3, "max_length": 5}])
def test_the_nights_own_decoding_is_explained(tmp_path: Path, decoding: dict[str, int]) -> None:
    """Its options may be others than the model's own; they are kept with its files."""
    model, lake = tiny.write_translator(str(tmp_path / "model")), str(tmp_path / "tables")
    storage.write_bytes(str(tmp_path / "in/a.txt"), "\n".join(tiny.sentences(4, seed=9)).encode())
    tiny.write_night(lake, "2026-01-31", str(tmp_path / "in"), model, **decoding)
    shown, problem = figures.figures(lake, "translations", model, "2026-01-31", "", 4)
    assert (len(shown), problem) == (4, "")
    for figure in shown:
        words = [word for word, _ in figure.content["lines"]]
        assert words == figure.row["translation"].split()
    if decoding:
        assert max(figure.row["target_tokens"] for figure in shown) <= 5


def test_a_page_reads_no_file_of_its_maker_that_a_tables_rows_name(s3: str, tmp_path: Path) -> None:
    """Whoever may write to the bucket could have it shown to all who may read there."""
    model = tiny.write_translator(str(tmp_path / "model"))
    storage.write_bytes(str(tmp_path / "secret.txt"), b"marked secret")
    tiny.write_night(f"{s3}/tables", "2026-01-31", str(tmp_path / "secret.txt"), model)
    shown, problem = figures.figures(f"{s3}/tables", "translations", model, "2026-01-31", "", 4)
    assert shown == []
    assert (
        problem
        == f"Nothing to look at: its rows are of another kind of store than {s3}/tables: a page reads none of them"
    )
    storage.write_bytes(f"{s3}/in/a.txt", b"ein Hund")
    tiny.write_night(f"{s3}/tables", "2026-02-01", f"{s3}/in", model)
    assert len(figures.figures(f"{s3}/tables", "translations", model, "2026-02-01", "", 4)[0]) == 1


MARK = b"<script>marked()</script>"


def hostile_pictures() -> dict[str, bytes]:
    """By what they are; each stands in a photograph's place."""
    start, end = b"\x89PNG\r\n\x1a\n", png_chunk(b"IEND", b"")
    screen = b"GIF89a" + struct.pack("<HH", 1, 1) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    frame = b"\x21\xf9\x04\x08\0\0\0\0" + b"\x2c\0\0\0\0\1\0\1\0\0" + b"\x02\x02\x44\x01\0"
    tags = b"".join(struct.pack("<HHII", 0x0112 + i % 999, 2, 0xFFFFFFFF, 8) for i in range(65_535))
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", 65_535) + tags + struct.pack("<I", 8)
    text = zlib.compress(bytes(1 << 28), 9)
    header, pixels = struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0), zlib.compress(bytes(32 * 97))
    large = struct.pack(">IIBBBBB", 8000, 8000, 8, 2, 0, 0, 0)
    small = png_chunk(b"IHDR", header), png_chunk(b"IDAT", pixels)
    return {
        "many pixels, as declared": png_of_size(2**31 - 1, 2**31 - 1),
        "many pixels, as stored": start + png_chunk(b"IHDR", large) + png_chunk(b"IDAT", zeros(8000 * 24_001)) + end,
        "much text": start + small[0] + png_chunk(b"zTXt", b"k\0\0" + text) + small[1] + end,
        "much EXIF": start + small[0] + png_chunk(b"eXIf", exif) + small[1] + end,
        "many frames": screen + frame * 100_000 + b"\x3b",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg">' + MARK + b"</svg>",
        "HTML": b"<!doctype html>" + MARK,
        "a photograph and HTML": tiny.jpeg(1)[:2] + b"\xff\xfe" + struct.pack(">H", len(MARK) + 2) + MARK
        + tiny.jpeg(1)[2:] + MARK,
    }  # fmt: skip


def zeros(count: int) -> bytes:
    packed = zlib.compressobj(9)
    return b"".join([*(packed.compress(bytes(min(1 << 20, count - at))) for at in range(0, count, 1 << 20)),
                     packed.flush()])  # fmt: skip


def test_a_page_of_hostile_pictures_has_pictures_of_its_own_alone(tmp_path: Path) -> None:
    """They stand where the night had photographs: whoever may write to the bucket has replaced them since."""
    pictures = hostile_pictures()
    names = [f"{number}.png" for number in range(len(pictures))]
    shard = f"{tmp_path}/in/a.tar"
    storage.write_bytes(shard, tiny.tar([(name, tiny.jpeg(i)) for i, name in enumerate(names)]))
    model = tiny.write_captioner(f"{tmp_path}/model")
    tiny.write_night(f"{tmp_path}/tables", "2026-01-31", f"{tmp_path}/in", model)
    storage.write_bytes(shard, tiny.tar(zip(names, pictures.values(), strict=True)), storage.anything)
    start = time.monotonic()
    page, (section,) = report.report(
        f"{tmp_path}/tables", ["captions"], "2026-01-31", f"sqlite:///{tmp_path}/mlflow.db", len(pictures)
    )
    assert time.monotonic() - start < 60
    shown = {list(pictures)[int(figure.row["sample_id"])] for figure in section.figures}
    assert "a photograph and HTML" in shown
    assert shown <= {"many pixels, as stored", "much EXIF", "many frames", "a photograph and HTML"}
    sources = re.findall(r'<img src="([^"]*)"', page)
    assert sources
    for source in sources:
        content = base64.b64decode(source.removeprefix("data:image/jpeg;base64,"), validate=True)
        assert MARK not in content
        assert len(content) < 20_000
        with Image.open(io.BytesIO(content)) as image:
            assert (image.format, max(image.size) <= 224) == ("JPEG", True)
    assert MARK.decode() not in page
    assert len(page) < 1_000_000


@pytest.mark.parametrize("frames", [1, 3])
def test_a_captioner_of_frames_in_order_shows_where_it_looked(frames: int) -> None:
    """In which frame of a clip; in which part of a photograph."""
    shown = Gaze(
        frames=np.zeros((frames, 32, 32, 3), np.uint8),
        said="a dog",
        words=["a", "dog"],
        weights=np.full((2, 2, 2), 0.1, np.float32),
        frame_weights=np.full((2, frames), 0.2, np.float32) if frames > 1 else None,
    )
    kind, content = figures.element(shown, {})
    assert kind == "photograph"
    assert [word for word, _ in content["lines"]] == (["a", "dog"] if frames > 1 else [])
    assert [word for word, _ in content["tiles"]] == ([] if frames > 1 else ["a", "dog"])
