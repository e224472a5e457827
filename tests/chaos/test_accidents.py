"""Accidents: nights of the matrix that `make chaos` runs, a store that fails, jobs at once, a training in trouble."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlflow
import pytest

from pipelines import storage
from pipelines.models.artifacts import load_hybrid
from tests.chaos import nights, runner, training, world
from tests.chaos.nights import Task
from tests.chaos.proxy import FAULTS, Faults
from tests.chaos.runner import Accident, Plan, Reference
from tests.chaos.world import World

SEED = 5
pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
TRANSLATIONS = Task("translations")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world.running(tmp_path_factory.mktemp("chaos")) as servers:
        yield servers


@pytest.fixture(scope="module")
def whole(here: World) -> Reference:
    return runner.reference(here, TRANSLATIONS)


def test_a_night_whose_driver_dies_is_right_in_the_end(here: World, whole: Reference) -> None:
    plan = Plan(1, "translations", (Accident("driver", "between files"),), replaces=True)
    outcome = runner.run(here, plan, SEED, whole, actors=1)
    assert (outcome.hit, outcome.problem) == (True, "")
    assert outcome.codes == [-9, 0]
    assert 0 < outcome.computed[-1] < nights.SHARDS + 1, "what was staged is not computed again, the rest is"


def test_a_night_of_clips_and_photographs_as_they_lie_is_right_in_the_end(here: World) -> None:
    whole = runner.reference(here, Task("windows"))
    assert sum(row["start_seconds"] is not None for row in whole.rows) == 6 * 3 + 4
    for number, accident in enumerate([Accident("driver", "between files"), Accident("decoder", "reading")], start=10):
        outcome = runner.run(here, Plan(number, "windows", (accident,), replaces=True), SEED, whole, actors=1)
        assert (outcome.hit, outcome.problem) == (True, ""), accident


def test_a_night_that_loses_a_node_and_then_the_store_is_right_in_the_end(here: World, whole: Reference) -> None:
    plan = Plan(2, "translations", (Accident("raylet", "predicting"), Accident("S3", "before commit")), replaces=True)
    outcome = runner.run(here, plan, SEED, whole)
    assert (outcome.hit, outcome.problem) == (True, "")


def test_a_tenth_of_all_calls_fails_and_the_night_is_right(here: World, whole: Reference) -> None:
    here.proxy.faults = Faults(0.1, SEED)
    try:
        code, _, said = runner.finish(runner.start(here, TRANSLATIONS.argv("faults", actors=1)))
        counts = here.proxy.faults.counts
    finally:
        here.proxy.faults = None
    assert code == 0, said
    assert set(counts) == set(FAULTS), counts
    assert nights.difference(whole.rows, nights.rows(TRANSLATIONS, "faults")) == ""


@dataclass(frozen=True)
class AtOnce:
    """Two jobs for one night and a training, started together, and what a reader saw."""

    jobs: list[tuple[int, dict[str, Any], str]]
    trained: tuple[int, dict[str, Any], str]
    seen: list[str]


@pytest.fixture(scope="module")
def at_once(here: World, whole: Reference) -> AtOnce:
    training.prepare()
    trainer = runner.start(here, training.argv("whole"))
    with runner.reader(TRANSLATIONS, "equal", {len(whole.rows)}, may_fail=False) as seen:
        started = [runner.start(here, TRANSLATIONS.argv("equal", actors=1)) for _ in range(2)]
        jobs = [runner.finish(job) for job in started]
    return AtOnce(jobs, runner.finish(trainer), seen)


def test_of_two_jobs_for_one_night_one_commits_and_a_training_goes_on_beside_them(
    at_once: AtOnce, whole: Reference
) -> None:
    assert [code for code, _, _ in at_once.jobs] == [0, 0], at_once.jobs
    assert sorted(summary["changed"] for _, summary, _ in at_once.jobs) == [False, True]
    assert nights.difference(whole.rows, nights.rows(TRANSLATIONS, "equal")) == ""
    assert at_once.seen == []
    code, summary, said = at_once.trained
    assert code == 0, said
    assert summary["epochs"] == training.EPOCHS


def test_a_training_outlives_its_node_a_minute_without_stores_and_its_driver(here: World, at_once: AtOnce) -> None:
    """It ends, in one MLflow run, as the one that nothing happened to."""
    troubled = runner.start(here, training.argv("troubled"))
    here.proxy.watcher = accidents = training.Accidents(
        {
            2: lambda: training.kill_its_node(here),
            3: lambda: training.stop_the_servers(here),
            5: troubled.kill,
        }
    )
    try:
        code, _, said = runner.finish(troubled, seconds=400)
    finally:
        here.proxy.watcher = None
    assert (code, accidents.left) == (-9, {}), said
    run = json.loads(storage.read_text(f"{training.RUNS}/troubled/run.json"))["mlflow_run_id"]
    assert not storage.exists(f"{training.RUNS}/troubled/artifact"), "trained to the end before it was killed"

    code, summary, said = runner.finish(runner.start(here, training.argv("troubled")))
    assert code == 0, said
    steps = training.STEPS_PER_EPOCH * training.EPOCHS
    assert (summary["epochs"], summary["steps"], summary["mlflow_run_id"]) == (training.EPOCHS, steps, run)
    _, whole, _ = at_once.trained
    weights = [storage.read_bytes(f"{job['artifact']}/{training.WEIGHTS}") for job in (whole, summary)]
    assert weights[0] == weights[1], "bit for bit"
    for metric, every in (("loss", 10), ("val_loss", training.STEPS_PER_EPOCH)):
        curve = training.curve(here, summary, metric)
        assert [step for step, _ in curve] == list(range(every, steps + 1, every)), "a step is repeated or missing"
        assert curve == training.curve(here, whole, metric)
    client = mlflow.MlflowClient(here.mlflow.uri)
    experiment = client.get_run(run).info.experiment_id
    (found,) = client.search_runs([experiment], "attributes.run_name = 'troubled'")
    assert (found.info.run_id, found.info.status) == (run, "FINISHED")
    assert str(client.get_model_version_by_alias("translator", "challenger").version) == "2"
    assert load_hybrid(summary["artifact"]).translate(["der Hund"]), "the artifact predicts"
