import errno
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier

import pytest

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.storage import writing


def test_what_is_written_is_read_listed_and_deleted(place: str) -> None:
    storage.write_bytes(storage.join(place, "a/x.bin"), b"12345")
    storage.write_bytes(storage.join(place, "a/b/y.bin"), b"")
    storage.write_bytes(storage.join(place, "a/_manifest.json"), b"{}")
    storage.write_bytes(storage.join(place, "a/.hidden/z.bin"), b"1")

    files = storage.list_files(storage.join(place, "a"))

    assert [(f.uri.removeprefix(storage.absolute(place)), f.size) for f in files] == [
        ("/a/b/y.bin", 0),
        ("/a/x.bin", 5),
    ]
    assert storage.read_bytes(files[1].uri) == b"12345"
    assert [f.name for f in storage.list_files(storage.join(place, "a/**/*.bin"))] == ["y.bin", "x.bin"]
    assert [f.name for f in storage.list_files(files[1].uri)] == ["x.bin"]
    for file in files:
        storage.delete(file.uri, storage.anything)
    assert storage.list_files(storage.join(place, "a")) == []
    assert not storage.exists(files[1].uri)


def linked_folders(root: Path) -> tuple[Path, Path]:
    """`out` with links at three places to files and a folder of `theirs`, which is returned second."""
    theirs, out = root / "theirs", root / "out"
    (theirs / "folder").mkdir(parents=True)
    out.mkdir()
    for name in ("a.bin", "folder/b.bin"):
        (theirs / name).write_bytes(b"theirs")
    (out / "a.bin").symlink_to(theirs / "a.bin")
    (out / "folder").symlink_to(theirs / "folder")
    (out / "nowhere").symlink_to(theirs / "new")
    return out, theirs


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("name", ["a.bin", "folder/b.bin", "folder/new.bin", "nowhere"])
def test_nothing_is_written_or_removed_through_a_link(tmp_path: Path, scheme: str, name: str) -> None:
    out, theirs = linked_folders(tmp_path)
    uri, link = f"{scheme}{out}/{name}", f"{out}/{name.split('/')[0]}"
    for touch in (
        lambda: storage.write_bytes(uri, b"ours", storage.anything),
        lambda: storage.write_bytes(uri, b"ours"),
        lambda: storage.delete(uri, storage.anything),
        lambda: storage.check_replaceable(uri, storage.anything),
    ):
        with pytest.raises(UsageError, match=rf"{link} is a link, and nothing is written or removed through one: "):
            touch()
    if name != "nowhere":
        with suppress(UsageError):
            storage.write_new(uri, b"ours")
    found = {str(path.relative_to(theirs)): path.read_bytes() for path in theirs.rglob("*") if path.is_file()}
    assert found == {"a.bin": b"theirs", "folder/b.bin": b"theirs"}
    assert all((out / link).is_symlink() for link in ("a.bin", "folder", "nowhere"))


def test_a_folder_is_not_swapped_for_a_link_between_check_and_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, theirs = linked_folders(tmp_path)
    (out / "own").mkdir()

    def swap(*_: object) -> None:
        (out / "own").rmdir()
        (out / "own").symlink_to(theirs / "folder")

    monkeypatch.setattr(writing, "check_replaceable", swap)
    with pytest.raises(UsageError, match="own is a link"):
        storage.write_bytes(f"{out}/own/b.bin", b"ours", storage.anything)
    assert (theirs / "folder/b.bin").read_bytes() == b"theirs"


def test_a_user_may_name_a_link_to_a_folder_but_not_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, theirs = linked_folders(tmp_path)
    assert storage.beside(f"{out}/folder/new.html") == f"{theirs}/folder/new.html"
    assert storage.beside(f"{out}/a.bin") == f"{out}/a.bin"
    assert storage.beside("s3://lake/a.bin") == "s3://lake/a.bin"
    monkeypatch.chdir(out)
    assert storage.beside("new.html") == f"{out}/new.html"


