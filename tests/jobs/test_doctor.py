import json
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil
import pytest
from packaging.requirements import Requirement

from jobs import doctor
from pipelines.reading.sandbox import landlock, seccomp
from tests import tiny
from tests.servers import MlflowServer, free_ports


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path / "mlflow").start()
    yield server
    server.kill()


def test_what_is_there_is_ok_one_line_each(s3: str, tmp_path: Path, mlflow_server: MlflowServer) -> None:
    mlflow = mlflow_server.uri.replace("://", "://someone:marked-password@")
    stores = ["--tables", f"{s3}/tables", "--storage", str(tmp_path / "lake")]
    ran = tiny.hybrid("doctor", *stores, "--mlflow", mlflow, cwd=tmp_path)
    assert ran.code == 0, ran.stderr
    summary = json.loads(ran.stdout)
    assert summary["failed"] == []
    states = {check["name"]: check["state"] for check in summary["checks"]}
    names = ["Python", "packages", "jail", "memory", "shared memory", "tables", "storage", "MLflow", "Ray"]
    assert list(states) == names
    assert {states[name] for name in ("Python", "packages", "tables", "storage", "MLflow")} == {"ok"}
    assert states["Ray"] == "note"
    texts = {check["name"]: check["text"] for check in summary["checks"]}
    assert f"ray {metadata.version('ray')}" in texts["packages"]
    assert re.fullmatch(r"(landlock|seccomp|off).*; HYBRID_JAIL=auto", texts["jail"])
    lines = ran.stderr.splitlines()
    assert [line for line in lines if re.match(r"(ok|note) ", line)] == [
        f"{check['state']:<6}  {check['name']}: {check['text']}" for check in summary["checks"]
    ]
    assert "marked-password" not in ran.stdout + ran.stderr
    assert texts["MLflow"].startswith("http://***@127.0.0.1:")
    assert not (tmp_path / "mlflow.db").exists()


def test_what_is_not_there_is_named_and_the_exit_code_is_1(tmp_path: Path) -> None:
    nobody, no_cluster = free_ports(2)
    (tmp_path / "file").write_bytes(b"")
    env = {"RAY_ADDRESS": f"127.0.0.1:{no_cluster}", "MLFLOW_TRACKING_URI": f"http://a:marked@127.0.0.1:{nobody}"}
    ran = tiny.hybrid("doctor", "--tables", str(tmp_path / "file" / "tables"), cwd=tmp_path, env=env)
    assert ran.code == 1
    summary = json.loads(ran.stdout)
    assert summary["failed"] == ["tables", "MLflow", "Ray"]
    texts = {check["name"]: check["text"] for check in summary["checks"]}
    assert str(tmp_path / "file" / "tables") in texts["tables"]
    assert texts["MLflow"].startswith(f"MLflow at http://***@127.0.0.1:{nobody}: cannot list experiments: ")
    assert texts["Ray"].startswith(f"nobody answers at RAY_ADDRESS=127.0.0.1:{no_cluster}: ")
    assert ran.stderr.splitlines()[-1] == "hybrid: 3 of 8 checks failed: tables, MLflow, Ray"
    assert "marked" not in ran.stdout + ran.stderr


