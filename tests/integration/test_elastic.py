"""A training on a cluster of which a node goes, and another one comes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hybrid_models.inputs import Sample
from hybrid_models.translator.translator import Translator
from pipelines.cluster import connection
from pipelines.staging.prepared import PreparedSamples
from pipelines.training import loop
from pipelines.training.runs import TrainTask
from tests import tiny
from tests.servers import RayNode

DRIVER = """
import functools
from pipelines.training import driver
from tests.integration.test_elastic import watched_worker
driver.train_worker = watched_worker
driver.ScalingConfig = functools.partial(driver.ScalingConfig, elastic_resize_monitor_interval_s=3)
from jobs.command import cli
cli.main()
"""
STEPS, EPOCHS, BATCH = 60, 2, 8
NOTES, HURRY = "ELASTIC_NOTES", "hurry"


def watched_worker(task: TrainTask) -> None:
    """A worker that notes which samples each of its batches has, and takes its time until it is told to hurry."""
    notes = Path(os.environ[NOTES])
    context = loop.ray_train.get_context()
    rank, together = context.get_world_rank(), context.get_world_size()
    lines = (notes / f"{time.time_ns()}-{rank}.jsonl").open("a", buffering=1)
    train_epoch, backward = loop.train_epoch, loop.backward
    collate, getitem = Translator.collate, PreparedSamples.__getitem__

    def numbered(self: PreparedSamples, index: int) -> Sample:
        return {**getitem(self, index), "number": np.asarray(index)}

    def with_numbers(self: Translator, members: Any, rng: Any = None) -> dict[str, torch.Tensor]:
        return {**collate(self, members, rng), "number": torch.tensor([int(sample["number"]) for sample in members])}

    def begun(*args: Any) -> None:
        group = os.environ["MASTER_PORT"]  # where its workers meet
        place = {"group": group, "together": together, "epoch": args[4].epoch, "step": args[4].step}
        lines.write(json.dumps(place) + "\n")
        train_epoch(*args)

    def noting(model: Any, batch: Any, *args: Any, **options: Any) -> torch.Tensor:
        if not (notes / HURRY).exists():
            time.sleep(1.0)
        share = backward(model, batch, *args, **options)
        lines.write(json.dumps(batch["number"].tolist()) + "\n")
        return share

    loop.train_epoch, loop.backward = begun, noting
    Translator.collate, PreparedSamples.__getitem__ = with_numbers, numbered  # type: ignore[method-assign]
    loop.train_worker(task)


@dataclass(frozen=True)
class Part:
    """What a worker has seen of an epoch: the samples of its batches, from a step on."""

    group: str
    together: int
    epoch: int
    step: int
    batches: list[list[int]] = field(default_factory=list)


def seen(notes: Path) -> list[Part]:
    """What the workers have noted, by the time when they began."""
    found: list[Part] = []
    for path in sorted(notes.glob("*.jsonl")):
        for line in filter(lambda line: line.endswith("\n"), path.read_text().splitlines(keepends=True)):
            noted = json.loads(line)
            if isinstance(noted, dict):
                found.append(Part(**noted))
            else:
                found[-1].batches.append(noted)
    return found


def wait_for(workers: int, notes: Path, job: subprocess.Popen[str], seconds: float = 400) -> None:
    """Until the newest group is of so many workers and a step beyond its first checkpoint."""
    deadline = time.monotonic() + seconds
    while not any(part.together == workers and len(part.batches) > 12 for part in seen(notes)[-workers:]):
        assert job.poll() is None, "it has ended"
        assert time.monotonic() < deadline, f"there are not {workers} workers"
        time.sleep(0.2)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[RayNode]]:
    """A head that computes nothing, and two nodes of one CPU."""
    settings = {**connection.LOCAL_CLUSTER, "RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled"}
    env = {**os.environ, **settings, NOTES: str(tmp_path / "notes")}
    (tmp_path / "notes").mkdir()
    head = RayNode(tmp_path / "head", 0).start(env=env)
    cluster = [head]
    try:
        for number in (1, 2):
            cluster.append(RayNode(tmp_path / f"node-{number}", 1, head.address).start(env=env))
        yield cluster
    finally:
        for node in reversed(cluster):
            node.kill()


@pytest.mark.long
def test_a_training_goes_on_with_fewer_workers_and_with_more_again(nodes: list[RayNode], tmp_path: Path) -> None:
    """Two, one, two, three: each sample is in one step of an epoch, and no step is missing. To go from two to three Ray
    parts workers that are in the middle of a step."""
    notes = tmp_path / "notes"
    tiny.write_pairs(str(tmp_path / "pairs/train"), rows=STEPS * BATCH, seed=1)
    tiny.write_pairs(str(tmp_path / "pairs/val"), rows=16, seed=2)
    command = [
        "train", "translator-demo", "--data", f"{tmp_path}/pairs", "--storage", f"{tmp_path}/lake", "--name", "elastic",
        "--mlflow", f"sqlite:///{tmp_path}/mlflow.db", "--num-workers", "1..3", "--checkpoint-minutes", "0.001",
        "--model.vocab-size", "300", "--model.hidden-size", "32", "--model.embedding-size", "16",
        "--model.attention-size", "16", "--train.epochs", str(EPOCHS), "--train.batch-size", str(BATCH),
        "--train.metric", "loss", "--train.validate-samples", "0", "--pictures", "0",
    ]  # fmt: skip
    env = {**os.environ, "RAY_ADDRESS": nodes[0].address, "RAY_AUTH_MODE": "disabled", NOTES: str(notes)}
    words = [sys.executable, "-c", DRIVER, *command]
    log = tmp_path / "stderr"
    with (
        log.open("w") as errors,
        subprocess.Popen(words, cwd=tiny.ROOT, env=env, stdout=subprocess.PIPE, stderr=errors, text=True) as job,
    ):
        try:
            wait_for(2, notes, job)
            nodes.pop().kill()
            wait_for(1, notes, job)
            for number in (3, 4):
                node = RayNode(tmp_path / f"node-{number}", 1, nodes[0].address)
                nodes.append(node.start(env={**env, **connection.LOCAL_CLUSTER, "RAY_worker_niceness": "0"}))
                wait_for(number - 1, notes, job)
            (notes / HURRY).touch()
            stdout, _ = job.communicate(timeout=400)
        finally:
            job.kill()
    assert job.returncode == 0, log.read_text()[-3000:]
    assert json.loads(stdout.splitlines()[-1])["steps"] == STEPS * EPOCHS
    parts = seen(notes)
    workers = [part.together for part in parts]
    assert (workers[0], 1 in workers, workers[-1]) == (2, True, 3)
    assert any(part.step % STEPS for part in parts), "some group went on within an epoch"
    check_samples(parts)
    entries = [json.loads(line) for line in (tmp_path / "lake/runs/elastic/history.jsonl").read_text().splitlines()]
    logged = [entry["step"] for entry in entries if "loss" in entry]
    assert logged == list(range(10, STEPS * EPOCHS + 1, 10)), "no step is repeated or missing"


def check_samples(parts: list[Part]) -> None:
    """Each step saw the same samples in whatever group, and each sample was in one step of an epoch."""
    steps: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for part in parts:
        for number, own in enumerate(part.batches, part.step):
            steps[number][part.group] += own
    wholes = {}
    for number, groups in steps.items():
        (wholes[number],) = {tuple(sorted(batch)) for batch in groups.values() if len(batch) == BATCH}
    assert sorted(wholes) == list(range(STEPS * EPOCHS))
    for first in range(0, STEPS * EPOCHS, STEPS):
        samples = [sample for number in range(first, first + STEPS) for sample in wholes[number]]
        assert sorted(samples) == list(range(STEPS * BATCH))
