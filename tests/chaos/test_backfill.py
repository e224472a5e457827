"""Twenty dates of one table, each filled by a process of its own, all at the same moment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.models import server
from pipelines.nights import commit, query, tables
from tests import tiny
from tests.chaos.beside import over_and_over
from tests.chaos.proxy import Call, Proxy
from tests.servers import S3Server

NIGHTS, SHARDS, ROWS = 20, 2, 5
DATES = [f"2026-01-{day:02d}" for day in range(1, NIGHTS + 1)]
NOTES, GO = "BACKFILL_NOTES", "go"
SECONDS = 600
DRIVER = "from tests.chaos.test_backfill import at_once; at_once()"


def at_once() -> None:
    """`hybrid …` that commits when all others are about to, and notes each attempt."""
    from jobs.command import cli

    notes = Path(os.environ[NOTES])
    commit_night, attempt = commit.commit_night, commit._commit

    def with_the_others(*args: Any) -> int | None:
        (notes / f"ready-{os.getpid()}").touch()
        while not (notes / GO).exists():
            time.sleep(0.01)
        return commit_night(*args)

    def noted(*args: Any) -> int | None:
        with (notes / f"attempts-{os.getpid()}").open("a") as lines:
            lines.write("once more\n")
        return attempt(*args)

    commit.commit_night, commit._commit = with_the_others, noted  # type: ignore[assignment]
    cli.main()


def whole(uri: str) -> dict[str, int]:
    """Rows of each night, as a reader finds them; nothing before there is a table."""
    if tables.open_table(f"{uri}/translations") is None:
        return {}
    sql = "SELECT ds, count(*) AS n FROM translations_all GROUP BY ds"
    return {row["ds"]: row["n"] for row in query.query(sql, uri, ["translations"]).to_pylist()}


@pytest.mark.long
def test_twenty_nights_that_are_committed_at_once_are_twenty_whole_nights(
    s3_server: S3Server, s3: str, tmp_path: Path
) -> None:
    """Into a table that none of them finds there. Each is staged beforehand, so that a process has but to commit it."""
    lake, notes = f"{s3}/tables", tmp_path / "notes"
    notes.mkdir()
    model = tiny.write_translator(f"{s3}/model")
    server.client(f"sqlite:///{tmp_path}/mlflow.db").search_experiments()
    for number, ds in enumerate(DATES):
        tiny.write_sentences(f"{s3}/in/ds={ds}", SHARDS, ROWS, number)
        tiny.stage_night(lake, ds, f"{s3}/in/ds={ds}", model)
    proxy = Proxy(s3_server.endpoint)
    puts: Counter[str] = Counter()
    proxy.watcher = counting(puts)
    jobs = []
    try:
        with over_and_over(lambda: whole(lake)) as seen:
            jobs += [start(ds, lake, s3, s3_server.env(proxy.endpoint), tmp_path) for ds in DATES]
            wait_until(lambda: len(list(notes.glob("ready-*"))) == NIGHTS, jobs)
            assert tables.open_table(f"{lake}/translations") is None
            (notes / GO).touch()
            codes = [job.wait(SECONDS) for job in jobs]
    finally:
        for job in jobs:
            job.kill()
        proxy.stop()
    assert codes == [0] * NIGHTS, [path.read_text()[-500:] for path in sorted(tmp_path.glob("*/stderr"))]
    assert seen.wrong == []
    assert {} in seen.found
    assert {rows for nights in seen.found for rows in nights.values()} <= {SHARDS * ROWS}
    table = tables.open_table(f"{lake}/translations")
    assert table is not None
    assert [(night.ds, night.rows) for night in tables.nights(table)] == [(ds, SHARDS * ROWS) for ds in DATES]
    sql = "SELECT ds, count(DISTINCT (shard, index)) AS n FROM translations GROUP BY ds ORDER BY ds"
    found = query.query(sql, lake, ["translations"]).to_pylist()
    assert found == [{"ds": ds, "n": SHARDS * ROWS} for ds in DATES]
    attempts = [len(path.read_text().splitlines()) for path in notes.glob("attempts-*")]
    assert len(attempts) == NIGHTS
    assert max(attempts) <= commit.COMMIT_ATTEMPTS
    assert puts.total() <= NIGHTS * (NIGHTS + 3) // 2, "at most, a writer tries each version that another one gets"
    assert table.version() == NIGHTS, "the table, and a commit for each night"


def counting(puts: Counter[str]) -> Callable[[Call, str], None]:
    """How often a commit of each number was tried."""

    def watch(call: Call, when: str) -> None:
        name = call.key.rpartition("/")[2]
        if when == "before" and call.method == "PUT" and tables.COMMIT.fullmatch(name):
            puts[name] += 1

    return watch


def start(ds: str, lake: str, s3: str, env: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
    """`hybrid infer` of a date, with an MLflow of its own."""
    own = folder / ds
    own.mkdir()
    shutil.copy(folder / "mlflow.db", own / "mlflow.db")
    argv = [
        "infer", "translations", "--input", f"{s3}/in/ds={ds}", "--tables", lake, "--ds", ds, "--model", f"{s3}/model",
    ]  # fmt: skip
    env = {**tiny.environment(own), **env, NOTES: str(folder / "notes")}
    with (own / "stderr").open("wb") as said:
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, *argv], cwd=own, env=env, stdout=subprocess.DEVNULL, stderr=said
        )


def wait_until(done: Callable[[], bool], jobs: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + SECONDS
    while not done():
        assert all(job.poll() is None for job in jobs), "one has ended"
        assert time.monotonic() < deadline
        time.sleep(0.1)
