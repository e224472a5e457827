"""A full disk at each stage: one line, nothing half-written, and the same command succeeds once there is room."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from deltalake import DeltaTable

from jobs.command import cli
from pipelines.datasets.writer import MANIFEST, UNFINISHED
from tests import tiny
from tests.chaos import attacked
from tests.chaos.attacked import DS, snapshot
from tests.tiny import Ran

PAGE = 4096
"""Bytes that a tmpfs gives at a time."""
ROOM = 64 << 20
FULL = re.compile(r"No space left on device|Disk quota|disk is full", re.IGNORECASE)
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root alone can mount a disk")


class Disk:
    """A disk in memory, of a size that changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self._mount(f"size={PAGE}")

    def _mount(self, options: str) -> None:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")

    def resize(self, size: int) -> None:
        """Gives the disk so many bytes."""
        self._mount(f"remount,size={size}")

    def leave(self, size: int) -> None:
        """Gives the disk so many bytes beside those that are in use."""
        usage = os.statvfs(self.path)
        self.resize((usage.f_blocks - usage.f_bfree) * usage.f_frsize + size)

    def unmount(self) -> None:
        """Removes the disk with all that is on it."""
        subprocess.run(["umount", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    mounted = Disk(tmp_path / "disk")
    yield mounted
    mounted.unmount()


def fails(argv: list[str], cwd: Path) -> Ran:
    """Runs a command that the disk is too small for: it ends with exit code 1, one line, and no file in parts."""
    ran = tiny.hybrid_here(*argv, cwd=cwd)
    assert ran.code == cli.FAILED, ran.stdout + ran.stderr
    (line,) = [line for line in ran.stderr.splitlines() if line.startswith("hybrid: ")]
    assert FULL.search(line), line
    temporary = [path for path in snapshot(cwd) if re.search(r"/\.[^/]+\.[0-9a-f]{8}$", path)]
    assert temporary == []
    return ran


def succeeds(argv: list[str], cwd: Path) -> Ran:
    ran = tiny.hybrid_here(*argv, cwd=cwd)
    assert ran.code == cli.DONE, ran.stderr
    return ran


@pytest.mark.parametrize("pages", [1, 2, 4, 7])
def test_prepare(disk: Disk, tmp_path: Path, pages: int) -> None:
    """With room for nothing, the journal, some shards, or all but the manifest, and then with room for all."""
    words = ["prepare", "moving-scenes", "--train", "2", "--val", "1", "--test", "1", "--rows-per-shard", "1", "--out"]
    succeeds([*words, str(tmp_path / "whole")], tmp_path)
    whole = {path.relative_to(tmp_path / "whole"): path.read_bytes() for path in files(tmp_path / "whole")}
    shards = sum(-(-len(data) // PAGE) for path, data in whole.items() if path.name != MANIFEST)
    disk.resize(PAGE * (shards + 1 if pages == 7 else pages))
    out = disk.path / "out"
    fails([*words, str(out)], tmp_path)
    there = {path.relative_to(out): path.read_bytes() for path in files(out)}
    assert {
        path: data for path, data in there.items() if path.name not in (MANIFEST, UNFINISHED)
    }.items() <= whole.items()
    assert Path(MANIFEST) not in there
    disk.resize(ROOM)
    succeeds([*words, str(out)], tmp_path)
    assert {path.relative_to(out): path.read_bytes() for path in files(out)} == whole


def files(folder: Path) -> list[Path]:
    """All files below a folder."""
    return [Path(path) for path in snapshot(folder)]


def test_query(disk: Disk, tmp_path: Path) -> None:
    attacked.make_tables(tmp_path / "tables")
    rows = disk.path / "rows.csv"
    argv = ["query", "SELECT range FROM range(9999), captions", "--tables", f"{tmp_path}/tables", "--out", str(rows)]
    fails(argv, tmp_path)
    assert files(disk.path) == []
    disk.resize(ROOM)
    succeeds(argv, tmp_path)
    assert len(rows.read_text().splitlines()) == 10_000


def test_report(disk: Disk, tmp_path: Path) -> None:
    """A page that is there stays whole while there is no room for its successor."""
    attacked.make_tables(tmp_path / "tables")
    page = disk.path / "page.html"
    argv = ["report", "--tables", f"{tmp_path}/tables", "--ds", DS, "--out", str(page)]
    argv += ["--mlflow", f"sqlite:///{tmp_path}/mlflow.db"]
    fails(argv, tmp_path)
    assert files(disk.path) == []
    disk.resize(ROOM)
    succeeds(argv, tmp_path)
    before = page.read_bytes()
    disk.leave(PAGE)
    fails(argv, tmp_path)
    assert page.read_bytes() == before
    disk.resize(ROOM)
    succeeds(argv, tmp_path)


def infer(tmp_path: Path, tables: Path) -> list[str]:
    return [
        "infer", "translations", "--input", f"{tmp_path}/in", "--model", f"{tmp_path}/model", "--ds", DS,
        "--tables", str(tables), "--mlflow", f"sqlite:///{tmp_path}/mlflow.db",
    ]  # fmt: skip


def test_commit(disk: Disk, tmp_path: Path) -> None:
    """All is staged, and there is no room for the entry of the table's log; a table that is there stays as it is."""
    disk.resize(ROOM)
    tables = disk.path / "tables"
    tiny.write_translator(f"{tmp_path}/model")
    tiny.write_sentences(f"{tmp_path}/in", shards=1, rows=5)
    tiny.write_sentences(f"{tmp_path}/before", shards=1, rows=3, seed=1)
    tiny.write_night(str(tables), "2026-01-30", f"{tmp_path}/before", f"{tmp_path}/model")
    tiny.stage_night(str(tables), DS, f"{tmp_path}/in", f"{tmp_path}/model")
    before = DeltaTable(f"{tables}/translations")
    disk.leave(0)
    fails(infer(tmp_path, tables), tmp_path)
    after = DeltaTable(f"{tables}/translations")
    assert (after.version(), after.file_uris()) == (before.version(), before.file_uris())
    disk.resize(ROOM)
    assert succeeds(infer(tmp_path, tables), tmp_path).summary["rows"] == 5


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_staging(disk: Disk, tmp_path: Path) -> None:
    tiny.write_translator(f"{tmp_path}/model")
    tiny.write_sentences(f"{tmp_path}/in", shards=1, rows=200)
    tables = disk.path / "tables"
    fails(infer(tmp_path, tables), tmp_path)
    assert files(disk.path) == []
    disk.resize(ROOM)
    assert succeeds(infer(tmp_path, tables), tmp_path).summary["rows"] == 200


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_checkpoint(disk: Disk, tmp_path: Path) -> None:
    """There is room for the samples and the initial weights, and for half a checkpoint."""
    for split, seed in (("train", 1), ("val", 2)):
        tiny.write_pairs(f"{tmp_path}/data/{split}", 40, seed)

    def argv(storage: Path) -> list[str]:
        return [
            "train", "translator-demo", "--data", f"{tmp_path}/data", "--storage", str(storage), "--pictures", "0",
            "--mlflow", f"sqlite:///{tmp_path}/mlflow.db", "--model.hidden-size", "16", "--model.vocab-size", "300",
            "--train.epochs", "2", "--train.batch-size", "16",
        ]  # fmt: skip

    succeeds(argv(tmp_path / "whole"), tmp_path)
    run = tmp_path / "whole/runs/translator-demo"
    sizes = {path: -(-path.stat().st_size // PAGE) * PAGE for path in files(tmp_path / "whole")}
    checkpoint = sum(size for path, size in sizes.items() if path.is_relative_to(run / "checkpoint_epoch_0001"))
    first = sum(
        size for path, size in sizes.items() if not path.is_relative_to(run) or path.is_relative_to(run / "initial")
    )
    disk.resize(first + 3 * PAGE + checkpoint // 2)
    fails(argv(disk.path / "lake"), tmp_path)
    disk.resize(ROOM)
    summary = succeeds(argv(disk.path / "lake"), tmp_path).summary
    assert summary["epochs"] == 2
    history = (disk.path / "lake/runs/translator-demo/history.jsonl").read_text().splitlines()
    validated = [entry["epoch"] for entry in map(json.loads, history) if "val_loss" in entry]
    assert validated == [1, 2]
