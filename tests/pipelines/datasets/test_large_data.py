"""Tiny data in the formats of the large data sets: prepared, and the recipes for them built and run for a few steps."""

import gzip
import hashlib
import io
import json
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from hybrid_models import HYBRIDS
from hybrid_models.errors import BadSample, UsageError
from jobs.recipes import RECIPES
from pipelines import storage
from pipelines.datasets import large_data, opened
from pipelines.datasets.large_data import prepare_coco, prepare_iwslt14, prepare_kth
from pipelines.datasets.public_data import prepare_moving_mnist
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import Limits
from pipelines.reading.rows import read_blocks
from pipelines.reading.samples import Decode, unpack
from pipelines.reading.shards import Shard, list_shards
from tests import tiny


def samples(recipe_name: str, folder: Path) -> tuple[list, dict[str, str]]:
    """Training samples as the recipe reads them, and the assets that it learns."""
    recipe = RECIPES[recipe_name]()
    kind = HYBRIDS[recipe.hybrid]
    rows = [row for shard in list_shards(str(folder / "train")) for row in raw_rows(shard)]
    texts = [text for row in rows for text in recipe.model.training_texts(json.loads(row["fields"]))]
    assets = kind.learn_assets(recipe.model, texts)
    decode = Decode(kind.preprocess(recipe.model, assets), recipe.limits, with_target=True)
    decoded = [decode.decode_row(row) for row in rows]
    assert [row["error"] for row in decoded] == [None] * len(rows)
    return [unpack(row["sample"]) for row in decoded], assets


def raw_rows(shard: Shard) -> list[dict]:
    return [row for block in read_blocks(shard, ReadOptions()) for row in block.to_pylist()]


def hashes(folder: Path, split: str) -> set[str]:
    """Content of a split's rows, without their names."""
    rows = [row for shard in list_shards(str(folder / split)) for row in raw_rows(shard)]
    found = set()
    for row in rows:
        fields = {name: value for name, value in json.loads(row["fields"]).items() if name != "id"}
        found.add(hashlib.sha256((row["media"] or b"") + json.dumps(fields).encode()).hexdigest())
    assert len(found) == len(rows)
    return found


def assert_disjoint(folder: Path) -> None:
    train, val, test = (hashes(folder, split) for split in ("train", "val", "test"))
    assert len(train | val | test) == len(train) + len(val) + len(test)


def learns(recipe_name: str, folder: Path, **smaller: object) -> None:
    """The recipe's net is built, and a few steps on a small batch lower its loss; it predicts."""
    recipe = RECIPES[recipe_name]()
    kind = HYBRIDS[recipe.hybrid]
    found, assets = samples(recipe_name, folder)
    with torch.device("meta"):
        assert sum(p.numel() for p in kind(recipe.model, assets).parameters()) > 5_000_000
    torch.manual_seed(0)
    hybrid = kind(replace(recipe.model, **smaller), assets)
    optimizer = torch.optim.AdamW(hybrid.parameters(), lr=recipe.train.learning_rate)
    batch = hybrid.train().collate(found[:2], np.random.default_rng(0))
    losses = []
    for _ in range(4):
        loss = hybrid(batch)
        losses.append(float(loss.total.detach() / loss.terms))
        optimizer.zero_grad()
        (loss.total / loss.terms).backward()
        optimizer.step()
    assert min(losses[1:]) < losses[0]
    assert len(hybrid.eval().predict(batch, recipe.decoding)) == 2


