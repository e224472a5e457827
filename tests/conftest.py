"""Servers and clusters that the tests share: one real S3 server and one Ray cluster for a whole run."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.servers import BUCKET, S3Server

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as in connection.SHARED_CORES; both are read when torch is loaded
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def pytest_configure(config: pytest.Config) -> None:
    """Tests are of CPUs, and their nodes' GPUs are made up, but for those of `make test-gpu`."""
    if not re.match(r"gpu\b", config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running S3 store; the standard variables of this process point to it."""
    server = S3Server(tmp_path_factory.mktemp("s3")).start()
    before = {name: os.environ.get(name) for name in server.env()}
    os.environ.update(server.env())
    yield server
    server.kill()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value


@pytest.fixture
def s3(s3_server: S3Server, request: pytest.FixtureRequest) -> str:
    """URI of a prefix of this test's own on the S3 store."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.nodeid)[-80:].strip("-")
    return f"s3://{BUCKET}/{name}"


@pytest.fixture
def with_keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Mapping[str, str]], None]]:
    """Lets this process reach the S3 store by other keys."""
    import s3fs

    def change(keys: Mapping[str, str]) -> None:
        for name, value in keys.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()

    yield change
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def ray_cluster(s3_server: S3Server) -> Iterator[str]:
    """A running Ray cluster whose workers reach the S3 store; yields its address.

    One CPU: two processes of tests share two cores, and a model process more costs a small night most of its time.
    """
    import ray

    from pipelines.cluster import connection

    # Ray's workers are as nice as the tests' own processes, which would starve them otherwise.
    os.environ.update({**connection.LOCAL_CLUSTER, "RAY_worker_niceness": "0"})
    context = ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": connection.worker_env()},
    )
    connection.configure_data()
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture
def retried(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What the metric of retries is told, by where."""
    from pipelines.cluster import counters

    told = Counter[str]()
    monkeypatch.setattr(counters, "count_retries", lambda where, number=1: told.update({where: number}))
    return told


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URI of a folder of this test's own, on a disk and on the S3 store."""
    return str(tmp_path) if request.param == "local" else str(request.getfixturevalue("s3"))


@pytest.fixture
def tracking_uri(tmp_path: Path) -> str:
    """An MLflow of this test's own."""
    return f"sqlite:///{tmp_path / 'mlflow.db'}"
