"""The demo's data sets as a whole."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from hybrid_models.errors import BadSample, UsageError
from hybrid_models.inputs import Visual
from pipelines.datasets.demo.data import prepare_demo
from pipelines.datasets.demo.nights import FILM, NIGHTS, SHOT_SECONDS
from pipelines.datasets.moving_scenes import RATE
from pipelines.datasets.writer import read_manifest
from pipelines.reading.media.decode import decode_media
from tests.pipelines.datasets.test_public_data import members
from tests.pipelines.datasets.test_writer import files

SPLITS = ("train", "val", "test", *NIGHTS)


def make(out: Path, seed: int = 0) -> dict:
    return prepare_demo(str(out), scenes=40, digits=32, sentences=48, night_rows=9, rows_per_shard=16, seed=seed)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    make(out)
    return out


def test_the_summary_counts_every_split(tmp_path: Path) -> None:
    summary = make(tmp_path)
    sizes = {"scenes": (40, 5, 5, 9, 9), "digits": (32, 4, 4, 9, 9), "sentences": (48, 6, 6, 9, 9)}
    assert summary.splits == {
        f"{name}/{split}": count for name, counts in sizes.items() for split, count in zip(SPLITS, counts, strict=True)
    }
    shards = [name for name in files(tmp_path) if not name.endswith("_manifest.json")]
    assert summary.shards == len(shards) == 3 + 2 + 3 + 3 * (2 + 6)


def test_the_same_seed_gives_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    make(tmp_path / "again")
    assert files(tmp_path / "again") == files(demo)
    make(tmp_path / "other", seed=1)
    assert members(tmp_path / "other/scenes", "train") != members(demo / "scenes", "train")


def test_manifests_tell_the_truth(demo: Path) -> None:
    for name in ("scenes", "digits", "sentences"):
        manifest = read_manifest(str(demo / name))
        assert manifest is not None
        shards = manifest.shards
        assert {s.name for s in shards} == set(files(demo / name)) - {"_manifest.json"}
        for shard in shards:
            assert hashlib.sha256((demo / name / shard.name).read_bytes()).hexdigest() == shard.sha256


def test_splits_share_nothing(demo: Path) -> None:
    for name, suffix in (("scenes", ".jpg"), ("digits", ".npy")):
        hashes = [
            {hashlib.sha256(data).digest() for key, data in members(demo / name, split).items() if key.endswith(suffix)}
            for split in SPLITS
        ]
        assert sum(map(len, hashes)) == len(set.union(*hashes))
    sentences = [row["en"] for split in SPLITS for row in sentence_rows(demo, split)]
    assert len(sentences) == len(set(sentences)) == 48 + 6 + 6 + 18


def sentence_rows(demo: Path, split: str) -> list[dict[str, str]]:
    shards = sorted((demo / "sentences" / split).iterdir())
    lines = [line for shard in shards for line in gzip.decompress(shard.read_bytes()).splitlines()]
    return [json.loads(line) for line in lines]


def test_rows_are_what_the_hybrids_read(demo: Path) -> None:
    visual = Visual(64, 64, 1)
    scenes = members(demo / "scenes", "val")
    assert decode_media(scenes["val-000000.jpg"], "jpg", visual).array.std() > 5
    assert len(json.loads(scenes["val-000000.json"])["captions"]) >= 2
    sequence = decode_media(members(demo / "digits", NIGHTS[0])["2026-01-01-000000.npy"], "npy", None).array
    assert (sequence.shape, sequence.dtype) == ((10, 32, 32), np.uint8)
    assert sequence.max() > 200
    row = sentence_rows(demo, "test")[0]
    assert set(row) == {"id", "en", "de"}
    assert row["id"] == "test-000000"


def test_one_photograph_of_the_second_night_is_cut_off(demo: Path) -> None:
    bad = {}
    for split in SPLITS:
        for name, data in members(demo / "scenes", split).items():
            if name.endswith(".jpg"):
                try:
                    decode_media(data, "jpg", Visual(64, 64, 1))
                except BadSample as error:
                    bad[name] = error.kind
    assert bad == {"2026-01-02-000003.jpg": "ImageDecodeError"}


def test_the_second_nights_film_has_a_scene_in_each_window(demo: Path) -> None:
    media = (demo / "scenes" / NIGHTS[-1] / FILM).read_bytes()
    size = 64
    decoded = decode_media(media, "mp4", Visual(size, size, 1000, sampling="first"))
    assert decoded.times is not None
    assert decoded.array.shape == (3 * SHOT_SECONDS * RATE, size, size, 3)
    frames = decoded.array.astype(float)
    changes = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))
    cuts = decoded.times[1:][np.sort(np.argsort(changes)[-2:])]
    assert cuts.tolist() == pytest.approx([SHOT_SECONDS, 2 * SHOT_SECONDS])
    assert 0 < np.median(changes) < changes.max() / 4, "things move within a scene"


def test_nights_are_three_shards(demo: Path) -> None:
    for night in NIGHTS:
        manifest = read_manifest(str(demo / "scenes"))
        assert manifest is not None
        shards = [shard for shard in manifest.shards if shard.name.startswith(night)]
        assert [shard.rows for shard in shards] == [3, 3, 3]


def test_too_few_rows_are_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`digits` is 7: at least 8"):
        prepare_demo(str(tmp_path), 8, 7, 8, 9, 16, 0)
    with pytest.raises(UsageError, match="`night_rows` is 2"):
        prepare_demo(str(tmp_path), 8, 8, 8, 2, 16, 0)
    assert list(tmp_path.iterdir()) == []
