import logging
from typing import Any

import pytest
import ray
from ray.data import exceptions
from ray.data._internal.execution import streaming_executor_state

from pipelines.cluster import connection
from pipelines.cluster.resources import Compute, Resources


def nodes(monkeypatch: pytest.MonkeyPatch, *resources: dict[str, float], dead: int = 0) -> None:
    """A cluster of these nodes."""
    alive: list[dict[str, Any]] = [{"Alive": True, "Resources": each} for each in resources]
    gone = [{"Alive": False, "Resources": {"CPU": 1.0}}] * dead
    total = {name: sum(each.get(name, 0) for each in resources) for each in resources for name in each}
    monkeypatch.setattr(ray, "nodes", lambda: alive + gone)
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)


GIB = 1 << 30
CPUS16 = {"CPU": 16.0, "memory": 64.0 * GIB}


def test_one_model_process_for_each_cpu_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 2.0, "memory": 8.0 * GIB})
    assert Resources().plan(20) == (2, Compute(32, 1, False), {"num_cpus": 0.5, "num_gpus": 0})
    nodes(monkeypatch, {"CPU": 8.0, "memory": 64.0 * GIB}, CPUS16, {"memory": 1.0}, dead=2)
    assert Resources(batch_size=7).plan(99) == (24, Compute(7, 1, False), {"num_cpus": 0.5, "num_gpus": 0})


def test_memory_and_shards_bound_the_model_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 16.0, "memory": 9.0 * GIB})
    assert Resources().plan(99) == (4, Compute(32, 4, False), {"num_cpus": 2.0, "num_gpus": 0})
    assert Resources().plan(1) == (1, Compute(32, 16, False), {"num_cpus": 8.0, "num_gpus": 0})
    nodes(monkeypatch, {"CPU": 2.0, "memory": 0.5 * GIB})
    assert Resources().plan(99)[0] == 1


def test_processes_of_one_node_share_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, CPUS16, CPUS16)
    assert Resources(actors=5).plan(1) == (5, Compute(32, 5, False), {"num_cpus": 16 / 3 / 2, "num_gpus": 0})
    assert Resources(actors=5, threads=2).plan(1)[1].threads == 2
    nodes(monkeypatch, {"CPU": 1.0, "memory": 8.0 * GIB})
    assert Resources(actors=4).plan(1) == (4, Compute(32, 1, False), {"num_cpus": 0.5, "num_gpus": 0})


def test_one_model_process_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {**CPUS16, "GPU": 4.0}, {**CPUS16, "GPU": 4.0})
    assert Resources().plan(20) == (8, Compute(32, 4, True), {"num_cpus": 1.0, "num_gpus": 1})
    assert Resources().plan(3)[0] == 3
    assert Resources(actors=2).plan(20)[0] == 2


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
