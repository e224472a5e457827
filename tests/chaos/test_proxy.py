"""The proxy itself, and what storage and tables make of a store that fails in every way it knows."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import s3fs

from pipelines import storage
from tests.chaos import proxy
from tests.chaos.proxy import FAULTS, Call, Faults, Proxy
from tests.servers import S3Server


@pytest.fixture
def before_store(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that this process takes for the store."""
    front = Proxy(s3_server.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
    s3fs.S3FileSystem.clear_instance_cache()
    yield front
    front.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_calls_are_passed_on_and_told(before_store: Proxy, s3: str) -> None:
    told: list[tuple[str, Call]] = []
    before_store.watcher = lambda call, when: told.append((when, call))
    content = random.Random(0).randbytes(300_000)
    storage.write_bytes(f"{s3}/a b+ü.bin", content)
    key = f"{s3.removeprefix('s3://')}/a b+ü.bin"
    assert told == [("before", Call("PUT", key, None)), ("after", Call("PUT", key, None))]
    assert storage.read_bytes(f"{s3}/a b+ü.bin") == content
    assert [file.size for file in storage.list_files(s3)] == [300_000]
    assert told[-1][1].prefix == s3.removeprefix("s3://").split("/", 1)[1] + "/"


def test_faults_are_drawn_from_their_seed() -> None:
    first, second = Faults(0.2, 7), Faults(0.2, 7)
    drawn = [first.draw() for _ in range(1000)]
    assert drawn == [second.draw() for _ in range(1000)]
    assert set(drawn) == {None, *FAULTS}
    assert 150 < sum(first.counts.values()) < 250


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_of_each_kind_harms_nothing(
    fault: str, before_store: Proxy, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third call fails: reading, writing and listing try again."""
    monkeypatch.setattr(proxy, "SLOW_SECONDS", 0.2)

    class EveryThird(Faults):
        def draw(self) -> str | None:
            self.counts["calls"] += 1
            return fault if self.counts["calls"] % 3 == 0 else None

    before_store.faults = EveryThird(0, 0)
    contents = {f"{s3}/{n}": random.Random(n).randbytes(50_000) for n in range(3)}
    for uri, content in contents.items():
        storage.write_bytes(uri, content)
        assert storage.read_bytes(uri) == content
    assert [file.uri for file in storage.list_files(s3)] == sorted(contents)
    assert before_store.faults.counts["calls"] > 9
