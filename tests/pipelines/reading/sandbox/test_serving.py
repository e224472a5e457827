from pathlib import Path

import pytest

from pipelines import storage
from pipelines.reading.limits import Limits
from pipelines.reading.sandbox import serving
from pipelines.reading.shards import list_shards
from tests.pipelines.reading.sandbox.made import grouped, shard


def test_the_child_gets_no_more_of_a_shard_than_reading_can_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "READ_FREELY", 20_000)
    served = serving.Served(shard(tmp_path, "x" * 999))
    assert served.answer({"read": [990, 100]}) == [b"", b"x" * 9 + b"\n"], "no more than there is"
    assert served.answer({"read": [2000, 10]}) == [b"", b""]
    assert served.answer({"read": [0, -1]}) is served.answer({"read": [-1, 1]}) is None, "not all of it at once"
    answers = [served.answer({"read": [0, 1]}) for _ in range(20)]
    assert answers.count([b"", b"x"]) == (20_000 + 16 * 1000) // serving.READ_LEAST - 4, "a byte counts as a page"
    assert answers[-1] is None
    served.close()


def test_a_clip_that_is_replaced_while_it_is_read_is_not_read_on(place: str) -> None:
    size = 120 << 20  # more than a store's client reads ahead
    storage.write_bytes(f"{place}/a.mp4", b"a" * size)
    (one,) = list_shards(f"{place}/a.mp4", cut=True)
    served = serving.Served(one)
    assert served.answer({"read": [3, 4]}) == [b"", b"aaaa"]
    storage.write_bytes(f"{place}/a.mp4", b"b" * size, storage.anything)
    problem, data = served.answer({"read": [size - 10, 4]}) or [b"", b"never"]
    assert problem.startswith(b"ObjectChanged: ")
    assert data == b""
    served.close()


def test_a_shard_that_is_written_over_while_it_is_read_is_not_read_on(tmp_path: Path) -> None:
    """By a copy or `rsync --inplace`: else half of its rows would be of the one, half of the other."""
    one = shard(tmp_path, "x" * 99)
    served = serving.Served(one)
    assert served.answer({"read": [0, 2]}) == [b"", b"xx"]
    with Path(one.uri).open("r+b") as file:
        file.write(b"y" * 50)
    with pytest.raises(storage.StorageError, match=f"{one.uri}: it was replaced after it had been listed; start again"):
        served.answer({"read": [50, 40]})
    served.close()


def test_a_child_gets_each_object_once_and_in_order(tmp_path: Path) -> None:
    handed = serving.Handed(grouped(tmp_path, "x", "y", "z"), Limits())
    assert handed.answer({"member": 1}) == [b"", b"photo 1"]
    assert handed.answer({"member": 0}) is None
    assert handed.answer({"member": 1}) is None
    assert handed.answer({"member": 3}) is None
    assert handed.answer({"member": -1}) is None
    assert handed.answer({"member": 2}) == [b"", b"photo 2"]
    handed.close()
