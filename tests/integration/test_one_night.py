"""What commands ask of the store when they are asked about one night of a table that has more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.nights import tables
from tests import tiny
from tests.chaos.proxy import Call, Proxy
from tests.pipelines.nights.test_query import write_night
from tests.servers import S3Server

NIGHTS = ("2026-01-29", "2026-01-30", "2026-01-31")


class Watched:
    """A table of three nights on the store, and commands whose requests are noted."""

    def __init__(self, lake: str, server: S3Server, scratch: Path) -> None:
        self.lake, self._server, self._scratch = lake, server, scratch
        for number, ds in enumerate(NIGHTS):
            write_night(lake, ds, ["a dog", None, "a cat"][: number + 1])
        self._proxy = Proxy(server.endpoint)

    def hybrid(self, *words: str) -> tuple[str, list[str]]:
        """What a command prints, and the keys that it asks for, below the table's folder."""
        asked: list[str] = []

        def note(call: Call, when: str) -> None:
            if when == "before":
                asked.append(call.prefix or call.key)

        self._proxy.watcher = note
        env = {
            **os.environ,
            **self._server.env(self._proxy.endpoint),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self._scratch}/m.db",
        }
        command = [sys.executable, "-m", "jobs.command.cli", *words, "--tables", self.lake]
        done = subprocess.run(command, cwd=tiny.ROOT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout, [key.split("/captions/", 1)[1] for key in asked if "/captions/" in key]

    def stop(self) -> None:
        """Ends the proxy."""
        self._proxy.stop()


@pytest.fixture
def watched(s3: str, s3_server: S3Server, tmp_path: Path) -> Iterator[Watched]:
    made = Watched(s3, s3_server, tmp_path)
    yield made
    made.stop()


def nights_of(keys: list[str]) -> set[str]:
    """The nights whose folders some keys are in."""
    return {key.split("/")[0].removeprefix("ds=") for key in keys if key.startswith("ds=")}


def test_a_night_is_asked_for_and_no_other_one(watched: Watched, tmp_path: Path) -> None:
    answer, keys = watched.hybrid("query", f"SELECT caption FROM captions WHERE ds = '{NIGHTS[1]}'", "--format", "json")
    assert [json.loads(line) for line in answer.splitlines()] == [{"caption": "a dog"}]
    assert nights_of(keys) == {NIGHTS[1]}
    assert any(tables.COMMIT.fullmatch(key.rsplit("/", 1)[-1]) for key in keys), "the log was read through the proxy"

    answer, keys = watched.hybrid("query", "SELECT count(*) AS n FROM captions_all", "--format", "json")
    assert json.loads(answer) == {"n": 6}
    page, keys = watched.hybrid("report", "--ds", NIGHTS[2], "--out", str(tmp_path / "page.html"))
    assert nights_of(keys) == {NIGHTS[2]}
    assert json.loads(page)["tables"]["captions"]["rows"] == 3
    text = (tmp_path / "page.html").read_text()
    assert all(night in text for night in NIGHTS), "the history is told by the log"

    answer, keys = watched.hybrid("tables", "--format", "json")
    told = [json.loads(line) for line in answer.splitlines()]
    assert {(row["ds"], row["rows"], row["bad"]) for row in told} == {
        (NIGHTS[0], 1, None), (NIGHTS[1], 2, None), (NIGHTS[2], 3, None)
    }  # fmt: skip
    assert nights_of(keys) == set()
