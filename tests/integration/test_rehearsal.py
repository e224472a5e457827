"""A rehearsal: a cluster of three hosts with addresses of their own, a training and a night by the Jobs API, and a host
that is cut off in the middle of the night and comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import s3fs
from deltalake import DeltaTable

from pipelines.cluster import connection
from tests import network, tiny
from tests.network import Network
from tests.servers import BUCKET, SECRET_KEY, MlflowServer, RayNode, S3Server

TOKEN = "a-token-of-at-least-32-characters-for-a-rehearsal"
LAKE = f"s3://{BUCKET}/rehearsal"
DS = "2026-01-31"
SHARDS, ROWS = 10, 60
SLOW = [
    "--decoding.beam-size", "8", "--decoding.min-length", "40", "--decoding.max-length", "40",
    "--decoding.max-length-extra", "40",
]  # fmt: skip
"""So that the night is not over before somebody is cut off."""
CUT_SECONDS = 12.0
# A cluster that notices within seconds that a host is gone.
NOTICE = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000",
          "RAY_health_check_failure_threshold": "3"}  # fmt: skip
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(network.why_not()), reason=network.why_not() or "-"),
]


@dataclass
class Rehearsal:
    """The hosts and servers.

    Args:
        net: the network; `head`, `first` and `second` are its hosts.
        folder: for everything.
        head: takes jobs, runs none of their work.
        env: of who submits jobs.
        nodes: how hosts are started, with their token and settings.
    """

    net: Network
    folder: Path
    head: RayNode
    env: dict[str, str]
    nodes: dict[str, str]

    def join(self, host: str) -> RayNode:
        """One more node on this host."""
        number = len(list(self.folder.glob("node-*")))
        place = {"host": self.net.hosts[host], "namespace": self.net.namespace(host), "scratch": self.head.scratch}
        return RayNode(self.folder / f"node-{number}", 1, self.head.address, **place).start(env=self.nodes)

    def submit(self, *argv: str) -> subprocess.Popen[str]:
        """`hybrid submit`, started."""
        return subprocess.Popen(
            tiny.command("submit", "--address", self.head.dashboard, *argv), cwd=self.folder, env=self.env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def alive(self) -> set[str]:
        """Addresses of the cluster's living nodes, as its dashboard knows them."""
        nodes = self.ask("/api/v0/nodes")["data"]["result"]["result"]
        return {node["node_ip"] for node in nodes if node["state"] == "ALIVE"}

    def ask(self, path: str) -> Any:
        """What the dashboard says."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return requests.get(f"{self.head.dashboard}{path}", headers=headers, timeout=20).json()


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    folder = tmp_path_factory.mktemp("rehearsal")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        net = stack.enter_context(network.running(["head", "first", "second"]))
        store = S3Server(folder / "store", net.gateway).start()
        stack.callback(store.kill)
        mlflow = MlflowServer(folder / "mlflow", net.gateway).start()
        stack.callback(mlflow.kill)
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        nodes = {**os.environ, **connection.LOCAL_CLUSTER, **NOTICE, **token, "RAY_worker_niceness": "0", "PATH": path}
        for name in store.env():
            nodes.pop(name, None)  # settings come with the jobs
        nodes |= {name: store.env()[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}  # keys do not
        place = {"host": net.hosts["head"], "namespace": net.namespace("head")}
        head = RayNode(folder / "head", 0, dashboard=True, **place).start(env=nodes)
        stack.callback(head.kill)
        settings = {**store.env(), "MLFLOW_TRACKING_URI": mlflow.uri}
        for name, value in settings.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        stack.callback(s3fs.S3FileSystem.clear_instance_cache)
        made = Rehearsal(
            net, folder, head, {**tiny.environment(folder), **settings, **token, "HYBRID_LOG_FORMAT": "json"}, nodes
        )
        for host in ("first", "second"):
            stack.callback(made.join(host).kill)
        yield made


def ended(job: subprocess.Popen[str]) -> dict:
    """The summary of a job that must end well, without telling its secrets."""
    stdout, stderr = job.communicate(timeout=900)
    assert SECRET_KEY not in stdout + stderr
    assert TOKEN not in stdout + stderr
    assert job.returncode == 0, stderr[-3000:]
    assert "Traceback" not in stderr, stderr[-6000:]
    said = [json.loads(line) for line in stderr.splitlines() if line.startswith('{"time"')]
    assert {entry["level"] for entry in said} == {"INFO"}, said
    return dict(json.loads(stdout.splitlines()[-1]))


def refuses(rehearsal: Rehearsal, token: str, what: str) -> None:
    env = {**rehearsal.env, "RAY_AUTH_MODE": "token" if token else "disabled", "RAY_AUTH_TOKEN": token}
    refused = tiny.hybrid("submit", "--address", rehearsal.head.dashboard, "--", "tidy", cwd=rehearsal.folder, env=env)
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"hybrid: the Ray cluster at {rehearsal.head.dashboard} {what}: set RAY_AUTH")


def test_a_training_and_a_night_of_a_cluster_that_loses_a_host_for_a_while(rehearsal: Rehearsal) -> None:
    tiny.write_pairs(f"{LAKE}/pairs/train", rows=64, seed=1)
    tiny.write_pairs(f"{LAKE}/pairs/val", rows=8, seed=2)
    tiny.write_sentences(f"{LAKE}/in/ds={DS}", shards=SHARDS, rows=ROWS)
    training = [
        "train", "translator-demo", "--data", f"{LAKE}/pairs", "--storage", LAKE, "--train.epochs", "1",
        "--model.vocab-size", "300", "--model.hidden-size", "32", "--pictures", "0", *SLOW,
    ]  # fmt: skip
    trained = ended(rehearsal.submit("--", *training))
    assert trained["model"] == "models:/translator/1"
    for wrong_token, what in (("", "wants a token"), (TOKEN[::-1], "does not know this token")):
        refuses(rehearsal, wrong_token, what)
    promoted = tiny.hybrid("promote", "translator", "--force", "a rehearsal", cwd=rehearsal.folder, env=rehearsal.env)
    assert promoted.summary["champion"] == "models:/translator/1"

    night = [
        "nightly", "translations", "--input", f"{LAKE}/in/ds={{ds}}/*", "--tables", f"{LAKE}/tables", "--ds", DS,
        "--no-report",
    ]  # fmt: skip
    name = f"night-{DS}"
    mistaken = rehearsal.submit("--submission-id", name, "--", *night, "--model", f"{LAKE}/none")
    _, said = mistaken.communicate(timeout=600)
    assert mistaken.returncode == 2, "the job's own exit code"
    wrong = f"hybrid: job {name} failed: no model at {LAKE}/none: there is no config.json"
    assert said.splitlines()[-1].startswith(wrong)

    job = rehearsal.submit("--submission-id", name, "--", *night)
    staged = f"{LAKE}/tables/translations/ds={DS}".removeprefix("s3://")
    fs = s3fs.S3FileSystem()
    deadline = time.monotonic() + 120
    while not fs.find(staged) and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.1)
        fs.invalidate_cache()
    files = len(fs.find(staged))
    assert 0 < files < SHARDS, "cut off in the middle"
    rehearsal.net.cut("first")
    time.sleep(CUT_SECONDS)
    assert rehearsal.alive() == {rehearsal.net.hosts[host] for host in ("head", "second")}
    rehearsal.net.mend("first")
    back = rehearsal.join("first")
    try:
        first = ended(job)
        assert first["submission_id"] == f"{name}.2", "what has failed is started again"
        (done,) = first["nights"]
        assert (done["rows"], done["ok"], done["model"]) == (SHARDS * ROWS, SHARDS * ROWS, "models:/translator/1")
        assert rehearsal.alive() == set(rehearsal.net.hosts.values()), back.log.read_text()[-3000:]

        table = DeltaTable(f"{LAKE}/tables/translations")
        rows = table.to_pyarrow_table(columns=["shard", "index", "status", "run_id"]).to_pylist()
        assert Counter((row["shard"], row["index"]) for row in rows) == Counter(
            (f"{LAKE}/in/ds={DS}/part-{shard:05d}.txt", index) for shard in range(SHARDS) for index in range(ROWS)
        ), "every row once"
        assert {row["run_id"] for row in rows} == {done["mlflow_run_id"]}
        assert table.version() == done["version"] == 1, "committed exactly once"

        assert ended(rehearsal.submit("--submission-id", name, "--", *night)) == first, "what is done is not"
        assert {job["submission_id"] for job in rehearsal.ask("/api/jobs/")} >= {name, f"{name}.2"}
        assert f"{name}.3" not in {job["submission_id"] for job in rehearsal.ask("/api/jobs/")}
    finally:
        back.kill()