def test_what_exists_is_replaced_or_removed_only_if_it_is_recognised(place: str) -> None:
    uri, digest = f"{place}/deep/x", hashlib.sha256(b"ours").hexdigest()
    storage.write_bytes(uri, b"ours")
    for touch in (
        lambda is_own: storage.write_bytes(uri, b"new", is_own),
        lambda is_own: storage.delete(uri, is_own),
    ):
        for is_own in (
            storage.nothing, storage.has_digest([]), storage.has_digest(["0" * 64]),
            storage.in_claimed(f"{place}/run.json"),
        ):  # fmt: skip
            with pytest.raises(
                UsageError, match=rf"{uri} exists, and this program did not write it, or it was changed"
            ):
                touch(is_own)
            assert storage.read_bytes(uri) == b"ours"
    storage.write_bytes(uri, b"again", storage.has_digest([digest]))
    with pytest.raises(UsageError, match="exists, and this program did not write it"):
        storage.delete(uri, storage.has_digest([digest]))
    storage.write_bytes(f"{place}/run.json", b"{}")
    storage.write_bytes(uri, b"new", storage.in_claimed(f"{place}/run.json"))
    assert storage.read_bytes(uri) == b"new"
    storage.delete(uri, storage.has_digest([hashlib.sha256(b"new").hexdigest()]))
    storage.delete(uri, storage.nothing)  # it is gone, which is no error
    assert not storage.exists(uri)


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(UsageError, match=f"{name} is no regular file"):
            storage.write_bytes(f"{tmp_path}/{name}", b"x", storage.anything)


def test_a_listed_file_that_was_changed_since_stays(tmp_path: Path) -> None:
    for name in ("same", "changed", "linked"):
        storage.write_bytes(f"{tmp_path}/{name}", b"part")
    files = {Path(file.uri).name: file for file in storage.list_all(str(tmp_path))}
    (tmp_path / "changed").write_bytes(b"somebody else's")
    (tmp_path / "linked").unlink()
    (tmp_path / "linked").symlink_to(tmp_path / "changed")
    storage.delete_listed(files["same"])
    storage.delete_listed(files["same"])
    for name, reason in (("changed", "was changed since it was listed"), ("linked", "is a link")):
        with pytest.raises(UsageError, match=f"{name} {reason}"):
            storage.delete_listed(files[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["changed", "linked"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(storage.StorageError, match="cannot write"):
        storage.write_bytes(str(tmp_path / "file" / "below"), b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_a_name_that_looks_like_a_pattern_removes_itself_only(place: str) -> None:
    for name in ("[12]/x.tar", "1/x.tar", "2/x.tar", "a*.tar", "ab.tar"):
        storage.write_bytes(f"{place}/{name}", b"x")
    storage.delete(f"{place}/[12]/x.tar", storage.anything)
    storage.delete(f"{place}/a*.tar", storage.anything)
    storage.check_writable(f"{place}/[12]")
    root = storage.absolute(place)
    assert [file.uri for file in storage.list_all(place)] == [
        f"{root}/{name}" for name in ("1/x.tar", "2/x.tar", "ab.tar")
    ]


def test_what_is_there_is_not_written_over(place: str) -> None:
    for data in (b"first", b"second"):
        storage.write_new(f"{place}/deep/x", data)
    assert storage.read_bytes(f"{place}/deep/x") == b"first"


def test_of_many_that_write_at_the_same_moment_one_does(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All have looked before any writes. Readers may have the first one's size from then on."""
    everyone = Barrier(8, timeout=60)

    def look(uri: str) -> bool:
        found = storage.exists(uri)
        if not found:
            everyone.wait()
        return found

    monkeypatch.setattr(writing, "exists", look)
    with ThreadPoolExecutor(8) as threads:
        for number in range(5):
            uri = f"{place}/deep/{number}"
            first: list[bytes] = []

            def write(writer: int, uri: str = uri, first: list[bytes] = first) -> None:
                storage.write_new(uri, bytes(1000 + writer))
                first.append(storage.read_bytes(uri))

            list(threads.map(write, range(8)))
            assert {storage.read_bytes(uri)} == set(first), "what is there stays"
    assert len(storage.list_all(place)) == 5, "and nothing lies beside it"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EIO])
def test_s3_that_knows_no_condition_or_asks_for_another_try(
    s3: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The second as Amazon does, by 409, while others write."""
    store, _ = writing.filesystem(s3)
    pipe_file, asked = store.pipe_file, []

    def pipe(path: str, data: bytes, mode: str = "overwrite") -> None:
        asked.append(mode)
        if mode == "create" and (number == errno.ENOSYS or len(asked) == 1):
            raise OSError(number, "A conflict, or a header whose meaning is not known")
        pipe_file(path, data, mode=mode)

    monkeypatch.setattr(store, "pipe_file", pipe)
    storage.write_new(f"{s3}/x", b"first")
    assert asked == ["create", "overwrite" if number == errno.ENOSYS else "create"]
    storage.write_new(f"{s3}/x", b"second")
    assert storage.read_bytes(f"{s3}/x") == b"first"


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(storage.StorageError, match="cannot write"):
        storage.write_new(str(tmp_path / "file" / "below"), b"x")


def test_a_disk_without_hard_links_has_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    storage.write_new(str(tmp_path / "x"), b"first")
    storage.write_new(str(tmp_path / "x"), b"second")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"first")]
