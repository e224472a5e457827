import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.data import exceptions
from ray.data._internal.execution import streaming_executor_state

from hybrid_models.errors import UsageError
from pipelines.cluster import connection, submission
from tests import tiny


def test_an_error_of_ray_data_is_told_once_and_in_one_line(ray_cluster: str) -> None:
    """Its own loggers would print stack traces as well."""
    connection.configure_data()
    for module in (exceptions, streaming_executor_state):
        assert not module.logger.isEnabledFor(logging.ERROR)
    assert logging.getLogger("ray.data").isEnabledFor(logging.ERROR)


def test_connect_leaves_a_running_cluster_alone(ray_cluster: str) -> None:
    with connection.connect():
        assert ray.is_initialized()
    assert ray.is_initialized()
    assert ray.cluster_resources()["CPU"] == 1


def test_a_connection_on_demand_is_made_once_and_ends_with_the_outermost_block(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: events[-1:] == ["init"])
    made = SimpleNamespace(address_info={"gcs_address": "here:6379"})
    monkeypatch.setattr(ray, "init", lambda **options: events.append("init") or made)
    monkeypatch.setattr(ray, "shutdown", lambda: events.append("shutdown"))
    monkeypatch.setattr(connection, "configure_data", lambda: None)
    with connection.on_demand():
        for _ in range(2):
            with connection.on_demand():
                connection.start()
            with connection.connect():
                pass
        assert events == ["init"]
    assert events == ["init", "shutdown"]
    with connection.on_demand():
        pass
    assert events == ["init", "shutdown"], "nobody has asked for it"
    with pytest.raises(KeyError), connection.on_demand(), connection.connect():
        raise KeyError
    assert events == ["init", "shutdown"] * 2


def test_an_address_where_nobody_is_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(connection, "PATIENCE_SECONDS", 0)
    for mistyped in ("head:6379x", "[::1:6379"):
        with pytest.raises(UsageError, match=r"^RAY_ADDRESS=.* is no address, such as head:6379: "):
            connection.knock(mistyped, patience=0)
    with pytest.raises(ConnectionError, match=r"^nobody answers at RAY_ADDRESS=127\.0\.0\.1:1: "):
        connection.start()


def test_a_head_that_starts_again_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConnectionError):
            connection.knock(address, patience=0)
        monkeypatch.setattr(connection.time, "sleep", lambda seconds: server.listen())
        connection.knock(address, patience=30)


def test_workers_get_the_environment_that_makes_them_fast(ray_cluster: str) -> None:
    @ray.remote(num_cpus=0)
    def environment() -> dict[str, str]:
        import os

        return dict(os.environ)

    assert connection.worker_env().items() <= ray.get(environment.remote()).items()
    assert connection.worker_env()["MALLOC_TOP_PAD_"] == "268435456"


def test_ray_gives_users_no_advice_about_its_workers_memory(ray_cluster: str) -> None:
    connection.configure_data()
    detectors = ray.data.DataContext.get_current().issue_detectors_config
    assert detectors.high_memory_detector_config.detection_time_interval_s == -1


def test_samples_that_wait_are_bounded(ray_cluster: str) -> None:
    """Connecting bounds them by the nodes that are there; a job, by its calls."""

    def bound() -> float:
        return ray.data.DataContext.get_current().execution_options.resource_limits.object_store_memory

    for shares, room in ((0, 1), (1, 1), (3, 3), (100, 100)):
        connection.bound_waiting(shares)
        assert bound() == room * connection.WAITING_BYTES == room * 256 * 2**20
    connection.configure_data()
    assert bound() == connection.WAITING_BYTES, "of one node"


