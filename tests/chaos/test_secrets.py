"""Good jobs and failing ones, and then a search for their passwords in everything that they wrote."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
import ray
import requests
from ray.job_submission import JobSubmissionClient

from pipelines.cluster import connection
from tests import tiny
from tests.servers import ACCESS_KEY, SECRET_KEY, MlflowServer, RayNode

PASSWORD = "marked-mlflow-password"
WRONG_SECRET = "marked-wrong-secret-key"
SECRETS = [secret.encode() for secret in (ACCESS_KEY, SECRET_KEY, PASSWORD, WRONG_SECRET)]
LOGINS = (
    f"someone:{PASSWORD}@", f":{PASSWORD}@", f"{PASSWORD}@", f"{PASSWORD}:x-oauth-basic@", f"some@one:x@{PASSWORD}@",
    f"some%40one:x%3A{PASSWORD}@", f"someone:x/{PASSWORD}@", f"someone%3A{PASSWORD}@",
)  # fmt: skip
QUERIES = (
    f"?sv=1&sig={PASSWORD}", f"?X-Amz-Credential={PASSWORD}&X-Amz-Signature={PASSWORD}", f"?token={PASSWORD}",
    f"?access_key={PASSWORD}&x=1", f"?user=me&password={PASSWORD}", f"#access_token={PASSWORD}",
)  # fmt: skip
NOWHERE = "127.0.0.1:9"
ADDRESSES = [f"https://{login}{NOWHERE}/x" for login in LOGINS] + [f"https://{NOWHERE}/x{query}" for query in QUERIES]
SMALL = ["--model.hidden-size", "16", "--model.vocab-size", "300", "--train.epochs", "1", "--train.batch-size", "16"]


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path / "mlflow").start()
    yield server
    server.kill()


def with_secrets(files: dict[str, bytes]) -> list[str]:
    """Names of those that hold one."""
    assert files
    return [name for name, content in files.items() if any(secret in content for secret in SECRETS)]


def below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


@pytest.mark.long
def test_no_password_is_written_anywhere(
    s3: str, tmp_path: Path, ray_cluster: str, mlflow_server: MlflowServer
) -> None:
    tiny.write_pairs(f"{s3}/data/train", rows=40, seed=1)
    tiny.write_pairs(f"{s3}/data/val", rows=8, seed=2)
    tiny.write_captioner(f"{s3}/captioner")
    tracking = mlflow_server.uri.replace("://", f"://someone:{PASSWORD}@")
    env = {"RAY_ADDRESS": ray_cluster, "MLFLOW_TRACKING_URI": tracking, "HYBRID_TRACEBACK": "1"}
    model, night = "models:/translator@challenger", ["--tables", f"{s3}/tables", "--ds", "2026-01-31"]
    data = ["--data", f"{s3}/data", "--storage", f"{s3}/lake"]
    said: dict[str, bytes] = {}

    def job(code: int, *argv: str, **change: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**env, **change}.items():
                patch.setenv(name, value)
            ran = tiny.hybrid_here(*argv, cwd=tmp_path)
        said[" ".join(argv)] = (ran.stdout + ran.stderr).encode()
        assert ran.code == code, ran.stderr

    infer = ["infer", "translations", "--input", f"{s3}/data/val", *night]
    job(0, "train", "translator-demo", *data, "--name", "good", *SMALL)
    job(0, *infer, "--model", model)
    token = {"MLFLOW_TRACKING_URI": mlflow_server.uri.replace("://", f"://{PASSWORD}@")}
    job(0, *infer, "--model", model, "--decoding.beam-size", "3", **token)
    job(0, "report", *night, **token)
    job(2, *infer, "--model", "models:/translator/99")
    job(2, "infer", "captions", "--input", f"{s3}/data/val", *night, "--model", model)
    job(3, "infer", "captions", "--input", f"{s3}/data/val", *night, "--model", f"{s3}/captioner")
    job(1, *infer, "--model", f"{s3}/lake/runs/good/artifact", AWS_SECRET_ACCESS_KEY=WRONG_SECRET)
    mlflow_server.kill()
    job(1, *infer, "--model", model)
    job(0, *infer, "--model", f"{s3}/lake/runs/good/artifact", "--decoding.beam-size", "2")

    assert with_secrets(said) == []
    fs = fsspec.filesystem("s3")
    stored = {path: fs.cat_file(path) for path in fs.find(s3.removeprefix("s3://"))}
    assert any("_delta_log" in path for path in stored)
    assert any(path.endswith("summary.json") for path in stored)
    assert any(path.endswith(".html") for path in stored)
    assert with_secrets(stored) == []
    logged = below(mlflow_server.folder)
    assert any(name.endswith("mlflow.db") for name in logged)
    assert with_secrets(logged) == []
    context = ray.get_runtime_context()
    assert with_secrets(below(Path(context.get_temp_dir(), context.get_session_name()))) == []
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET_KEY, "the jobs had it"


KEYS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
LOGIN = {"MLFLOW_TRACKING_USERNAME": "someone", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
PAGES = (
    "/api/jobs/", "/api/v0/jobs?detail=1", "/api/v0/actors?detail=1", "/api/v0/tasks?detail=1",
    "/api/v0/workers?detail=1", "/api/v0/runtime_envs?detail=1", "/logical/actors",
    "/nodes?view=summary", "/nodes/{node}",
)  # fmt: skip
"""What the dashboard shows of jobs and of their processes."""


@contextmanager
def cluster(folder: Path, keys: dict[str, str]) -> Iterator[RayNode]:
    """A cluster that takes jobs, whose node has these credentials and no settings."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "RAY_"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    settings = {**connection.LOCAL_CLUSTER, "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "PATH": path}
    node = RayNode(folder, 2, dashboard=True).start(env={**env, **keys, **settings})
    try:
        yield node
    finally:
        node.kill()


