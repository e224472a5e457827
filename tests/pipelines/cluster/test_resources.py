"""How much of the cluster a job takes."""

from typing import Any

import pytest
import ray

from hybrid_models.errors import UsageError
from pipelines.cluster.resources import Compute, Resources


def nodes(monkeypatch: pytest.MonkeyPatch, *resources: dict[str, float], dead: int = 0) -> None:
    """A cluster of these nodes."""
    alive: list[dict[str, Any]] = [{"Alive": True, "Resources": each} for each in resources]
    gone = [{"Alive": False, "Resources": {"CPU": 1.0}}] * dead
    total = {name: sum(each.get(name, 0) for each in resources) for each in resources for name in each}
    monkeypatch.setattr(ray, "nodes", lambda: alive + gone)
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)


GIB = 1 << 30


def test_one_model_process_for_each_cpu_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 2.0, "memory": 8.0 * GIB})
    assert Resources().plan(20, GIB) == (2, Compute(32, 1, False), {"num_cpus": 0.5, "num_gpus": 0})
    nodes(monkeypatch, {"CPU": 8.0, "memory": 64.0 * GIB}, CPUS16, {"memory": 1.0}, dead=2)
    assert Resources(batch_size=7).plan(99, GIB) == (24, Compute(7, 1, False), {"num_cpus": 0.5, "num_gpus": 0})


def test_memory_and_shards_bound_the_model_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 16.0, "memory": 9.0 * GIB})
    assert Resources().plan(99, GIB) == (4, Compute(32, 4, False), {"num_cpus": 2.0, "num_gpus": 0})
    assert Resources().plan(1, GIB) == (1, Compute(32, 16, False), {"num_cpus": 8.0, "num_gpus": 0})
    nodes(monkeypatch, {"CPU": 2.0, "memory": 0.5 * GIB})
    assert Resources().plan(99, GIB)[0] == 1


def test_processes_of_one_node_share_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, CPUS16, CPUS16)
    assert Resources(actors=5).plan(1, GIB) == (5, Compute(32, 5, False), {"num_cpus": 2.5, "num_gpus": 0})
    assert Resources(actors=5, threads=2).plan(1, GIB)[1].threads == 2
    nodes(monkeypatch, {"CPU": 1.0, "memory": 8.0 * GIB})
    assert Resources(actors=4).plan(1, GIB) == (4, Compute(32, 1, False), {"num_cpus": 0.5, "num_gpus": 0})


@pytest.mark.parametrize(
    ("cpus", "asked"), [(2, {"threads": 2}), (2, {"threads": 8}), (8, {"actors": 4, "threads": 4})]
)
def test_something_is_left_for_reading_and_writing(
    monkeypatch: pytest.MonkeyPatch, cpus: int, asked: dict[str, int]
) -> None:
    """Model processes that hold all CPUs would wait for ever for what nobody reads."""
    nodes(monkeypatch, {"CPU": float(cpus), "memory": 64.0 * GIB})
    actors, _, asks = Resources(**asked).plan(8, GIB)
    assert actors * asks["num_cpus"] <= cpus / 2


def test_a_small_night_starts_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 8.0, "memory": 64.0 * GIB})
    alone = (1, Compute(32, 8, False), {"num_cpus": 0.5, "num_gpus": 0})
    assert Resources().plan(3, 16 << 10) == alone
    assert Resources().plan(3, (16 << 10) + 1)[0] == 3
    assert Resources(actors=2).plan(3, 10)[0] == 2
    assert Resources(threads=4).plan(3, 10)[1].threads == 4


def test_one_model_process_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {**CPUS16, "GPU": 4.0}, {**CPUS16, "GPU": 4.0})
    assert Resources().plan(20, GIB) == (8, Compute(32, 4, True), {"num_cpus": 1.0, "num_gpus": 1})
    assert Resources().plan(3, GIB)[0] == 3
    assert Resources(actors=2).plan(20, GIB)[0] == 2


CPUS16 = {"CPU": 16.0, "memory": 64.0 * GIB}


def test_no_more_model_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would wait for each other for ever."""
    nodes(monkeypatch, {"CPU": 16.0, "GPU": 2.0, "memory": 64.0 * GIB})
    assert Resources(actors=2).plan(100, GIB)[0] == 2
    with pytest.raises(UsageError, match=r"`resources\.actors` is 3, but the cluster has 2 GPUs"):
        Resources(actors=3).plan(100, GIB)


def test_a_cluster_without_cpus_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"memory": 64.0 * GIB})
    with pytest.raises(UsageError, match="no node of the cluster has CPUs"):
        Resources().plan(1, GIB)
