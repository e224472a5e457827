"""The world that a night is run in: a store behind a proxy, MLflow, a cluster of three nodes, and who can be killed."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from pipelines import cluster
from tests import tiny
from tests.chaos.proxy import Proxy
from tests.servers import MlflowServer, S3Server

MEMORY = 256 << 20
"""Bytes of each node's object store."""
DOWN_SECONDS = (0.5, 6.0)
"""How long a killed server stays away, and a killed node until another joins."""


@dataclass
class World:
    """Real servers on this machine.

    Args:
        folder: where jobs run, and the servers keep their data.
        store: the S3 server.
        proxy: what jobs take for the S3 server.
        mlflow: the tracking server.
        nodes: a Ray head without CPUs and two nodes of one CPU each.
    """

    folder: Path
    store: S3Server
    proxy: Proxy
    mlflow: MlflowServer
    nodes: Cluster
    workers: list[Any] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        """The environment of a job."""
        settings = {"RAY_ADDRESS": self.nodes.address, "MLFLOW_TRACKING_URI": self.mlflow.uri}
        return {**tiny.environment(self.folder), **self.store.env(self.proxy.endpoint), **settings}

    def add_worker(self) -> None:
        """One more node."""
        with behind(self.proxy):
            self.workers.append(self.nodes.add_node(num_cpus=1, object_store_memory=MEMORY))

    def replace_worker(self, number: int, away: float) -> None:
        """Kills a node's raylet and, after a while, adds another node."""
        node = self.workers.pop(number)
        self.nodes.remove_node(node, allow_graceful=False)
        time.sleep(away)
        self.add_worker()

    def processes(self, name: str) -> list[psutil.Process]:
        """The cluster's own processes that have `name` in their command."""
        raylets = [node.all_processes["raylet"][0].process.pid for node in self.nodes.list_all_nodes()]
        found = []
        for raylet in raylets:
            try:
                found += [p for p in psutil.Process(raylet).children(recursive=True) if name in " ".join(p.cmdline())]
            except psutil.Error:  # it has ended meanwhile
                continue
        return found


@contextmanager
def behind(proxy: Proxy) -> Iterator[None]:
    """What is started here takes the proxy for the store; Ray's workers inherit it from their node."""
    before = os.environ["AWS_ENDPOINT_URL"]
    os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
    try:
        yield
    finally:
        os.environ["AWS_ENDPOINT_URL"] = before


@contextmanager
def running(folder: Path) -> Iterator[World]:
    """A world, from the first server to the last; this process's own S3 variables lead past the proxy."""
    store = S3Server(folder / "store").start()
    mlflow = MlflowServer(folder / "mlflow").start()
    proxy = Proxy(store.endpoint)
    os.environ.update({**store.env(), **cluster.LOCAL_CLUSTER, "RAY_worker_niceness": "0"})
    with behind(proxy):
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": MEMORY})
    world = World(folder, store, proxy, mlflow, nodes)
    try:
        world.add_worker()
        world.add_worker()
        yield world
    finally:
        nodes.shutdown()
        proxy.stop()
        mlflow.kill()
        store.kill()


# ---- victims -----------------------------------------------------------------------------------------------------
Job = subprocess.Popen
Victim = Callable[[World, Job, random.Random], bool]
"""Dies now; False if there is nobody to kill. May take as long as the victim is away."""


def _driver(world: World, job: Job, rng: random.Random) -> bool:
    if job.poll() is not None:
        return False
    job.kill()
    return True


def _one_of(name: str) -> Victim:
    def kill(world: World, job: Job, rng: random.Random) -> bool:
        deadline = time.monotonic() + 5  # it may be about to start
        while not (found := world.processes(name)) and time.monotonic() < deadline and job.poll() is None:
            time.sleep(0.02)
        if found:
            rng.choice(found).kill()
        return bool(found)

    return kill


def _raylet(world: World, job: Job, rng: random.Random) -> bool:
    world.replace_worker(rng.randrange(len(world.workers)), rng.uniform(*DOWN_SECONDS))
    return True


def _store(world: World, job: Job, rng: random.Random) -> bool:
    world.store.kill()
    time.sleep(rng.uniform(*DOWN_SECONDS))
    world.store.start()
    return True


def _mlflow(world: World, job: Job, rng: random.Random) -> bool:
    world.mlflow.kill()
    time.sleep(rng.uniform(*DOWN_SECONDS))
    world.mlflow.start()
    return True


VICTIMS: Mapping[str, Victim] = {
    "driver": _driver,
    "predictor": _one_of("Predictor"),
    "decoder": _one_of("pipelines.guard"),
    "raylet": _raylet,
    "S3": _store,
    "MLflow": _mlflow,
}
