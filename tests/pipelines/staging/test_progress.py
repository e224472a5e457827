import io
import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from pipelines.cluster import counters, logs
from pipelines.cluster.resources import Resources
from pipelines.models import artifacts
from pipelines.models.session import Inference
from pipelines.reading.samples import SAMPLE_SCHEMA
from pipelines.reading.shards import Shard, list_shards
from pipelines.reading.units import Part
from pipelines.staging import checks, engine, progress
from pipelines.staging.pieces import PASSING
from pipelines.staging.progress import Done, Progress, Units, Work, seconds_left
from tests import tiny

WORK = Work("captions", sizes=[0, 100, 400, 1000], begun=[0, 2, 2, 3], complete=[0, 1, 2, 3])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int, int]]:
    """What the metric was told."""
    told: list[tuple[str, int, int, int]] = []
    monkeypatch.setattr(counters, "gauge_units", lambda *numbers: told.append(numbers))
    return told


def part(size: int, unit: str) -> Part:
    return Part(Shard(f"s3://lake/{unit}", size, "e"), unit)


def test_units_are_begun_with_their_first_task_and_complete_with_their_last_one() -> None:
    bundles = [[part(30, "a"), part(30, "a"), part(40, "b")], [part(300, "b")], [part(600, "c")]]
    assert Work.of("captions", bundles) == WORK
    assert (WORK.tasks, WORK.units) == (3, 3)


@pytest.mark.parametrize(
    ("done", "share", "units"),
    [
        (Done(0, 0, 0, 0), 0.0, Units(3, 0, 0)),
        (Done(2, 1, 10, 10), 0.1, Units(0, 2, 1)),
        (Done(1, 2, 40, 40), 0.4, Units(0, 1, 2)),
        (Done(1, 2, 40, 10), 0.1, Units(0, 2, 1)),  # three quarters of the rows wait for the model
        (Done(0, 3, 90, 90), 1.0, Units(0, 0, 3)),
        (Done(0, 3, 90, 95), 1.0, Units(0, 0, 3)),  # a task was done twice
        (Done(1, 0, 5, 5), 0.0, Units(1, 2, 0)),
    ],
)
def test_what_is_done_counts_as_far_as_its_rows_have_come(done: Done, share: float, units: Units) -> None:
    assert done.share(WORK) == pytest.approx(share)
    assert done.units(WORK) == units
    nothing = Work.of("nothing", [])
    assert (Done(0, 0, 0, 0).share(nothing), Done(0, 0, 0, 0).units(nothing)) == (0, Units(0, 0, 0))


def test_time_left_is_told_at_the_pace_since_the_first_task() -> None:
    assert seconds_left(None, 50.0, 0.0) is None
    assert seconds_left((50.0, 0.1), 50.0, 0.1) is None
    assert seconds_left((50.0, 0.1), 55.0, 0.1001) is None, "hours, by chance"
    assert seconds_left((50.0, 0.1), 80.0, 0.4) == pytest.approx(60), "a tenth in ten seconds, whatever came before"
    assert seconds_left((0.0, 0.0), 600.0, 0.5) == 600


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A Ray Data that has read two tasks of three, and written half of their rows."""
    monkeypatch.setattr(progress, "LOOKED_SECONDS", 0.0)
    reading = SimpleNamespace(num_tasks_running=1, num_tasks_finished=2, rows_task_outputs_generated=40)
    writing = SimpleNamespace(num_row_inputs_received=20)
    return SimpleNamespace(
        _topology=[SimpleNamespace(input_dependencies=[None], metrics=each) for each in (reading, writing)]
    )


@pytest.mark.usefixtures("counted")
def test_on_a_terminal_a_bar_tells_it_and_lines_of_the_log_come_above_it(
    executor: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    root = logging.RootLogger(logging.WARNING)
    root.addHandler(logging.StreamHandler(terminal))
    monkeypatch.setattr(logging, "root", root)
    monkeypatch.setattr(progress, "TOLD_SECONDS", 0.0)
    told = Progress(WORK)
    told.on_execution_step(executor)
    root.warning("something else")
    told.after_execution_succeeds(executor)
    shown = [re.sub(r"\d\d:\d\d", "00:00", line) for line in re.split(r"[\r\n]+", terminal.getvalue()) if line.strip()]
    bar = "captions  20% |####                | 00:00, 1 of 3 units, 20 rows, time left not known yet"
    assert shown == ["captions   0% |                    | 00:00", bar, "something else", bar]
    assert terminal.getvalue().endswith(" \r"), "nothing of it is left"
    assert root.handlers[0].stream is terminal, "as it was"  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", ["", "json"])
def test_off_a_terminal_and_for_what_collects_logs_there_is_no_bar(
    executor: SimpleNamespace, counted: list[Any], form: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    shown = Terminal() if form else io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv(logs.FORMAT, form)
    monkeypatch.setattr(progress, "TOLD_SECONDS", 0.0)
    told = Progress(WORK)
    with caplog.at_level(logging.INFO, progress.__name__):
        told.on_execution_step(executor)
    told.after_execution_fails(executor, RuntimeError())
    assert shown.getvalue() == ""
    assert counted == [("captions", 0, 2, 1), ("captions", 0, 0, 0)]
    (record,) = caplog.records
    assert record.getMessage() == "captions: 1 of 3 units, 20 rows, time left not known yet"
    fields = {name: getattr(record, name) for name in logs.OWN if hasattr(record, name)}
    assert fields == {"units": 3, "units_done": 1, "rows": 20, "seconds_left": None}


def test_a_ray_data_that_looks_otherwise_stops_no_work(
    counted: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "LOOKED_SECONDS", 0.0)
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
    monkeypatch.setattr(progress, "LOOKED_SECONDS", 0.0)
    tiny.write_sentences(str(tmp_path / "in"), shards=12, rows=5)
    inference = Inference.of(artifacts.read(tiny.write_translator(str(tmp_path / "model"))))
    shards = list_shards(str(tmp_path / "in"))
    schema = pa.schema([field for field in SAMPLE_SCHEMA if field not in PASSING])
    todo = checks.incomplete(shards, str(tmp_path / "staged"))
    with caplog.at_level(logging.INFO):
        engine.stage(
            todo, str(tmp_path / "staged"), schema, inference.decode(), None, Resources(min_actors=2), "features"
        )
    *during, last = counted
    assert last == ("features", 0, 0, 0)
    assert {sum(numbers[1:]) for numbers in during} == {1}, "they are small, and share a unit"
    assert any(numbers[2] for numbers in during), "some were seen at work"
    lines = [record.getMessage() for record in caplog.records if record.name == progress.__name__]
    assert len(lines) == len(during)
    assert lines[0] == "features: 0 of 1 unit, 0 rows, time left not known yet"
