from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.storage import lookup


def test_the_etag_changes_with_the_content(place: str) -> None:
    uri = storage.join(place, "x.bin")
    storage.write_bytes(uri, b"one")
    before = storage.info(uri)
    assert storage.info(uri).etag == before.etag
    assert storage.list_files(place) == [before]
    storage.write_bytes(uri, b"two", storage.anything)
    assert storage.info(uri).etag != before.etag


def test_a_bucket_that_does_not_exist_is_said(s3: str) -> None:
    for uri in ("s3://no-such-bucket/x", "s3://no-such-bucket/x/*.tar", "s3://no-such-bucket"):
        expected = f"there is no bucket no-such-bucket for {uri}: create it, or check the address"
        for ask in (storage.list_files, storage.check_writable):
            with pytest.raises(UsageError) as caught:
                ask(uri)
            assert str(caught.value) == expected
    assert storage.list_files(f"{s3}/nothing") == []


def test_a_store_is_waited_for_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, False, True])

    def exists(uri: str) -> bool:
        if not next(answers):
            raise storage.StorageError(f"cannot look up {uri}: connection refused")
        return False

    monkeypatch.setattr(lookup, "exists", exists)
    storage.wait_for("s3://b/x", seconds=60)
    assert next(answers, None) is None, "asked until it answered, and not again"
    answers = iter([False] * 9)
    with pytest.raises(storage.StorageError, match="cannot look up s3://b/x: connection refused"):
        storage.wait_for("s3://b/x", seconds=0)


def test_many_objects_are_looked_up_as_one_by_one(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In folders with few of them, and in those that are listed instead; what is not there is left out."""
    monkeypatch.setattr(lookup, "LIST_FROM", 3)
    monkeypatch.setattr(lookup, "PAGE", 2)
    names = ["few/a.jpg", "few/b.jpg", "many/a.jpg", "many/b.jpg", "many/c.jpg", "many/deep/d.jpg"]
    for name in names:
        storage.write_bytes(f"{place}/{name}", name.encode())
    absent = [f"{place}/{name}" for name in ("few/c.jpg", "many/d.jpg", "none/a.jpg", "many/deep")]
    uris = [f"{place}/{name}" for name in names]
    assert storage.look_up({*uris, *absent}) == {uri: storage.info(uri) for uri in uris}
    assert storage.look_up({f"{place}/{folder}/{n}" for folder in ("gone", "few/a.jpg") for n in range(3)}) == {}


def test_a_folder_with_many_others_is_not_listed_to_its_end(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short manifest may name some objects of a folder of ten million."""
    monkeypatch.setattr(lookup, "LIST_FROM", 4)
    monkeypatch.setattr(lookup, "PAGE", 2)
    names = [f"{n:02d}.jpg" for n in range(40)]
    for name in names:
        storage.write_bytes(f"{s3}/{name}", name.encode())
    pages: list[int] = []
    of_a_folder = lookup._pages

    def counted(folder: str, first: str) -> Iterator[list[storage.FileInfo]]:
        for page in of_a_folder(folder, first):
            pages.append(len(page))
            yield page

    monkeypatch.setattr(lookup, "_pages", counted)
    monkeypatch.setattr(lookup, "OTHERS", 2)
    for wanted, seen in ((names[10:14], 3), (names[::10], 6), (names[36:], 2), (names, 20)):
        pages.clear()
        uris = {f"{s3}/{name}" for name in wanted}
        assert storage.look_up({*uris, f"{s3}/{wanted[0]}-gone"}) == {uri: storage.info(uri) for uri in uris}
        assert len(pages) == seen, wanted


def test_a_store_that_lists_in_an_order_of_its_own_is_seen_through(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3's directory buckets do."""
    monkeypatch.setattr(lookup, "LIST_FROM", 4)
    uris = [f"{s3}/{n:02d}.jpg" for n in range(20)]
    for uri in uris:
        storage.write_bytes(uri, b"x")
    files = [storage.info(uri) for uri in uris]
    monkeypatch.setattr(lookup, "_pages", lambda folder, first: iter([files[12:], [files[3], *files[:3]], files[4:12]]))
    assert storage.look_up([*uris[:8], f"{s3}/gone"]) == dict(zip(uris[:8], files, strict=False))


def test_of_a_folder_of_a_disk_nothing_else_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "LIST_FROM", 4)
    uris = [f"{tmp_path}/{n:02d}.jpg" for n in range(60)]
    for uri in uris:
        storage.write_bytes(uri, b"x")
    listed: list[str] = []
    of_a_folder = lookup._pages

    def noted(folder: str, first: str) -> Iterator[list[storage.FileInfo]]:
        listed.append(folder)
        return of_a_folder(folder, first)

    monkeypatch.setattr(lookup, "_pages", noted)
    for wanted in (uris[:3], uris[:6], uris):
        assert storage.look_up([*wanted, f"{tmp_path}/gone"]) == {uri: storage.info(uri) for uri in wanted}
    assert storage.look_up([f"{tmp_path}/none/{n}" for n in range(9)]) == {}
    assert storage.look_up([f"{uris[0]}/{n}" for n in range(9)]) == {}
    assert storage.look_up([f"/{n}.jpg" for n in range(9)]) == {}, "right in the root"
    assert listed == []
