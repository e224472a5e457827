"""Large public data sets, as their owners distribute them, → shards: COCO captions, IWSLT14, KTH."""

from __future__ import annotations

import html
import io
import itertools
import json
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.datasets.opened import check_bytes, opened
from pipelines.datasets.writer import DatasetWriter, Prepared, TarRow, caption_row
from pipelines.reading.formats.entry import npy_bytes
from pipelines.reading.limits import bad_sample

T = TypeVar("T")


class Members:
    """Files of a folder, or of the zip archive that its owners distribute instead, by name; one in memory at a time."""

    def __init__(self, source: str, name: str, purpose: str) -> None:
        self.folder, self.archive = storage.join(source, name), storage.join(source, f"{name}.zip")
        self.zipped = storage.exists(self.archive)
        if not self.zipped and not storage.list_files(self.folder):
            raise UsageError(f"{self.folder} is not there, nor {name}.zip: expected {purpose}")

    def read(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        """Name and content of every wanted file, by name.

        Raises:
            UsageError: there are two of one name, or one is damaged or too large.
        """
        if not self.zipped:
            for file in _each_once(storage.list_files(self.folder), lambda file: file.name, wanted, self.folder):
                check_bytes(file.uri, file.size)
                yield file.name, storage.read_bytes(file.uri)
            return
        with storage.open_input(self.archive) as stream, self._open(stream) as archive:
            for member in _each_once(sorted(archive.namelist()), _last_name, wanted, self.archive):
                yield _last_name(member), self._content(archive, member)

    def _open(self, stream: Any) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(stream)
        except zipfile.BadZipFile as error:
            raise UsageError(f"{self.archive} is not a whole zip archive ({error}): fetch it again") from error

    def _content(self, archive: zipfile.ZipFile, member: str) -> bytes:
        check_bytes(f"{member} in {self.archive}", archive.getinfo(member).file_size)
        try:
            return archive.read(member)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            RuntimeError,
        ) as error:  # the last: encrypted, packed otherwise
            raise UsageError(f"{member} in {self.archive} cannot be read ({error}): fetch it again") from error


def _last_name(member: str) -> str:
    return member.rsplit("/", 1)[-1]


def _each_once(
    things: Iterable[T], named: Callable[[T], str], wanted: Callable[[str], bool], where: str
) -> Iterator[T]:
    """Those whose name is wanted. Of two of one name, as of what was unpacked twice, one would hide that another is not
    there."""
    given: set[str] = set()
    for thing in things:
        if wanted(name := named(thing)):
            if name in given:
                raise UsageError(f"{name} is in {where} twice: leave one")
            given.add(name)
            yield thing


# ---- COCO captions -------------------------------------------------------------------------------------------------
COCO_ANNOTATIONS = "captions_{}2017.json of annotations_trainval2017.zip"


def prepare_coco(source: str, out: str, rows_per_shard: int, val_images: int, seed: int) -> Prepared:
    """COCO captions 2017 (Chen et al. 2015, arXiv:1504.00325): `NAME.jpg` with `NAME.json`, `{"captions": […]}`.

    Args:
        source: folder with `annotations/captions_train2017.json` and `captions_val2017.json`, and the photographs in
            `train2017` and `val2017`, folders or `.zip`.
        out: where the splits go: COCO's val2017 is the test split, val a random part of train2017.
        rows_per_shard: photographs of one shard, 160 kB each.
        val_images: size of that random part.
        seed: what it is drawn with.

    Raises:
        UsageError: a file is missing or not what it should be.
    """
    captions = {split: _coco_captions(source, split) for split in ("train", "val")}
    names = sorted(captions["train"])
    if not 0 < val_images < len(names):
        raise UsageError(f"`val_images` is {val_images}: it must be between 1 and {len(names) - 1}")
    val = set(np.random.default_rng(seed).choice(names, val_images, replace=False).tolist())
    writer = DatasetWriter(out, "coco", rows_per_shard, {"val_images": val_images, "seed": seed})
    train = {name: texts for name, texts in captions["train"].items() if name not in val}
    drawn = {name: captions["train"][name] for name in val}
    for split, folder, wanted in (("train", "train", train), ("val", "train", drawn), ("test", "val", captions["val"])):
        writer.write_tar(split, _coco_rows(Members(source, f"{folder}2017", "photographs of COCO 2017"), wanted))
    return writer.finish()


