from dataclasses import replace
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
from pipelines.nights.preview import Pace, Preview, pace_before, speed_of, told
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
    assert pace_before(night, 6000, uri) is None
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
    assert pace_before(night, 6000, uri) == Pace(3000.0, newest)
    large = ran(uri, "translations 2026-01-27", own, {**WHOLE, "input_bytes": 900_000})
    for size, pace in (
        (0, None), (599, None), (601, Pace(3000.0, newest)), (59_000, Pace(3000.0, newest)),
        (80_000, None), (100_000, Pace(300_000.0, large)), (8_900_000, Pace(300_000.0, large)), (9_100_000, None),
    ):  # fmt: skip
        assert pace_before(night, size, uri) == pace, "of a small night most of the time is its start"


def test_without_mlflow_the_time_is_not_known(night: Night, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database, and long enough to be taken for one" * 100)
    assert pace_before(night, 6000, f"sqlite:///{tmp_path}/mlflow.db") is None
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
    assert (seen.processes, seen.processes_most, seen.threads) == (1, 1, 1), "so small an input needs one process"
    assert (seen.gpus_each, seen.cpus_each, seen.memory_each) == (0, 0.5, 0)
    assert (seen.units_computed, seen.files_at_least) == (1, 1), "a unit, of which two tasks read a shard each"
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
    storage.delete(first.file.uri, storage.anything)
    partly = preview.preview(night, preview.Resources(), uri)
    assert (partly.shards_computed, partly.files_there, partly.rows_there) == (1, 1, 3)
    assert (partly.units_computed, partly.files_at_least) == (1, 2)
    tiny.write_night(night.partition.tables, "2026-01-31", f"{tmp_path}/in", f"{tmp_path}/model")
    done = preview.preview(night, preview.Resources(), uri)
    assert (done.shards_computed, done.processes, done.seconds) == (0, None, None)
    assert (done.files_there, done.rows_there, done.units_computed, done.files_at_least) == (2, 6, 0, 2)
    assert (done.gpus_each, done.cpus_each, done.memory_each) == (None, None, None)


FORESEEN = Preview(
    "s3://lake/tables/captions", "2026-01-31", shards=3000, shards_computed=1200, units_computed=40,
    input_bytes=3 << 30, bytes_computed=1 << 30, files_there=60, files_at_least=110, rows_there=180_000,
    processes=1, processes_most=4, threads=8, gpus_each=0.5, cpus_each=0, memory_each=0, seconds=700.0,
    pace_of_run="r1",
)  # fmt: skip


def test_it_is_told_to_people() -> None:
    assert told(FORESEEN) == [
        "to compute: 1,200 of 3,000 shards, 1 GiB of 3 GiB, in 40 units; there already: 60 files of 180,000 rows",
        "the night would have 110 files or more, of which it may pack small ones",
        "on 1 process, or up to 4, of 8 threads; each asks for 0.5 GPUs",
        "about 12 min at the pace of the night of run r1; a cluster that starts, packing small files and the commit "
        "are not counted",
    ]
    alone = replace(FORESEEN, processes_most=1, threads=1, gpus_each=0, cpus_each=0.5, memory_each=2 << 30)
    assert told(alone)[2] == "on 1 process of 1 thread; each asks for 0.5 CPUs and 2 GiB"
    assert told(replace(FORESEEN, files_at_least=31))[1] == "the night would have 31 files or more"
    assert told(replace(FORESEEN, seconds=None))[3].startswith("how long is not known: MLflow has no night of this")
    assert told(replace(FORESEEN, shards_computed=0, processes=None)) == [
        "nothing to compute: all is there, in 60 files of 180,000 rows"
    ]
