"""Public data sets, as their owners distribute them, → shards with train, val and test splits."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import tarfile
import zlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.datasets.moving_digits import read_idx_images, sequence_rows
from pipelines.datasets.opened import check_bytes
from pipelines.datasets.writer import DatasetWriter, Prepared, TarRow, caption_row

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
"""From the least to the most held-out."""


def _require(source: str, names: Sequence[str], purpose: str) -> str:
    """The URI of the first of these names that is there.

    Raises:
        UsageError: none is.
    """
    for name in names:
        uri = storage.join(source, name)
        if storage.exists(uri):
            return uri
    raise UsageError(f"{storage.join(source, names[0])} is not there: expected {purpose}")


# ---- Multi30k -------------------------------------------------------------------------------------------------------
MULTI30K_FILES = {"train": "train", "val": "val", "test": "test_2016_flickr"}


def prepare_multi30k(source: str, out: str, rows_per_shard: int) -> Prepared:
    """Multi30k, task 1 (Elliott et al. 2016, https://aclanthology.org/W16-3210): rows `{"id", "en", "de"}`.

    Args:
        source: folder with `train`, `val` and `test_2016_flickr`, each as `.en` and `.de`, gzipped or not.
        out: where the splits go.
        rows_per_shard: sentence pairs of one shard.

    Raises:
        UsageError: a file is missing, or the two sides of a split differ in length.
    """
    files = {
        (split, language): _require(
            source, [f"{stem}.{language}.gz", f"{stem}.{language}"], "one sentence a line, UTF-8, gzipped or not"
        )
        for split, stem in MULTI30K_FILES.items()
        for language in ("en", "de")
    }
    writer = DatasetWriter(out, "multi30k", rows_per_shard, {})
    for split in MULTI30K_FILES:
        writer.write_jsonl(split, _parallel_rows(split, files[split, "en"], files[split, "de"]))
    return writer.finish()


def _parallel_rows(split: str, english: str, german: str) -> Iterator[dict[str, str]]:
    try:
        for number, (en, de) in enumerate(zip(_text_lines(english), _text_lines(german), strict=True)):
            yield {"id": f"{split}-{number:05d}", "en": en, "de": de}
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"{english} and {german} are no pair of files: {error}") from error


def _text_lines(uri: str) -> Iterator[str]:
    with storage.open_input(uri) as stream:
        plain = gzip.GzipFile(fileobj=stream) if uri.endswith(".gz") else stream
        for line in io.TextIOWrapper(plain, encoding="utf-8", newline="\n"):
            yield line.strip()


# ---- Flickr8k -------------------------------------------------------------------------------------------------------
FLICKR8K_IMAGES = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images")
FLICKR8K_LAYOUTS = (
    "either captions.json beside images-*.tar, or Flickr8k.token.txt, Flickr_8k.{train,dev,test}Images.txt and the "
    "folder Flicker8k_Dataset"
)


@dataclass(frozen=True)
class _Photo:
    """One photograph, known but not yet in memory."""

    split: str
    captions: list[str]


def prepare_flickr8k(source: str, out: str, rows_per_shard: int, val_images: int, seed: int) -> Prepared:
    """Flickr8k (Hodosh, Young, Hockenmaier 2013, JAIR 47:853-899): `NAME.jpg` with `NAME.json`, `{"captions": […]}`.

    Identical photographs always fall into the same split, the most held-out that one of them is in.

    Args:
        source: the original distribution, or tar files of photographs with `captions.json`. The latter has only
            train and dev: dev becomes the test split, a random part of train the val split.
        out: where the splits go.
        rows_per_shard: photographs of one shard.
        val_images: size of that random part.
        seed: what it is drawn with.

    Raises:
        UsageError: a file is missing, or no layout is recognised.
    """
    if storage.exists(storage.join(source, "captions.json")):
        photos, images = _repacked_flickr8k(source)
        photos = _draw_val(photos, val_images, seed)
        options = {"val_images": val_images, "seed": seed}
    else:
        photos, images = _original_flickr8k(source)
        options = {}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in images.read(photos)}
    _check_all_found(source, photos, hashes)
    split_of = _splits_without_duplicates(photos, hashes)
    writer = DatasetWriter(out, "flickr8k", rows_per_shard, options)
    for split in SPLITS:
        chosen = {name: photo for name, photo in photos.items() if split_of[name] == split}
        writer.write_tar(split, _photo_rows(chosen, images))
    return writer.finish()


class _Images:
    """Photographs in tar files, or in a folder."""

    def __init__(self, tars: Sequence[str] = (), folder: str | None = None) -> None:
        self.tars = tars
        self.folder = folder

    def read(self, wanted: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of the wanted photographs, one at a time in memory."""
        if self.folder is not None:
            present = {file.name: file.uri for file in storage.list_files(self.folder)}
            for name in sorted(wanted):
                if name in present:
                    yield name, storage.read_bytes(present[name])
        given: set[str] = set()
        for uri in self.tars:
            for name, data in _photos_of(uri, wanted):
                if name in given:
                    raise UsageError(f"{name} is in {uri}, or in it and a tar before it, twice: leave one")
                given.add(name)
                yield name, data


def _photos_of(uri: str, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of the wanted files of a tar, one at a time in memory."""
    try:
        with storage.open_input(uri) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                content = archive.extractfile(member) if member.isfile() and name in wanted else None
                if content is not None:
                    check_bytes(f"{name} in {uri}", member.size)
                    yield name, content.read()
    except tarfile.TarError as error:
        raise UsageError(f"{uri} is not a whole tar archive ({error}): fetch it again") from error


def _repacked_flickr8k(source: str) -> tuple[dict[str, _Photo], _Images]:
    uri = storage.join(source, "captions.json")
    split_names = {"train": "train", "dev": "test"}
    try:
        photos = {
            entry["filename"]: _Photo(split_names[entry["split"]], entry["captions"])
            for entry in json.loads(storage.read_text(uri))["images"]
        }
    except (ValueError, KeyError, TypeError) as error:
        wanted = '{"images": [{"filename": …, "split": "train" or "dev", "captions": […]}]}'
        raise UsageError(f"{uri} is not of the form {wanted}: {error!r}") from error
    tars = [file.uri for file in storage.list_files(storage.join(source, "images-*.tar"))]
    if not tars:
        raise UsageError(f"{storage.join(source, 'images-*.tar')} is not there: expected {FLICKR8K_LAYOUTS}")
    return photos, _Images(tars=tars)


def _original_flickr8k(source: str) -> tuple[dict[str, _Photo], _Images]:
    def text(name: str) -> list[str]:
        uri = _require(source, [name, f"Flickr8k_text/{name}"], FLICKR8K_LAYOUTS)
        return [line.strip() for line in storage.read_text(uri).splitlines() if line.strip()]

    captions: dict[str, list[str]] = {}
    for line in text("Flickr8k.token.txt"):
        label, _, caption = line.partition("\t")
        captions.setdefault(label.partition("#")[0], []).append(caption.strip())
    photos = {}
    for split, list_name in (("train", "trainImages"), ("val", "devImages"), ("test", "testImages")):
        for name in text(f"Flickr_8k.{list_name}.txt"):
            if name not in captions:
                raise UsageError(f"{name} of Flickr_8k.{list_name}.txt has no caption in Flickr8k.token.txt")
            photos[name] = _Photo(split, captions[name])
    folder = _require(source, FLICKR8K_IMAGES, FLICKR8K_LAYOUTS)
    return photos, _Images(folder=folder)


def _draw_val(photos: Mapping[str, _Photo], count: int, seed: int) -> dict[str, _Photo]:
    """Moves a random `count` of the training photographs to the val split."""
    train = sorted(name for name, photo in photos.items() if photo.split == "train")
    if not 0 < count < len(train):
        raise UsageError(
            f"`val_images` is {count}: it must be between 1 and {len(train) - 1}, as training has {len(train)}"
        )
    chosen = set(np.random.default_rng(seed).choice(train, count, replace=False).tolist())
    return {name: _Photo("val", photo.captions) if name in chosen else photo for name, photo in photos.items()}


def _check_all_found(source: str, photos: Mapping[str, _Photo], found: Mapping[str, str]) -> None:
    missing = sorted(set(photos) - set(found))
    if missing:
        raise UsageError(f"{missing[0]} and {len(missing) - 1} more listed photographs are not in {source}")


def _splits_without_duplicates(photos: Mapping[str, _Photo], hashes: Mapping[str, str]) -> dict[str, str]:
    """Name → split, the same for all photographs of the same bytes."""
    most_held_out: dict[str, int] = {}
    for name, photo in photos.items():
        rank = SPLITS.index(photo.split)
        most_held_out[hashes[name]] = max(rank, most_held_out.get(hashes[name], 0))
    splits = {name: SPLITS[most_held_out[hashes[name]]] for name in photos}
    for name, photo in photos.items():
        if splits[name] != photo.split:
            log.info("%s is the same photograph as one of the %s split and goes there", name, splits[name])
    return splits


def _photo_rows(photos: Mapping[str, _Photo], images: _Images) -> Iterator[TarRow]:
    for name, data in images.read(photos):
        yield caption_row(name.rsplit(".", 1)[0], data, photos[name].captions)


# ---- Moving MNIST ---------------------------------------------------------------------------------------------------
MNIST_FILES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
MNIST_VAL_DIGITS = 10_000
MNIST_FRAMES, MNIST_CANVAS = 20, 64


def prepare_moving_mnist(source: str, out: str, rows_per_shard: int, counts: Mapping[str, int], seed: int) -> Prepared:
    """Moving MNIST (arXiv:1502.04681): two digits on 64 x 64 pixels, 20 frames, uint8 `[20, 64, 64]` in `.npy`.

    Args:
        source: folder with MNIST's `train-images-idx3-ubyte` and `t10k-images-idx3-ubyte`, gzipped or not.
        out: where the splits go.
        rows_per_shard: sequences of one shard, 82 kB each.
        counts: sequences by split. Train and val digits are disjoint training images, test digits MNIST's test images.
        seed: of places, directions and the choice of digits.

    Raises:
        UsageError: a file is missing or no IDX file of images.
    """
    train, test = (
        read_idx_images(_require(source, [f"{stem}.gz", stem], "MNIST images in IDX format, gzipped or not"))
        for stem in MNIST_FILES.values()
    )
    held_back = min(MNIST_VAL_DIGITS, len(train) // 6)
    digits = {"train": train[:-held_back], "val": train[-held_back:], "test": test}
    writer = DatasetWriter(out, "moving-mnist", rows_per_shard, {**counts, "seed": seed})
    for number, split in enumerate(SPLITS):
        rng = np.random.default_rng([seed, number])
        rows = sequence_rows(split, digits[split], counts[split], MNIST_FRAMES, MNIST_CANVAS, rng)
        writer.write_tar(split, rows)
    return writer.finish()
