"""A command that a signal ends while it works on a cluster."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests import tiny

STARTS = """
import sys, time, types
from jobs.command import cli
from pipelines.cluster import connection

def verb(argv):
    import ray, ray.data
    print("starting", flush=True)
    with connection.connect(cpus=1):
        print("started", flush=True)
        time.sleep(60)

sys.modules["jobs.demo"] = types.ModuleType("jobs.demo")
sys.modules["jobs.demo"].main = verb
sys.argv = ["hybrid", "demo"]
cli.main()
"""


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        ("started", 0.0),
        *(pytest.param("starting", seconds / 2, marks=pytest.mark.long) for seconds in range(2, 9)),
    ],
)
def test_sigterm_ends_a_command_on_a_cluster_in_one_line(line: str, seconds: float) -> None:
    """Ray's core installs a handler as it starts, which prints a stack trace and aborts what takes three seconds."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", STARTS]
    with subprocess.Popen(
        command, cwd=tiny.ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while process.stdout.readline() != f"{line}\n":
            assert process.poll() is None
        time.sleep(seconds)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (143, "hybrid: terminated; start the same command again, it goes on\n")
    if line == "started":  # agents that have lost a cluster that was about to start notice it after a minute
        assert psutil.wait_procs(children, timeout=60)[1] == [], "no process of the cluster is left"
