"""Public data sets; tiny sources of each layout are made here."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.datasets import opened
from pipelines.datasets.public_data import prepare_flickr8k, prepare_moving_mnist, prepare_multi30k
from pipelines.reading.limits import Limits
from tests.pipelines.datasets.test_writer import files


def members(folder: Path, split: str) -> dict[str, bytes]:
    """All members of a split's tar shards."""
    found = {}
    for path in sorted((folder / split).glob("*.tar")):
        with tarfile.open(path) as archive:
            found |= {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    return found


# ---- Multi30k -------------------------------------------------------------------------------------------------------
def make_multi30k(folder: Path, counts: dict[str, int], packed: bool) -> None:
    folder.mkdir()
    for stem, count in counts.items():
        for language, words in (("en", "a line\u2028of {}"), ("de", "eine Zeile über {}")):
            text = "".join(f"{words.format(i)}\n" for i in range(count)).encode()
            suffix = ".gz" if packed else ""
            (folder / f"{stem}.{language}{suffix}").write_bytes(gzip.compress(text) if packed else text)


COUNTS = {"train": 7, "val": 2, "test_2016_flickr": 3}


@pytest.mark.parametrize("packed", [True, False])
def test_multi30k_pairs_lines_of_both_languages(tmp_path: Path, packed: bool) -> None:
    make_multi30k(tmp_path / "source", COUNTS, packed)
    summary = prepare_multi30k(str(tmp_path / "source"), str(tmp_path / "out"), rows_per_shard=4)
    assert summary.splits == {"train": 7, "val": 2, "test": 3}
    assert summary.shards == 4
    lines = gzip.decompress((tmp_path / "out/train/multi30k-train-00001.jsonl.gz").read_bytes()).decode().split("\n")
    assert json.loads(lines[0]) == {"id": "train-00004", "en": "a line\u2028of 4", "de": "eine Zeile über 4"}
    assert len(lines) == 4  # three rows and the last newline


def test_multi30k_names_what_is_missing_or_does_not_fit(tmp_path: Path) -> None:
    source = tmp_path / "source"
    make_multi30k(source, COUNTS, packed=True)
    (source / "val.de.gz").write_bytes(gzip.compress(b"nur eine Zeile\n"))
    with pytest.raises(UsageError, match=r"val.en.gz and .*val.de.gz are no pair"):
        prepare_multi30k(str(source), str(tmp_path / "out"), 4)
    (source / "val.de.gz").unlink()
    with pytest.raises(UsageError, match=r"val\.de\.gz is not there: expected one sentence a line"):
        prepare_multi30k(str(source), str(tmp_path / "out"), 4)


# ---- Flickr8k -------------------------------------------------------------------------------------------------------
def photo(number: int) -> bytes:
    return b"jpeg %d" % number


def make_repacked(folder: Path, train: int, dev: int, same: dict[str, str]) -> None:
    """Tars of ten photographs; `same` gives photographs the bytes of others."""
    names = [(f"t{i:03d}.jpg", "train") for i in range(train)] + [(f"d{i:03d}.jpg", "dev") for i in range(dev)]
    content = {name: photo(i) for i, (name, _) in enumerate(names)}
    content |= {name: content[other] for name, other in same.items()}
    folder.mkdir()
    for split in ("train", "dev"):
        mine = [name for name, its in names if its == split]
        for start in range(0, len(mine), 10):
            with tarfile.open(folder / f"images-{split}-{start // 10:03d}.tar", "w") as archive:
                for name in mine[start : start + 10]:
                    member = tarfile.TarInfo(name)
                    member.size = len(content[name])
                    archive.addfile(member, io.BytesIO(content[name]))
    images = [{"filename": n, "split": s, "captions": [f"{n} one", f"{n} two"]} for n, s in names]
    (folder / "captions.json").write_text(json.dumps({"images": images}))


def test_repacked_flickr8k_gets_three_disjoint_splits(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    make_repacked(source, 24, 6, same={"t003.jpg": "t017.jpg", "t020.jpg": "d002.jpg"})
    summary = prepare_flickr8k(str(source), str(out), rows_per_shard=5, val_images=4, seed=3)
    splits = {split: members(out, split) for split in ("train", "val", "test")}
    assert sum(summary.splits.values()) == 30
    assert summary.splits["test"] == 7  # six dev photographs and the training one that equals one of them
    assert summary.splits["val"] in (4, 5)
    hashes = [
        {hashlib.sha256(data).hexdigest() for name, data in split.items() if name.endswith(".jpg")}
        for split in splits.values()
    ]
    assert sum(len(h) for h in hashes) == len(set.union(*hashes)) == 28
    everything = splits["train"] | splits["val"] | splits["test"]
    assert everything["t005.jpg"] == photo(5)
    assert json.loads(everything["t005.json"]) == {"captions": ["t005.jpg one", "t005.jpg two"]}
    assert len(everything) == 60


def test_a_photograph_of_two_tars_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    make_repacked(source, 24, 6, same={})
    shutil.copyfile(source / "images-dev-000.tar", source / "images-dev-copy.tar")
    with pytest.raises(UsageError, match=r"d00\d.jpg is in .*images-dev-copy.tar, or in it and a tar before it, twice"):
        prepare_flickr8k(str(source), str(tmp_path / "out"), rows_per_shard=5, val_images=4, seed=3)


def test_a_damaged_tar_and_one_of_a_huge_photograph_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    make_repacked(source, 24, 6, same={})

    def fails(match: str) -> None:
        with pytest.raises(UsageError, match=match):
            prepare_flickr8k(str(source), str(tmp_path / "out"), rows_per_shard=5, val_images=4, seed=3)

    whole = (source / "images-dev-000.tar").read_bytes()
    (source / "images-dev-000.tar").write_bytes(whole[:700])
    fails(r"images-dev-000.tar is not a whole tar archive \(.*\): fetch it again$")
    (source / "images-dev-000.tar").write_bytes(whole)
    monkeypatch.setattr(opened, "DEFAULT_LIMITS", Limits(max_bytes=2))
    fails(r"^d00\d.jpg in .*images-dev-000.tar has \d+ bytes, more than 2: it is none of this data set's files$")


def test_damaged_sentences_are_named(tmp_path: Path) -> None:
    for split in ("train", "val", "test_2016_flickr"):
        for language in ("en", "de"):
            storage.write_bytes(str(tmp_path / f"in/{split}.{language}.gz"), gzip.compress(b"a\nb\n"))
    whole = gzip.compress(b"a sentence\n" * 1000)
    for damaged in (b"no gzip", whole[:-9], whole[:12] + bytes(9)):
        storage.write_bytes(str(tmp_path / "in/val.de.gz"), damaged, storage.anything)
        with pytest.raises(UsageError, match=r"val.en.gz and .*val.de.gz are no pair of files: "):
            prepare_multi30k(str(tmp_path / "in"), str(tmp_path / "out"), 10)


def test_the_val_split_depends_on_the_seed_alone(tmp_path: Path) -> None:
    make_repacked(tmp_path / "source", 24, 6, same={})
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare_flickr8k(str(tmp_path / "source"), str(tmp_path / name), 5, 4, seed)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert members(tmp_path / "a", "val").keys() != members(tmp_path / "c", "val").keys()
    assert members(tmp_path / "a", "test") == members(tmp_path / "c", "test")


def make_original(folder: Path) -> None:
    (folder / "Flicker8k_Dataset").mkdir(parents=True)
    for i in range(9):
        (folder / "Flicker8k_Dataset" / f"p{i}.jpg").write_bytes(photo(0 if i == 8 else i))
    captions = [f"p{i}.jpg#{k}\tphoto {i} caption {k} ." for i in range(8) for k in range(5)]
    (folder / "Flickr8k.token.txt").write_text("\n".join(captions) + "\np8.jpg#0\tthe same again\n")
    for name, numbers in (("train", (8, 1, 2, 3, 4)), ("dev", (5, 0)), ("test", (6,))):  # p7 is in no list
        (folder / f"Flickr_8k.{name}Images.txt").write_text("".join(f"p{i}.jpg\n" for i in numbers))


def test_the_original_flickr8k_keeps_its_own_splits(tmp_path: Path) -> None:
    make_original(tmp_path / "source")
    summary = prepare_flickr8k(str(tmp_path / "source"), str(tmp_path / "out"), 3, 300, 0)
    assert summary.splits == {"train": 4, "val": 3, "test": 1}  # p8 is p0 again, which is in dev
    val = members(tmp_path / "out", "val")
    assert [name for name in val if name.endswith("jpg")] == ["p0.jpg", "p5.jpg", "p8.jpg"]
    assert json.loads(val["p5.json"])["captions"] == [f"photo 5 caption {k} ." for k in range(5)]


def test_flickr8k_names_what_is_missing(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"Flickr8k\.token\.txt is not there: expected either captions\.json beside"):
        prepare_flickr8k(str(tmp_path / "empty"), out, 3, 2, 0)
    make_original(tmp_path / "original")
    (tmp_path / "original/Flicker8k_Dataset/p3.jpg").unlink()
    with pytest.raises(UsageError, match=r"p3\.jpg and 0 more listed photographs are not in"):
        prepare_flickr8k(str(tmp_path / "original"), out, 3, 2, 0)
    make_repacked(tmp_path / "repacked", 4, 2, same={})
    with pytest.raises(UsageError, match="`val_images` is 4: it must be between 1 and 3"):
        prepare_flickr8k(str(tmp_path / "repacked"), out, 3, 4, 0)
    (tmp_path / "repacked/captions.json").write_text('{"images": [{"file": 1}]}')
    with pytest.raises(UsageError, match=r"captions\.json is not of the form"):
        prepare_flickr8k(str(tmp_path / "repacked"), out, 3, 2, 0)


# ---- Moving MNIST ---------------------------------------------------------------------------------------------------
def make_mnist(folder: Path) -> None:
    """Digits of one grey each: 1 to 60 in the training images, 200 to 209 in the test images."""
    folder.mkdir()
    for name, greys in (("train", range(1, 61)), ("t10k", range(200, 210))):
        images = np.stack([np.full((28, 28), grey, np.uint8) for grey in greys])
        data = struct.pack(">4i", 0x803, *images.shape) + images.tobytes()
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(data))


def test_moving_mnist_takes_its_splits_digits_from_different_images(tmp_path: Path) -> None:
    make_mnist(tmp_path / "source")
    counts = {"train": 30, "val": 8, "test": 8}
    for name in ("out", "again"):
        summary = prepare_moving_mnist(str(tmp_path / "source"), str(tmp_path / name), 10, counts, seed=1)
        assert summary.splits == counts
    assert files(tmp_path / "out") == files(tmp_path / "again")
    greys = {}
    for split in counts:
        arrays = [np.load(io.BytesIO(data)) for data in members(tmp_path / "out", split).values()]
        assert {(a.shape, a.dtype.name) for a in arrays} == {((20, 64, 64), "uint8")}
        greys[split] = set(np.unique(arrays).tolist()) - {0}
    assert greys["train"] <= set(range(1, 51))
    assert greys["val"] <= set(range(51, 61))
    assert greys["test"] <= set(range(200, 210))


def test_moving_mnist_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train-images-idx3-ubyte\.gz is not there: expected MNIST images"):
        prepare_moving_mnist(str(tmp_path), str(tmp_path / "out"), 10, {"train": 1, "val": 1, "test": 1}, 0)
