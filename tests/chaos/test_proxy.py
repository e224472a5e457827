"""The proxy itself, and what storage and tables make of a store that fails in every way it knows."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from pipelines import storage
from pipelines.nights import commit, query, upkeep
from pipelines.nights.commit import Partition
from pipelines.staging.pieces import Piece, table_schema
from tests.chaos import proxy
from tests.chaos.proxy import FAULTS, Call, Faults, Proxy
from tests.servers import S3Server

SCHEMA = table_schema(pa.schema([pa.field("caption", pa.string())]))


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
    storage.write_bytes(f"{s3}/a b+ü.bin", content, storage.anything)
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


def test_no_fault_harms_objects_or_tables(before_store: Proxy, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sixth of all calls fails while objects are written, read and listed, and nights committed, tidied and read."""
    monkeypatch.setattr(proxy, "SLOW_SECONDS", 0.1)
    before_store.faults = Faults(1 / 6, seed=3)
    for number in range(8):
        content = random.Random(number).randbytes(50_000)
        storage.write_bytes(f"{s3}/in/{number}", content, storage.anything)
        assert storage.read_bytes(f"{s3}/in/{number}") == content
    assert len(storage.list_files(f"{s3}/in")) == 8

    table = f"{s3}/captions"
    for night, rows in (("2026-01-01", 3), ("2026-01-02", 4), ("2026-01-01", 5)):
        run = {"run_id": f"{night}-{rows}"}
        version = commit.commit_night(Partition(table, night), [stage(table, night, rows)], SCHEMA, run)
        log = storage.read_text(f"{table}/_delta_log/{version:020d}.json")
        assert run["run_id"] in log, "the version is that of this run's own commit"
        assert (
            commit.commit_night(Partition(table, night), [stage(table, night, rows)], SCHEMA, {"run_id": "later"})
            is None
        )
        assert upkeep.tidy(table, 1).removed == []
    found = query.query("SELECT ds, count(*) AS n FROM captions GROUP BY ds ORDER BY ds", s3, ["captions"])
    assert found.to_pylist() == [{"ds": "2026-01-01", "n": 5}, {"ds": "2026-01-02", "n": 4}]
    assert set(before_store.faults.counts) == set(FAULTS)


def stage(table: str, night: str, rows: int) -> Piece:
    """A staged file of so many rows."""
    uri = f"{table}/ds={night}/{rows}/shard-0123456789abcdef-0-{rows}-end.parquet"
    buffer = io.BytesIO()
    columns = {field.name: pa.nulls(rows, field.type) for field in SCHEMA}
    pq.write_table(pa.table({**columns, "status": ["ok"] * rows}, schema=SCHEMA), buffer)
    storage.write_bytes(uri, buffer.getvalue(), storage.anything)
    return Piece(storage.info(uri), 0, rows, end=True)
