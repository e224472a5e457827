"""A training that is killed midway and then started twice at once under its name."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from pipelines.cluster import connection
from tests import tiny

EPOCHS = 6
SECONDS = 600.0


def argv(folder: Path) -> list[str]:
    return [
        "train", "translator-demo", "--data", f"{folder}/data", "--storage", f"{folder}/lake", "--name", "same",
        "--model.hidden-size", "16", "--model.vocab-size", "300", "--train.batch-size", "16", "--pictures", "0",
        "--train.epochs", str(EPOCHS), "--train.patience", str(EPOCHS), "--mlflow", f"sqlite:///{folder}/mlflow.db",
    ]  # fmt: skip


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_of_two_starts_of_a_killed_training_one_goes_on(tmp_path: Path) -> None:
    """The other ends cleanly, or finds all epochs trained; no epoch is lost or trained twice."""
    for split, seed in (("train", 1), ("val", 2)):
        tiny.write_pairs(f"{tmp_path}/data/{split}", 320 if split == "train" else 16, seed)

    def start() -> subprocess.Popen[str]:
        env = {**tiny.environment(tmp_path), **connection.for_others()}
        return subprocess.Popen(
            tiny.command(*argv(tmp_path)), cwd=tmp_path, env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    run = tmp_path / "lake/runs/same"
    killed = start()
    until = time.monotonic() + SECONDS
    while not (run / "checkpoint_epoch_0001/progress.json").exists():
        assert killed.poll() is None, killed.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.1)
    killed.kill()
    killed.communicate()
    assert not (run / "summary.json").exists(), "it was trained to the end before it was killed"

    both = [start(), start()]
    said = [job.communicate(timeout=SECONDS) for job in both]
    codes = [job.returncode for job in both]
    assert 0 in codes, said
    assert set(codes) <= {0, 2}, said
    for code, (_, err) in zip(codes, said, strict=True):
        assert code == 0 or "run 'same' was started once more meanwhile: that start goes on, this one ends" in err
        assert "Traceback" not in err
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in history if "val_loss" in entry] == list(range(1, EPOCHS + 1))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["epochs"] == EPOCHS
    assert summary["model_version"] == str(codes.count(0)), "each start that ended well has registered the model"
    again = tiny.hybrid_here(*argv(tmp_path), cwd=tmp_path)
    assert (again.code, again.summary) == (0, summary), "and a further start finds it finished"
