"""How much of the cluster a job takes."""

from typing import Any

import pytest
import ray

from hybrid_models.errors import UsageError
from pipelines.cluster import connection
from pipelines.cluster.resources import Compute, Plan, Resources, cpus_of_nodes


def nodes(monkeypatch: pytest.MonkeyPatch, *resources: dict[str, float], dead: int = 0) -> None:
    """A cluster of these nodes."""
    alive: list[dict[str, Any]] = [{"Alive": True, "Resources": each} for each in resources]
    gone = [{"Alive": False, "Resources": {"CPU": 1.0}}] * dead
    total = {name: sum(each.get(name, 0) for each in resources) for each in resources for name in each}
    monkeypatch.setattr(ray, "nodes", lambda: alive + gone)
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)
    monkeypatch.setattr(connection, "for_others", dict)


GIB = 1 << 30


def test_one_model_process_for_each_cpu_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 2.0, "memory": 8.0 * GIB})
    assert Resources().plan(20, GIB) == Plan(2, 2, Compute(32, 1, False), {"num_cpus": 0.5}, 1)
    nodes(monkeypatch, {"CPU": 8.0, "memory": 64.0 * GIB}, CPUS16, {"memory": 1.0}, dead=2)
    assert Resources(batch_size=7).plan(99, GIB) == Plan(24, 24, Compute(7, 1, False), {"num_cpus": 0.5}, 2)


def test_memory_and_shards_bound_the_model_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 16.0, "memory": 9.0 * GIB})
    assert Resources().plan(99, GIB) == Plan(4, 4, Compute(32, 4, False), {"num_cpus": 2.0}, 1)
    assert Resources().plan(1, GIB) == Plan(1, 1, Compute(32, 16, False), {"num_cpus": 8.0}, 1)
    nodes(monkeypatch, {"CPU": 2.0, "memory": 0.5 * GIB})
    assert Resources().plan(99, GIB).actors == 1


def test_processes_of_one_node_share_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, CPUS16, CPUS16)
    assert Resources(min_actors=5).plan(1, GIB) == Plan(5, 5, Compute(32, 5, False), {"num_cpus": 2.5}, 2)
    assert Resources(min_actors=5, threads=2).plan(1, GIB).compute.threads == 2
    nodes(monkeypatch, {"CPU": 1.0, "memory": 8.0 * GIB})
    assert Resources(min_actors=4).plan(1, GIB) == Plan(4, 4, Compute(32, 1, False), {"num_cpus": 0.5}, 1)


@pytest.mark.parametrize(
    ("cpus", "asked"), [(2, {"threads": 2}), (2, {"threads": 8}), (8, {"min_actors": 4, "threads": 4})]
)
def test_something_is_left_for_reading_and_writing(
    monkeypatch: pytest.MonkeyPatch, cpus: int, asked: dict[str, int]
) -> None:
    """Model processes that hold all CPUs would wait for ever for what nobody reads."""
    nodes(monkeypatch, {"CPU": float(cpus), "memory": 64.0 * GIB})
    plan = Resources(**asked).plan(8, GIB)
    assert plan.actors * plan.asks["num_cpus"] <= cpus / 2


def test_a_small_night_starts_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"CPU": 8.0, "memory": 64.0 * GIB})
    alone = Plan(1, 1, Compute(32, 8, False), {"num_cpus": 0.5}, 1)
    assert Resources().plan(3, 16 << 10) == alone
    assert Resources().plan(3, (16 << 10) + 1).actors == 3
    assert Resources(min_actors=2).plan(3, 10).actors == 2
    assert Resources(threads=4).plan(3, 10).compute.threads == 4


def test_one_model_process_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {**CPUS16, "GPU": 4.0}, {**CPUS16, "GPU": 4.0})
    assert Resources().plan(20, GIB) == Plan(8, 8, Compute(32, 4, True), {"num_gpus": 1}, 2)
    assert Resources().plan(3, GIB).actors == 3
    assert Resources(min_actors=2).plan(20, GIB).actors == 2


CPUS16 = {"CPU": 16.0, "memory": 64.0 * GIB}