def write_table(s3: str, folder: Path) -> None:
    tiny.write_sentences(f"{s3}/in", shards=1, rows=4)
    tiny.write_night(f"{s3}/tables", "2026-01-31", f"{s3}/in", tiny.write_translator(f"{folder}/model"))


def submitted(node: RayNode, cwd: Path, *argv: str, **env: str) -> tiny.Ran:
    """`hybrid submit` of a user who has the credentials in the environment, and in MLflow's address."""
    tracking = env.pop("MLFLOW_TRACKING_URI", "http://127.0.0.1:9").replace("://", f"://someone:{PASSWORD}@")
    mine = {**LOGIN, "MLFLOW_TRACKING_URI": tracking, "RAY_AUTH_MODE": "disabled", **env}
    return tiny.hybrid("submit", "--address", node.dashboard, *argv, cwd=cwd, env=mine)


def kept_by_ray(node: RayNode) -> dict[str, bytes]:
    """Jobs as Ray's client lists them, pages of the dashboard, and all files of Ray's session."""
    client = JobSubmissionClient(node.dashboard)
    jobs = client.list_jobs()
    infos = [client.get_job_info(str(job.submission_id)) for job in jobs if job.submission_id]
    (head,) = requests.get(f"{node.dashboard}/api/v0/nodes", timeout=20).json()["data"]["result"]["result"]
    pages = [page.format(node=head["node_id"]) for page in PAGES]
    answers = {page: requests.get(f"{node.dashboard}{page}", timeout=20) for page in pages}
    assert {page for page, answer in answers.items() if not answer.ok} == set()
    files = below(Path(node.scratch))
    assert any(name.endswith("gcs_server.out") for name in files)
    assert any("runtime_env_agent" in name for name in files)
    return {"jobs": repr(jobs).encode(), "infos": repr(infos).encode(), **files} | {
        page: answer.content for page, answer in answers.items()
    }


def test_a_job_has_the_nodes_credentials_and_none_is_kept_with_it(s3: str, tmp_path: Path) -> None:
    write_table(s3, tmp_path)
    with cluster(tmp_path / "ray", KEYS) as node:
        ran = submitted(node, tmp_path, "--", "tables", "--tables", f"{s3}/tables")
        assert ran.code == 0, ran.stderr
        kept = {"said": (ran.stdout + ran.stderr).encode(), **kept_by_ray(node)}
        assert with_secrets(kept) == []
        assert os.environ["AWS_ENDPOINT_URL"].encode() in kept["infos"], "settings do travel"
        (hint,) = [line for line in ran.stderr.splitlines() if "--env-values" in line]
        assert all(name in hint for name in (*KEYS, *LOGIN, "MLFLOW_TRACKING_URI"))


def test_a_job_on_nodes_without_credentials_says_so_or_has_them_for_all_to_see(s3: str, tmp_path: Path) -> None:
    write_table(s3, tmp_path)
    with cluster(tmp_path / "ray", {}) as node:
        job = ("--", "tables", "--tables", f"{s3}/tables")
        ran = submitted(node, tmp_path, *job)
        assert ran.code == 2
        last = ran.stderr.splitlines()[-1]
        assert "redentials" in last
        assert "--env-values" in last
        assert with_secrets({"said": ran.stderr.encode(), **kept_by_ray(node)}) == []
        ran = submitted(node, tmp_path, "--env-values", *job)
        assert ran.code == 0, ran.stderr
        (warning,) = [line for line in ran.stderr.splitlines() if "--env-values" in line]
        assert " WARNING " in warning
        assert "ray job list" in warning
        assert with_secrets({"said": (ran.stdout + ran.stderr).encode()}) == []
        told = {name.rsplit("/", 1)[-1] for name in with_secrets(kept_by_ray(node))}
        assert told == {"jobs", "infos", "", "jobs?detail=1", "actors?detail=1", "runtime_env_agent.log"}


