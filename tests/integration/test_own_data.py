"""One's own folder of clips with a table of captions and labels: by one command shards, by another a model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from jobs import prepare, train
from pipelines import storage
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.rows import read_blocks
from pipelines.reading.shards import list_shards
from tests.integration.test_kinds import clip

TINY = [
    "--model.encoder", "test_resnet", "--model.encoder-weights", "none", "--model.image-size", "32",
    "--model.frames", "4", "--model.hidden-size", "8", "--train.epochs", "1", "--pictures", "1",
]  # fmt: skip


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.long
@pytest.mark.parametrize("recipe", ["recogniser-moving-scenes", "captioner-moving-scenes"])
def test_a_model_is_trained_on_a_folder_of_clips(tmp_path: Path, tracking_uri: str, recipe: str) -> None:
    with (tmp_path / "said.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "caption", "label"])
        for number in range(40):
            name, suffix = f"{number % 4}/{number:02d}", ("mp4", "mkv")[number % 2]
            codec = {"mp4": "libx264", "mkv": "libvpx"}[suffix]
            content = clip({"mp4": "mp4", "mkv": "matroska"}[suffix], codec, 6 + number)
            storage.write_bytes(f"{tmp_path}/clips/{name}.{suffix}", content, storage.anything)
            table.writerow([f"{name}.{suffix}", f"a square, take {number}", ("short", "long")[number // 20]])
    made = prepare.main([
        "folder", "--source", f"{tmp_path}/clips", "--table", f"{tmp_path}/said.csv", "--out", f"{tmp_path}/mine",
        "--val", "0.2", "--rows-per-shard", "8",
    ])  # fmt: skip
    assert sum(made["splits"].values()) == 40
    shards = list_shards(f"{tmp_path}/mine/*/*.tar")
    rows = [row for shard in shards for block in read_blocks(shard, ReadOptions()) for row in block.to_pylist()]
    said = {row["sample_id"]: json.loads(row["fields"]) for row in rows}
    assert said["0/00_mp4"] == {"file": "0/00.mp4", "captions": ["a square, take 0"], "label": "short"}
    assert said["3/39_mkv"] == {"file": "3/39.mkv", "captions": ["a square, take 39"], "label": "long"}
    more = ["--model.embedding-size", "8", "--model.attention-size", "8"] if recipe.startswith("captioner") else []
    trained = train.main([
        recipe, "--data", f"{tmp_path}/mine", "--storage", f"{tmp_path}/lake", "--mlflow", tracking_uri, *TINY, *more,
    ])  # fmt: skip
    assert trained["bad_samples"] == {}
    assert trained["model"].startswith("models:/")
