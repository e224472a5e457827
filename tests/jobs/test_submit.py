"""Jobs on a real cluster that wants a token, by the command."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from hybrid_models.errors import UsageError
from jobs.submit import main
from pipelines import cluster
from tests import tiny
from tests.servers import SECRET_KEY, RayNode

TOKEN = "a-token-of-at-least-32-characters-for-tests"
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNode]:
    """A node that takes jobs; `python` is this interpreter there."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    settings = {**cluster.LOCAL_CLUSTER, "RAY_worker_niceness": "0", "PATH": path}
    node = RayNode(tmp_path_factory.mktemp("head"), 1, dashboard=True)
    yield node.start(env={**os.environ, **settings, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN})
    node.kill()


def submit(head: RayNode, cwd: Path, *argv: str, **env: str) -> tiny.Ran:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    return tiny.hybrid("submit", "--address", head.dashboard, *argv, cwd=cwd, env={**token, **env})


def test_a_night_as_a_job(head: RayNode, s3: str, tmp_path: Path) -> None:
    """It commits, with the submitter's S3 and MLflow; the same name again starts nothing; a failed one starts anew."""
    tiny.write_translator(f"{s3}/model")
    tiny.write_sentences(f"{s3}/in/ds=2026-01-31", shards=2, rows=5)
    night = [
        "--submission-id", "night-2026-01-31", "--", "nightly", "translations", "--input", f"{s3}/in/ds={{ds}}/*.txt",
        "--tables", f"{s3}/tables", "--ds", "2026-01-31", "--model", f"{s3}/model",
    ]  # fmt: skip
    failed = submit(head, tmp_path, *night[:-1], f"{s3}/none")
    assert failed.code == 2, "the job's own exit code"
    said = f"hybrid: job night-2026-01-31 failed: no model at {s3}/none: there is no config.json"
    assert failed.stderr.splitlines()[-1].startswith(said)

    done = submit(head, tmp_path, *night)
    assert done.code == 0, done.stderr
    assert done.summary["submission_id"] == "night-2026-01-31.2"
    (rows,) = done.summary["nights"]
    assert (rows["rows"], rows["changed"], rows["mlflow_run_id"] is not None) == (10, True, True)
    assert "translations ds=2026-01-31: 10 rows, errors none" in done.stderr, "the job's log"

    again = submit(head, tmp_path, *night)
    assert (again.code, again.summary) == (0, done.summary), "cron may fire twice"
    assert "found nightly as night-2026-01-31.2" in again.stderr
    for said in (failed, done, again):
        assert SECRET_KEY not in said.stdout + said.stderr
        assert TOKEN not in said.stdout + said.stderr
        assert "Traceback" not in said.stderr
    job = requests.get(
        f"{head.dashboard}/api/jobs/night-2026-01-31.2", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=20
    ).json()
    assert job["runtime_env"]["env_vars"]["AWS_SECRET_ACCESS_KEY"] == SECRET_KEY, "the job had it"
    assert job["metadata"] == {"hybrid.verb": "nightly"}


def test_what_is_wrong_with_the_token_is_one_line(head: RayNode, tmp_path: Path) -> None:
    none = submit(head, tmp_path, "--", "models", RAY_AUTH_MODE="disabled")
    assert (none.code, none.stdout) == (2, "")
    assert none.stderr.startswith(f"hybrid: the Ray cluster at {head.dashboard} wants a token: set RAY_AUTH_MODE=token")
    wrong = submit(head, tmp_path, "--", "models", RAY_AUTH_TOKEN=TOKEN[::-1])
    assert (wrong.code, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith(f"hybrid: the Ray cluster at {head.dashboard} does not know this token: set RAY_")


def refusal(*argv: str) -> str:
    with pytest.raises(UsageError) as caught:
        main(list(argv))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mistakes_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert refusal().startswith("after -- comes a verb and its options: demo, prepare, train, ")
    assert refusal("--", "submit").startswith("after -- comes a verb and its options, not 'submit': ")
    assert refusal("--", "fly").startswith("after -- comes a verb and its options, not 'fly': ")
    assert refusal("--", "models") == "--address is needed: the URL of the cluster's dashboard, http://HEAD:8265"
    assert refusal("--address", "head", "--", "models").startswith("--address 'head' is not the URL")
    assert "--colour" in refusal("--colour", "red", "--", "models")
