"""The demo's own data, for all three hybrids, from nothing but this package: to train, to judge, and for two nights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.datasets.demo.nights import FILM, NIGHT_SHARDS, NIGHTS, SHOT_SECONDS
from pipelines.datasets.demo.scenes import film, random_scene, scene_rows
from pipelines.datasets.demo.sentences import distinct_pairs
from pipelines.datasets.moving_digits import sequence_rows
from pipelines.datasets.moving_scenes import RATE, encode
from pipelines.datasets.writer import MANIFEST, DatasetWriter, Prepared, TarRow

DIGIT_FRAMES, DIGIT_CANVAS, DIGIT_SIZE = 10, 32, 14


def prepare_demo(
    out: str, scenes: int, digits: int, sentences: int, night_rows: int, rows_per_shard: int, seed: int
) -> Prepared:
    """Makes three small data sets, each with the splits train, val, test and two nights: `scenes` (tar of JPEG and
    captions), `digits` (tar of uint8 `[10, 32, 32]`) and `sentences` (JSON lines `{"id", "en", "de"}`).

    Nights hold their references, too, so that a night's output can be judged. The second night of scenes has one
    photograph that is cut off, as real nights do, and instead of the last shard a film, `FILM`: cut into windows of
    `SHOT_SECONDS` it is as many rows, of which each shows one scene.

    Raises:
        UsageError: a number is too small.
    """
    rows = {"scenes": scenes, "digits": digits, "sentences": sentences}
    check(rows, night_rows)
    writers = {name: _writer(name, out, count, rows_per_shard, seed) for name, count in rows.items()}  # refuse early
    parts = [MAKERS[name](writer, _split_sizes(rows[name], night_rows), seed) for name, writer in writers.items()]
    return Prepared(
        dataset="demo",
        out=out,
        splits={f"{part.dataset}/{split}": rows for part in parts for split, rows in part.splits.items()},
        in_train={f"{part.dataset}/{split}": count for part in parts for split, count in part.in_train.items()},
        shards=sum(part.shards for part in parts),
        bytes=sum(part.bytes for part in parts),
    )


def check(rows: Mapping[str, int], night_rows: int) -> None:
    """Refuses to make data sets of which a split would be empty.

    Raises:
        UsageError: a number is too small.
    """
    for name, value in rows.items():
        if value < 8:
            raise UsageError(f"`{name}` is {value}: at least 8 are needed, so that each split has some")
    if night_rows < NIGHT_SHARDS:
        raise UsageError(f"`night_rows` is {night_rows}: at least {NIGHT_SHARDS} are needed, one for each shard")


def prepare_one(name: str, out: str, rows: int, night_rows: int, rows_per_shard: int, seed: int) -> Prepared:
    """Makes one of the three data sets of `prepare_demo`, in a folder of its name."""
    writer = _writer(name, out, rows, rows_per_shard, seed)
    return MAKERS[name](writer, _split_sizes(rows, night_rows), seed)


def _writer(name: str, out: str, rows: int, rows_per_shard: int, seed: int) -> DatasetWriter:
    files = [f"{NIGHTS[-1]}/{FILM}"] if name == "scenes" else []
    storage.check_replaceable(storage.join(storage.absolute(out), name, MANIFEST), storage.anything)  # through no link
    return DatasetWriter(storage.join(out, name), name, rows_per_shard, {"train": rows, "seed": seed}, files=files)


def _split_sizes(train: int, night_rows: int) -> dict[str, int]:
    return {"train": train, "val": train // 8, "test": train // 8, **dict.fromkeys(NIGHTS, night_rows)}


def _shard_rows(split: str, count: int) -> int | None:
    """Nights come in a few small shards, other splits in shards of the usual size."""
    return math.ceil(count / NIGHT_SHARDS) if split in NIGHTS else None


def _key(split: str) -> str:
    """`train`, `2026-01-01`: what a split's keys begin with."""
    return split.rpartition("=")[2]


def _prepare_scenes(writer: DatasetWriter, sizes: Mapping[str, int], seed: int) -> Prepared:
    for number, (split, count) in enumerate(sizes.items()):
        rng = np.random.default_rng([seed, 0, number])
        size = _shard_rows(split, count)
        if split == NIGHTS[-1]:
            shots = max(1, count // NIGHT_SHARDS)
            photographs = _cut_one(scene_rows(_key(split), count - shots, rng), (count - shots) // 2)
            writer.write_tar(split, photographs, size)
            writer.write_file(split, FILM, _film(shots, rng), shots)
        else:
            writer.write_tar(split, scene_rows(_key(split), count, rng), size)
    return writer.finish()


def _film(shots: int, rng: np.random.Generator) -> bytes:
    """A clip of so many scenes, one after another."""
    return encode(film((random_scene(rng) for _ in range(shots)), SHOT_SECONDS * RATE, rng))


def _cut_one(rows: Iterator[TarRow], position: int) -> Iterator[TarRow]:
    """Cuts off one photograph in the middle, as a broken upload does."""
    for number, (key, members) in enumerate(rows):
        jpeg = members["jpg"]
        yield key, {**members, "jpg": jpeg[: len(jpeg) // 2] if number == position else jpeg}


def _prepare_digits(writer: DatasetWriter, sizes: Mapping[str, int], seed: int) -> Prepared:
    images = _handwritten_digits(seed)
    val, test = len(images) * 7 // 10, len(images) * 85 // 100
    digits = {"train": images[:val], "val": images[val:test], "test": images[test:]}
    for number, (split, count) in enumerate(sizes.items()):
        rng = np.random.default_rng([seed, 1, number])
        rows = sequence_rows(_key(split), digits.get(split, digits["test"]), count, DIGIT_FRAMES, DIGIT_CANVAS, rng)
        writer.write_tar(split, rows, _shard_rows(split, count))
    return writer.finish()


def _handwritten_digits(seed: int) -> np.ndarray:
    """scikit-learn's 1,797 real digits of 8 x 8 pixels, enlarged and shuffled: uint8 `[1797, 14, 14]`."""
    from sklearn.datasets import load_digits  # takes a second to import

    pixels, _ = load_digits(return_X_y=True)
    small = (pixels.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    size = (DIGIT_SIZE, DIGIT_SIZE)
    large = np.stack([np.asarray(Image.fromarray(digit).resize(size, Image.Resampling.BICUBIC)) for digit in small])
    return np.random.default_rng([seed, 1]).permutation(large)


def _prepare_sentences(writer: DatasetWriter, sizes: Mapping[str, int], seed: int) -> Prepared:
    """All splits are parts of one stream in which no sentence comes twice."""
    pairs = distinct_pairs(np.random.default_rng([seed, 2]))
    for split, count in sizes.items():
        rows = (
            {"id": f"{_key(split)}-{number:06d}", "en": english, "de": german}
            for number, (english, german) in enumerate(itertools.islice(pairs, count))
        )
        writer.write_jsonl(split, rows, _shard_rows(split, count))
    return writer.finish()


MAKERS = {"scenes": _prepare_scenes, "digits": _prepare_digits, "sentences": _prepare_sentences}
