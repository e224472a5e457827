import contextlib
import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import s3fs

from hybrid_models.errors import UsageError
from pipelines import storage

PATTERNS = {
    "*.bin": ["x.bin"],
    "a/*.bin": ["a/x.bin"],
    "a/*/*.bin": ["a/b/y.bin"],
    "**/*.bin": ["a/b/c/z.bin", "a/b/y.bin", "a/x.bin", "x.bin"],
    "a/**": ["a/b/c/z.bin", "a/b/y.bin", "a/x.bin"],
    "a/**/y.bin": ["a/b/y.bin"],
    "*/?.bin": ["a/x.bin"],
    "a/[a-c]/[!x].bin": ["a/b/y.bin"],
    "a/*": ["a/x.bin"],
    "*": ["x.bin"],
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_star_stops_at_folders_and_two_do_not(place: str, pattern: str, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("x.bin", "a/x.bin", "a/b/y.bin", "a/b/c/z.bin"):
        storage.write_bytes(storage.join(place, name), b"1")
    found = storage.list_files(storage.join(place, pattern))
    assert [file.uri.removeprefix(storage.absolute(place) + "/") for file in found] == PATTERNS[pattern]
    told = [record.getMessage() for record in caplog.records if "lie deeper than its * reaches" in record.getMessage()]
    assert len(told) == (pattern in {"*.bin", "a/*.bin", "a/*/*.bin", "*/?.bin", "a/*", "*"})


def test_a_pattern_that_found_all_of_its_objects_in_folders_is_no_empty_one(place: str) -> None:
    """A night whose pattern was written for the old meaning must not pass for one without input."""
    storage.write_bytes(storage.join(place, "ds=1/a/x.bin"), b"1")
    for pattern in ("ds=*", "ds=1/*.bin"):
        with pytest.raises(UsageError, match=r"1 objects lie deeper than its \* reaches, such as .*; \*\* stands"):
            storage.list_files(storage.join(place, pattern))
    assert storage.list_files(storage.join(place, "no/*.bin")) == []


def test_a_pattern_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no pattern: '\\*\\*' can only be an entire path component"):
        storage.list_files(f"{tmp_path}/a**b/x")


def test_links_to_files_are_objects_too(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.txt").symlink_to(tmp_path / "real")
    (tmp_path / "in" / ".broken.txt").symlink_to(tmp_path / "nothing")
    os.utime(tmp_path / "real", (1, 1))
    (found,) = storage.list_files(str(tmp_path / "in"))
    assert found.name == "link.txt"
    assert (found.size, found.etag) == (1, storage.info(found.uri).etag), "as old as what is read"
    assert storage.look_up([found.uri])[found.uri].etag == found.etag


def test_links_to_folders_are_followed_and_those_that_lead_nowhere_are_told(tmp_path: Path) -> None:
    """Cameras on mounts of their own: one that is away must not look like one that has seen nothing."""
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "a.jpg").write_bytes(b"x")
    (tmp_path / "real" / "b.txt").write_bytes(b"x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cam1").symlink_to(tmp_path / "real")
    names = [file.uri for file in storage.list_files(str(tmp_path / "in"))]
    assert names == [f"{tmp_path}/in/cam1/b.txt", f"{tmp_path}/in/cam1/deep/a.jpg"]
    assert [file.uri for file in storage.list_files(f"{tmp_path}/in/*/deep/*.jpg")] == names[1:]
    assert [file.uri for file in storage.list_all(str(tmp_path / "in"))] == [f"{tmp_path}/in/cam1"], "a link, no more"
    for leads_to in ("real", ".", "in"):
        (tmp_path / "real" / "round").symlink_to(tmp_path / leads_to)
        assert {file.uri for file in storage.list_files(str(tmp_path / "in"))} >= set(names), "and it ends"
        (tmp_path / "real" / "round").unlink()
    storage.write_bytes(f"{tmp_path}/in/own/c.jpg", b"x")
    storage.write_bytes(f"{tmp_path}/in/.store/d.jpg", b"x")
    for link, leads_to in (("latest", "own"), ("newest", "own"), ("store", ".store")):
        (tmp_path / "in" / link).symlink_to(tmp_path / "in" / leads_to)
    found = [file.uri.removeprefix(f"{tmp_path}/in/") for file in storage.list_files(str(tmp_path / "in"))]
    assert found == ["cam1/b.txt", "cam1/deep/a.jpg", "own/c.jpg", "store/d.jpg"], (
        "each once, by its own name if it can"
    )
    found = [file.uri.removeprefix(f"{tmp_path}/in/") for file in storage.list_files(f"{tmp_path}/in/*est/*.jpg")]
    assert found == ["latest/c.jpg"]
    (tmp_path / "in" / ".cache").symlink_to(tmp_path / "in" / ".cache")
    (tmp_path / "in" / "own" / "itself").symlink_to(tmp_path / "in" / "own" / "itself")
    assert len(storage.list_files(f"{tmp_path}/in/own/c.jpg")) == 1
    with pytest.raises(storage.StorageError, match=r"cannot list .*itself"):
        storage.list_files(str(tmp_path / "in"))
    (tmp_path / "in" / "own" / "itself").unlink()
    (tmp_path / "in" / "cam2").symlink_to(tmp_path / "away")
    with pytest.raises(storage.StorageError, match=rf"cannot list {tmp_path}/in/cam2: .* leads nowhere: mend it, or"):
        storage.list_files(str(tmp_path / "in"))
    assert storage.list_files(f"{tmp_path}/in/cam1/*/*.jpg"), "of what was asked for none is away"


def test_a_folder_that_cannot_be_listed_is_no_empty_one() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cam1/a.jpg", "cam2/b.jpg", "c.jpg", "lost+found/c", ".trash/d"):
            storage.write_bytes(f"{folder}/in/{name}", b"x")
        for place in (folder, f"{folder}/in"):
            Path(place).chmod(0o755)
        for name in ("lost+found", ".trash"):
            Path(folder, "in", name).chmod(0)
        with as_nobody():
            assert len(storage.list_files(f"{folder}/in")) == 3
        Path(folder, "in/cam2").chmod(0)
        with as_nobody():
            assert len(storage.list_files(f"{folder}/in/*.jpg")) == 1, "it is not reached"
            for uri in (f"{folder}/in", f"{folder}/in/cam2", f"{folder}/in/*/*.jpg", f"{folder}/in/**/*.jpg"):
                with pytest.raises(storage.StorageError, match=rf"cannot list .*Permission denied: '{folder}/in/cam2'"):
                    storage.list_files(uri)
            with pytest.raises(storage.StorageError, match=r"cannot list .*Permission denied"):
                storage.list_all(f"{folder}/in")


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may list whatever there is."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    os.close(os.open(os.fsencode(tmp_path / "in") + b"/caf\xe9.jpg", os.O_CREAT))
    with pytest.raises(UsageError, match=r"the name of .*/in/caf\\udce9.jpg is no UTF-8: rename it"):
        storage.list_files(str(tmp_path / "in"))


def test_everything_is_listed_with_its_age_and_removed_by_its_name(place: str) -> None:
    assert storage.list_all(f"{place}/none") == []
    for name in ("a/_delta_log/0.json", "a/.hidden", "a/b/c.txt", "a/b/d.txt", "ab/e.txt"):
        storage.write_bytes(f"{place}/{name}", name.encode())
    root = storage.absolute(place)
    found = storage.list_all(f"{place}/a")
    names = [".hidden", "_delta_log/0.json", "b/c.txt", "b/d.txt"]
    assert [(file.uri, file.size) for file in found] == [(f"{root}/a/{name}", len(name) + 2) for name in names]
    assert all(abs((datetime.now(UTC) - file.modified).total_seconds()) < 60 for file in found)
    storage.delete(f"{place}/a/b/c.txt", storage.anything)
    storage.delete(f"{place}/a/b/c.txt", storage.anything)  # that it is gone is no error
    with contextlib.suppress(storage.StorageError, UsageError):  # a folder is no object
        storage.delete(f"{place}/a", storage.anything)
    assert [file.uri for file in storage.list_all(f"{place}/a/b")] == [f"{root}/a/b/d.txt"]


def test_the_marks_of_folders_are_no_objects(s3: str) -> None:
    bucket, _, key = s3.removeprefix("s3://").partition("/")
    for folder in ("photos/", "photos/ds=2026-01-31/"):
        s3fs.S3FileSystem().call_s3("put_object", Bucket=bucket, Key=f"{key}/{folder}", Body=b"")
    assert storage.list_all(f"{s3}/photos") == []
    storage.write_bytes(f"{s3}/photos/ds=2026-01-31/a.tar", b"1")
    assert [file.size for file in storage.list_all(f"{s3}/photos")] == [1]
