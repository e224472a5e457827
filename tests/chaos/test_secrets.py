"""Good jobs and failing ones, and then a search for their passwords in everything that they wrote."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import ray

from tests import tiny
from tests.servers import SECRET_KEY, MlflowServer

PASSWORD = "marked-mlflow-password"
WRONG_SECRET = "marked-wrong-secret-key"
SECRETS = [secret.encode() for secret in (SECRET_KEY, PASSWORD, WRONG_SECRET)]
SMALL = ["--model.hidden-size", "16", "--model.vocab-size", "300", "--train.epochs", "1", "--train.batch-size", "16"]
pytestmark = pytest.mark.timeout(400)


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
    assert with_secrets(stored) == []
    logged = below(mlflow_server.folder)
    assert any(name.endswith("mlflow.db") for name in logged)
    assert with_secrets(logged) == []
    context = ray.get_runtime_context()
    assert with_secrets(below(Path(context.get_temp_dir(), context.get_session_name(), "logs"))) == []
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET_KEY, "the jobs had it"
