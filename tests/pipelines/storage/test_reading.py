from pathlib import Path

import pytest

from pipelines import storage
from pipelines.storage import reading


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
    storage.delete(storage.join(place, "nothing"), storage.anything)


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
        reading._Input(Failing(), "s3://b/x") as stream,
    ):
        stream.read(1)


@pytest.mark.parametrize("broken", [False, True])
def test_an_object_is_read_as_it_was_listed_or_not_at_all(
    place: str, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks_off(*_: object) -> bytes:
        raise OSError("the connection was lost")

    again: list[bool] = []

    def read(file: storage.FileInfo) -> bytes | None:
        return storage.finish_reading(file, storage.start_reading(file), lambda: again.append(broken))

    if broken:
        monkeypatch.setattr(reading, "_get", breaks_off)
    storage.write_bytes(f"{place}/a", b"abcdef")
    storage.write_bytes(f"{place}/empty", b"")
    one, empty = storage.info(f"{place}/a"), storage.info(f"{place}/empty")
    assert read(one) == b"abcdef"
    assert read(empty) == b""
    for other in (b"uvwxyz", b"abc", b"abcdefgh", b""):
        storage.write_bytes(f"{place}/a", other, storage.anything)
        assert read(one) is None
    storage.delete(f"{place}/a", storage.anything)
    with pytest.raises(FileNotFoundError):
        read(one)
    assert again == [True] * (7 if broken and place.startswith("s3://") else 0)


def test_which_objects_can_be_read(place: str, tmp_path: Path) -> None:
    there, gone = storage.join(place, "a.jpg"), storage.join(place, "b.jpg")
    storage.write_bytes(there, b"x")
    storage.write_bytes(f"{tmp_path}/here.jpg", b"x")
    assert storage.readable([there, gone, f"{tmp_path}/here.jpg"]) == {there, f"{tmp_path}/here.jpg"}
    assert storage.readable([]) == set()
