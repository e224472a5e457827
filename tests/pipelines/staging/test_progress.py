import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from pipelines.cluster import counters
from pipelines.cluster.resources import Resources
from pipelines.models import artifacts
from pipelines.models.session import Inference
from pipelines.reading.samples import SAMPLE_SCHEMA
from pipelines.reading.shards import list_shards
from pipelines.staging import checks, engine, progress
from pipelines.staging.pieces import PASSING
from pipelines.staging.progress import Done, Progress, Work, time_left
from tests import tiny

WORK = Work("captions", [100, 300, 600])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int, int]]:
    """What the metric was told."""
    told: list[tuple[str, int, int, int]] = []
    monkeypatch.setattr(counters, "gauge_tasks", lambda *numbers: told.append(numbers))
    return told


@pytest.mark.parametrize(
    ("done", "share"),
    [
        (Done(0, 0, 0, 0), 0.0),
        (Done(2, 1, 10, 10), 0.1),
        (Done(1, 2, 40, 40), 0.4),
        (Done(1, 2, 40, 10), 0.1),  # three quarters of the rows wait for the model
        (Done(0, 3, 90, 90), 1.0),
        (Done(0, 3, 90, 95), 1.0),  # a task was done twice
        (Done(1, 0, 5, 5), 0.0),
    ],
)
def test_what_is_done_counts_as_far_as_its_rows_have_come(done: Done, share: float) -> None:
    assert done.share(WORK) == pytest.approx(share)
    assert Done(0, 0, 0, 0).share(Work("nothing", [])) == 0


def test_time_left_is_told_at_the_pace_since_the_first_task() -> None:
    assert time_left(None, 50.0, 0.0) == "time left not known yet"
    assert time_left((50.0, 0.1), 50.0, 0.1) == "time left not known yet"
    assert time_left((50.0, 0.1), 80.0, 0.4) == "about 60 s left", "a tenth in ten seconds, whatever came before"
    assert time_left((0.0, 0.0), 600.0, 0.5) == "about 10 min left"
    assert time_left((0.0, 0.0), 3600.0, 0.1) == "about 9.0 h left"


def test_a_ray_data_that_looks_otherwise_stops_no_work(
    counted: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "COUNTED_SECONDS", 0.0)
    told = Progress(WORK)
    for executor in (SimpleNamespace(), SimpleNamespace(_topology=[])):
        told.on_execution_step(executor)
    assert [record.getMessage() for record in caplog.records] == [
        "captions: Ray Data does not tell how far it is: 'types.SimpleNamespace' object has no attribute '_topology'"
    ]
    told.after_execution_fails(None, RuntimeError())
    assert counted == [("captions", 0, 0, 0)]


@pytest.mark.usefixtures("ray_cluster")
def test_a_computation_tells_how_far_it_is(
    tmp_path: Path, counted: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "TOLD_SECONDS", 0.0)
    monkeypatch.setattr(progress, "COUNTED_SECONDS", 0.0)
    tiny.write_sentences(str(tmp_path / "in"), shards=12, rows=5)
    inference = Inference.of(artifacts.read(tiny.write_translator(str(tmp_path / "model"))))
    shards = list_shards(str(tmp_path / "in"))
    schema = pa.schema([field for field in SAMPLE_SCHEMA if field not in PASSING])
    todo = checks.incomplete(shards, str(tmp_path / "staged"))
    with caplog.at_level(logging.INFO):
        engine.stage(
            todo, str(tmp_path / "staged"), schema, inference.decode(), None, Resources(min_actors=2), "features"
        )
    tasks = sum(counted[0][1:])
    assert 1 < tasks <= 12
    *during, last = counted
    assert last == ("features", 0, 0, 0)
    assert {sum(numbers[1:]) for numbers in during} == {tasks}
    finished = [numbers[3] for numbers in during]
    assert finished == sorted(finished)
    assert any(numbers[2] for numbers in during), "some were seen at work"
    lines = [record.getMessage() for record in caplog.records if record.name == progress.__name__]
    assert len(lines) == len(during)
    assert lines[0] == f"features: 0 of {tasks} tasks, 0 rows, time left not known yet"
