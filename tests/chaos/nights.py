"""Small nights of the tasks, and what their tables must hold."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np

from pipelines import storage
from pipelines.nights import query, tables
from pipelines.nights.commit import LOG_BYTES
from pipelines.staging.joining import LEAST_FILES
from tests import tiny
from tests.pipelines.reading.media.test_radar import event_bytes
from tests.pipelines.reading.media.test_video import film, steady
from tests.servers import BUCKET

DS = "2026-01-31"
LAKE = f"s3://{BUCKET}/chaos"
SHARDS = 6
MOST = 4
OLD, NEW = "old", "new"
PER_RUN = {"model", "model_version", "run_id", "created_at"}
"""Columns that differ between two runs of the same night."""
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """One of the three, or `windows`: captions of photographs and clips as they lie, or `clips`: of so many that the
    night is packed; with its data on the store."""

    name: str

    @property
    def table(self) -> str:
        """What it writes to."""
        return "captions" if self.name in ("windows", "clips") else self.name

    @property
    def shards(self) -> str:
        """URI of the input."""
        return f"{LAKE}/{self.name}/in"

    def model(self, which: str) -> str:
        """URI of the model of this night, or of the one before."""
        return f"{LAKE}/{self.name}/{which}"

    def tables(self, name: str) -> str:
        """URI of tables of their own."""
        return f"{LAKE}/{self.name}/tables-{name}"

    def argv(self, tables_name: str, which: str = NEW, actors: int = 0) -> list[str]:
        """`hybrid` …, with so many model processes; by default one on each node, and more as nodes join."""
        pool = ["--resources.min-actors", str(actors)] if actors else ["--resources.max-actors", str(MOST)]
        return [
            "infer", self.table, "--input", self.shards, "--tables", self.tables(tables_name), "--ds", DS,
            "--model", self.model(which), "--max-error-fraction", "0.5", *pool,
            *(["--window-seconds", "1"] if self.table != self.name else []),
        ]  # fmt: skip


def prepare(task: Task) -> None:
    """Two models, six shards, and one with a bad row. They are small and share a unit, but for those of `windows`,
    units of their own. Each is read by a task, whose rows are an object."""
    write_model = {
        "captions": tiny.write_captioner,
        "translations": tiny.write_translator,
        "nowcasts": tiny.write_nowcaster,
    }
    for seed, which in enumerate((OLD, NEW)):
        write_model[task.table](task.model(which), seed)
    if task.name == "captions":
        tiny.write_photos(task.shards, SHARDS, 12)
        storage.write_bytes(f"{task.shards}/bad.tar", tiny.tar([("torn.jpg", tiny.jpeg(0)[:200])]), storage.anything)
    if task.name == "windows":
        for number in range(20):
            storage.write_bytes(f"{task.shards}/photos/{number}.jpg", tiny.jpeg(number), storage.anything)
        for number in range(SHARDS):
            storage.write_bytes(f"{task.shards}/clips/{number}.mp4", film("mp4", steady(60 + number)), storage.anything)
        storage.write_bytes(f"{task.shards}/clips/torn.mp4", film("mp4", steady(60))[:300], storage.anything)
        members = [("a.jpg", tiny.jpeg(1)), ("b.mkv", film("mkv", steady(80))), ("c.jpg", tiny.jpeg(2))]
        storage.write_bytes(f"{task.shards}/some.tar", tiny.tar(members), storage.anything)
    if task.name == "clips":
        for number in range(LEAST_FILES):
            storage.write_bytes(f"{task.shards}/{number}.mp4", film("mp4", steady(8 + number % 3)), storage.anything)
        storage.write_bytes(f"{task.shards}/torn.mp4", film("mp4", steady(8))[:300], storage.anything)
    if task.name == "translations":
        tiny.write_sentences(task.shards, SHARDS, 40)
        storage.write_bytes(
            f"{task.shards}/bad.jsonl", json.dumps({"id": "empty", "text": ""}).encode() + b"\n", storage.anything
        )
    if task.name == "nowcasts":
        for number in range(SHARDS):
            rain = np.random.default_rng(number).integers(0, 500, (12, 32, 32)).astype(np.uint16)
            minutes = [number * 1000 + 5 * t for t in range(12)]
            storage.write_bytes(f"{task.shards}/event-{number}.nc", event_bytes(minutes, rain=rain), storage.anything)
        storage.write_bytes(f"{task.shards}/torn.nc", event_bytes([0, 5, 10, 15])[:3000], storage.anything)


def rows(task: Task, tables_name: str) -> Rows:
    """The night as a table's reader sees it, in the order of its input."""
    sql = f"SELECT * FROM {task.table}_all WHERE ds = '{DS}' ORDER BY shard, index"
    found = query.query(sql, task.tables(tables_name), [task.table]).to_pylist()
    return [{name: value for name, value in row.items() if name not in PER_RUN} for row in found]


def difference(expected: Rows, found: Rows) -> str:
    """What differs between two nights, in a few words; empty if they are the same.

    Numbers may differ by rounding: a batch that is cut elsewhere is summed up in another order.
    """
    if len(expected) != len(found):
        return f"{len(found)} rows instead of {len(expected)}"
    for want, have in zip(expected, found, strict=True):
        for name, value in want.items():
            if not _same(value, have[name]):
                return f"{want['sample_id']}: {name} is {have[name]!r} instead of {value!r}"[:300]
    return ""


def _same(want: Any, have: Any) -> bool:
    if isinstance(want, bytes) and isinstance(have, bytes):
        want, have = (np.frombuffer(value, "<f2").tolist() for value in (want, have))
    if isinstance(want, float | list) and have is not None:
        return bool(np.allclose(want, have, rtol=1e-2, atol=1e-3, equal_nan=True))
    return bool(want == have)


def state(task: Task, tables_name: str) -> tuple[int, int]:
    """What a reader finds at any moment: the night's rows, and how many fingerprints they have."""
    place = task.tables(tables_name)
    if tables.open_table(f"{place}/{task.table}") is None:
        return 0, 0
    sql = f"SELECT count(*) AS n, count(DISTINCT fingerprint) AS f FROM {task.table}_all WHERE ds = '{DS}'"
    (found,) = query.query(sql, place, [task.table]).to_pylist()
    return found["n"], found["f"]


def lengthen_log(task: Task, tables_name: str) -> None:
    """The table's newest commit says so much more that the next one makes a checkpoint."""
    table = f"{task.tables(tables_name)}/{task.table}"
    commit = max(file.uri for file in storage.list_all(f"{table}/{tables.LOG}"))
    entries = [json.loads(line) for line in storage.read_text(commit).splitlines()]
    for entry in entries:
        if "commitInfo" in entry:
            entry["commitInfo"]["filling"] = "x" * (LOG_BYTES + 1)
    storage.write_bytes(commit, "".join(json.dumps(entry) + "\n" for entry in entries).encode(), storage.anything)


def copy_tables(task: Task, source: str, target: str) -> None:
    """A table is a folder: a copy of it is as good."""
    fs, root = fsspec.core.url_to_fs(task.tables(source), use_listings_cache=False)
    for path in fs.find(root):
        fs.pipe_file(task.tables(target).removeprefix("s3://") + path.removeprefix(root), fs.cat_file(path))
