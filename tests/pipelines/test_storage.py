import contextlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
import s3fs

from hybrid_models.errors import UsageError
from pipelines import storage


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("s3")


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


def test_the_etag_changes_with_the_content(place: str) -> None:
    uri = storage.join(place, "x.bin")
    storage.write_bytes(uri, b"one")
    before = storage.info(uri)
    assert storage.info(uri).etag == before.etag
    assert storage.list_files(place) == [before]
    storage.write_bytes(uri, b"two")
    assert storage.info(uri).etag != before.etag


def test_open_input_seeks(place: str) -> None:
    uri = storage.join(place, "x.bin")
    storage.write_bytes(uri, bytes(range(256)) * 1000)
    with storage.open_input(uri) as stream:
        stream.seek(255_999)
        assert stream.read() == b"\xff"
        stream.seek(2)
        assert stream.read(2) == b"\x02\x03"


def test_missing_objects(place: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(place, "nothing"))
    with pytest.raises(FileNotFoundError):
        storage.info(storage.join(place, "nothing"))
    storage.delete(storage.join(place, "nothing"))


def test_wrong_credentials_are_one_readable_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(storage.StorageError, match=r"cannot list s3://lake.*check AWS_ACCESS_KEY_ID") as caught:
            storage.list_files(s3)
        assert "\n" not in str(caught.value)
        with pytest.raises(UsageError, match="cannot write s3://lake"):
            storage.check_writable(s3)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_bucket_that_does_not_exist_is_said(s3: str) -> None:
    for uri in ("s3://no-such-bucket/x", "s3://no-such-bucket/x/*.tar", "s3://no-such-bucket"):
        expected = f"there is no bucket no-such-bucket for {uri}: create it, or check the address"
        for ask in (storage.list_files, storage.check_writable):
            with pytest.raises(UsageError) as caught:
                ask(uri)
            assert str(caught.value) == expected
    assert storage.list_files(f"{s3}/nothing") == []


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(storage.StorageError, match="cannot write"):
        storage.write_bytes(str(tmp_path / "file" / "below"), b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_an_unknown_scheme_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="cannot open zzz://x"):
        storage.list_files("zzz://x")


def test_links_to_files_are_objects_too(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.txt").symlink_to(tmp_path / "real")
    (tmp_path / "in" / "broken.txt").symlink_to(tmp_path / "nothing")
    assert [info.name for info in storage.list_files(str(tmp_path / "in"))] == ["link.txt"]


def test_a_store_is_waited_for_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, False, True])

    def exists(uri: str) -> bool:
        if not next(answers):
            raise storage.StorageError(f"cannot look up {uri}: connection refused")
        return False

    monkeypatch.setattr(storage, "exists", exists)
    storage.wait_for("s3://b/x", seconds=60)
    assert next(answers, None) is None, "asked until it answered, and not again"
    answers = iter([False] * 9)
    with pytest.raises(storage.StorageError, match="cannot look up s3://b/x: connection refused"):
        storage.wait_for("s3://b/x", seconds=0)


def test_a_store_that_fails_while_reading_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "x")
    storage.write_bytes(uri, b"123")

    class Failing:
        def read(self, size: int) -> bytes:
            raise OSError("connection reset")

        def close(self) -> None:
            pass

    with (
        pytest.raises(storage.StorageError, match=r"cannot read s3://b/x: connection reset"),
        storage._Input(Failing(), "s3://b/x") as stream,
    ):
        stream.read(1)


def test_everything_is_listed_with_its_age_and_removed_by_its_name(place: str) -> None:
    assert storage.list_all(f"{place}/none") == []
    for name in ("a/_delta_log/0.json", "a/.hidden", "a/b/c.txt", "a/b/d.txt", "ab/e.txt"):
        storage.write_bytes(f"{place}/{name}", name.encode())
    root = storage.absolute(place)
    found = storage.list_all(f"{place}/a")
    names = [".hidden", "_delta_log/0.json", "b/c.txt", "b/d.txt"]
    assert [(file.uri, file.size) for file in found] == [(f"{root}/a/{name}", len(name) + 2) for name in names]
    assert all(abs((datetime.now(UTC) - file.modified).total_seconds()) < 60 for file in found)
    storage.delete(f"{place}/a/b/c.txt")
    storage.delete(f"{place}/a/b/c.txt")  # that it is gone is no error
    with contextlib.suppress(storage.StorageError):  # a folder is no object
        storage.delete(f"{place}/a")
    assert [file.uri for file in storage.list_all(f"{place}/a/b")] == [f"{root}/a/b/d.txt"]


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


def test_the_marks_of_folders_are_no_objects(s3: str) -> None:
    bucket, _, key = s3.removeprefix("s3://").partition("/")
    for folder in ("photos/", "photos/ds=2026-01-31/"):
        s3fs.S3FileSystem().call_s3("put_object", Bucket=bucket, Key=f"{key}/{folder}", Body=b"")
    assert storage.list_all(f"{s3}/photos") == []
    storage.write_bytes(f"{s3}/photos/ds=2026-01-31/a.tar", b"1")
    assert [file.size for file in storage.list_all(f"{s3}/photos")] == [1]


def test_many_objects_are_looked_up_as_one_by_one(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In folders with few of them, and in those that are listed instead; what is not there is left out."""
    monkeypatch.setattr(storage, "LIST_FROM", 3)
    names = ["few/a.jpg", "few/b.jpg", "many/a.jpg", "many/b.jpg", "many/c.jpg", "many/deep/d.jpg"]
    for name in names:
        storage.write_bytes(f"{place}/{name}", name.encode())
    absent = [f"{place}/{name}" for name in ("few/c.jpg", "many/d.jpg", "none/a.jpg", "many/deep")]
    uris = [f"{place}/{name}" for name in names]
    assert storage.look_up({*uris, *absent}) == {uri: storage.info(uri) for uri in uris}
    assert storage.look_up({f"{place}/{folder}/{n}" for folder in ("gone", "few/a.jpg") for n in range(3)}) == {}


@pytest.mark.parametrize("broken", [False, True])
def test_an_object_is_read_as_it_was_listed_or_not_at_all(
    place: str, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks_off(*_: object) -> bytes:
        raise OSError("the connection was lost")

    def read(file: storage.FileInfo) -> bytes | None:
        return storage.finish_reading(file, storage.start_reading(file))

    if broken:
        monkeypatch.setattr(storage, "_get", breaks_off)
    storage.write_bytes(f"{place}/a", b"abcdef")
    storage.write_bytes(f"{place}/empty", b"")
    one, empty = storage.info(f"{place}/a"), storage.info(f"{place}/empty")
    assert read(one) == b"abcdef"
    assert read(empty) == b""
    for other in (b"uvwxyz", b"abc", b"abcdefgh", b""):
        storage.write_bytes(f"{place}/a", other)
        assert read(one) is None
    storage.delete(f"{place}/a")
    with pytest.raises(FileNotFoundError):
        read(one)
