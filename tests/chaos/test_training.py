"""A training that loses its node, for a minute its store and MLflow, and then its driver."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest

from pipelines import storage
from pipelines.artifacts import load_hybrid
from tests import tiny
from tests.chaos import runner, world
from tests.chaos.nights import LAKE
from tests.chaos.proxy import Call
from tests.chaos.world import World

EPOCHS, AWAY_SECONDS = 6, 60.0
WEIGHTS = "weights.safetensors"
SMALL = [
    "--model.vocab-size", "300", "--model.hidden-size", "32", "--model.embedding-size", "16",
    "--model.attention-size", "16", "--train.epochs", str(EPOCHS), "--train.batch-size", "16",
    "--train.validate-samples", "8", "--train.metric", "loss",
]  # fmt: skip
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[World]:
    with world.running(tmp_path) as servers:
        yield servers


class Accidents:
    """Calls each function, once, before its epoch's weights are stored."""

    def __init__(self, by_epoch: dict[int, Callable[[], None]]) -> None:
        self.left = by_epoch
        self._lock = threading.Lock()

    def __call__(self, call: Call, when: str) -> None:
        with self._lock:
            found = re.search(rf"checkpoint_epoch_(\d+)/{WEIGHTS}", call.key)
            if found and (call.method, when) == ("PUT", "before"):
                self.left.pop(int(found[1]), lambda: None)()


def kill_the_trainers_node(here: World) -> None:
    (trainer,) = here.processes("RayTrainWorker")
    (node,) = (node for node in here.workers if trainer in node.workers())
    here.workers.remove(node)
    node.kill()
    threading.Thread(target=here.add_worker).start()


def stop_the_servers(here: World) -> None:
    here.store.kill()
    here.mlflow.kill()

    def later() -> None:
        time.sleep(AWAY_SECONDS)
        here.store.start()
        here.mlflow.start()

    threading.Thread(target=later).start()


def curve(here: World, summary: dict, metric: str) -> list[tuple[int, float]]:
    points = mlflow.MlflowClient(here.mlflow.uri).get_metric_history(summary["mlflow_run_id"], metric)
    return sorted((point.step, point.value) for point in points)


def test_a_training_outlives_its_node_a_minute_without_stores_and_its_driver(here: World) -> None:
    """It ends, in one MLflow run, as if nothing had happened."""
    tiny.write_pairs(f"{LAKE}/pairs/train", rows=320, seed=1)
    tiny.write_pairs(f"{LAKE}/pairs/val", rows=24, seed=2)
    argv = ["train", "translator-demo", "--data", f"{LAKE}/pairs", "--storage", f"{LAKE}/trained", *SMALL]
    code, whole, said = runner.finish(runner.start(here, [*argv, "--name", "whole"]))
    assert code == 0, said

    troubled = runner.start(here, [*argv, "--name", "troubled"])
    here.proxy.watcher = accidents = Accidents(
        {2: lambda: kill_the_trainers_node(here), 3: lambda: stop_the_servers(here), 5: troubled.kill}
    )
    code, _, said = runner.finish(troubled)
    assert (code, accidents.left) == (-9, {}), said
    state = json.loads(storage.read_text(f"{LAKE}/trained/runs/troubled/run.json"))
    assert not storage.exists(f"{LAKE}/trained/runs/troubled/artifact"), "trained to the end before it was killed"

    code, summary, said = runner.finish(runner.start(here, [*argv, "--name", "troubled"]))
    assert code == 0, said
    assert (summary["epochs"], summary["steps"], summary["mlflow_run_id"]) == (
        EPOCHS,
        20 * EPOCHS,
        state["mlflow_run_id"],
    )
    weights = [storage.read_bytes(f"{job['artifact']}/{WEIGHTS}") for job in (whole, summary)]
    assert weights[0] == weights[1], "bit for bit"
    for metric, steps in (("loss", range(10, 121, 10)), ("val_loss", range(20, 121, 20))):
        assert [step for step, _ in curve(here, summary, metric)] == list(steps), "a step is repeated or missing"
        assert curve(here, summary, metric) == curve(here, whole, metric)
    client = mlflow.MlflowClient(here.mlflow.uri)
    run = client.get_run(summary["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert len(client.search_runs([run.info.experiment_id])) == 2
    assert str(client.get_model_version_by_alias("translator", "challenger").version) == "2"
    assert load_hybrid(summary["artifact"]).translate(["der Hund"]), "the artifact predicts"
