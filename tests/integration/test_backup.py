"""A backup of store, database and artifacts is taken, all of it is destroyed, and fresh servers have it again."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec.implementations.local
import pytest
import s3fs

from infra import backup
from pipelines.models.registry import fetch_model
from pipelines.models.server import client, find_run
from pipelines.models.tracking import Tracker
from pipelines.nights import tables
from tests import tiny
from tests.servers import BUCKET, MlflowServer, S3Server

SCRIPT = tiny.ROOT / "infra" / "backup.py"
CHAMPION = "models:/translator@champion"


@pytest.fixture
def lake(tmp_path: Path) -> str:
    """A table of one night, on disk."""
    model = tiny.write_translator(str(tmp_path / "model"))
    tiny.write_sentences(str(tmp_path / "shards"), shards=2, rows=3)
    lake = str(tmp_path / "lake")
    tiny.write_night(f"{lake}/tables", "2026-01-30", str(tmp_path / "shards"), model)
    return lake


def rows(table: str) -> list[dict]:
    opened = tables.open_table(table)
    assert opened is not None
    return sorted(opened.to_pyarrow_table().to_pylist(), key=lambda row: (row["ds"], row["shard"], row["index"]))


def run(verb: str, *uris: str, stdin: bytes = b"", env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), verb, *uris]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, env=env)


@pytest.fixture
def servers() -> Iterator[list]:
    running: list = []
    yield running
    for server in running:
        server.kill()
    s3fs.S3FileSystem.clear_instance_cache()  # the next test has another store


def started(folder: Path, running: list, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An S3 store that this process's clients speak to from now on."""
    folder.mkdir(parents=True)
    store = S3Server(folder).start()
    running.append(store)
    for name, value in store.env().items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    return store


