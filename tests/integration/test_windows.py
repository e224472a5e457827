"""Photographs, clips and one long video in one bucket, in one table; killed and started again; named by a manifest."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hybrid_models.captioner.captioner import Captioner, CaptionerDecoding
from hybrid_models.captioner.config import CaptionerConfig
from hybrid_models.errors import UsageError
from hybrid_models.inputs import Cut, Inputs, Visual
from hybrid_models.nowcaster.config import NowcasterConfig
from hybrid_models.nowcaster.preprocess import NowcasterPreprocess
from jobs import evaluate, infer, models, nightly, promote, report, train
from pipelines import storage
from pipelines.models import artifacts
from pipelines.models.tracking import Tracker
from pipelines.nights import query
from pipelines.nights.figures import figures
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import Limits
from pipelines.reading.samples import unpack
from pipelines.reading.sandbox.guard import guarded
from pipelines.reading.shards import list_shards
from tests import tiny
from tests.integration.test_kinds import clip
from tests.pipelines.hostile import AsItIs
from tests.pipelines.reading.media import test_bad_clips
from tests.pipelines.reading.media.test_decode import image_bytes
from tests.pipelines.reading.media.test_video import film, steady

DS = "2026-01-31"
SECONDS = 80
DRIVER = """
import ray.data
from jobs.command import cli
ray.data.DataContext.get_current().target_max_block_size = {piece}
cli.main()
"""
PER_RUN = ("run_id", "created_at", "shard")


def model_files() -> dict[str, bytes]:
    """A captioner whose samples are as large as usual."""
    config = CaptionerConfig(
        encoder="test_efficientnet", encoder_weights="none", freeze_encoder=False, image_size=224, frames=8,
        embedding_size=16, hidden_size=32, attention_size=16, vocab_size=300,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Captioner(config, Captioner.learn_assets(config, tiny.sentences(200))).eval()
    return artifacts.make(model, CaptionerDecoding(beam_size=1, max_length=8), {}, "A test's model.\n")


def write_bucket(place: str) -> None:
    photo = image_bytes(Image.new("RGB", (64, 48), "green"), "PNG")
    storage.write_bytes(f"{place}/in/photo.png", photo, storage.anything)
    storage.write_bytes(f"{place}/in/short.mkv", clip("matroska", "libx264"), storage.anything)
    storage.write_bytes(f"{place}/in/long.mp4", film("mp4", steady(SECONDS * 25), gop=50), storage.anything)
    storage.write_bytes(f"{place}/in/no.mp4", b"not a clip", storage.anything)
    members = [("a.jpg", tiny.jpeg(1)), ("b.mp4", film("mp4", steady(30))), ("c.jpg", tiny.jpeg(2))]
    storage.write_bytes(f"{place}/in/some.tar", tiny.tar(members), storage.anything)


def argv(place: str, tables: str, tracking_uri: str) -> list[str]:
    return [
        "captions", "--input", f"{place}/in", "--tables", f"{place}/{tables}", "--ds", DS,
        "--model", f"{place}/model", "--window-seconds", "1", "--max-error-fraction", "0.1",
        "--mlflow", tracking_uri,
    ]  # fmt: skip


def rows(place: str, tables: str) -> list[dict[str, Any]]:
    sql = f"SELECT * FROM captions_all WHERE ds = '{DS}' ORDER BY sample_id"
    found = query.query(sql, f"{place}/{tables}", ["captions"]).to_pylist()
    return [{name: value for name, value in row.items() if name not in PER_RUN} for row in found]


def kill_in_the_middle(command: list[str], tables: str, address: str, piece: int = 16 << 20) -> None:
    """Runs a command until some of the long video's windows are there, and kills its driver.

    Args:
        command: of nights.
        tables: where they write.
        address: of the cluster.
        piece: bytes of samples that become one; 13 windows of the model above.
    """
    env = {**os.environ, "RAY_ADDRESS": address}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER.format(piece=piece), *command], env=env)
    until = time.monotonic() + 240
    while not any("-00000000-" in piece.name for piece in long_pieces(tables)):
        assert driver.poll() is None, "the night was over before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()


def long_pieces(tables: str) -> list[storage.FileInfo]:
    """The staged pieces of shards that go on."""
    files = storage.list_files(f"{tables}/captions")
    return [file for file in files if file.name.endswith(".parquet") and "-end" not in file.name]


def test_one_table_of_whatever_lies_there_which_goes_on_in_the_middle_of_a_video(
    s3: str, ray_cluster: str, tracking_uri: str
) -> None:
    artifacts.write(model_files(), f"{s3}/model")
    write_bucket(s3)
    summary = infer.main(argv(s3, "tables", tracking_uri))
    found = rows(s3, "tables")
    assert summary["rows"] == summary["rows_computed"] == len(found)
    assert summary["errors"] == {"VideoDecodeError": 1}
    assert [row["sample_id"] for row in found if row["error"]] == ["no.mp4"]
    assert {row["sample_id"] for row in found if row["start_seconds"] is None} == {"a", "c", "no.mp4", "photo.png"}
    spans = {row["sample_id"]: (row["start_seconds"], row["end_seconds"]) for row in found if row["end_seconds"]}
    assert spans == {
        **{f"long.mp4#t={t},{t + 1}": (t, t + 1) for t in range(SECONDS)},
        **{f"short.mkv#t={t},{t + 1}": (t, t + 1) for t in range(2)},
        "b#t=0,1": (0, 1),
        "b#t=1,1.2": (1, 1.2),
    }
    assert {row["object"] for row in found if row["sample_id"].startswith("long")} == {f"{s3}/in/long.mp4"}
    assert all(row["caption"] and row["frames"] == 8 for row in found if row["end_seconds"])
    shown, why = figures(f"{s3}/tables", "captions", f"{s3}/model", DS, tracking_uri, 6)
    assert why == ""
    assert len(shown) == 6, "the page finds the windows again"

    killed = argv(s3, "killed", tracking_uri)
    kill_in_the_middle(["infer", *killed], f"{s3}/killed", ray_cluster)
    again = infer.main(killed)
    assert again["rows"] == len(found)
    assert 0 < again["rows_computed"] <= len(found) - 13, "what was staged is not computed again"
    other = rows(s3, "killed")
    assert [{**row, "score": None} for row in other] == [{**row, "score": None} for row in found]
    scores = [[row["score"] for row in each if row["score"] is not None] for each in (other, found)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)  # some processors multiply a batch of another size otherwise


@pytest.mark.long
def test_a_manifest_is_read_by_every_verb_and_its_night_goes_on_in_the_middle_of_a_video(
    s3: str, ray_cluster: str, tracking_uri: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """The model has a name as catalogues give them."""
    write_bucket(s3)
    tracker = Tracker(tracking_uri)
    tracker.start("train", {}, {})
    tracker.register("shop.captions", model_files())
    tracker.finish()
    manifest = "".join(
        json.dumps({"where": f"in/{name}", "camera": number, "weather": "dry", "captions": ["a red square"]}) + "\n"
        for number, name in enumerate(("photo.png", "short.mkv", "long.mp4"))
    )
    storage.write_bytes(f"{s3}/{DS}.jsonl", manifest.encode(), storage.anything)
    windows = ["--window-seconds", "30", "--stride-seconds", "20", "--mlflow", tracking_uri, "--uri-column", "where"]
    judged = ["--input", f"{s3}/{DS}.jsonl", "--storage", f"{s3}/named", *windows]
    promoted = promote.main(["shop.captions", *judged, "--margin", "1000"])
    assert (promoted["promoted"], promoted["champion"], promoted["samples"]) == (True, "models:/shop.captions/1", 6)
    evaluated = evaluate.main(["--model", "models:/shop.captions@champion", *judged])
    assert (evaluated["samples"], evaluated["errors"]) == (6, {})
    capsysbinary.readouterr()
    models.main(["--mlflow", tracking_uri, "--format", "json"])
    assert json.loads(capsysbinary.readouterr().out)["model"] == "models:/shop.captions/1"

    command = [
        "captions", "--input", f"{s3}/{{ds}}.jsonl", "--keep", "camera", "--tables", f"{s3}/named", "--ds", DS,
        "--model", "models:/shop.captions@champion", *windows,
    ]  # fmt: skip
    judging = ["--references", f"{s3}/{{ds}}.jsonl"]
    (night,) = nightly.main([*command, *judging])["nights"]
    assert night["model"] == "models:/shop.captions/1"
    assert night["evaluation"] == {"samples": 6, "errors": {}, **evaluated["metrics"]}
    named = rows(s3, "named")
    windows = [row for row in named if row["end_seconds"]]
    told = sorted((row["object"].rsplit("/", 1)[-1], row["start_seconds"], row["fields"]) for row in windows)
    assert told == [
        *(("long.mp4", float(start), '{"camera": 2}') for start in (0, 20, 40, 60)),
        ("short.mkv", 0.0, '{"camera": 1}'),
    ]

    there = infer.main([word.replace("{ds}", DS) for word in command])
    assert (there["model"], there["changed"], there["rows_computed"]) == ("models:/shop.captions/1", False, 0)
    page = report.main(["--tables", f"{s3}/named", "--ds", DS, "--mlflow", tracking_uri])
    assert page["tables"] == {"captions": {"rows": 6, "errors": 0}}
    assert storage.read_bytes(page["out"]).count(b"<figure") >= 3, "one of each object; the model is found by its name"

    by_second = [{"30": "1", "20": "1", f"{s3}/named": f"{s3}/second"}.get(word, word) for word in [*command, *judging]]
    kill_in_the_middle(["nightly", *by_second], f"{s3}/second", ray_cluster)
    again = nightly.main(by_second)["nights"][0]
    assert again["rows"] == again["ok"] == 1 + 2 + SECONDS
    assert 0 < again["rows_computed"] <= again["rows"] - 13, "what was staged is not computed again"
    starts = sorted(row["start_seconds"] for row in rows(s3, "second") if row["object"].endswith("long.mp4"))
    assert starts == list(range(SECONDS))


@pytest.mark.long
def test_an_address_twice_is_two_rows_each_with_its_fields(s3: str, ray_cluster: str, tracking_uri: str) -> None:
    """Whole and in windows, good and cut off in the middle; some rows are the same in all."""
    tiny.write_captioner(f"{s3}/model")
    media = {"a.jpg": tiny.jpeg(1), "good.mkv": test_bad_clips.good("mkv"), "half.mkv": test_bad_clips.half("mkv")}
    for name, content in media.items():
        storage.write_bytes(f"{s3}/in/{name}", content, storage.anything)
    manifest = [
        json.dumps({"id": f"{camera}-{name}", "where": f"in/{name}", "camera": camera}) + "\n"
        for camera in (1, 2, 2)
        for name in media
    ]
    storage.write_bytes(f"{s3}/m.jsonl", "".join(manifest).encode(), storage.anything)
    command = [
        "captions", "--input", f"{s3}/m.jsonl", "--uri-column", "where", "--keep", "camera", "--ds", DS,
        "--model", f"{s3}/model", "--max-error-fraction", "0.5", "--mlflow", tracking_uri,
    ]  # fmt: skip
    whole: dict[str, list[tuple[float | None, float | None]]] = {name: [(None, None)] for name in media}
    seconds = [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0), (4.0, 4.4)]
    windows = {**whole, "good.mkv": seconds, "half.mkv": [(0.0, 1.0), (1.0, None)]}
    for tables, more, spans in (("whole", [], whole), ("windows", ["--window-seconds", "1"], windows)):
        summary = infer.main([*command, "--tables", f"{s3}/{tables}", *more])
        found = rows(s3, tables)
        assert summary["rows"] == len(found) == 3 * sum(map(len, spans.values()))
        assert summary["errors"] == {"VideoDecodeError": 3}
        assert {(row["object"], row["end_seconds"]) for row in found if row["error"]} == {(f"{s3}/in/half.mkv", None)}
        told = Counter((row["object"], row["start_seconds"], row["end_seconds"], row["fields"]) for row in found)
        assert told == {
            (f"{s3}/in/{name}", *span, f'{{"camera": {camera}}}'): camera
            for camera in (1, 2)
            for name in media
            for span in spans[name]
        }
        assert {row["sample_id"].partition("#")[0] for row in found} == {
            f"{n}-{name}" for n in (1, 2) for name in media
        }
        captions = {(row["object"], row["start_seconds"], row["caption"]) for row in found}
        assert len(captions) == sum(map(len, spans.values())), "what is seen twice is said twice"
        again = infer.main([*command, "--tables", f"{s3}/{tables}", *more])
        assert (again["changed"], again["rows_computed"]) == (False, 0)


def write_lossless(uri: str, frames: np.ndarray) -> None:
    """Grey frames uint8 `[T,H,W]` as a clip of ten a second, whose frames are the same when they are decoded."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264rgb", rate=10, options={"qp": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "rgb24"
        for grey in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.stack([grey] * 3, axis=2), format="rgb24")))
        output.mux(stream.encode())
    storage.write_bytes(uri, buffer.getvalue(), storage.anything)


