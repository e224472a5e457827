"""A small training, and what happens to it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

import mlflow

from tests import tiny
from tests.chaos.nights import LAKE
from tests.chaos.proxy import Call
from tests.chaos.world import World

RUNS = f"{LAKE}/trained/runs"
EPOCHS, STEPS_PER_EPOCH = 6, 20
AWAY_SECONDS = 60.0
WEIGHTS = "weights.safetensors"


def prepare() -> None:
    """Makes its data."""
    tiny.write_pairs(f"{LAKE}/pairs/train", rows=16 * STEPS_PER_EPOCH, seed=1)
    tiny.write_pairs(f"{LAKE}/pairs/val", rows=24, seed=2)


def argv(name: str) -> list[str]:
    """The command, for a run of this name."""
    return [
        "train", "translator-demo", "--data", f"{LAKE}/pairs", "--storage", f"{LAKE}/trained", "--name", name,
        "--model.vocab-size", "300", "--model.hidden-size", "32", "--model.embedding-size", "16",
        "--model.attention-size", "16", "--train.epochs", str(EPOCHS), "--train.batch-size", "16",
        "--train.validate-samples", "8", "--train.metric", "loss",
    ]  # fmt: skip


class Accidents:
    """Calls each function, once, before the weights of its epoch are stored.

    Args:
        left: by epoch, what has not happened yet.
    """

    def __init__(self, left: dict[int, Callable[[], None]]) -> None:
        self.left = left
        self._lock = threading.Lock()

    def __call__(self, call: Call, when: str) -> None:
        with self._lock:
            found = re.search(rf"checkpoint_epoch_(\d+)/{WEIGHTS}", call.key)
            if found and (call.method, when) == ("PUT", "before"):
                self.left.pop(int(found[1]), lambda: None)()


def kill_its_node(here: World) -> None:
    """The node on which it computes; another one joins."""
    (trainer,) = here.processes("RayTrainWorker")
    (node,) = (node for node in here.workers if trainer in node.workers())
    here.workers.remove(node)
    node.kill()
    threading.Thread(target=here.add_worker).start()


def stop_the_servers(here: World) -> None:
    """S3 and MLflow are away for a minute."""
    here.store.kill()
    here.mlflow.kill()

    def later() -> None:
        time.sleep(AWAY_SECONDS)
        here.store.start()
        here.mlflow.start()

    threading.Thread(target=later).start()


def curve(here: World, summary: dict, metric: str) -> list[tuple[int, float]]:
    """Steps and values in MLflow."""
    points = mlflow.MlflowClient(here.mlflow.uri).get_metric_history(summary["mlflow_run_id"], metric)
    return sorted((point.step, point.value) for point in points)
