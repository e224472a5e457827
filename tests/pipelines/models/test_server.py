import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from filelock import FileLock

from hybrid_models.errors import UsageError
from pipelines.models import server
from pipelines.models.server import default_uri

LOCK = ".mlflow.db.hybrid-makes-its-tables"
AWAY = "http://127.0.0.1:9"


def test_the_default_is_the_environment_or_an_absolute_local_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlruns/0").mkdir(parents=True)
    (tmp_path / "mlruns/0/meta.yaml").touch()  # what an earlier MLflow has left, which is MLflow's default then
    monkeypatch.setattr(mlflow, "is_tracking_uri_set", lambda: False)
    assert default_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setattr(mlflow, "is_tracking_uri_set", lambda: True)
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: f"sqlite:///{tmp_path}/x/y.db")
    assert default_uri() == f"sqlite:///{tmp_path}/x/y.db"
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "https://mlflow.example")
    assert default_uri() == "https://mlflow.example"
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://other.example")
    assert default_uri() == "https://other.example"


def test_a_new_database_is_made_ready_before_two_ask_it(tmp_path: Path) -> None:
    new = f"sqlite:///{tmp_path}/new/mlflow.db"
    server.make_ready(new)
    tables = sqlite3.connect(tmp_path / "new/mlflow.db").execute("SELECT name FROM sqlite_master").fetchall()
    assert {("experiments",), ("registered_models",)} <= set(tables)


TOGETHER = """
import sys, time
from pathlib import Path
import mlflow
from pipelines.models import server
folder, number = Path(sys.argv[1]), sys.argv[2]
(folder / f"ready-{number}").touch()
while len(list(folder.glob("ready-*"))) < 2:
    time.sleep(0.001)
server.client(f"sqlite:///{folder}/mlflow.db").create_registered_model(f"model-{number}")
"""


def test_jobs_that_begin_with_a_new_database_at_once_all_have_it(tmp_path: Path) -> None:
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(tmp_path), str(number)], stderr=subprocess.PIPE, text=True
        )
        for number in range(2)
    ]
    said = [job.communicate(timeout=120)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    made = server.client(f"sqlite:///{tmp_path}/mlflow.db").search_registered_models()
    assert sorted(model.name for model in made) == ["model-0", "model-1"]
    assert not (tmp_path / LOCK).exists()


def test_nobody_waits_for_ever_for_a_job_that_makes_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LOCK_SECONDS", 0.1)
    with (
        FileLock(tmp_path / LOCK),
        pytest.raises(ConnectionError, match=r"cannot be opened: .*hybrid-makes-its-tables"),
    ):
        server.make_ready(f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "mlflow.db.lock").write_text("of somebody's cron")
    server.make_ready(f"sqlite:///{tmp_path}/mlflow.db")
    assert not (tmp_path / LOCK).exists(), "one that was left over"
    assert (tmp_path / "mlflow.db.lock").read_text() == "of somebody's cron"


@pytest.mark.usefixtures("impatient")
def test_what_cannot_be_made_ready_is_told_in_one_line() -> None:
    with pytest.raises(ConnectionError, match=rf"^MLflow at {AWAY}: cannot be opened: "):
        server.make_ready(AWAY)


def test_the_database_of_another_program_stays_as_it_is(tmp_path: Path) -> None:
    """Even a command that only reads would have added MLflow's tables to it."""
    database = tmp_path / "app.db"
    with closing(sqlite3.connect(database)) as opened:
        opened.execute("CREATE TABLE notes (text)")
    before = database.read_bytes()
    with pytest.raises(UsageError, match=rf"^{database} is the database of another program, with table notes: use an"):
        server.client(f"sqlite:///{database}")
    assert database.read_bytes() == before
    for empty in ("new.db", "empty.db"):
        (tmp_path / "empty.db").touch()
        server.make_ready(f"sqlite:///{tmp_path}/{empty}")
        server.client(f"sqlite:///{tmp_path}/{empty}")


def test_defaults_make_mlflow_give_up_early(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    server.set_defaults()
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "20"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "90")
    server.set_defaults()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "90", "whoever sets it knows better"