# ---- COCO --------------------------------------------------------------------------------------------------------
def make_coco(folder: Path, zipped: bool) -> None:
    (folder / "annotations").mkdir(parents=True)
    for split, count in (("train", 9), ("val", 3)):
        names = [f"{1000 * (split == 'val') + i:012d}.jpg" for i in range(count)]
        images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
        texts = tiny.sentences(5 * count, seed=count)
        annotations = [{"image_id": n // 5, "id": n, "caption": f" {text}\n"} for n, text in enumerate(texts)]
        content = json.dumps({"images": images, "annotations": annotations})
        (folder / "annotations" / f"captions_{split}2017.json").write_text(content)
        photos = {f"{split}2017/{name}": tiny.jpeg(int(name[:12])) for name in names}
        if zipped:
            with zipfile.ZipFile(folder / f"{split}2017.zip", "w") as archive:
                for name, data in photos.items():
                    archive.writestr(name, data)
        else:
            for name, data in photos.items():
                storage.write_bytes(str(folder / name), data)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_photograph_that_lies_twice_hides_none_that_is_missing(tmp_path: Path, zipped: bool) -> None:
    make_coco(tmp_path / "coco", zipped)
    again = "train2017/train2017/000000000003.jpg"
    if zipped:
        with zipfile.ZipFile(tmp_path / "coco/train2017.zip", "a") as archive:
            archive.writestr(again, b"another")
    else:
        storage.write_bytes(str(tmp_path / "coco" / again), b"another")
    with pytest.raises(UsageError, match=r"000000000003.jpg is in .*/train2017(.zip)? twice: leave one"):
        prepare_coco(str(tmp_path / "coco"), str(tmp_path / "out"), 4, val_images=2, seed=0)


@pytest.mark.parametrize("zipped", [True, False])
def test_coco_draws_val_from_train_and_tests_on_its_val(tmp_path: Path, zipped: bool) -> None:
    make_coco(tmp_path / "coco", zipped)
    summary = prepare_coco(str(tmp_path / "coco"), str(tmp_path / "out"), 4, val_images=2, seed=0)
    assert summary.splits == {"train": 7, "val": 2, "test": 3}
    assert_disjoint(tmp_path / "out")
    (shard,) = list_shards(str(tmp_path / "out/test"))
    first = raw_rows(shard)[0]
    assert (first["sample_id"], first["media"]) == ("000000001000", tiny.jpeg(1000))
    assert json.loads(first["fields"])["captions"] == tiny.sentences(15, seed=3)[:5]


def test_the_coco_recipe_learns(tmp_path: Path) -> None:
    make_coco(tmp_path / "coco", zipped=True)
    prepare_coco(str(tmp_path / "coco"), str(tmp_path / "out"), 4, val_images=2, seed=0)
    learns("captioner-coco", tmp_path / "out", image_size=64)


def test_coco_names_what_is_missing(tmp_path: Path) -> None:
    source, out = str(tmp_path / "coco"), str(tmp_path / "out")
    with pytest.raises(UsageError, match=r"captions_train2017.json is not there: expected captions_train2017.json of"):
        prepare_coco(source, out, 4, 2, 0)
    make_coco(tmp_path / "coco", zipped=False)
    with pytest.raises(UsageError, match="`val_images` is 9: it must be between 1 and 8"):
        prepare_coco(source, out, 4, 9, 0)
    (tmp_path / "coco/train2017/000000000003.jpg").unlink()
    with pytest.raises(UsageError, match=r"1 of \d photographs are not in .*/train2017: fetch it again"):
        prepare_coco(source, out, 4, 2, 0)
    (tmp_path / "coco/train2017.zip").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UsageError, match=r"train2017.zip is not a whole zip archive"):
        prepare_coco(source, out, 4, 2, 0)
    (tmp_path / "coco/annotations/captions_val2017.json").write_text("{}")
    with pytest.raises(UsageError, match=r"captions_val2017.json is not COCO's caption file: KeyError"):
        prepare_coco(source, out, 4, 2, 0)


# ---- IWSLT14 -----------------------------------------------------------------------------------------------------
def make_iwslt14(folder: Path) -> None:
    folder.mkdir()
    for side, change in (("de", str), ("en", str.upper)):
        talk = "<url>http://www.ted.com</url>\n<keywords>talks</keywords>\n"
        lines = "".join(f"{change(text)}\n" for text in tiny.sentences(40, seed=1))
        (folder / f"train.tags.de-en.{side}").write_text(f"{talk}{lines}{talk}{change('ein letzter Satz')}\n\n")
        for seed, part in enumerate(("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2012"), 2):
            segments = "\n".join(
                f'<seg id="{i}"> {change(text)} &amp; so </seg>' for i, text in enumerate(tiny.sentences(6, seed), 1)
            )
            text = f'<?xml version="1.0"?>\n<mteval><doc docid="1">{segments}</doc></mteval>\n'
            (folder / f"IWSLT14.{part}.de-en.{side}.xml").write_text(text)


def test_iwslt14_pairs_sentences_and_leaves_tags_out(tmp_path: Path) -> None:
    make_iwslt14(tmp_path / "de-en")
    summary = prepare_iwslt14(str(tmp_path / "de-en"), str(tmp_path / "out"), 100, ("de", "en"))
    assert summary.splits == {"train": 41, "val": 12, "test": 12}
    assert json.loads((tmp_path / "out/_manifest.json").read_text())["options"] == {
        "rows_per_shard": 100,
        "val": ["TED.dev2010", "TEDX.dev2012"],
        "test": ["TED.tst2010", "TED.tst2012"],
    }
    assert_disjoint(tmp_path / "out")
    (shard,) = list_shards(str(tmp_path / "out/train"))
    rows = [json.loads(row["fields"]) for row in raw_rows(shard)]
    assert [row["en"] for row in rows] == [row["de"].upper() for row in rows]
    assert rows[-1]["de"] == "ein letzter Satz"
    (shard,) = list_shards(str(tmp_path / "out/test"))
    first = raw_rows(shard)[0]
    assert (first["sample_id"], json.loads(first["fields"])["de"]) == (
        "TED.tst2010-000000", f"{tiny.sentences(6, 4)[0]} & so",
    )  # fmt: skip


def test_the_iwslt14_recipe_learns(tmp_path: Path) -> None:
    make_iwslt14(tmp_path / "de-en")
    prepare_iwslt14(str(tmp_path / "de-en"), str(tmp_path / "out"), 100, ("de", "en"))
    learns("translator-iwslt14", tmp_path / "out")


def test_iwslt14_names_what_is_missing_or_does_not_fit(tmp_path: Path) -> None:
    source, out = str(tmp_path / "de-en"), str(tmp_path / "out")
    with pytest.raises(UsageError, match=r"train.tags.de-en.de is not there: expected the folder of one language pair"):
        prepare_iwslt14(source, out, 100, ("de", "en"))
    make_iwslt14(tmp_path / "de-en")
    (tmp_path / "de-en/IWSLT14.TED.dev2010.de-en.en.xml").write_text('<seg id="1">alone</seg>')
    with pytest.raises(UsageError, match=r"dev2010 has other numbers of sentences .*: \{'de': 6, 'en': 1\}"):
        prepare_iwslt14(source, out, 100, ("de", "en"))
    (tmp_path / "de-en/IWSLT14.TED.dev2010.de-en.en.xml").unlink()
    with pytest.raises(UsageError, match=r"IWSLT14.TED.dev2010.de-en.en.xml is not there"):
        prepare_iwslt14(source, out, 100, ("de", "en"))
    for name in ("TED.dev2010", "TEDX.dev2012"):
        (tmp_path / f"de-en/IWSLT14.{name}.de-en.de.xml").unlink()
    with pytest.raises(UsageError, match=r"IWSLT14.TED.dev2010.de-en.de.xml is not there: expected de-en"):
        prepare_iwslt14(source, out, 100, ("de", "en"))


# ---- KTH ---------------------------------------------------------------------------------------------------------
def avi(frames: int, brightness: int, corner: int) -> bytes:
    """A grey clip that gets lighter by one a frame, but for a corner."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="avi") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "gray"
        for number in range(frames):
            picture = np.full((120, 160), brightness + number, np.uint8)
            picture[:30, :40] = corner
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="gray")))
        output.mux(stream.encode())
    return buffer.getvalue()


def make_kth(folder: Path) -> None:
    folder.mkdir()
    lines = ["Sequences\n"]
    for number, action in enumerate(("boxing", "handclapping", "handwaving", "jogging", "running", "walking")):
        persons = {"boxing": (1, 15, 20), "walking": (2, 16, 25)}.get(action, (3 + number,))
        files = {f"person{p:02d}_{action}_d1_uncomp.avi": avi(70, p, 40 * number) for p in persons}
        lines += [f"person{p:02d}_{action}_d1\t\tframes\t1-35, 37-70\n" for p in persons if p != 2]
        if action == "boxing":
            with zipfile.ZipFile(folder / "boxing.zip", "w") as archive:
                for name, data in files.items():
                    archive.writestr(name, data)
        else:
            for name, data in files.items():
                storage.write_bytes(str(folder / action / name), data)
    (folder / "00sequences.txt").write_text("".join(lines))


def test_kth_is_cut_into_clips_of_whole_sequences(tmp_path: Path) -> None:
    make_kth(tmp_path / "kth")
    summary = prepare_kth(str(tmp_path / "kth"), str(tmp_path / "out"), 100, size=128, frames=30)
    assert summary.splits == {"train": 12, "val": 4, "test": 4}
    assert_disjoint(tmp_path / "out")
    (shard,) = list_shards(str(tmp_path / "out/val"))
    rows = raw_rows(shard)
    names = [f"{video}_d1-{start}" for video in ("person15_boxing", "person16_walking") for start in ("00001", "00037")]
    assert [row["sample_id"] for row in rows] == names
    assert [json.loads(row["fields"])["label"] for row in rows] == ["boxing"] * 2 + ["walking"] * 2
    clip = np.load(io.BytesIO(rows[1]["media"]))
    assert (clip.dtype, clip.shape) == (np.uint8, (30, 128, 128))
    assert np.diff(clip[:, 64, 64].astype(int)).tolist() == [1] * 29
    assert abs(int(clip[0, 64, 64]) - (15 + 36)) <= 2, "its first frame is the 37th"


def test_kths_videos_are_opened_in_the_decoding_child_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_kth(tmp_path / "kth")

    def opened_here(*arguments: object, **options: object) -> None:
        raise AssertionError("a stranger's file is opened beside the keys")

    monkeypatch.setattr(av, "open", opened_here)
    assert prepare_kth(str(tmp_path / "kth"), str(tmp_path / "out"), 100, 64, 30).splits["test"] == 4


def test_the_kth_recipe_learns(tmp_path: Path) -> None:
    make_kth(tmp_path / "kth")
    prepare_kth(str(tmp_path / "kth"), str(tmp_path / "out"), 100, size=128, frames=30)
    learns("nowcaster-kth", tmp_path / "out", hidden_dims=(8,))
    small = {"encoder": "test_resnet", "encoder_weights": "none", "freeze_encoder": False, "image_size": 32}
    learns("recogniser-kth", tmp_path / "out", **small, frames=4, hidden_size=16)


def test_kth_names_what_is_missing_and_reads_no_file_that_another_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = str(tmp_path / "kth"), str(tmp_path / "out")
    with pytest.raises(UsageError, match=r"kth/boxing is not there, nor boxing.zip: expected AVI files of the KTH"):
        prepare_kth(source, out, 100, 128, 30)
    make_kth(tmp_path / "kth")
    (tmp_path / "kth/walking/secret.avi").write_bytes(avi(3, 1, 1))
    (tmp_path / "kth/walking/person02_walking_d1_uncomp.avi").write_bytes(b"ffconcat version 1.0\nfile secret.avi\n")
    monkeypatch.chdir(tmp_path / "kth/walking")
    with pytest.raises(BadSample, match="Invalid data"):  # the jail, which is none here, would refuse it, too
        large_data._grey_video((tmp_path / "kth/walking/person02_walking_d1_uncomp.avi").read_bytes(), 64)
    with pytest.raises(UsageError, match=r"person02_walking_d1_uncomp.avi cannot be used .*: fetch it again, or leave"):
        prepare_kth(source, out, 100, 128, 30)
    (tmp_path / "kth/walking/person02_walking_d1_uncomp.avi").write_bytes(b"no video")
    with pytest.raises(UsageError, match=r"person02_walking_d1_uncomp.avi cannot be used .*Invalid data.*: fetch it"):
        prepare_kth(source, out, 100, 128, 30)
    (tmp_path / "kth/00sequences.txt").unlink()
    with pytest.raises(UsageError, match=r"00sequences.txt is not there: expected the list of sequences"):
        prepare_kth(source, out, 100, 128, 30)


def test_a_video_whose_frames_are_none_and_members_that_cannot_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_kth(tmp_path / "kth")

    def fails(match: str) -> None:
        with pytest.raises(UsageError, match=match):
            prepare_kth(str(tmp_path / "kth"), str(tmp_path / "out"), 100, 128, 30)

    with monkeypatch.context() as patch:
        patch.setattr(large_data, "opened", lambda *_: bytes(128 * 128 + 1))
        fails(r"^person01_boxing_d1_uncomp.avi cannot be used \(cannot reshape .*\): fetch it again, or leave it out$")
    with monkeypatch.context() as patch:
        patch.setattr(opened, "DEFAULT_LIMITS", Limits(max_bytes=10))
        fails(r"^person01_boxing_d1_uncomp.avi in .*boxing.zip has [\d,]+ bytes, more than 10: it is none of this")
    archive = tmp_path / "kth/boxing.zip"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:200] + b"damaged" + whole[207:])
    fails(r"^person01_boxing_d1_uncomp.avi in .*boxing.zip cannot be read \(.*\): fetch it again$")
    flag = whole.index(b"PK\x01\x02") + 8  # of a member in the archive's directory: encrypted
    archive.write_bytes(whole[:flag] + b"\x01" + whole[flag + 1 :])
    fails(r"boxing.zip cannot be read \(.*encrypted.*\): fetch it again$")
    archive.write_bytes(whole)


# ---- Moving MNIST ------------------------------------------------------------------------------------------------
def test_the_moving_mnist_recipe_in_the_sizes_of_openstl_learns(tmp_path: Path) -> None:
    for split in ("train", "t10k"):
        header = struct.pack(">4i", 0x803, 60, 28, 28)
        digits = np.zeros((60, 28, 28), np.uint8)
        digits[:, 6:22, 10:18] = 200
        storage.write_bytes(
            str(tmp_path / f"mnist/{split}-images-idx3-ubyte.gz"), gzip.compress(header + digits.tobytes())
        )
    counts = {"train": 3, "val": 1, "test": 1}
    prepare_moving_mnist(str(tmp_path / "mnist"), str(tmp_path / "out"), 10, counts, seed=0)
    learns("nowcaster-moving-mnist-openstl", tmp_path / "out", hidden_dims=(16, 16))
