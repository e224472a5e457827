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
    storage.write_bytes(uri, b"two")
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
    names = ["few/a.jpg", "few/b.jpg", "many/a.jpg", "many/b.jpg", "many/c.jpg", "many/deep/d.jpg"]
    for name in names:
        storage.write_bytes(f"{place}/{name}", name.encode())
    absent = [f"{place}/{name}" for name in ("few/c.jpg", "many/d.jpg", "none/a.jpg", "many/deep")]
    uris = [f"{place}/{name}" for name in names]
    assert storage.look_up({*uris, *absent}) == {uri: storage.info(uri) for uri in uris}
    assert storage.look_up({f"{place}/{folder}/{n}" for folder in ("gone", "few/a.jpg") for n in range(3)}) == {}