@pytest.mark.long
def test_no_credential_of_a_submitted_training_or_night_is_kept_anywhere(
    s3: str, tmp_path: Path, mlflow_server: MlflowServer
) -> None:
    tiny.write_pairs(f"{s3}/data/train", rows=40, seed=1)
    tiny.write_pairs(f"{s3}/data/val", rows=8, seed=2)
    there = {"MLFLOW_TRACKING_URI": mlflow_server.uri}
    with cluster(tmp_path / "ray", {**KEYS, **LOGIN}) as node:
        data = ["--data", f"{s3}/data", "--storage", f"{s3}/lake"]
        ran = submitted(node, tmp_path, "--", "train", "translator-demo", *data, *SMALL, **there)
        assert ran.code == 0, ran.stderr
        night = ["infer", "translations", "--input", f"{s3}/data/val", "--tables", f"{s3}/tables", "--ds", "2026-01-31"]
        ran = submitted(node, tmp_path, "--", *night, "--model", "models:/translator@challenger", **there)
        assert ran.code == 0, ran.stderr
        assert ran.summary["rows"] == 8
        assert with_secrets({"said": (ran.stdout + ran.stderr).encode(), **kept_by_ray(node)}) == []
    fs = fsspec.filesystem("s3")
    stored = {path: fs.cat_file(path) for path in fs.find(s3.removeprefix("s3://"))}
    assert any("_delta_log" in path for path in stored)
    assert with_secrets(stored) == []
    logged = below(mlflow_server.folder)
    assert any(name.endswith("mlflow.db") for name in logged)
    assert with_secrets(logged) == []


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sentences, a model and a night of a table; nobody waits for an MLflow that is away."""
    for name in ("RETRIES", "TIMEOUT"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{'MAX_' if name == 'RETRIES' else ''}{name}", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("HYBRID_TRACEBACK", "1")
    tiny.write_sentences(f"{tmp_path}/in", shards=1, rows=4)
    tiny.write_pairs(f"{tmp_path}/data/train", rows=8, seed=1)
    tiny.write_pairs(f"{tmp_path}/data/val", rows=8, seed=2)
    tiny.write_translator(f"{tmp_path}/model")
    tiny.write_night(f"{tmp_path}/tables", "2026-01-31", f"{tmp_path}/in", f"{tmp_path}/model")
    return tmp_path


def check_silent(ran: tiny.Ran, code: int, argv: list[str]) -> None:
    assert ran.code == code, (argv, ran.stderr)
    assert PASSWORD not in ran.stdout + ran.stderr, argv


@pytest.mark.parametrize("address", [*ADDRESSES, f"s3://key:{PASSWORD}@lake/x"])
def test_addresses_of_data_with_a_secret_are_refused(lake: Path, address: str) -> None:
    """They would stand in every row; what is said about them does not tell the secret either."""
    argv = ["infer", "translations", "--input", address, "--tables", f"{lake}/new", "--ds", "2026-01-31"]
    check_silent(ran := tiny.hybrid_here(*argv, "--model", f"{lake}/model", cwd=lake), 2, argv)
    assert "***" in ran.stderr
    assert with_secrets(below(lake)) == []
    assert not (lake / "new").exists()


@pytest.mark.parametrize("address", [ADDRESSES[0], ADDRESSES[-3]])
def test_no_verb_takes_such_an_address(lake: Path, address: str) -> None:
    ds, night = ["--ds", "2026-01-31"], ["--input", f"{lake}/in", "--tables", f"{lake}/new"]
    jobs = [
        ["infer", "translations", *ds, *night, "--model", address],
        ["infer", "translations", *ds, *night, "--tables", address, "--model", f"{lake}/model"],
        ["nightly", "translations", *ds, "--input", address, "--tables", f"{lake}/new", "--model", f"{lake}/model"],
        ["query", "SELECT 1", "--tables", address],
        ["query", "SELECT 1", "--tables", f"{lake}/tables", "--out", address],
        ["tables", "--tables", address],
        ["tables", "--tabels", address],
        ["report", *ds, "--tables", address],
        ["train", "translator-demo", "--data", address, "--storage", f"{lake}/runs"],
        ["train", "translator-demo", "--data", f"{lake}/data", "--storage", address],
        ["evaluate", "--model", f"{lake}/model", "--input", address],
    ]
    for argv in jobs:
        check_silent(ran := tiny.hybrid_here(*argv, cwd=lake), 2, argv)
        assert "***" in ran.stderr or "--tabels" in ran.stderr, argv
    assert with_secrets(below(lake)) == []


@pytest.mark.parametrize("address", [address.replace("https://", "http://") for address in ADDRESSES])
def test_addresses_of_mlflow_and_ray_are_shown_without_secrets(lake: Path, address: str) -> None:
    ds, night = ["--ds", "2026-01-31"], ["--input", f"{lake}/in", "--tables", f"{lake}/new"]
    failing = [
        ["infer", "translations", *ds, *night, "--model", "models:/translator@champion", "--mlflow", address],
        ["models", "--mlflow", address],
        ["submit", "--address", address, "--", "report", *ds, "--tables", f"{lake}/tables"],
    ]
    for argv in failing:
        ran = tiny.hybrid_here(*argv, cwd=lake)
        check_silent(ran, ran.code or 1, argv)
        assert "***" in ran.stderr, argv
    argv = ["report", *ds, "--tables", f"{lake}/tables", "--mlflow", address]
    check_silent(tiny.hybrid_here(*argv, cwd=lake), 0, argv)
    assert (lake / "tables/reports/2026-01-31.html").exists()
    assert with_secrets(below(lake)) == []
