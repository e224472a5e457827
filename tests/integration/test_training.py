"""Training as a real process on a real S3 server: killed, and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import mlflow
import pytest

from pipelines import storage
from pipelines.artifacts import load_hybrid
from tests import tiny

SMALL = [
    "--model.vocab-size", "300", "--model.hidden-size", "32", "--model.embedding-size", "16",
    "--model.attention-size", "16", "--train.epochs", "6", "--train.batch-size", "16",
    "--train.validate-samples", "8", "--train.metric", "loss",
]  # fmt: skip


@pytest.mark.timeout(400)
def test_a_killed_run_started_again_goes_on_in_the_same_mlflow_run(s3: str, tmp_path: Path, ray_cluster: str) -> None:
    tiny.write_pairs(f"{s3}/data/train", rows=320, seed=1)
    tiny.write_pairs(f"{s3}/data/val", rows=24, seed=2)
    argv = ["train", "translator-demo", "--data", f"{s3}/data", "--storage", f"{s3}/lake", "--name", "tiny", *SMALL]
    env = {"RAY_ADDRESS": ray_cluster}
    run = f"{s3}/lake/runs/tiny"

    said = tmp_path / "stderr.txt"
    with said.open("wb") as stderr:
        process = subprocess.Popen(
            tiny.command(*argv), cwd=tmp_path, env=tiny.environment(tmp_path, **env),
            stdout=subprocess.DEVNULL, stderr=stderr,
        )  # fmt: skip
    deadline = time.monotonic() + 150
    while not storage.list_files(f"{run}/checkpoint_epoch_0002") and time.monotonic() < deadline:
        assert process.poll() is None, f"ended before it could be killed: {said.read_text()[-2000:]}"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not storage.exists(f"{run}/artifact"), "trained to the end before it was killed"
    mlflow_run = json.loads(storage.read_text(f"{run}/run.json"))["mlflow_run_id"]

    again = tiny.hybrid(*argv, cwd=tmp_path, env=env)
    assert again.code == 0, again.stderr
    summary = again.summary
    assert (summary["epochs"], summary["steps"], summary["mlflow_run_id"]) == (6, 120, mlflow_run)

    history = [json.loads(line) for line in storage.read_text(f"{run}/history.jsonl").splitlines()]
    assert [entry["step"] for entry in history if "loss" in entry] == list(range(10, 121, 10))
    assert [entry["step"] for entry in history if "val_loss" in entry] == list(range(20, 121, 20))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for metric, steps in (("loss", range(10, 121, 10)), ("val_loss", range(20, 121, 20))):
        points = client.get_metric_history(mlflow_run, metric)
        assert sorted(point.step for point in points) == list(steps), f"{metric}: a step is repeated or missing"
    assert len(client.search_runs([client.get_run(mlflow_run).info.experiment_id])) == 1
    assert client.get_run(mlflow_run).info.status == "FINISHED"
    assert str(client.get_model_version_by_alias("translator", "challenger").version) == "1"

    assert load_hybrid(f"{run}/artifact").translate(["der Hund"]), "the artifact predicts"
