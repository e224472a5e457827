from pathlib import Path

import pytest

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.cluster import connection
from pipelines.models import artifacts
from pipelines.models.session import Inference
from pipelines.models.tracking import Tracker
from pipelines.nights import preview
from pipelines.nights.commit import Partition
from pipelines.nights.infer import Night
from pipelines.nights.preview import Pace, pace_before, speed_of
from pipelines.reading.shards import list_shards
from pipelines.staging import checks
from tests import tiny

WHOLE = {"shards": 4, "shards_computed": 4, "input_bytes": 6000, "seconds/stage_wall": 3.0}


@pytest.mark.parametrize(
    ("changes", "speed"),
    [
        ({}, 2000.0),
        ({"shards_computed": 3}, 0.0),  # the bytes of those that were there say nothing of the time
        ({"shards": 0, "shards_computed": 0}, 0.0),
        ({"seconds/stage_wall": 0.0}, 0.0),
    ],
)
def test_the_pace_is_that_of_nights_that_were_computed_as_a_whole(changes: dict[str, float], speed: float) -> None:
    assert speed_of({**WHOLE, **changes}) == speed
    assert speed_of({}) == 0


def ran(uri: str, name: str, tables: str, metrics: dict[str, float], succeeded: bool = True) -> str:
    tracker = Tracker(uri)
    run_id = tracker.start(name, {"tables": tables}, {"hybrid.job": "infer"})
    tracker.log_metrics(metrics)
    tracker.finish(succeeded)
    assert run_id is not None
    return run_id


@pytest.fixture
def night(tmp_path: Path) -> Night:
    tiny.write_sentences(f"{tmp_path}/in", shards=2, rows=3)
    inference = Inference.of(artifacts.read(tiny.write_translator(f"{tmp_path}/model")))
    partition = Partition.of(f"{tmp_path}/o'table", "translations", "2026-01-31")
    return Night(list_shards(f"{tmp_path}/in"), partition, inference)


def test_the_newest_night_of_the_same_table_tells_it(night: Night, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert pace_before(night, uri) is None
    assert not (tmp_path / "mlflow.db").exists(), "it only looked"
    own = night.partition.tables
    ran(uri, "translations 2026-01-28", own, WHOLE)
    newest = ran(uri, "translations 2026-01-29", own, {**WHOLE, "seconds/stage_wall": 2.0})
    for name, tables, metrics, succeeded in (
        ("translations 2026-01-30", own, {**WHOLE, "shards_computed": 0}, True),
        ("translations 2026-01-30", own, WHOLE, False),
        ("translations 2026-01-30", f"{tmp_path}/another", WHOLE, True),
        ("german 2026-01-30", own, WHOLE, True),
    ):
        ran(uri, name, tables, metrics, succeeded)
    assert pace_before(night, uri) == Pace(3000.0, newest)


def test_without_mlflow_the_time_is_not_known(night: Night, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database, and long enough to be taken for one" * 100)
    assert pace_before(night, f"sqlite:///{tmp_path}/mlflow.db") is None
    assert "cannot ask MLflow for earlier nights: " in caplog.text


@pytest.mark.usefixtures("ray_cluster")
def test_what_the_night_would_refuse_is_refused(night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(connection.STARTED_HERE, connection.for_others()["RAY_ADDRESS"])
    with pytest.raises(UsageError, match=r"^`resources\.gpu` is yes, but this machine has no GPU"):
        preview.preview(night, preview.Resources(gpu="yes"), f"sqlite:///{tmp_path}/mlflow.db")


@pytest.mark.usefixtures("ray_cluster")
def test_what_is_there_is_not_computed_and_nothing_is_written(night: Night, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    before = storage.list_all(str(tmp_path))
    seen = preview.preview(night, preview.Resources(), uri)
    sizes = [shard.size for shard in night.shards]
    assert (seen.shards, seen.shards_computed, seen.input_bytes, seen.bytes_computed) == (2, 2, sum(sizes), sum(sizes))
    assert (seen.files_there, seen.rows_there, seen.seconds, seen.pace_of_run) == (0, 0, None, None)
    assert (seen.processes, seen.processes_most, seen.gpu) == (1, 1, False), "so small an input needs one process"
    assert storage.list_all(str(tmp_path)) == before

    run_id = ran(uri, "translations 2026-01-29", night.partition.tables, WHOLE)
    tiny.write_night(night.partition.tables, "2026-01-31", f"{tmp_path}/in", f"{tmp_path}/model")
    with (tmp_path / "in/late.txt").open("w") as late:
        late.write("ein Kind\n" * 500)
    later = Night(list_shards(f"{tmp_path}/in"), night.partition, night.inference)
    seen = preview.preview(later, preview.Resources(), uri)
    assert (seen.shards, seen.shards_computed, seen.rows_there) == (3, 1, 6), "each was staged for itself"
    assert seen.bytes_computed >= 4500
    assert (seen.seconds, seen.pace_of_run) == (round(seen.bytes_computed / 2000, 1), run_id)
    first = min(checks.verify(night.shards, night.folder), key=lambda piece: piece.file.uri)
    storage.delete(first.file.uri)
    partly = preview.preview(night, preview.Resources(), uri)
    assert (partly.shards_computed, partly.files_there, partly.rows_there) == (1, 1, 3)
    tiny.write_night(night.partition.tables, "2026-01-31", f"{tmp_path}/in", f"{tmp_path}/model")
    done = preview.preview(night, preview.Resources(), uri)
    assert (done.shards_computed, done.processes, done.seconds) == (0, None, None)
    assert (done.files_there, done.rows_there) == (2, 6)
