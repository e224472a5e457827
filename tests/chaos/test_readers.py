"""A reader that asks over and over while a night is run again and again."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from jobs.command.options import NightOptions
from jobs.infer import run
from pipelines import storage
from pipelines.models import artifacts
from pipelines.nights import query
from pipelines.nights.commit import Partition
from pipelines.nights.rules import Rules
from tests import tiny

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
        summary = run(f"{s3}/in", partition, artifact, artifact.decoding, options, tracking_uri)
        states.add((summary["rows"], summary["fingerprint"]))
        return summary

    assert night(0)["rows"] == 60
    reader = threading.Thread(target=look)
    reader.start()
    try:
        for number in range(1, RERUNS + 1):
            for place, (uri, content) in enumerate(shards.items()):
                storage.write_bytes(uri, content) if place <= number % 3 else storage.delete(uri)
            assert night(number)["changed"]
    finally:
        stop.set()
        reader.join()
    assert len(states) == 6
    assert len(seen) > RERUNS
    assert {(rows, first) for rows, first, _ in seen} <= states
    assert {n for _, _, n in seen} == {1}
