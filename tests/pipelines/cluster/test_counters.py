"""What Prometheus would see of a small staging on a real Ray node."""

import re
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
import ray

from pipelines.cluster import counters
from tests import tiny


@ray.remote(num_cpus=0)
def count() -> None:
    counters.count_retries("poem")
    counters.count_retries("poems", 6)
    counters.count_retries("poems", 0)
    counters.count_staged("poems", 7, {"EmptyText": 2}, {"decode": 1.5, "predict": 0.0}, 1000)
    counters.count_staged("poems", 3, {}, {"decode": 0.5}, 24)


@ray.remote(num_cpus=0, max_concurrency=2)
class Model:
    """Computes until it is told to wait."""

    def __init__(self) -> None:
        counters.BUSY_SECONDS = 0.5
        self._busy, self._enough = counters.Busy("poems"), threading.Event()

    def compute(self) -> None:
        with self._busy.computing():
            assert self._enough.wait(300)

    def wait(self) -> None:
        self._enough.set()


def page() -> str:
    (node,) = (node for node in ray.nodes() if node["Alive"])
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    return urllib.request.urlopen(address, timeout=10).read().decode()  # type: ignore[no-any-return]


def values(page: str, name: str) -> dict[str, float]:
    """Of a metric, by the label that tells them apart; what other tests of this cluster counted is left out."""
    lines = re.findall(rf"^ray_{name}\{{(.*)\}} (\S+)$", page, re.MULTILINE)
    own = {labels: float(value) for labels, value in lines if 'table="poems"' in labels or 'where="poem' in labels}
    found: dict[str, float] = {}
    for labels, value in own.items():
        label = re.search(r'(?:kind|stage|state|where)="(\w+)"', labels)
        found[label[1] if label else ""] = value
    return found


def seen(wanted: dict[str, dict[str, float]], *units: int, seconds: float = 90) -> str:
    """The page on which these metrics have these values; it is renewed every few seconds. Meanwhile so many units are
    told of, as Ray forgets what nobody tells it again."""
    deadline = time.monotonic() + seconds
    while True:
        if units:
            counters.gauge_units("poems", *units)
        found = page()
        told = {name: values(found, name) for name in wanted}
        if told == wanted:
            return found
        assert time.monotonic() < deadline, told
        time.sleep(1)


@pytest.mark.usefixtures("ray_cluster")
def test_counts_reach_the_page_that_prometheus_reads() -> None:
    ray.get(count.remote())
    seen({
        "hybrid_rows_total": {"": 10.0},
        "hybrid_errors_total": {"EmptyText": 2.0},
        "hybrid_stage_seconds_total": {"decode": 2.0},  # nothing is not counted
        "hybrid_staged_bytes_total": {"": 1024.0},
        "hybrid_retries_total": {"poem": 1.0, "poems": 6.0},
    })  # fmt: skip


@pytest.mark.usefixtures("ray_cluster")
def test_the_page_tells_units_and_whether_models_compute() -> None:
    model = Model.remote()  # type: ignore[attr-defined]
    computing = model.compute.remote()
    units = {"waiting": 5.0, "running": 2.0, "finished": 1.0}
    told = seen({"hybrid_units": units, "hybrid_model_busy": {"": 1.0}}, 5, 2, 1)
    (busy,) = re.findall(r'^ray_hybrid_model_busy\{.*table="poems".*$', told, re.MULTILINE)
    assert 'WorkerId="' in busy, "each process has its own"
    ray.get([computing, model.wait.remote()])
    seen({"hybrid_units": dict.fromkeys(units, 0.0), "hybrid_model_busy": {"": 0.0}}, 0, 0, 0)
    ray.kill(model)
    seen({"hybrid_model_busy": {}})


def test_seconds_of_computing_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 2.0, 12.0, 12.5])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    busy = counters.Busy()
    with busy.computing():
        assert busy.seconds() == 1.0, "also while it computes"
    assert busy.seconds() == 2.0
    with busy.computing():
        pass
    assert busy.seconds() == 2.5, "waiting does not count"


def test_outside_of_a_cluster_nothing_is_counted_and_ray_is_not_loaded() -> None:
    code = (
        "import sys; from pipelines.cluster import counters; counters.count_retries('store'); "
        "counters.Busy('poems'); assert 'ray' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, check=False).returncode == 0
