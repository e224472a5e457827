"""Captioned clips as their owners distribute them → shards: MSVD, MSR-VTT."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.datasets.folder import split_of
from pipelines.datasets.large_data import Members
from pipelines.datasets.writer import DatasetWriter, Prepared, TarRow, caption_row

SPLITS = ("train", "val", "test")
USUAL = {"train": (1, 1200), "val": (1201, 1300), "test": (1301, 1970)}
"""Numbers of MSVD's clips in each split, as everybody reports them (Venugopalan et al. 2015, arXiv:1412.4729)."""
SHARES = {"val": 0.05, "test": 0.34}
_CLIP = re.compile(r"(?P<video>.+)_\d+_\d+")
_NUMBER = re.compile(r"vid(\d+)")


# ---- MSVD ----------------------------------------------------------------------------------------------------------
def prepare_msvd(source: str, out: str, rows_per_shard: int, seed: int) -> Prepared:
    """MSVD (Chen and Dolan 2011, https://aclanthology.org/P11-1020): `NAME.avi` with `{"captions": […], "video": …}`.

    Args:
        source: folder with `AllVideoDescriptions.txt` (a clip's name and a sentence on each line) and the clips in
            `YouTubeClips`, a folder or `.zip`. With `youtube_mapping.txt` (name, `vid1` …) the splits are the usual
            ones; without it clips of one video are in one split.
        out: where the splits go.
        rows_per_shard: clips of one shard, 1 MB each.
        seed: what splits are drawn with.

    Raises:
        UsageError: a file is missing or not what it should be.
    """
    captions = _msvd_captions(storage.join(source, "AllVideoDescriptions.txt"))
    numbers = _msvd_numbers(storage.join(source, "youtube_mapping.txt"))
    splits = {name: _usual(numbers.get(name)) if numbers else _drawn(name, seed) for name in captions}
    clips = Members(source, "YouTubeClips", "MSVD's clips")
    writer = DatasetWriter(out, "msvd", rows_per_shard, {"seed": seed, "usual_splits": bool(numbers)})
    for split in SPLITS:
        wanted = {f"{name}.avi": texts for name, texts in captions.items() if splits[name] == split}
        writer.write_tar(split, _rows(clips, wanted, {name: _video(name[:-4]) for name in wanted}))
    return writer.finish()


def _msvd_captions(uri: str) -> dict[str, list[str]]:
    """Name of a clip → what people say of it."""
    captions: dict[str, list[str]] = defaultdict(list)
    for line in _lines(uri, "MSVD's sentences"):
        name, _, text = line.partition(" ")
        if not line.startswith("#") and text.strip():
            captions[name].append(text.strip())
    if not captions:
        raise UsageError(f"{uri} has no line with a clip's name and a sentence: fetch it again")
    return dict(captions)


def _msvd_numbers(uri: str) -> dict[str, int]:
    """Name of a clip → its number; empty without the file."""
    if not storage.exists(uri):
        return {}
    numbers: dict[str, int] = {}
    for number, line in enumerate(_lines(uri, "names and numbers"), start=1):
        name, _, told = line.partition(" ")
        found = _NUMBER.fullmatch(told.strip())
        if found is None:
            raise UsageError(f"{uri}:{number} is not 'NAME vidNUMBER': {line[:80]}")
        numbers[name] = int(found[1])
    return numbers


def _usual(number: int | None) -> str:
    """The split of a clip with a number; none of them takes one that has no number."""
    for split, (first, last) in USUAL.items():
        if number is not None and first <= number <= last:
            return split
    return ""


def _drawn(name: str, seed: int) -> str:
    return split_of(_video(name), SHARES, seed)


def _video(name: str) -> str:
    """The video that a clip was cut from: `VIDEO_START_END`."""
    found = _CLIP.fullmatch(name)
    return found["video"] if found else name


# ---- MSR-VTT -------------------------------------------------------------------------------------------------------
INFO = {"train_val_videodatainfo.json": "TrainValVideo", "test_videodatainfo.json": "TestVideo"}
"""What is said of clips, and where they are."""
OWNERS_SPLITS = {"train": "train", "validate": "val", "test": "test"}


def prepare_msrvtt(source: str, out: str, rows_per_shard: int) -> Prepared:
    """MSR-VTT (Xu et al. 2016, CVPR): `videoN.mp4` with `{"captions": […], "video": …}`; its owners' splits.

    Clips that were cut from one video (their address is the same) may be in several of these splits.

    Args:
        source: folder with `train_val_videodatainfo.json`, `test_videodatainfo.json`, and the clips in `TrainValVideo`
            and `TestVideo`, folders or `.zip`.
        out: where the splits go.
        rows_per_shard: clips of one shard, 1 MB each.

    Raises:
        UsageError: a file is missing or not what it should be.
    """
    writer = DatasetWriter(out, "msrvtt", rows_per_shard, {})
    told = [
        (Members(source, folder, "MSR-VTT's clips"), *_msrvtt(storage.join(source, name)))
        for name, folder in INFO.items()
    ]
    for split in SPLITS:
        rows = []
        for clips, splits, captions, videos in told:
            wanted = {f"{name}.mp4": texts for name, texts in captions.items() if splits[name] == split}
            rows.append(_rows(clips, wanted, {f"{name}.mp4": video for name, video in videos.items()}))
        writer.write_tar(split, (row for part in rows for row in part))
    return writer.finish()


def _msrvtt(uri: str) -> tuple[dict[str, str], dict[str, list[str]], dict[str, str]]:
    """Of each clip its split, captions and the address of its video."""
    splits: dict[str, str] = {}
    captions: dict[str, list[str]] = defaultdict(list)
    videos: dict[str, str] = {}
    try:
        found = json.loads(_text(uri, "MSR-VTT's sentences"))
        for clip in found["videos"]:
            splits[clip["video_id"]] = OWNERS_SPLITS[clip["split"]]
            videos[clip["video_id"]] = str(clip["url"])
        for sentence in found["sentences"]:
            if sentence["video_id"] in splits:
                captions[sentence["video_id"]].append(sentence["caption"].strip())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{uri} is not MSR-VTT's file: {error!r}") from error
    return splits, dict(captions), videos


# ---- both ----------------------------------------------------------------------------------------------------------
def _lines(uri: str, what: str) -> list[str]:
    return _text(uri, what).splitlines()


def _text(uri: str, what: str) -> str:
    try:
        return storage.read_text(uri)
    except FileNotFoundError:
        raise UsageError(f"{uri} is not there: expected {what}") from None
    except ValueError as error:
        raise UsageError(f"{uri} is no text: {error}") from error


def _rows(clips: Members, wanted: Mapping[str, list[str]], videos: Mapping[str, str]) -> Iterator[TarRow]:
    found = 0
    for name, data in clips.read(wanted.__contains__):
        found += 1
        stem, _, suffix = name.rpartition(".")
        yield caption_row(stem, data, wanted[name], suffix, video=videos[name])
    if missing := len(wanted) - found:
        raise UsageError(f"{missing} of {len(wanted)} clips are not in {clips.folder}: fetch it again")
