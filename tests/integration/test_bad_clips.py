"""A bucket of strangers' clips, photographs and arrays, most of them broken, through real nights under every sampling,
whole and in windows: every object has its rows, and what is wrong with one is said in its last."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from hybrid_models.inputs import Cut, Visual
from jobs.command import cli
from pipelines import storage
from pipelines.nights import query
from pipelines.reading.media.video import is_cut
from tests import tiny
from tests.pipelines.reading.media.test_bad_clips import BAD, CUTS, PARTLY, POLICIES, READABLE, Reference, good, spans
from tests.pipelines.reading.media.test_decode import image_bytes, npy
from tests.servers import BUCKET, S3Server

FOLDER = f"s3://{BUCKET}/bad-clips"
DS = "2026-01-31"


class Lone(NamedTuple):
    """An object of the bucket."""

    media: bytes
    error: str = ""
    """What its last row says; nothing of a good one."""
    good: int = 0
    """Windows of a second before that."""
    shown: Reference | None = None
    """What is in a clip that can be read."""


def npz(*arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, *arrays)
    return buffer.getvalue()


def clips() -> Iterator[tuple[str, Lone]]:
    for made, kinds, error in BAD:
        yield from ((f"{made.__name__}.{kind}", Lone(made(kind), error)) for kind in kinds)
    for made, kinds, count, error in PARTLY:
        yield from ((f"{made.__name__}.{kind}", Lone(made(kind), error, count)) for kind in kinds)
    for shows, kinds in READABLE:
        for kind in kinds:
            media, shown = shows(kind)
            yield f"{shows.__name__}.{kind}", Lone(media, shown=shown)


def photographs() -> Iterator[tuple[str, Lone]]:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
    for kind, name in (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")):
        whole = image_bytes(noise, name)
        yield f"photo.{kind}", Lone(whole)
        yield f"torn.{kind}", Lone(whole[: len(whole) // 2], "ImageDecodeError: ")
        yield f"page.{kind}", Lone(b"<html>404</html>", "ImageDecodeError: not a JPEG, PNG, WEBP, GIF, BMP, ")
        yield f"photo.{kind}.jpeg", Lone(whole)
    yield "empty.png", Lone(b"", "ImageDecodeError: the file is empty")


def arrays() -> Iterator[tuple[str, Lone]]:
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    for kind, whole in (("npy", npy(frames)), ("npz", npz(frames))):
        yield f"array.{kind}", Lone(whole)
        yield f"torn.{kind}", Lone(whole[: len(whole) // 2], "ArrayDecodeError: ")
        yield f"empty.{kind}", Lone(b"", "ArrayDecodeError: ")
        yield f"jpg_inside.{kind}", Lone(tiny.jpeg(1), "ArrayDecodeError: ")
        yield f"mp4_inside.{kind}", Lone(good("mp4"), "ArrayDecodeError: ")
    yield "two.npz", Lone(npz(frames, frames), "ArrayDecodeError: an npz file must hold exactly one array")
    yield "grey.npy", Lone(npy(frames[..., 0]), "MediaShape: ")
    yield "large.npy", Lone(npy(frames[:, :8]), "MediaShape: ")


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> dict[str, Lone]:
    """What lies in the folder, by name."""
    named = [*clips(), *photographs(), *arrays()]
    found = dict(named)
    assert len(found) == len(named)
    for name, lone in found.items():
        storage.write_bytes(f"{FOLDER}/{name}", lone.media, storage.anything)
    return found


def expected(
    name: str, lone: Lone, visual: Visual, cut: Cut | None
) -> list[tuple[float | None, float | None, int | None]]:
    """The start, the end and the number of frames of each of an object's rows; of one that is bad without its last."""
    in_windows = cut is not None and is_cut(name.rpartition(".")[2])
    if lone.error:
        return [(float(n), n + 1.0, None) for n in range(lone.good)] if cut == CUTS["windows"] else []
    if lone.shown is None:
        return [(None, None, None)]
    found = []
    for start, end in spans(lone.shown, cut if in_windows else None):
        times, keys = (
            [t for t in all_ if start - 1e-6 <= t < end - 1e-6] for all_ in (lone.shown.times, lone.shown.keys)
        )
        span = (start, end) if in_windows else (None, None)
        found.append((*span, len(visual.times(start, end, times, keys))))
    return found


def check(name: str, lone: Lone, rows: Sequence[dict[str, Any]], visual: Visual, cut: Cut | None) -> None:
    """That these are the rows of an object."""
    told = name, [row["error"] for row in rows]
    if lone.error:
        *rows, last = rows
        assert last["status"] == "error", told
        assert re.match(lone.error, last["error"]), told
        assert (last["start_seconds"] or 0.0) == len(rows), told
    wanted = expected(name, lone, visual, cut)
    assert [(row["status"], row["error"]) for row in rows] == [("ok", None)] * len(wanted), told
    for row, (start, end, count) in zip(rows, wanted, strict=True):
        assert (row["start_seconds"], row["end_seconds"]) == pytest.approx((start, end), abs=2e-3), told
        assert count in (None, row["frames"]), told


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("length", ["whole", "windows", "a window longer than the clip"])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_object_has_its_rows_and_what_is_wrong_is_said(
    tmp_path: Path, bucket: dict[str, Lone], policy: str, length: str
) -> None:
    visual, cut = POLICIES[policy], CUTS[length]
    model = tiny.write_captioner(
        f"{tmp_path}/model", frames=visual.frames, sampling=visual.sampling, fps=visual.fps, hidden_size=8
    )
    tables = f"{FOLDER}-tables/{policy}-{length.replace(' ', '-')}"
    count = sum(len(expected(name, lone, visual, cut)) for name, lone in bucket.items())
    bad = sum(bool(lone.error) for lone in bucket.values())

    def night(share: float) -> tiny.Ran:
        return tiny.hybrid_here(
            "infer", "captions", "--input", FOLDER, "--tables", tables, "--ds", DS, "--model", model,
            "--max-error-fraction", str(share), "--mlflow", f"sqlite:///{tmp_path}/mlflow.db",
            *(["--window-seconds", str(cut.window_seconds)] if cut else []), cwd=tmp_path,
        )  # fmt: skip

    refused = night((bad - 0.5) / (count + bad))
    assert refused.code == cli.REFUSED, refused.stderr
    assert f"{bad} of {count + bad} samples are bad" in refused.stderr
    done = night((bad + 0.5) / (count + bad))
    assert done.code == 0, done.stderr
    summary = done.summary
    assert (summary["rows"], summary["ok"], summary["rows_lost"]) == (count + bad, count, 0)
    assert summary["rows_computed"] == 0, "what was staged for a night that was refused is there"

    found: dict[str, list[dict[str, Any]]] = {}
    for row in query.query('SELECT * FROM captions_all ORDER BY object, "index"', tables, ["captions"]).to_pylist():
        found.setdefault(row["object"].removeprefix(f"{FOLDER}/"), []).append(row)
    assert set(found) == set(bucket)
    for name, lone in bucket.items():
        check(name, lone, found[name], visual, cut)
    kinds = Counter(row["error"].partition(":")[0] for rows in found.values() for row in rows if row["error"])
    assert summary["errors"] == dict(kinds)