@pytest.mark.long
def test_a_nowcaster_learns_from_windows_of_a_long_video_is_judged_and_predicts_them(
    ray_cluster: str, tmp_path: Path, tracking_uri: str
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (404, 16, 16), np.uint8)
    write_lossless(f"{tmp_path}/data/train/long.mp4", frames)
    write_lossless(f"{tmp_path}/data/val/short.mp4", frames[:60])
    windows = ["--window-seconds", "2", "--mlflow", tracking_uri]
    training = [
        "nowcaster-moving-mnist", "--data", f"{tmp_path}/data", "--storage", f"{tmp_path}/lake", *windows,
        "--model.height", "16", "--model.width", "16", "--model.hidden-dims", "4", "--train.epochs", "1",
        "--train.validate-samples", "3", "--pictures", "1",
    ]  # fmt: skip
    trained = train.main(training)
    assert trained["bad_samples"] == {"train": {"LengthError": 1}}, "the last one has four frames"
    config = NowcasterConfig(past_frames=10, horizon_minutes=10, height=16, width=16, unit="intensity", augment=False)
    learned = {
        (row["shard"].rsplit("/", 2)[1], row["index"]): unpack(row["sample"])
        for file in storage.list_files(f"{tmp_path}/lake/features/*/*.parquet")
        for row in pq.read_table(file.uri).to_pylist()
        if row["sample"] is not None
    }
    assert set(learned) == {*(("train", n) for n in range(20)), *(("val", n) for n in range(3))}
    for (_, number), sample in learned.items():
        media = frames[20 * number : 20 * (number + 1)]
        expected = NowcasterPreprocess(config)(Inputs(media, {}), with_target=True)
        assert {name: array.tolist() for name, array in sample.items()} == {
            name: array.tolist() for name, array in expected.items()
        }
    with pytest.raises(UsageError, match=r"was started with window_seconds=2.0, not None"):
        train.main([option for option in training if option not in windows[:2]])

    held_out = ["--input", f"{tmp_path}/data/val", "--storage", f"{tmp_path}/lake"]
    judged = evaluate.main(["--model", trained["model"], *held_out, *windows])
    whole = evaluate.main(["--model", trained["model"], *held_out, *windows[2:]])
    assert (judged["samples"], judged["errors"], whole["samples"]) == (3, {}, 1)
    promoted = promote.main(["nowcaster", *held_out, *windows, "--margin", "1"])
    assert (promoted["promoted"], promoted["samples"]) == (True, 3)
    write_lossless(f"{tmp_path}/in/ds={DS}/short.mp4", frames[:60])
    night = nightly.main([
        "nowcasts", "--input", f"{tmp_path}/in/ds={{ds}}", "--references", f"{tmp_path}/in/ds={{ds}}", "--tables",
        f"{tmp_path}/tables", "--ds", DS, *windows,
    ])["nights"][0]  # fmt: skip
    assert (night["rows"], night["ok"], night["evaluation"]["samples"]) == (3, 3, 3)
    assert night["evaluation"]["mse"] == pytest.approx(judged["metrics"]["mse"])


