"""A reader that asks over and over while a night is run again and again, and what it does not need is removed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pytest

from jobs.command.options import NightOptions
from jobs.infer import run
from pipelines import storage
from pipelines.models import artifacts
from pipelines.nights import query, upkeep
from pipelines.nights.commit import Partition
from pipelines.nights.rules import Rules
from tests import tiny
from tests.chaos.beside import over_and_over

RERUNS = 20


@pytest.mark.usefixtures("ray_cluster")
def test_a_reader_sees_only_whole_nights_during_twenty_reruns(s3: str, tracking_uri: str) -> None:
    """Two models by turns, over one, two or three shards: each state has its own count of rows or model."""
    models = [artifacts.read(tiny.write_translator(f"{s3}/model-{seed}", seed)) for seed in (0, 1)]
    tiny.write_sentences(f"{s3}/in", shards=3, rows=20)
    shards = {file.uri: storage.read_bytes(file.uri) for file in storage.list_files(f"{s3}/in")}
    states: set[tuple[int, str]] = set()
    seen: list[tuple[int, str, int]] = []
    stop = threading.Event()

    def look() -> None:
        sql = "SELECT count(*) AS rows, min(fingerprint) AS first, count(DISTINCT fingerprint) AS n FROM translations"
        while not stop.wait(0.05):
            (row,) = query.query(sql, f"{s3}/tables", ["translations"]).to_pylist()
            seen.append((row["rows"], row["first"], row["n"]))

    def night(number: int) -> dict[str, Any]:
        artifact = models[number % 2]
        partition = Partition.of(f"{s3}/tables", artifact.table, "2026-01-31")
        options = NightOptions(Rules(allow_missing=True))
        summary = run([f"{s3}/in"], partition, artifact, artifact.decoding, options, tracking_uri)
        states.add((summary["rows"], summary["fingerprint"]))
        return summary

    assert night(0)["rows"] == 60
    reader = threading.Thread(target=look)
    reader.start()
    try:
        for number in range(1, RERUNS + 1):
            for place, (uri, content) in enumerate(shards.items()):
                storage.write_bytes(uri, content, storage.anything) if place <= number % 3 else storage.delete(
                    uri, storage.anything
                )
            assert night(number)["changed"]
    finally:
        stop.set()
        reader.join()
    assert len(states) == 6
    assert len(seen) > RERUNS
    assert {(rows, first) for rows, first, _ in seen} <= states
    assert {n for _, _, n in seen} == {1}


# ---- while files are removed -------------------------------------------------------------------------------------
HOUR = 1.0
"""Seconds that one of a file's age takes here."""
RETAIN_HOURS = 24
REMOVED = 40
MODELS = ("model-0", "model-1")
SQL = "SELECT count(*) AS rows, count(DISTINCT (shard, index)) AS places, min(fingerprint) AS first, "
SQL += "count(DISTINCT fingerprint) AS n FROM translations_all"


def test_a_reader_never_fails_while_old_files_are_removed(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models by turns, other shards each time; files are removed a day of theirs after they were replaced. No query
    has to be asked twice, as one whose files are gone would be."""
    open_views, opened = query.open_views, list[int]()
    monkeypatch.setattr(query, "open_views", lambda *args: opened.append(1) or open_views(*args))
    monkeypatch.setattr(upkeep, "timedelta", lambda hours: timedelta(seconds=hours * HOUR))
    for seed, name in enumerate(MODELS):
        tiny.write_translator(f"{s3}/{name}", seed)
    table = f"{s3}/tables/translations"

    def night(number: int) -> None:
        tiny.write_sentences(f"{s3}/in", shards=2, rows=6, seed=number)
        tiny.write_night(f"{s3}/tables", "2026-01-31", f"{s3}/in", f"{s3}/{MODELS[number % 2]}", f"run-{number}")

    def look() -> tuple[int, ...]:
        (row,) = query.query(SQL, f"{s3}/tables", ["translations"]).to_pylist()
        return row["rows"], row["places"], row["n"]

    night(0)
    until, number = time.monotonic() + 300, 0
    with (
        over_and_over(look) as reader,
        over_and_over(lambda: len(upkeep.tidy(table, RETAIN_HOURS).removed)) as tidying,
    ):
        while sum(tidying.found) < REMOVED and time.monotonic() < until:
            number += 1
            night(number)
    assert (reader.wrong, tidying.wrong) == ([], [])
    assert sum(tidying.found) >= REMOVED
    assert len(reader.found) == len(opened) > 20
    assert set(reader.found) == {(12, 12, 1)}


def test_a_reader_of_an_earlier_version_has_its_files_as_long_as_they_are_retained(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who opened the table and reads on for longer than that finds them gone. A query then asks the table as it is."""
    tiny.write_translator(f"{s3}/model")
    uri, table = f"{s3}/tables", f"{s3}/tables/translations"
    ask = "SELECT count(sample_id) AS rows, min(run_id) AS run FROM translations_all"

    def night(number: int) -> None:
        tiny.write_sentences(f"{s3}/in", shards=2, rows=6, seed=number)
        tiny.write_night(uri, "2026-01-31", f"{s3}/in", f"{s3}/model", f"run-{number}")

    def tidy(hours: int) -> int:
        """So many hours from now."""
        monkeypatch.setattr(upkeep, "_now", lambda: datetime.now(UTC) + timedelta(hours=hours))
        return len(upkeep.tidy(table, retain_hours=48).removed)

    open_views = query.open_views
    night(1)
    with open_views(uri, ["translations"]) as opened:
        night(2)
        assert tidy(47) == 0
        assert opened.sql(ask).fetchall() == [(12, "run-1")]
        assert query.query(ask, uri, ["translations"]).to_pylist() == [{"rows": 12, "run": "run-2"}]
        assert tidy(49) == 2
        assert query.query(ask, uri, ["translations"]).to_pylist() == [{"rows": 12, "run": "run-2"}]
        with pytest.raises(duckdb.Error, match=r"part-00000.*\.parquet not found"):
            opened.sql(ask).fetchall()

    opens = 0

    @contextmanager
    def slowly(*args: Any) -> Iterator[duckdb.DuckDBPyConnection]:
        nonlocal opens
        opens += 1
        with open_views(*args) as connection:
            if opens == 1:
                night(3)
                assert tidy(49) == 2
            yield connection

    monkeypatch.setattr(query, "open_views", slowly)
    assert query.query(ask, uri, ["translations"]).to_pylist() == [{"rows": 12, "run": "run-3"}]
    assert opens == 2
