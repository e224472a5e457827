"""The network that other tests rehearse on."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests import network

pytestmark = pytest.mark.skipif(bool(network.why_not()), reason=network.why_not() or "-")
HOSTS = ["one", "two"]
KILLED = f"""
import subprocess, time
from tests import network
with network.running({HOSTS!r}) as net:
    sleeper = subprocess.Popen(["ip", "netns", "exec", net.namespace("two"), "sleep", "300"])
    print(sleeper.pid, flush=True)
    time.sleep(300)
"""


def test_what_a_killed_run_left_behind_is_in_nobodys_way() -> None:
    run = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    sleeper = int(run.stdout.readline())
    run.send_signal(signal.SIGKILL)
    run.wait()
    with network.running(HOSTS) as net:
        ping = ["ip", "netns", "exec", net.namespace("one"), sys.executable, "-c", CONNECT.format(net.hosts["two"])]
        assert subprocess.run(ping, check=True, capture_output=True, text=True, timeout=30).stdout == "refused\n"
        assert sleeper not in _running_in(net.namespace("two"))
    left = subprocess.run(["ip", "-br", "link"], check=True, capture_output=True, text=True).stdout
    assert network.BRIDGE not in left
    assert "hy-one" not in left


# An address that answers, if only with a refusal, is there.
CONNECT = """
import socket
try:
    socket.create_connection(("{}", 9), timeout=10)
except ConnectionRefusedError:
    print("refused")
"""


def _running_in(namespace: str) -> set[int]:
    said = subprocess.run(["ip", "netns", "pids", namespace], check=True, capture_output=True, text=True).stdout
    return set(map(int, said.split()))