def test_a_cluster_that_is_there_tells_its_size(ray_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    assert doctor.ray_cluster() == doctor.Check("Ray", "ok", f"{ray_cluster}: nodes 1, CPUs 1, GPUs 0")


def test_a_package_that_is_missing_or_too_old_is_named_with_the_way_out() -> None:
    assert doctor.packages().state == "ok"
    assert doctor.unmet(Requirement("numpy>=1.26")) == ""
    version = metadata.version("numpy")
    assert doctor.unmet(Requirement("numpy>=99")) == f"numpy {version} does not do: pip install 'numpy>=99'"
    assert doctor.unmet(Requirement("nosuch-package>=1")) == (
        "nosuch-package is not installed: pip install 'nosuch-package>=1'"
    )
    assert doctor.unmet(Requirement("nosuch-package>=1; extra == 'dev'")) == "", "another installation's"


@pytest.mark.parametrize("installed", [True, False], ids=["installed", "source alone"])
def test_a_package_that_is_missing_keeps_no_other_check_from_being_made(
    monkeypatch: pytest.MonkeyPatch, tracking_uri: str, installed: bool
) -> None:
    version, requires = metadata.version, metadata.requires

    def without(name: str) -> str:
        if name == "duckdb":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    def told(name: str) -> list[str] | None:
        if not installed:
            raise metadata.PackageNotFoundError(name)
        return requires(name)

    monkeypatch.setattr(metadata, "version", without)
    monkeypatch.setattr(metadata, "requires", told)
    found = {check.name: check for check in doctor.checks(doctor.DoctorOptions(mlflow=tracking_uri))}
    assert found["packages"].state == "failed"
    assert found["packages"].text.startswith("duckdb is not installed: pip install 'duckdb")
    assert list(found)[-1] == "Ray"


def test_the_memory_is_what_the_container_may_have(tmp_path: Path) -> None:
    """In Kubernetes and Compose /proc tells of the whole machine."""
    machine = psutil.virtual_memory().total
    assert doctor.main_memory(tmp_path / "none")[0] == machine
    mib = 1 << 20
    (tmp_path / "memory.current").write_text(f"{40 * mib}\n")
    (tmp_path / "memory.stat").write_text(f"anon 7\ninactive_file {10 * mib}\n")
    for limit, expected in ((f"{100 * mib}\n", (100 * mib, 70 * mib)), (f"{20 * mib}\n", (20 * mib, 0))):
        (tmp_path / "memory.max").write_text(limit)
        assert doctor.main_memory(tmp_path) == expected
    for limit in ("max\n", f"{machine * 2}\n"):
        (tmp_path / "memory.max").write_text(limit)
        assert doctor.main_memory(tmp_path)[0] == machine


def test_a_database_that_is_not_there_is_told_and_not_made(tmp_path: Path) -> None:
    found = {check.name: check for check in doctor.checks(doctor.DoctorOptions(mlflow=f"sqlite:///{tmp_path}/x/m.db"))}
    assert (found["MLflow"].state, found["MLflow"].text) == (
        "note",
        f"there is no MLflow database at {tmp_path}/x/m.db: the first training makes it",
    )
    assert not (tmp_path / "x").exists()


def test_little_memory_is_a_note() -> None:
    gib = 1 << 30
    assert doctor.memory("memory", 8 * gib, 6 * gib, 4 * gib) == doctor.Check(
        "memory", "ok", "8.0 GiB, 6.0 GiB of it free"
    )
    little = doctor.memory("shared memory", gib // 16, gib // 16, gib)
    assert (little.state, little.text) == ("note", "0.1 GiB, 0.1 GiB of it free; less than 1 GiB is little")


@pytest.mark.parametrize(
    ("mode", "abi", "state"),
    [("required", 7, "ok"), ("auto", 7, "ok"), ("required", 0, "failed"), ("auto", 0, "warn"), ("off", 7, "warn")],
)
def test_a_jail_that_is_not_whole_is_a_risk_or_a_failure(
    monkeypatch: pytest.MonkeyPatch, mode: str, abi: int, state: str
) -> None:
    monkeypatch.setenv("HYBRID_JAIL", mode)
    monkeypatch.setattr(landlock, "abi", lambda: abi)
    monkeypatch.setattr(seccomp, "works", lambda: True)
    found = doctor.jail()
    assert (found.state, found.text.endswith(f"; HYBRID_JAIL={mode}")) == (state, True)
    assert ("has no landlock" in found.text) is (abi == 0)


def test_an_unknown_mode_of_the_jail_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_JAIL", "on")
    found = doctor.tried("jail", doctor.jail)
    assert (found.state, found.text) == ("failed", "HYBRID_JAIL=on is unknown: set it to required, auto or off")