def _coco_captions(source: str, split: str) -> dict[str, list[str]]:
    """File name → captions."""
    uri = storage.join(source, "annotations", f"captions_{split}2017.json")
    try:
        found = json.loads(storage.read_text(uri))
        names = {image["id"]: image["file_name"] for image in found["images"]}
        captions: dict[str, list[str]] = {name: [] for name in names.values()}
        for annotation in found["annotations"]:
            captions[names[annotation["image_id"]]].append(annotation["caption"].strip())
    except FileNotFoundError:
        raise UsageError(f"{uri} is not there: expected {COCO_ANNOTATIONS.format(split)}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{uri} is not COCO's caption file: {error!r}") from error
    return {name: texts for name, texts in captions.items() if texts}


def _coco_rows(members: Members, wanted: Mapping[str, list[str]]) -> Iterator[TarRow]:
    found = 0
    for name, data in members.read(wanted.__contains__):
        found += 1
        yield caption_row(name.rsplit(".", 1)[0], data, wanted[name])
    if missing := len(wanted) - found:
        raise UsageError(f"{missing} of {len(wanted)} photographs are not in {members.folder}: fetch it again")


# ---- IWSLT14 -------------------------------------------------------------------------------------------------------
_IWSLT_SPLITS = {"val": "dev", "test": "tst"}
_SEGMENT = re.compile(r"<seg\s+id=\"\d+\">(.*?)</seg>", re.DOTALL)


def prepare_iwslt14(source: str, out: str, rows_per_shard: int, languages: tuple[str, str]) -> Prepared:
    """IWSLT14, TED talks (Cettolo et al. 2014, https://wit3.fbk.eu): rows `{"id", "de", "en"}`.

    Args:
        source: the folder `de-en` of the distribution: `train.tags.de-en.de`, `IWSLT14.TED.tst2010.de-en.de.xml` …
        out: where the splits go: the folder's dev sets (of German and English `TED.dev2010` and `TEDX.dev2012`) are the
            val split, its tst sets (`TED.tst2010` to 2012) test; the manifest names them.
        rows_per_shard: sentence pairs of one shard.
        languages: the two languages of the folder's name.

    Raises:
        UsageError: a file is missing, or the two sides of one differ in length.
    """
    pair = "-".join(languages)
    train = {side: _tagged(source, f"train.tags.{pair}.{side}") for side in languages}
    sets = {split: _sets(source, kind, pair, languages[0]) for split, kind in _IWSLT_SPLITS.items()}
    writer = DatasetWriter(out, f"iwslt14-{pair}", rows_per_shard, sets)
    writer.write_jsonl("train", _pairs("train", train))
    for split, found in sets.items():
        rows = (_pairs(part, {side: _segments(source, part, pair, side) for side in languages}) for part in found)
        writer.write_jsonl(split, itertools.chain.from_iterable(rows))
    return writer.finish()


def _sets(source: str, kind: str, pair: str, side: str) -> list[str]:
    """The dev or tst sets that a folder has, such as `TED.tst2010`."""
    name = re.compile(rf"IWSLT14\.(TEDX?\.{kind}\d{{4}})\.{pair}\.{side}\.xml")
    found = [match[1] for file in storage.list_files(source) if (match := name.fullmatch(file.name))]
    if not found:
        raise UsageError(f"{_segments_uri(source, f'TED.{kind}2010', pair, side)} is not there: expected {pair}")
    return found


def _pairs(name: str, sides: Mapping[str, list[str]]) -> Iterator[dict[str, str]]:
    """Rows of the sentences by language; a talk's missing sentence is an empty line and left out."""
    counts = {language: len(sentences) for language, sentences in sides.items()}
    if len(set(counts.values())) > 1:
        raise UsageError(f"{name} has other numbers of sentences in its languages: {counts}")
    for number, texts in enumerate(zip(*sides.values(), strict=True)):
        if all(texts):
            yield {"id": f"{name}-{number:06d}", **dict(zip(sides, texts, strict=True))}


def _tagged(source: str, name: str) -> list[str]:
    """The sentences of a training file; lines that are tags tell of the talks."""
    return [line.strip() for line in _text(storage.join(source, name)).split("\n") if not line.startswith("<")]


def _segments_uri(source: str, part: str, pair: str, side: str) -> str:
    return storage.join(source, f"IWSLT14.{part}.{pair}.{side}.xml")


def _segments(source: str, part: str, pair: str, side: str) -> list[str]:
    text = _text(_segments_uri(source, part, pair, side))
    return [html.unescape(" ".join(segment.split())) for segment in _SEGMENT.findall(text)]