def test_bars_are_for_terminals_only(ray_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ray.data.DataContext.get_current()
    for terminal in (True, False):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        connection.configure_data()
        assert context.enable_progress_bars is terminal


def test_variables_that_a_job_has_from_its_submitter_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray refuses to be told a variable twice, and prints all of them, secrets too."""
    ours = {"OURS": "1", "GOMP_SPINCOUNT": "1000"}
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert connection._without_the_jobs(ours) == ours
    monkeypatch.setenv(
        "RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"env_vars": {"GOMP_SPINCOUNT": "7"}}, "metadata": {}}'
    )
    assert connection._without_the_jobs(ours) == {"OURS": "1"}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": null}')
    assert connection._without_the_jobs(ours) == ours


@pytest.mark.parametrize(
    ("is_dropped", "error", "written"),
    [
        (True, ValueError, "ours\n"),
        (False, ValueError, "Ray's core\nours\n"),
        (False, SystemExit, "ours\n"),
        (False, KeyboardInterrupt, "ours\n"),
    ],
)
def test_what_rays_core_writes_comes_later_or_not_at_all(
    is_dropped: bool,
    error: type[BaseException],
    written: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "info")

    @connection._core_output(is_dropped)
    def start() -> None:
        os.write(2, b"Ray's core\n")
        raise error("no cluster")

    with pytest.raises(error, match="no cluster"):
        start()
    os.write(2, b"ours\n")
    assert capfd.readouterr().err == written
    assert os.environ["RAY_BACKEND_LOG_LEVEL"] == "info", "whoever asks for more gets it"


def test_another_process_connects_to_the_cluster_of_this_one(ray_cluster: str) -> None:
    """Which was not started by `start`: its workers have their environment from each job."""
    assert connection.STARTED_HERE not in connection.for_others()
    script = (
        "import ray; from pipelines.cluster import connection; connection.start(); "
        "there = ray.get_runtime_context(); given = there.runtime_env['env_vars']; "
        "assert connection.worker_env().items() <= given.items(); "
        "assert connection.STARTED_HERE not in connection.for_others(); print(there.gcs_address)"
    )
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**others, **connection.for_others()}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.split()[-1] == ray.get_runtime_context().gcs_address


NESTED = """
import os, subprocess, sys
import ray
from pipelines.cluster import connection, submission

@ray.remote(num_cpus=0)
def seen():
    return dict(os.environ), dict(ray.get_runtime_context().runtime_env)

before = dict(os.environ)
connection.start(cpus=1)
environment, runtime_env = ray.get(seen.remote())
assert connection.worker_env().items() <= environment.items(), environment
assert runtime_env == {}, runtime_env
assert not connection.ALLOCATOR.keys() & os.environ.keys() - before.keys()
assert connection.for_others()[connection.STARTED_HERE] == ray.get_runtime_context().gcs_address
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "again"], check=True, env={**before, **connection.for_others()})
"""


def test_workers_of_a_cluster_that_starts_here_have_their_environment_from_it(tmp_path: Path) -> None:
    """A process with an environment of its job's own would be started anew, where one waits already."""
    (tmp_path / "nested.py").write_text(NESTED)
    others = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MALLOC_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "nested.py")],
        env={**others, "PYTHONPATH": str(tiny.ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("there", "count"),
    [
        ({"CPU": 1.0}, 1),
        ({"CPU": 2.0}, 2),
        ({"CPU": 64.0}, 3),
        ({"CPU": 64.0, "GPU": 1.0}, 1),
        ({"GPU": 4.0}, 3),
        ({}, 1),
    ],
)
def test_as_many_jobs_at_once_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch, there: dict[str, float], count: int
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    assert connection.side_by_side(3) == count


def test_signals_are_the_programs_again_after_ray_has_taken_them() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    at_first = [signal.getsignal(number) for number in numbers]
    ours, rays = [lambda *_: None] * 2, [lambda *_: None] * 2
    try:
        for handlers in (ours, [signal.SIG_DFL] * 2):
            for number, handler in zip(numbers, handlers, strict=True):
                signal.signal(number, handler)
            with connection.own_signals():
                for number, handler in zip(numbers, rays, strict=True):
                    signal.signal(number, handler)
            left = [signal.getsignal(number) for number in numbers]
            assert left == (ours if handlers is ours else rays), "Ray's, where this program has none"
    finally:
        for number, handler in zip(numbers, at_first, strict=True):
            signal.signal(number, handler)


def test_no_secret_of_a_driver_is_in_the_environment_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another's cluster it is a runtime environment, which Ray shows to all who may list jobs."""
    for name in submission.CREDENTIALS:
        monkeypatch.setenv(name, "marked")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:marked@mlflow:5000")
    assert "marked" not in str(connection.worker_env())