def test_what_goes_or_grows_while_it_is_saved_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings remove checkpoints and write their histories anew; the last listing is older than both."""
    lake, back = tmp_path / "lake", tmp_path / "back"
    lake.mkdir()
    for name in ("a", "b", "c", "d"):
        (lake / name).write_bytes(b"before")
    written = io.BytesIO()
    listed = fsspec.implementations.local.LocalFileSystem.find

    def change_after(*args: Any, **named: Any) -> Any:
        found = listed(*args, **named)
        (lake / "b").unlink(missing_ok=True)
        (lake / "c").write_bytes(b"longer than before")
        (lake / "d").write_bytes(b"less")
        return found

    monkeypatch.setattr(fsspec.implementations.local.LocalFileSystem, "find", change_after)
    assert backup.save([str(lake)], written) == 3
    monkeypatch.undo()
    written.seek(0)
    assert backup.restore([str(back)], written) == 3
    assert {path.name: path.read_bytes() for path in back.iterdir()} == {
        "a": b"before", "c": b"longer than before", "d": b"less",
    }  # fmt: skip


def test_what_is_written_anew_while_it_is_read_is_read_again(monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    """A store gives no rest of an object that is another one by now, and none of one that is gone."""
    fs, root = backup.opened(s3)
    for name in ("a", "b"):
        fs.pipe_file(f"{root}/{name}", b"x" * (20 << 20))
    opened = s3fs.S3FileSystem.open

    def change_after(self: Any, path: str, *args: Any, **named: Any) -> Any:
        file = opened(self, path, *args, **named)
        monkeypatch.undo()
        if path.endswith("a"):
            self.pipe_file(path, b"other")
        else:
            self.rm_file(path)
        return file

    found = []
    for name in ("a", "b"):
        monkeypatch.setattr(s3fs.S3FileSystem, "open", change_after)
        found.append(backup.copied(fs, f"{root}/{name}"))
    assert found[1] is None
    assert found[0] is not None
    found[0].seek(0)
    assert found[0].read() == b"other"


@pytest.mark.timeout(1800)
def test_what_was_saved_is_there_again_on_fresh_servers(
    tmp_path: Path, servers: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    started(old / "s3", servers, monkeypatch)
    mlflow = MlflowServer(old / "mlflow").start()
    servers.append(mlflow)
    model = tiny.write_translator(str(tmp_path / "model"))
    files = {path.name: path.read_bytes() for path in Path(model).iterdir()}
    tracker = Tracker(mlflow.uri)
    assert tracker.start("first", {}, {}) is not None
    assert tracker.register("translator", files) == "1"
    client(mlflow.uri).set_registered_model_alias("translator", "champion", "1")
    tiny.write_sentences(f"s3://{BUCKET}/shards/ä b%20[1]", shards=2, rows=3)
    for ds in ("2026-01-30", "2026-01-31"):
        tiny.write_night(f"s3://{BUCKET}/tables", ds, f"s3://{BUCKET}/shards", model, str(tracker.run_id))
    table = f"s3://{BUCKET}/tables/translations"
    before = rows(table)
    assert len(before) == 12

    saved = run("save", f"sqlite:///{old}/mlflow/mlflow.db", f"{old}/mlflow/artifacts", f"s3://{BUCKET}")
    assert saved.returncode == 0, saved.stderr
    for server in servers:
        server.kill()
    shutil.rmtree(old)

    store = started(new / "s3", servers, monkeypatch)
    fs = s3fs.S3FileSystem(endpoint_url=store.endpoint, skip_instance_cache=True)
    fs.rm(f"{BUCKET}/_ready")  # what the test's server writes when it starts
    (new / "mlflow").mkdir()
    places = (f"sqlite:///{new}/mlflow/mlflow.db", f"{new}/mlflow/artifacts", f"s3://{BUCKET}")
    restored = run("restore", *places, stdin=saved.stdout)
    assert restored.returncode == 0, restored.stderr
    assert restored.stderr.replace(b"restored", b"saved") == saved.stderr
    again = MlflowServer(new / "mlflow").start()
    servers.append(again)
    assert rows(table) == before
    folder, name, version = fetch_model(CHAMPION, tmp_path / "fetched", again.uri)
    assert (name, version) == ("models:/translator/1", "1")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    run_of_rows = find_run(client(again.uri), before[0]["run_id"])
    assert run_of_rows is not None
    assert run_of_rows.info.run_name == "first"
    tiny.write_night(f"s3://{BUCKET}/tables", "2026-02-01", f"s3://{BUCKET}/shards", model)
    assert len(rows(table)) == 18, "it goes on"

    refused = run("restore", *places, stdin=saved.stdout)
    assert refused.returncode == 1
    assert refused.stderr.decode() == f"{places[0]} is not empty: restore to an empty place, or empty it first\n"


def test_a_night_that_is_committed_while_it_is_saved_does_no_harm(lake: str, tmp_path: Path) -> None:
    before = rows(f"{lake}/tables/translations")
    found = backup.objects(lake)
    kept: dict[str, bytes] = {}
    for key, _, content in found:
        with content:
            kept[key] = content.read()
        if key.endswith("00000000000000000001.json"):  # the newest of the log: the data come next
            model, shards = str(tmp_path / "model"), str(tmp_path / "shards")
            tiny.write_night(f"{lake}/tables", "2026-01-31", shards, model)
    assert not any(key.endswith("00000000000000000002.json") for key in kept)
    for key, content in kept.items():
        path = tmp_path / "copy" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert rows(f"{tmp_path}/copy/tables/translations") == before
    assert len(rows(f"{lake}/tables/translations")) == 2 * len(before)


def test_the_hint_of_a_checkpoint_is_older_than_the_log_that_has_it(tmp_path: Path) -> None:
    keys = (
        "t/_delta_log/1.json",
        "t/_delta_log/_last_checkpoint",
        "t/ds=x/a.parquet",
        "a/b.tar",
        "t/_delta_log/0.json",
    )
    for key in keys:
        path = tmp_path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert [key for key, _, _ in backup.objects(str(tmp_path))] == [
        "t/_delta_log/_last_checkpoint", "t/_delta_log/0.json", "t/_delta_log/1.json", "a/b.tar", "t/ds=x/a.parquet",
    ]  # fmt: skip


def test_a_backup_that_is_cut_off_or_is_none_is_refused(lake: str, tmp_path: Path) -> None:
    saved = run("save", lake).stdout
    for number, part in enumerate((saved[: len(saved) // 2], b"", b"no tar at all")):
        refused = run("restore", str(tmp_path / f"to-{number}"), stdin=part)
        assert refused.returncode == 1
        assert refused.stderr.decode().startswith("this is no whole backup: "), refused.stderr
    stranger = io.BytesIO()
    with tarfile.open(fileobj=stranger, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("0/../../elsewhere"), io.BytesIO(b""))
    refused = run("restore", str(tmp_path / "to" / "here"), stdin=stranger.getvalue())
    assert refused.stderr.decode() == "this is no backup of ours: it holds ../../elsewhere\n"
    assert not (tmp_path / "elsewhere").exists()
    assert run("save").stderr.decode().startswith("usage: backup.py save|restore URI")


def test_places_that_are_not_there_or_others_than_were_saved_are_refused(lake: str, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/mlflow.db"
    Tracker(database).start("a run", {}, {})
    missing = run("save", database, f"{lake}e")
    assert (missing.returncode, missing.stdout) == (1, b""), "else the backup would lack it, and end well"
    assert missing.stderr.decode() == f"there is nothing at {lake}e\n"
    assert b"there is nothing at sqlite:" in run("save", f"{database}x").stderr
    saved = run("save", database, lake).stdout
    new_base, new_lake = f"sqlite:///{tmp_path}/new/mlflow.db", f"{tmp_path}/new/lake"
    for places in ((new_lake, new_base), (new_base,), (new_base, new_lake, f"{tmp_path}/new/more")):
        refused = run("restore", *places, stdin=saved)
        assert refused.returncode == 1
        assert refused.stderr.decode() == (
            "this is a backup of database, objects: give as many places, in that order\n"
        )
        assert not (tmp_path / "new").exists()
    assert run("restore", new_base, new_lake, stdin=saved).returncode == 0
    with tarfile.open(fileobj=io.BytesIO(saved)) as archive:
        members = [(member, archive.extractfile(member)) for member in archive if member.name != backup.PLACES]
        older = io.BytesIO()
        with tarfile.open(fileobj=older, mode="w") as written:
            for member, content in members:
                written.addfile(member, content)
    for places in ((f"{tmp_path}/old/lake", f"sqlite:///{tmp_path}/old/mlflow.db"), (f"sqlite:///{tmp_path}/a.db",)):
        refused = run("restore", *places, stdin=older.getvalue())
        assert refused.stderr.decode().startswith("this is no backup of these places, in this order: it holds ")
    assert run("restore", f"sqlite:///{tmp_path}/b.db", f"{tmp_path}/b", stdin=older.getvalue()).returncode == 0
