"""What Prometheus would see of a small staging on a real Ray node."""

import re
import time
import urllib.request

import pytest
import ray

from pipelines.cluster import counters


@ray.remote(num_cpus=0)
def count() -> None:
    counters.count_staged("poems", 7, {"EmptyText": 2}, {"decode": 1.5, "predict": 0.0}, 1000)
    counters.count_staged("poems", 3, {}, {"decode": 0.5}, 24)


@pytest.mark.usefixtures("ray_cluster")
def test_counts_reach_the_page_that_prometheus_reads() -> None:
    ray.get(count.remote())
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = {
        ("hybrid_rows", ""): 10.0,
        ("hybrid_errors", 'kind="EmptyText"'): 2.0,
        ("hybrid_stage_seconds", 'stage="decode"'): 2.0,
        ("hybrid_staged_bytes", ""): 1024.0,
    }
    deadline = time.monotonic() + 60
    found: dict[tuple[str, str], float] = {}
    while found != wanted and time.monotonic() < deadline:
        time.sleep(1)
        page = urllib.request.urlopen(address, timeout=10).read().decode()
        found = {}
        for name, label in wanted:
            for labels, value in re.findall(rf"^ray_{name}_total\{{(.*)\}} (\S+)$", page, re.MULTILINE):
                if 'table="poems"' in labels and label in labels:
                    found[name, label] = float(value)
    assert found == wanted
    poems = [line for line in page.splitlines() if 'table="poems"' in line]
    assert not [line for line in poems if 'stage="predict"' in line], "nothing is not counted"
