"""Shards and manifests."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
from dataclasses import asdict
from pathlib import Path

import pytest

from hybrid_models.errors import UsageError
from pipelines.datasets.writer import (
    DatasetWriter,
    WrittenShard,
    caption_row,
    check_finished,
    pack_jsonl,
    pack_tar,
    read_manifest,
)
from pipelines.storage import list_files


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, by relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write(folder: Path, count: int, rows_per_shard: int = 3) -> dict:
    writer = DatasetWriter(str(folder), "set", rows_per_shard, {"seed": 1})
    writer.write_tar("train", ((f"k{i}", {"txt": b"%d" % i}) for i in range(count)))
    writer.write_jsonl("night/ds=2026-01-01", ({"id": i} for i in range(count)), rows_per_shard=2)
    return writer.finish()


def test_rows_are_cut_into_shards_in_order(tmp_path: Path) -> None:
    summary = write(tmp_path, 7)
    names = [f"train/set-train-0000{i}.tar" for i in range(3)]
    nights = [f"night/ds=2026-01-01/set-night-2026-01-01-0000{i}.jsonl.gz" for i in range(4)]
    written = files(tmp_path)
    assert sorted(written) == sorted([*names, *nights, "_manifest.json"])
    keys = []
    for name in names:
        with tarfile.open(fileobj=io.BytesIO(written[name])) as archive:
            keys.append([(m.name, archive.extractfile(m).read()) for m in archive])  # type: ignore[union-attr]
    assert [len(shard) for shard in keys] == [3, 3, 1]
    assert [member for shard in keys for member in shard] == [(f"k{i}.txt", b"%d" % i) for i in range(7)]
    ids = [json.loads(line)["id"] for name in nights for line in gzip.decompress(written[name]).splitlines()]
    assert ids == list(range(7))
    assert asdict(summary) == {
        "dataset": "set",
        "out": str(tmp_path),
        "splits": {"train": 7, "night/ds=2026-01-01": 7},
        "in_train": {"night/ds=2026-01-01": 0},
        "shards": 7,
        "bytes": sum(len(written[name]) for name in names + nights),
    }


def test_the_manifest_tells_the_truth(tmp_path: Path) -> None:
    write(tmp_path, 7)
    written = files(tmp_path)
    manifest = json.loads(written["_manifest.json"])
    assert (manifest["format"], manifest["dataset"]) == (1, "set")
    assert manifest["options"] == {"rows_per_shard": 3, "seed": 1}
    assert {split: entry["rows"] for split, entry in manifest["splits"].items()} == {
        "train": 7,
        "night/ds=2026-01-01": 7,
    }
    read = read_manifest(str(tmp_path))
    assert read is not None
    shards = read.shards
    assert len(shards) == len(written) - 1
    for shard in shards:
        data = written[shard.name]
        assert shard == WrittenShard(shard.name, shard.rows, len(data), hashlib.sha256(data).hexdigest())
    for entry in manifest["splits"].values():
        assert entry["bytes"] == sum(shard["bytes"] for shard in entry["shards"])


def test_what_is_in_train_too_is_counted_by_content(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = DatasetWriter(str(tmp_path), "set", 3, {})
    for split, photos, pairs, event in (
        ("train", b"abc", "xyz", b"first"),
        ("val", b"dce", "uvw", b"second"),
        ("test", b"dbf", "xzw", b"first"),
    ):
        rows = enumerate(zip(photos, pairs, strict=True))
        taken = [(f"{split}{i}", bytes([photo]), pair) for i, (photo, pair) in rows]
        writer.write_tar(split, [(key, {"jpg": photo, "json": key.encode()}) for key, photo, _ in taken])
        writer.write_jsonl(split, [{"id": key, "en": pair} for key, _, pair in taken])
        writer.write_file(split, f"{split}.nc", event, 4)
    summary = writer.finish()
    assert summary.in_train == {"val": 1, "test": 4}  # c; b, x, z and the event
    assert json.loads((tmp_path / "_manifest.json").read_text())["in_train"] == summary.in_train
    assert "4 contents of test are in train, too" in caplog.text


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a", 7)
    write(tmp_path / "b", 7)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    with tarfile.open(fileobj=io.BytesIO(pack_tar([("k", {"txt": b"x"})]))) as archive:
        (member,) = archive.getmembers()
        assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
    assert pack_jsonl([{"a": "ä"}])[4:8] == b"\0\0\0\0"  # gzip's time
    assert gzip.decompress(pack_jsonl([{"a": "ä"}])).decode() == '{"a": "ä"}\n'


def test_writing_again_removes_only_what_an_earlier_call_wrote(tmp_path: Path) -> None:
    write(tmp_path, 9)
    writer = DatasetWriter(str(tmp_path), "set", 3, {}, files=["test/event.nc"])
    writer.write_file("test", "event.nc", b"radar", 4)
    writer.finish()  # all others have gone now
    assert sorted(files(tmp_path)) == ["_manifest.json", "test/event.nc"]
    (tmp_path / "train").mkdir(exist_ok=True)
    (tmp_path / "train" / "my-own-photos.tar").write_bytes(b"the user's")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "set-other-00001.tar").write_bytes(b"the user's")
    with pytest.raises(UsageError, match=r"name test/event.nc, which is no shard of 'set'"):
        write(tmp_path, 4)  # which has no ready-made shards, and so does not know their names
    writer = DatasetWriter(str(tmp_path), "set", 3, {}, files=["test/event.nc"])
    writer.write_tar("train", [(f"k{i}", {"txt": b"%d" % i}) for i in range(4)])
    writer.finish()
    assert "other/set-other-00001.tar" in files(tmp_path)
    assert "train/my-own-photos.tar" in files(tmp_path)
    assert [name for name in files(tmp_path) if name.startswith(("train/set", "test"))] == [
        "train/set-train-00000.tar",
        "train/set-train-00001.tar",
    ]


def test_what_is_behind_a_link_stays(tmp_path: Path) -> None:
    """A split of another data set of the same name that this one shares."""
    write(tmp_path / "a", 7)
    before = files(tmp_path / "a")
    (tmp_path / "b" / "night").mkdir(parents=True)
    (tmp_path / "b" / "lost+found").mkdir(mode=0)  # of a disk's own root; nobody but the system may look
    (tmp_path / "b" / "photos").symlink_to(tmp_path / "a" / "train")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    writer = DatasetWriter(str(tmp_path / "link"), "set", 3, {})  # the folder itself may be a link
    writer.write_tar("train", [("k", {"txt": b"0"})])
    writer.finish()
    assert files(tmp_path / "a") == before
    for split in ("test", "night/ds=2026-01-01"):
        (tmp_path / "b" / split).symlink_to(tmp_path / "a" / split.replace("test", "train"))
        with pytest.raises(UsageError, match=f"/b/{split} is a link, and nothing is written through one: remove it"):
            DatasetWriter(str(tmp_path / "link"), "set", 3, {})
        (tmp_path / "b" / split).unlink()
    assert files(tmp_path / "a") == before


@pytest.mark.parametrize("name", ["train/set-train-00000.tar", "val/set-val-00042.tar", "train/a.nc"])
@pytest.mark.parametrize("linked", [False, True])
def test_a_file_of_a_shards_name_without_a_record_is_refused_before_the_first_byte(
    tmp_path: Path, name: str, linked: bool
) -> None:
    (tmp_path / "precious").write_bytes(b"the user's")
    target = tmp_path / "out" / name
    target.parent.mkdir(parents=True)
    if linked:
        target.symlink_to(tmp_path / "precious")
    else:
        target.write_bytes(b"the user's")
    with pytest.raises(UsageError, match=rf"/out/{name} would be replaced, and _manifest.json has no record that this"):
        DatasetWriter(str(tmp_path / "out"), "set", 3, {}, files=["train/a.nc"])
    assert [path for path in (tmp_path / "out").rglob("*") if not path.is_dir()] == [target]
    assert (tmp_path / "precious").read_bytes() == target.read_bytes() == b"the user's"


def test_a_shard_that_somebody_changed_stays(tmp_path: Path) -> None:
    write(tmp_path, 7)
    (tmp_path / "train/set-train-00001.tar").write_bytes(b"repacked by its user")
    before = files(tmp_path)
    with pytest.raises(UsageError, match=r"set-train-00001.tar would be replaced"):
        write(tmp_path, 2)
    assert files(tmp_path) == before
    (tmp_path / "train/set-train-00001.tar").unlink()
    write(tmp_path, 2)
    assert [name for name in files(tmp_path) if name.startswith("train")] == ["train/set-train-00000.tar"]


def test_a_shard_that_somebody_changes_meanwhile_stays(tmp_path: Path) -> None:
    write(tmp_path, 7)
    writer = DatasetWriter(str(tmp_path), "set", 3, {})
    for number in range(3):
        (tmp_path / f"train/set-train-0000{number}.tar").write_bytes(b"the user's")
    with pytest.raises(UsageError, match=r"set-train-00000.tar exists, and this program did not write it"):
        writer.write_tar("train", [("k", {"txt": b"0"})])
    with pytest.raises(
        UsageError, match=r"exists, and this program did not write it, or it was changed since: it stay"
    ):
        writer.finish()
    assert {(tmp_path / f"train/set-train-0000{number}.tar").read_bytes() for number in range(3)} == {b"the user's"}


RECORD = {"rows": 1, "bytes": 5, "sha256": hashlib.sha256(b"photo").hexdigest()}


@pytest.mark.parametrize("name", ["photos/x.jpg", "train/x.jpg", "../x.jpg", "train/../../x.jpg", "/x.jpg", "x.tar"])
@pytest.mark.parametrize("record", ["_manifest.json", "_unfinished"])
def test_a_forged_record_names_no_other_file(tmp_path: Path, name: str, record: str) -> None:
    """Even where it knows the content."""
    for place in ("out/photos", "out/train", ""):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "x.jpg").write_bytes(b"photo")
    content = {
        "_manifest.json": {"dataset": "set", "splits": {"train": {"shards": [{"name": name, **RECORD}]}}},
        "_unfinished": {"format": 1, "shards": {name: [RECORD["sha256"]]}},
    }[record]
    (tmp_path / "out" / record).write_text(json.dumps(content))
    before = files(tmp_path)
    with pytest.raises(UsageError, match=rf"name {re.escape(name)}, which is no shard of 'set': use another `out`"):
        write(tmp_path / "out", 4)
    assert files(tmp_path) == before


@pytest.mark.parametrize("text", ["photos/x.jpg", "", "[]", '{"format": 2, "shards": {}}', "[" * 100_000, "\0\xff"])
def test_a_journal_of_somebody_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/x.jpg").write_bytes(b"photo")
    (tmp_path / "_unfinished").write_text(text)
    before = files(tmp_path)
    with pytest.raises(
        UsageError, match=r"_unfinished is no journal of `hybrid prepare`, or damaged .*: remove it, or"
    ):
        write(tmp_path, 4)
    assert files(tmp_path) == before


def test_two_calls_at_once_do_not_mix(tmp_path: Path) -> None:
    first, second = (DatasetWriter(str(tmp_path), "set", 3, {}) for _ in range(2))
    first.write_tar("train", [("a", {"txt": b"first"})])
    with pytest.raises(UsageError, match=r"_unfinished exists, and this program did not write it, or it was changed"):
        second.write_tar("train", [("b", {"txt": b"second"})])
    first.finish()
    with tarfile.open(tmp_path / "train/set-train-00000.tar") as archive:
        assert archive.getnames() == ["a.txt"]


def test_a_data_set_in_a_folder_below_stays(tmp_path: Path) -> None:
    """One part too few in `--out`, and another one, of which each user has several by this name, would be gone."""
    write(tmp_path / "birds", 7)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "set-val-00000.tar").write_bytes(b"the user's")
    before = {name: data for name, data in files(tmp_path).items() if name.startswith(("birds", "train"))}
    write(tmp_path, 4)
    assert files(tmp_path).items() > before.items()


def test_a_data_set_that_comes_from_elsewhere_is_another_one(tmp_path: Path) -> None:
    def begin(**origins: str) -> DatasetWriter:
        return DatasetWriter(str(tmp_path / "out"), "folder", 3, {}, origins)

    writer = begin(source="photos", table="s3://lake/birds.csv")
    writer.write_tar("train", [("k", {"txt": b"1"})])
    writer.finish()
    before = files(tmp_path)
    with pytest.raises(UsageError, match=r"holds a data set of .*/photos and s3://lake/birds.csv, .*: use another one"):
        begin(source="cats", table="cats.csv")
    assert files(tmp_path) == before
    begin(source="photos", table="new.csv").finish()
    begin(source="elsewhere", table="new.csv").finish()
    with pytest.raises(UsageError, match=r"or remove .*/out/_manifest\.json if it is to be replaced$"):
        begin(source="photos", table="s3://lake/birds.csv")
    (tmp_path / "out/_manifest.json").unlink()
    begin(source="photos", table="s3://lake/birds.csv").finish()


def test_a_data_set_that_was_not_prepared_to_its_end_is_told(tmp_path: Path, place: str) -> None:
    """Its old shards and its new ones may share what is in them."""
    write(tmp_path / "data", 7)
    (tmp_path / "data/night/ds=2026-01-01/_unfinished").mkdir(parents=True)  # nobody's business
    asked = [str(tmp_path / "data" / part) for part in ("", "train", "train/*.tar", "train/set-train-00000.tar")]
    for uri in (*asked, "data", "/", place, place.rpartition("/")[0]):
        check_finished(uri)
    writer = DatasetWriter(str(tmp_path / "data"), "set", 3, {"seed": 2})
    check_finished(asked[0])
    writer.write_tar("train", [("k", {"txt": b"1"})])
    for uri in asked:
        with pytest.raises(
            UsageError, match=r"data set in .*/data is not whole: .*; prepare it again \(or remove .*/data/_"
        ):
            check_finished(uri)
    write(tmp_path / "data" / "other", 4)
    for uri in ("", "/train", "/train/*.tar"):
        check_finished(f"{tmp_path}/data/other{uri}")
    check_finished(asked[1], levels=1)
    write(tmp_path / "data", 7)
    check_finished(asked[0])


def test_what_a_call_that_was_cut_short_named_itself_goes_with_the_next(tmp_path: Path) -> None:
    """An event that it put into train would stay there when the next one puts it into val."""
    own = [f"{split}/{name}.nc" for split in ("train", "val") for name in "abcd"]
    for names in ("ab", "cd"):
        writer = DatasetWriter(str(tmp_path), "radar", 1, {}, files=own)
        for name in names:
            writer.write_file("train", f"{name}.nc", name.encode(), 4)
    (tmp_path / "train" / "mine.nc").write_bytes(b"the user's")
    writer = DatasetWriter(str(tmp_path), "radar", 1, {}, files=own)
    writer.write_file("train", "c.nc", b"c", 4)
    writer.write_file("val", "b.nc", b"b", 4)
    writer.finish()
    assert sorted(files(tmp_path)) == ["_manifest.json", "train/c.nc", "train/mine.nc", "val/b.nc"]


def test_what_cannot_be_written_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`rows_per_shard` is 0"):
        DatasetWriter(str(tmp_path), "set", 0, {})
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UsageError, match="cannot write"):
        DatasetWriter(str(tmp_path / "file"), "set", 1, {})


def test_another_data_set_is_not_written_over(tmp_path: Path) -> None:
    """One wrong word in `--out`, and whoever trains on what is there has lost it."""
    write(tmp_path, 4)
    before = files(tmp_path)
    with pytest.raises(UsageError, match=r"holds the data set 'set', whose shards 'other' would replace: use another"):
        DatasetWriter(str(tmp_path), "other", 3, {})
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"dataset": "set", "splits": {"train": {"shards": [{"name": 1}]}}}']
)
def test_a_manifest_that_is_none_is_told_before_any_work(tmp_path: Path, text: str) -> None:
    (tmp_path / "_manifest.json").write_text(text)
    with pytest.raises(UsageError, match=r"_manifest.json is no manifest of a data set, or damaged .*: use another"):
        DatasetWriter(str(tmp_path), "set", 3, {})


def test_a_caption_rows_key_has_no_dots() -> None:
    key, members = caption_row("a.b.c", b"jpeg", ["ein Käse"])
    assert key == "a_b_c"
    assert members == {"jpg": b"jpeg", "json": '{"captions": ["ein Käse"]}'.encode()}


def test_half_an_emoji_is_a_question_mark() -> None:
    assert gzip.decompress(pack_jsonl([{"en": "a \ud83d"}, {"en": "b"}])) == b'{"en": "a ?"}\n{"en": "b"}\n'
    assert caption_row("a", b"", ["a \ud83d"])[1]["json"] == b'{"captions": ["a ?"]}'


def test_shards_that_did_not_change_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, 7)
    before = {info.uri: info.etag for info in list_files(str(tmp_path))}
    write(tmp_path, 7)
    assert {info.uri: info.etag for info in list_files(str(tmp_path))} == before
    write(tmp_path, 8)
    changed = {Path(info.uri).name for info in list_files(str(tmp_path)) if before.get(info.uri) != info.etag}
    assert changed == {"set-train-00002.tar", "set-night-2026-01-01-00003.jsonl.gz"}
