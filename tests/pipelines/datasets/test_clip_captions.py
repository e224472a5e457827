"""Tiny data in the owners' layouts of MSVD and MSR-VTT: prepared, and the recipe built and run for a few steps."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.datasets.clip_captions import prepare_msrvtt, prepare_msvd
from pipelines.datasets.writer import Prepared
from pipelines.reading.shards import list_shards
from tests import tiny
from tests.pipelines.datasets.test_large_data import learns, raw_rows
from tests.pipelines.reading.media.test_video import film, steady

VIDEOS = [f"v{number:02d}_x-Y" for number in range(12)]
NAMES = [f"{video}_{start}_{start + 5}" for video in VIDEOS for start in (0, 30)]


def clip(number: int, kind: str) -> bytes:
    return film(kind, steady(10 + number))


def write(folder: Path, name: str, files: dict[str, bytes], zipped: bool) -> None:
    if zipped:
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for file, data in files.items():
                archive.writestr(f"{name}/{file}", data)
        return
    for file, data in files.items():
        storage.write_bytes(str(folder / name / file), data)


def make_msvd(folder: Path, zipped: bool = False, mapping: bool = False) -> dict[str, list[str]]:
    """Two clips of each of twelve videos, three sentences of each clip."""
    folder.mkdir(parents=True)
    texts = tiny.sentences(3 * len(NAMES), seed=1)
    captions = {name: texts[3 * number : 3 * number + 3] for number, name in enumerate(NAMES)}
    lines = ["# a header", "", *(f"{name} {text}" for name, said in captions.items() for text in said)]
    (folder / "AllVideoDescriptions.txt").write_text("\n".join(lines) + "\n")
    files = {f"{name}.avi": clip(number, "avi") for number, name in enumerate(NAMES)}
    write(folder, "YouTubeClips", files, zipped)
    if mapping:
        numbers = [*range(1, 20), 1201, 1300, 1301, 1970, 1971]
        told = "".join(f"{name} vid{number}\n" for name, number in zip(NAMES, numbers, strict=True))
        (folder / "youtube_mapping.txt").write_text(told)
    return captions


def rows(out: Path, split: str) -> dict[str, dict]:
    found = [row for shard in list_shards(str(out / split)) for row in raw_rows(shard)]
    return {row["sample_id"]: {"media": row["media"], **json.loads(row["fields"])} for row in found}


def prepared(source: Path, out: Path, seed: int = 0) -> Prepared:
    return prepare_msvd(str(source), str(out), 4, seed)


@pytest.mark.parametrize("zipped", [True, False])
def test_clips_of_one_video_are_in_one_split(tmp_path: Path, zipped: bool) -> None:
    captions = make_msvd(tmp_path / "msvd", zipped)
    summary = prepared(tmp_path / "msvd", tmp_path / "out", seed=1)
    splits = {split: rows(tmp_path / "out", split) for split in ("train", "val", "test")}
    assert summary.splits == {split: len(found) for split, found in splits.items()}
    assert sum(summary.splits.values()) == len(NAMES)
    videos = [{row["video"] for row in found.values()} for found in splits.values()]
    assert sum(map(len, videos)) == len(set().union(*videos)) == len(VIDEOS)
    everything = {name: row for found in splits.values() for name, row in found.items()}
    assert {name: row["captions"] for name, row in everything.items()} == captions
    assert everything[NAMES[5]]["media"] == clip(5, "avi")
    assert everything[NAMES[5]]["video"] == VIDEOS[2]


def test_the_usual_splits_of_msvd(tmp_path: Path) -> None:
    make_msvd(tmp_path / "msvd", mapping=True)
    assert prepared(tmp_path / "msvd", tmp_path / "out").splits == {"train": 19, "val": 2, "test": 2}
    assert set(rows(tmp_path / "out", "test")) == set(NAMES[21:23])


def test_msvd_names_what_is_missing(tmp_path: Path) -> None:
    source, out = tmp_path / "msvd", tmp_path / "out"
    with pytest.raises(UsageError, match=r"AllVideoDescriptions.txt is not there: expected MSVD's sentences"):
        prepared(source, out)
    make_msvd(source, mapping=True)
    (source / "YouTubeClips" / f"{NAMES[0]}.avi").unlink()
    with pytest.raises(UsageError, match=r"1 of 19 clips are not in .*YouTubeClips: fetch it again"):
        prepared(source, out)
    (source / "youtube_mapping.txt").write_text("one two three\n")
    with pytest.raises(UsageError, match=r"youtube_mapping.txt:1 is not 'NAME vidNUMBER': one two three"):
        prepared(source, tmp_path / "other")
    (source / "AllVideoDescriptions.txt").write_text("# nothing\n")
    with pytest.raises(UsageError, match="has no line with a clip's name and a sentence"):
        prepared(source, tmp_path / "other")
    (source / "AllVideoDescriptions.txt").write_bytes(b"\xff\xfe\xfa\n")
    with pytest.raises(UsageError, match="is no text"):
        prepared(source, tmp_path / "other")


def test_the_msvd_recipe_learns(tmp_path: Path) -> None:
    make_msvd(tmp_path / "msvd", mapping=True)
    prepared(tmp_path / "msvd", tmp_path / "out")
    learns("captioner-msvd", tmp_path / "out", image_size=64)


# ---- MSR-VTT -------------------------------------------------------------------------------------------------------
def make_msrvtt(folder: Path, zipped: bool) -> None:
    folder.mkdir(parents=True)
    for name, place, splits in (
        ("train_val", "TrainValVideo", ["train"] * 4 + ["validate"] * 2),
        ("test", "TestVideo", ["test"] * 3),
    ):
        first = 0 if name == "train_val" else 6
        videos = [
            {"video_id": f"video{first + i}", "category": 3, "url": f"https://example.org/{i // 2}", "split": split,
             "start time": 1.0, "end time": 5.0, "id": first + i}
            for i, split in enumerate(splits)
        ]  # fmt: skip
        texts = tiny.sentences(2 * len(videos), seed=first)
        sentences = [
            {"caption": text, "video_id": f"video{first + n // 2}", "sen_id": n} for n, text in enumerate(texts)
        ]
        told = {"info": {}, "videos": videos, "sentences": sentences}
        told["sentences"][0]["caption"] += " a\u2028b"
        (folder / f"{name}_videodatainfo.json").write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")
        clips = {f"video{first + i}.mp4": clip(first + i, "mp4") for i in range(len(videos))}
        write(folder, place, clips, zipped)


@pytest.mark.parametrize("zipped", [True, False])
def test_msrvtt_has_its_owners_splits(tmp_path: Path, zipped: bool) -> None:
    make_msrvtt(tmp_path / "msrvtt", zipped)
    summary = prepare_msrvtt(str(tmp_path / "msrvtt"), str(tmp_path / "out"), 100)
    assert summary.splits == {"train": 4, "val": 2, "test": 3}
    test = rows(tmp_path / "out", "test")
    assert set(test) == {"video6", "video7", "video8"}
    assert test["video7"] == {
        "media": clip(7, "mp4"), "captions": tiny.sentences(6, seed=6)[2:4], "video": "https://example.org/0",
    }  # fmt: skip


def test_msrvtt_names_what_is_wrong(tmp_path: Path) -> None:
    source, out = tmp_path / "msrvtt", str(tmp_path / "out")
    make_msrvtt(source, zipped=False)
    (source / "test_videodatainfo.json").write_text('{"videos": [{"video_id": "video6"}]}')
    with pytest.raises(UsageError, match=r"test_videodatainfo.json is not MSR-VTT's file: KeyError"):
        prepare_msrvtt(str(source), out, 100)
    (source / "test_videodatainfo.json").unlink()
    with pytest.raises(UsageError, match=r"test_videodatainfo.json is not there: expected MSR-VTT's sentences"):
        prepare_msrvtt(str(source), out, 100)