def test_no_more_model_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would wait for each other for ever."""
    nodes(monkeypatch, {"CPU": 16.0, "GPU": 2.0, "memory": 64.0 * GIB})
    assert Resources(min_actors=2).plan(100, GIB).actors == 2
    with pytest.raises(
        UsageError, match=r"`resources\.min_actors` is 3, but the cluster has GPUs for 2: .* `resources\.gpu` yes"
    ):
        Resources(min_actors=3).plan(100, GIB)


def test_gpus_that_come_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `yes` a job waits for them, on a cluster of a head alone, too."""
    asks = {"num_gpus": 1}
    nodes(monkeypatch, {"memory": 64.0 * GIB})
    assert Resources(gpu="yes").plan(99, GIB) == Plan(1, 1, Compute(32, 1, True), asks, 0)
    assert Resources(gpu="yes", min_actors=4).plan(99, GIB) == Plan(4, 4, Compute(32, 1, True), asks, 0)
    assert Resources(gpu="yes", max_actors=8).plan(99, GIB) == Plan(1, 8, Compute(32, 1, True), asks, 8)
    assert Resources(gpu="yes", min_actors=2, max_actors=8).plan(5, GIB).most == 5, "no more than shards"
    nodes(monkeypatch, {**CPUS16, "GPU": 2.0})
    assert Resources(gpu="yes", min_actors=3).plan(99, GIB).actors == 3, "more than there are now"
    assert Resources(gpu="yes").plan(99, GIB).actors == 2
    assert Resources(gpu="yes", max_actors=8).plan(99, GIB) == Plan(2, 8, Compute(32, 8, True), asks, 4)
    assert Resources(gpu="yes", max_actors=1).plan(99, GIB) == Plan(1, 1, Compute(32, 16, True), asks, 1)
    assert Resources(gpu="no").plan(99, GIB) == Plan(16, 16, Compute(32, 1, False), {"num_cpus": 0.5}, 1)


def test_processes_without_gpus_grow_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one thread each, as no one knows how many CPUs the nodes have that come."""
    asks = {"num_cpus": 0.5, "memory": 2 * GIB}
    nodes(monkeypatch, {"CPU": 2.0, "memory": 8.0 * GIB})
    assert Resources(min_actors=1, max_actors=6).plan(99, GIB) == Plan(1, 6, Compute(32, 1, False), asks, 3)
    assert Resources(max_actors=6).plan(99, GIB) == Plan(2, 6, Compute(32, 1, False), asks, 3)
    assert Resources(max_actors=6).plan(4, GIB).most == 4, "no more than shards"
    nodes(monkeypatch, {"CPU": 2.0, "memory": 8.0 * GIB}, {"CPU": 2.0, "memory": 1.0 * GIB})
    assert Resources(max_actors=6).plan(99, GIB).asks["memory"] == GIB, "or one would wait for ever"


@pytest.mark.parametrize("asked", [{"gpu": "no"}, {}, {"gpu": "yes"}])
def test_processes_do_not_grow_to_fewer(monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]) -> None:
    nodes(monkeypatch, CPUS16)
    told = r"^`resources\.max_actors` is 2: it must be at least `resources\.min_actors`, 3$"
    with pytest.raises(UsageError, match=told):
        Resources(min_actors=3, max_actors=2, **asked).plan(99, GIB)


def test_processes_share_a_gpu_or_take_several(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {**CPUS16, "GPU": 2.0}, {**CPUS16, "GPU": 3.0})
    half = Plan(10, 10, Compute(32, 3, True, 0.5), {"num_gpus": 0.5}, 2)
    assert Resources(gpus_per_actor=0.5).plan(99, GIB) == half
    assert Resources(gpus_per_actor=0.1).plan(99, GIB).actors == 50
    assert Resources(gpus_per_actor=2).plan(99, GIB) == Plan(2, 2, Compute(32, 16, True), {"num_gpus": 2}, 2)
    for share in (0.0, -1.0, 1.5, float("nan"), float("inf")):
        with pytest.raises(
            UsageError, match=r"^`resources\.gpus_per_actor` is .*: it must be a part of a GPU, or whole"
        ):
            Resources(gpus_per_actor=share)
    with pytest.raises(UsageError, match=r"`resources\.gpus_per_actor` is 4, but a node has 3 at most"):
        Resources(gpus_per_actor=4).plan(99, GIB)


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("min_actors", -1, 0), ("max_actors", -3, 0), ("batch_size", 0, 1), ("batch_size", -5, 1), ("threads", -2, 0)],
)
def test_numbers_that_mean_nothing_are_refused(name: str, value: int, least: int) -> None:
    with pytest.raises(UsageError, match=rf"^`resources\.{name}` is {value}: it must be at least {least}$"):
        Resources(**{name: value})  # type: ignore[arg-type]


def test_a_training_waits_for_a_node_where_one_will_come(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, CPUS16, {"CPU": 0.0}, {"memory": 1.0}, dead=1)
    assert cpus_of_nodes("auto") == [CPUS16["CPU"]]
    nodes(monkeypatch, {"CPU": 0.0})
    for gpu in ("auto", "no"):
        with pytest.raises(UsageError, match="no node of the cluster has CPUs for its jobs: add one"):
            cpus_of_nodes(gpu)
    monkeypatch.setattr(connection, "for_others", lambda: {connection.STARTED_HERE: ""})
    with pytest.raises(UsageError, match=r"^`resources\.gpu` is yes, but this machine has no GPU"):
        cpus_of_nodes("yes")


def test_a_cluster_without_cpus_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, {"memory": 64.0 * GIB})
    with pytest.raises(UsageError, match="no node of the cluster has CPUs"):
        Resources().plan(1, GIB)