def _text(uri: str) -> str:
    try:
        return storage.read_text(uri).rstrip("\n")
    except FileNotFoundError:
        raise UsageError(f"{uri} is not there: expected the folder of one language pair of IWSLT14") from None


# ---- KTH actions ---------------------------------------------------------------------------------------------------
KTH_ACTIONS = ("boxing", "handclapping", "handwaving", "jogging", "running", "walking")
KTH_PERSONS = {"train": range(1, 15), "val": range(15, 17), "test": range(17, 26)}
_KTH_NAME = re.compile(r"person(\d\d)_[a-z]+_d\d_")


def prepare_kth(source: str, out: str, rows_per_shard: int, size: int, frames: int) -> Prepared:
    """KTH actions (Schüldt et al. 2004, https://www.csc.kth.se/cvap/actions): grey clips uint8 `[frames, size, size]`
    with their `label`.

    Args:
        source: folder with `boxing`, `handclapping`, `handwaving`, `jogging`, `running` and `walking`, folders of AVI
            files or `.zip`, and `00sequences.txt`, which tells in which frames a person is seen.
        out: where the splits go: persons 1 to 14 train, 15 and 16 val, 17 to 25 test (video prediction uses 1 to 16
            and 17 to 25).
        rows_per_shard: clips of one shard, `frames · size²` bytes each.
        size: height and width to which frames are resized.
        frames: length of a clip; a sequence is cut into as many whole ones as it has.

    Raises:
        UsageError: a file is missing or not what it should be.
    """
    actions = [Members(source, action, "AVI files of the KTH data set") for action in KTH_ACTIONS]
    seen = _kth_sequences(source)
    writer = DatasetWriter(out, "kth", rows_per_shard, {"size": size, "frames": frames})
    for split, persons in KTH_PERSONS.items():
        writer.write_tar(split, _kth_rows(actions, persons, seen, size, frames))
    return writer.finish()


def _kth_sequences(source: str) -> dict[str, list[tuple[int, int]]]:
    """Video → first and last frame, counted from 1, of each of its sequences."""
    uri = storage.join(source, "00sequences.txt")
    try:
        text = storage.read_text(uri)
    except FileNotFoundError:
        raise UsageError(f"{uri} is not there: expected the list of sequences of the KTH data set") from None
    found = {}
    for name, ranges in re.findall(r"(person\d\d_[a-z]+_d\d)\s+frames\s+([\d\s,-]+)", text):
        found[name] = [(int(first), int(last)) for first, last in re.findall(r"(\d+)\s*-\s*(\d+)", ranges)]
    return found


def _kth_rows(
    actions: Sequence[Members], persons: range, seen: Mapping[str, list[tuple[int, int]]], size: int, frames: int
) -> Iterator[TarRow]:
    def wanted(name: str) -> bool:
        match = _KTH_NAME.match(name)
        return match is not None and int(match[1]) in persons and name.endswith(".avi")

    for file_name, data in itertools.chain.from_iterable(members.read(wanted) for members in actions):
        video = _opened_video(file_name, data, size)
        key = file_name.rsplit("_", 1)[0]
        action = key.split("_")[1]
        for first, last in seen.get(key, [(1, len(video))]):
            clip = video[first - 1 : last]
            for start in range(0, len(clip) - frames + 1, frames):
                members = {
                    "npy": npy_bytes(clip[start : start + frames]),
                    "json": json.dumps({"label": action}).encode(),
                }
                yield f"{key}-{first + start:05d}", members


def _opened_video(name: str, data: bytes, size: int) -> np.ndarray:
    """Grey frames of a video, uint8 `[frames, size, size]`, whatever archive it came from."""
    with tempfile.TemporaryDirectory() as scratch:
        video = Path(scratch, "video.avi")
        video.write_bytes(data)
        try:
            frames = opened(str(video), partial(_grey_video, size=size))
            return np.frombuffer(frames, np.uint8).reshape(-1, size, size)
        except ValueError as error:  # a bad video, or an answer that is no frames
            raise UsageError(f"{name} cannot be used ({error}): fetch it again, or leave it out") from error


def _grey_video(data: bytes, size: int) -> bytes:
    """Frames one after another.

    Raises:
        BadSample: `VideoDecodeError`.
    """
    with (
        bad_sample("VideoDecodeError"),
        av.open(io.BytesIO(data), "r", "avi", {"protocol_whitelist": "none"}) as container,  # no list of files
    ):
        frames = (frame.reformat(width=size, height=size, format="gray") for frame in container.decode(video=0))
        return b"".join(frame.to_ndarray().tobytes() for frame in frames)
