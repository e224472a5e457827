"""Every kind of sample through the real pipeline, good ones and bad ones: each row ends as exactly one row."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from hybrid_models.nowcaster.config import NowcasterConfig
from hybrid_models.nowcaster.decoding import NowcasterDecoding
from hybrid_models.nowcaster.nowcaster import Nowcaster
from jobs.command.options import NightOptions
from jobs.infer import run
from pipelines import storage
from pipelines.models import artifacts
from pipelines.models.artifacts import load_hybrid
from pipelines.nights import query
from pipelines.nights.commit import Partition
from pipelines.nights.rules import Rules
from tests import tiny
from tests.pipelines.reading.media.test_radar import event_bytes

pytestmark = pytest.mark.usefixtures("ray_cluster")


def night(model: str, shards: str, tables: str, tracking_uri: str) -> dict[str, Any]:
    artifact = artifacts.read(model)
    partition = Partition.of(tables, artifact.table, "2026-01-31")
    return run([shards], partition, artifact, artifact.decoding, NightOptions(Rules(1.0)), tracking_uri)


def rows(tables: str, table: str) -> dict[str, dict[str, Any]]:
    found = query.query(f"SELECT * FROM {table}_all", tables, [table]).to_pylist()
    by_id = {row["sample_id"]: row for row in found}
    assert len(by_id) == len(found)
    return by_id


def clip(container: str, codec: str, frames: int = 12) -> bytes:
    """A clip of a square that moves."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=6)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            picture = np.zeros((48, 64, 3), np.uint8)
            picture[10:30, number * 3 : number * 3 + 20] = 255
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def gif() -> bytes:
    frames = [Image.new("RGB", (40, 40), (60 * i, 0, 0)) for i in range(4)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def test_photographs_and_clips_are_captioned(tmp_path: Path, tracking_uri: str) -> None:
    model = tiny.write_captioner(str(tmp_path / "model"))
    movie = clip("mp4", "libx264")
    members = [
        ("photo.jpg", tiny.jpeg(1)),
        ("movie.mp4", movie),
        ("web.webm", clip("webm", "libvpx")),
        ("anim.gif", gif()),
        ("cut.mp4", movie[: len(movie) // 2]),
        ("torn.jpg", tiny.jpeg(2)[:200]),
        ("note.txt", b"no picture here"),
    ]
    storage.write_bytes(str(tmp_path / "in/x.tar"), tiny.tar(members), storage.anything)
    summary = night(model, str(tmp_path / "in"), str(tmp_path / "tables"), tracking_uri)
    table = rows(str(tmp_path / "tables"), "captions")
    assert {name: row["frames"] for name, row in table.items() if row["status"] == "ok"} == {
        "photo": 1,
        "movie": 2,  # the model samples two frames of a clip
        "web": 2,
        "anim": 2,
    }
    assert (summary["rows"], summary["ok"]) == (7, 4)
    assert summary["errors"]["VideoDecodeError"] == 1
    assert summary["errors"]["ImageDecodeError"] == 1
    assert table["note"]["status"] == "error"
    assert table["note"]["caption"] is None


def test_actions_of_lone_clips_and_of_arrays(s3: str, tmp_path: Path, tracking_uri: str) -> None:
    model = tiny.write_recogniser(str(tmp_path / "model"))
    movie, grey = clip("mp4", "libx264"), io.BytesIO()
    np.save(grey, np.random.default_rng(0).integers(0, 255, (9, 20, 24)).astype(np.uint8))
    for name, content in {"a.mp4": movie, "b.npy": grey.getvalue(), "cut.mp4": movie[: len(movie) // 2]}.items():
        storage.write_bytes(f"{s3}/in/{name}", content, storage.anything)
    summary = night(model, f"{s3}/in", f"{s3}/tables", tracking_uri)
    assert (summary["rows"], summary["errors"]) == (3, {"VideoDecodeError": 1})
    found = rows(f"{s3}/tables", "actions")
    alone = load_hybrid(model)
    with av.open(io.BytesIO(movie)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert found["a.mp4"]["label"] == alone.recognise([frames])[0]
    for name in ("a.mp4", "b.npy"):
        row = found[name]
        assert (row["frames"], row["object"]) == (4, f"{s3}/in/{name}")
        assert [told["score"] for told in row["scores"]] == sorted((t["score"] for t in row["scores"]), reverse=True)
        assert row["scores"][0] == {"label": row["label"], "score": row["score"]}
        assert len(row["scores"]) == 2
    likely = query.query("SELECT unnest(scores, recursive := true) FROM actions", f"{s3}/tables", ["actions"])
    assert likely.num_rows == 4


def test_sentences_empty_long_and_garbled(tmp_path: Path, tracking_uri: str) -> None:
    model = tiny.write_translator(str(tmp_path / "model"))
    lines = [b"der Hund", b"", b"   ", b"x" * 5000, b"\xff\xfe", b"ein\x00Kind"]
    storage.write_bytes(str(tmp_path / "in/x.txt"), b"\n".join(lines) + b"\n", storage.anything)
    summary = night(model, str(tmp_path / "in"), str(tmp_path / "tables"), tracking_uri)
    assert summary["rows"] == 6
    assert summary["errors"] == {"EmptyText": 2, "TextTooLong": 1, "TextDecodeError": 1}
    good = query.query("SELECT source FROM translations ORDER BY index", str(tmp_path / "tables"), ["translations"])
    assert good["source"].to_pylist()[0] == "der Hund"
    assert "\x00" not in good["source"].to_pylist()[1]


@pytest.mark.parametrize("colour", [False, True])
def test_next_frames_of_arrays_and_clips(colour: bool, tmp_path: Path, tracking_uri: str) -> None:
    config = NowcasterConfig(
        past_frames=3, horizon_minutes=4, height=32, width=32, unit="intensity", colour=colour, hidden_dims=(8,),
        augment=False,
    )  # fmt: skip
    files = artifacts.make(Nowcaster(config, {}), NowcasterDecoding(), {}, "A test's model.\n")
    artifacts.write(files, str(tmp_path / "model"))
    array, coloured = io.BytesIO(), io.BytesIO()
    np.save(array, np.zeros((3, 32, 32), np.uint8))
    np.save(coloured, np.zeros((3, 32, 32, 3), np.uint8))
    members = [
        ("movie.mp4", clip("mp4", "libx264")),
        ("array.npy", array.getvalue()),
        ("coloured.npy", coloured.getvalue()),
        ("photo.jpg", tiny.jpeg(1)),
        ("two.webm", clip("webm", "libvpx", frames=2)),
    ]
    storage.write_bytes(str(tmp_path / "in/x.tar"), tiny.tar(members), storage.anything)
    summary = night(str(tmp_path / "model"), str(tmp_path / "in"), str(tmp_path / "tables"), tracking_uri)
    assert (summary["rows"], summary["errors"]) == (5, {"LengthError": 2})
    table = rows(str(tmp_path / "tables"), "nowcasts")
    shape = [4, 32, 32, 3] if colour else [4, 32, 32]
    assert [table[name]["frames_shape"] for name in ("movie", "array", "coloured")] == [shape] * 3
    assert table["coloured"]["frames"] == table["array"]["frames"]
    assert table["photo"]["error"] == "LengthError: 1 frames where 3 are needed"
    movie, dark = (np.frombuffer(table[name]["frames"], "<f2") for name in ("movie", "array"))
    assert (movie != dark).any(), "it saw the square"


def test_radar_with_a_gap_and_on_another_grid(tmp_path: Path, tracking_uri: str) -> None:
    model = tiny.write_nowcaster(str(tmp_path / "model"))
    rain = np.random.default_rng(0).integers(0, 500, (6, 32, 32)).astype(np.uint16)
    rain[:, :4] = 65535  # outside the radar's range
    minutes = [0, 5, 10, 15, 20, 25]
    storage.write_bytes(str(tmp_path / "in/good.nc"), event_bytes(minutes, rain=rain), storage.anything)
    storage.write_bytes(str(tmp_path / "in/gap.nc"), event_bytes([0, 5, 10, 15, 25, 30], rain=rain), storage.anything)
    storage.write_bytes(str(tmp_path / "in/grid.nc"), event_bytes(minutes, rain=rain[:, :16]), storage.anything)
    storage.write_bytes(str(tmp_path / "in/short.nc"), event_bytes([0, 5], rain=rain[:2]), storage.anything)
    storage.write_bytes(str(tmp_path / "in/torn.nc"), event_bytes(minutes, rain=rain)[:3000], storage.anything)
    summary = night(model, str(tmp_path / "in"), str(tmp_path / "tables"), tracking_uri)
    table = rows(str(tmp_path / "tables"), "nowcasts")
    by_event: dict[str, list[dict[str, Any]]] = {}
    for row in table.values():
        by_event.setdefault(Path(row["shard"]).stem, []).append(row)
    assert {event: len(members) for event, members in by_event.items()} == {
        "good": 4,
        "gap": 4,
        "grid": 4,
        "short": 1,
        "torn": 1,
    }
    good = sorted(by_event["good"], key=lambda row: row["index"])
    assert [row["lead_minutes"] for row in good] == [[5.0, 10.0]] * 4
    assert [row["issue_time"].minute for row in good] == [10, 15, 20, 25]
    frames = np.frombuffer(good[0]["frames"], "<f2").reshape(good[0]["frames_shape"])
    assert frames.shape == (2, 32, 32)
    assert np.isfinite(frames).all()
    assert float(frames[0, 4:].mean()) == pytest.approx(good[0]["mean_mm_h"][0], rel=1e-2)
    assert sorted(row["status"] for row in by_event["gap"]) == ["error", "error", "ok", "ok"]
    assert all("20:" in row["error"] or "missing" in row["error"] for row in by_event["gap"] if row["error"])
    assert {row["error"].split(":")[0] for row in by_event["grid"]} == {"GridError"}
    assert "16" in by_event["grid"][0]["error"]
    assert "32" in by_event["grid"][0]["error"]
    assert by_event["short"][0]["error"].startswith("TooFewFrames")
    assert by_event["torn"][0]["error"].startswith("RadarDecodeError")
    assert (summary["rows"], summary["ok"]) == (14, 6)