@pytest.mark.long
def test_two_hours_of_video_fit_into_the_memory_of_a_window_and_go_on_in_the_middle(
    ray_cluster: str, tmp_path: Path, tracking_uri: str
) -> None:
    video = tmp_path / "in/long.mkv"
    video.parent.mkdir()
    rng = np.random.default_rng(1)
    with av.open(str(video), "w") as output:
        stream = output.add_stream("mjpeg", rate=1, options={"qmin": "1", "qmax": "1"})
        stream.width, stream.height, stream.pix_fmt = 192, 192, "yuvj420p"
        for _ in range(7200):
            noise = av.VideoFrame.from_ndarray(rng.integers(0, 256, (288, 192), np.uint8), format="yuvj420p")
            output.mux(stream.encode(noise))
        output.mux(stream.encode())
    most = 96 << 20
    assert video.stat().st_size > 2 * most
    (shard,) = list_shards(str(video), cut=True)
    limits = Limits(max_memory=most, max_bytes=16 << 20)
    options = ReadOptions(visual=Visual(64, 64, 8), cut=Cut(10.0, 10.0), limits=limits)
    rows = [row for block in guarded(shard, options, AsItIs()) for row in block.to_pylist()]
    assert [row["start_seconds"] for row in rows] == [10.0 * number for number in range(720)]
    assert {row["error"] for row in rows} == {None}

    tiny.write_captioner(f"{tmp_path}/model")
    command = [
        "captions", "--input", str(video), "--tables", f"{tmp_path}/tables", "--ds", DS, "--model", f"{tmp_path}/model",
        "--window-seconds", "10", "--limits.max-memory", str(most), "--limits.max-bytes", str(16 << 20),
        "--mlflow", tracking_uri,
    ]  # fmt: skip
    kill_in_the_middle(["infer", *command], f"{tmp_path}/tables", ray_cluster, 1 << 20)
    staged = sum(pq.read_metadata(piece.uri).num_rows for piece in long_pieces(f"{tmp_path}/tables"))
    summary = infer.main(command)
    assert (summary["rows"], summary["ok"]) == (720, 720)
    assert 0 < summary["rows_computed"] <= 720 - staged < 720, "what was staged is not computed again"
