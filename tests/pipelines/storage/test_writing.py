import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

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
        storage.delete(file.uri)
    assert storage.list_files(storage.join(place, "a")) == []
    assert not storage.exists(files[1].uri)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_of_a_link_it_is_the_link_that_is_removed(tmp_path: Path, scheme: str) -> None:
    """A table that was copied as links (`cp -rs`) is tidied, and the one that they lead to keeps its files."""
    theirs = tmp_path / "theirs" / "a.parquet"
    theirs.parent.mkdir()
    theirs.write_bytes(b"theirs")
    (tmp_path / "links").symlink_to(tmp_path / "ours")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "a.parquet").symlink_to(theirs)
    storage.delete(f"{scheme}{tmp_path}/links/a.parquet")  # links to folders are followed, as ever
    assert list((tmp_path / "ours").iterdir()) == []
    assert theirs.read_bytes() == b"theirs"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(storage.StorageError, match="cannot write"):
        storage.write_bytes(str(tmp_path / "file" / "below"), b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_a_name_that_looks_like_a_pattern_removes_itself_only(place: str) -> None:
    for name in ("[12]/x.tar", "1/x.tar", "2/x.tar", "a*.tar", "ab.tar"):
        storage.write_bytes(f"{place}/{name}", b"x")
    storage.delete(f"{place}/[12]/x.tar")
    storage.delete(f"{place}/a*.tar")
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
    def no_links(self: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    storage.write_new(str(tmp_path / "x"), b"first")
    storage.write_new(str(tmp_path / "x"), b"second")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"first")]
