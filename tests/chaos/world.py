"""The world that a night is run in: a store behind a proxy, MLflow, a cluster of three nodes, and who can be killed."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import s3fs

from pipelines.cluster import connection
from tests import tiny
from tests.chaos.proxy import Proxy
from tests.servers import MlflowServer, RayNode, S3Server

WORKERS = 2
DOWN_SECONDS = (0.5, 6.0)
"""How long a killed server stays away, and a killed node until another joins."""


@dataclass
class World:
    """Real servers on this machine.

    Args:
        folder: where jobs run, and the servers keep their data.
        store: the S3 server.
        proxy: what jobs and Ray's workers take for the S3 server.
        mlflow: the tracking server.
        head: a Ray node without CPUs.
        workers: Ray nodes of one CPU each.
    """

    folder: Path
    store: S3Server
    proxy: Proxy
    mlflow: MlflowServer
    head: RayNode
    workers: list[RayNode] = field(default_factory=list)
    coming: threading.Lock = field(default_factory=threading.Lock)
    """Held while a node joins: two at once would name themselves alike."""

    @property
    def env(self) -> dict[str, str]:
        """The environment of a job."""
        settings = {
            "RAY_ADDRESS": self.head.address,
            "RAY_AUTH_MODE": "disabled",
            "MLFLOW_TRACKING_URI": self.mlflow.uri,
        }
        return {**tiny.environment(self.folder), **self.store.env(self.proxy.endpoint), **settings}

    def add_worker(self) -> None:
        """One more node."""
        with self.coming:
            number = len(list(self.folder.glob("node-*")))
            node = RayNode(self.folder / f"node-{number}", 1, self.head.address)
            self.workers.append(node.start(env=self.env))

    def remove_workers(self) -> None:
        """Nodes that joined beside those of the beginning go."""
        while len(self.workers) > WORKERS:
            self.workers.pop().kill()

    def processes(self, name: str) -> list[psutil.Process]:
        """The cluster's own processes that have `name` in their command."""
        found = []
        for process in (process for node in self.workers for process in node.workers()):
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                if name in " ".join(process.cmdline()):
                    found.append(process)
        return found


@contextmanager
def running(folder: Path) -> Iterator[World]:
    """A world, from the first server to the last; this process's own S3 variables lead past the proxy."""
    before = dict(os.environ)
    with contextlib.ExitStack() as stack:
        stack.callback(s3fs.S3FileSystem.clear_instance_cache)
        stack.callback(lambda: (os.environ.clear(), os.environ.update(before)))
        s3fs.S3FileSystem.clear_instance_cache()
        store = S3Server(folder / "store").start()
        stack.callback(store.kill)
        mlflow = MlflowServer(folder / "mlflow").start()
        stack.callback(mlflow.kill)
        proxy = Proxy(store.endpoint)
        stack.callback(proxy.stop)
        os.environ.update({**store.env(), **connection.LOCAL_CLUSTER, "RAY_worker_niceness": "0"})
        world = World(folder, store, proxy, mlflow, RayNode(folder / "head", 0))
        world.head.start(env=world.env)
        stack.callback(world.head.kill)
        stack.callback(lambda: [node.kill() for node in world.workers])
        for _ in range(WORKERS):
            world.add_worker()
        yield world


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
    world.workers.pop(rng.randrange(len(world.workers))).kill()
    time.sleep(rng.uniform(*DOWN_SECONDS))
    world.add_worker()
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
    "decoder": _one_of("pipelines.reading.sandbox.jail"),
    "raylet": _raylet,
    "S3": _store,
    "MLflow": _mlflow,
}
