"""Work for a cluster that has no GPU until somebody asks for one: nodes come, compute, and go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
import torch

from pipelines.cluster.resources import Compute
from pipelines.nights import query
from pipelines.staging.actors import Predictor
from tests import tiny
from tests.servers import GrowingRay

DRIVER = """
from pipelines.staging import actors
from tests.integration.test_autoscaling import OnAllNodes
actors.Predictor = OnAllNodes
from jobs.command import cli
cli.main()
"""


class OnAllNodes(Predictor):
    """Computes on a CPU of a node that only says that it has a GPU; slowly, until there are as many of these as are
    wanted: Ray asks for more when it has seen that nothing else takes longer."""

    def __init__(self, inference: Any, compute: Compute, *more: Any) -> None:
        assert compute.gpu
        super().__init__(inference, replace(compute, gpu=False), *more)
        context = ray.get_runtime_context()
        (gpu,) = context.get_accelerator_ids()["GPU"]
        self._seen, wanted = Path(context.get_temp_dir(), "seen"), Path(context.get_temp_dir(), "wanted")
        self._wanted = int(wanted.read_text())
        self._seen.mkdir(exist_ok=True)
        (self._seen / context.get_node_id()).write_text(gpu)

    def __call__(self, samples: pa.Table) -> pa.Table:
        until = time.monotonic() + 5
        while len(list(self._seen.iterdir())) < self._wanted and time.monotonic() < until:
            time.sleep(0.2)
        return super().__call__(samples)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[GrowingRay]:
    head = GrowingRay(tmp_path / "ray", {"CPU": 2, "GPU": 1, "object_store_memory": 256 << 20}, most=2)
    try:
        yield head.start()
    finally:
        head.kill()


@pytest.mark.parametrize("most", [1, pytest.param(2, marks=pytest.mark.long)])
def test_nodes_come_for_a_night_that_asks_for_gpus_and_go_after_it(
    cluster: GrowingRay, tmp_path: Path, most: int
) -> None:
    Path(cluster.scratch, "wanted").write_text(str(most))
    tiny.write_sentences(str(tmp_path / "in"), shards=40, rows=7)
    tiny.write_translator(str(tmp_path / "model"))
    command = [
        "infer", "translations", "--input", f"{tmp_path}/in", "--tables", f"{tmp_path}/tables", "--ds", "2026-01-31",
        "--model", f"{tmp_path}/model", "--mlflow", f"sqlite:///{tmp_path}/mlflow.db",
        "--resources.gpu", "yes", "--resources.max-actors", str(most),
    ]  # fmt: skip
    env = {**os.environ, "RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"}
    words = [sys.executable, "-c", DRIVER, *command]
    night = subprocess.run(words, cwd=tiny.ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert night.returncode == 0, night.stderr[-3000:]
    summary = json.loads(night.stdout.splitlines()[-1])
    assert (summary["rows"], summary["ok"], summary["rows_computed"]) == (280, 280, 280)
    assert "waits for a GPU: the cluster has none now" in night.stderr
    seen = {path.name: path.read_text() for path in Path(cluster.scratch, "seen").iterdir()}
    assert list(seen.values()) == ["0"] * most, "a process on each node"
    found = query.query(
        "SELECT count(DISTINCT (shard, index)) AS n FROM translations", f"{tmp_path}/tables", ["translations"]
    )
    assert found.to_pylist() == [{"n": 280}]
    wait_until_they_go(cluster)


TRAINING = """
import functools
from pipelines.training import driver
from ray.train.torch import TorchConfig
from tests.integration.test_autoscaling import on_a_cpu
driver.ScalingConfig = functools.partial(driver.ScalingConfig, elastic_resize_monitor_interval_s=3)
driver.TorchTrainer = functools.partial(driver.TorchTrainer, torch_config=TorchConfig(backend="gloo"))
driver.train_worker = on_a_cpu
from jobs.command import cli
cli.main()
"""


def on_a_cpu(task: Any) -> None:
    """Trains on a CPU of a node that only says that it has a GPU; notes how many do."""
    from torch.nn.parallel import DistributedDataParallel

    from pipelines.training import checkpoints, loop, workers

    def prepare_model(model: torch.nn.Module, **options: Any) -> torch.nn.Module:
        wraps = workers.world_size() > 1
        return DistributedDataParallel(model, **options.get("parallel_strategy_kwargs", {})) if wraps else model

    for module in (checkpoints, loop, workers):
        module.get_device = lambda: torch.device("cpu")  # type: ignore[attr-defined]
    loop.prepare_model = prepare_model  # type: ignore[assignment]
    with Path(ray.get_runtime_context().get_temp_dir(), "worlds").open("a") as noted:
        noted.write(f"{workers.world_size()}\n")
    loop.train_worker(task)


@pytest.mark.long
def test_nodes_come_for_an_elastic_training_where_there_is_none(cluster: GrowingRay, tmp_path: Path) -> None:
    """One to prepare samples on, and, once it trains, a second one; both go in the end."""
    for split, rows in (("train", 200), ("val", 16)):
        tiny.write_pairs(str(tmp_path / "pairs" / split), rows=rows, seed=rows)
    command = [
        "train", "translator-demo", "--data", f"{tmp_path}/pairs", "--storage", f"{tmp_path}/lake", "--name", "z",
        "--mlflow", f"sqlite:///{tmp_path}/mlflow.db", "--num-workers", "1..2", "--gpu", "yes",
        "--checkpoint-minutes", "0.05", "--model.vocab-size", "300", "--model.hidden-size", "32",
        "--model.embedding-size", "16", "--model.attention-size", "16", "--train.epochs", "20",
        "--train.batch-size", "8", "--train.metric", "loss", "--train.validate-samples", "0", "--pictures", "0",
    ]  # fmt: skip
    env = {**os.environ, "RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"}
    words = [sys.executable, "-c", TRAINING, *command]
    training = subprocess.run(words, cwd=tiny.ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert training.returncode == 0, training.stderr[-3000:]
    assert "no node has CPUs: waiting for an autoscaler to bring one with a GPU" in training.stderr
    worlds = Path(cluster.scratch, "worlds").read_text().split()
    assert worlds[-2:] == ["2", "2"], "it grew"
    history = [json.loads(line) for line in (tmp_path / "lake/runs/z/history.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in history if "val_loss" in line] == list(range(1, 21))
    wait_until_they_go(cluster)


def wait_until_they_go(cluster: GrowingRay) -> None:
    until = time.monotonic() + 120
    while cluster.nodes():
        assert time.monotonic() < until, "they cost money"
        time.sleep(0.5)
