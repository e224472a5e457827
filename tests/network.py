"""A network of several hosts on this machine: namespaces, each with its own address, on a bridge to this one."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PREFIX = "10.77.0"
BRIDGE = "hybrid0"


@dataclass(frozen=True)
class Network:
    """Hosts by name.

    Args:
        gateway: this process's own address in it.
        hosts: address by name.
    """

    gateway: str
    hosts: dict[str, str]

    def namespace(self, host: str) -> str:
        """Its network namespace."""
        return _namespace(host)

    def cut(self, host: str) -> None:
        """Nothing reaches this host any more, nor comes from it."""
        _ip("link", "set", f"hy-{host}", "down")

    def mend(self, host: str) -> None:
        """It is back."""
        _ip("link", "set", f"hy-{host}", "up")


@cache
def why_not() -> str:
    """Why there can be no such network here; empty if there can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and iproute2"
    name = f"try{os.getpid()}"
    for kind, more in (("netns", []), ("link", ["type", "bridge"])):
        tried = subprocess.run(["ip", kind, "add", name, *more], capture_output=True, text=True, check=False)
        if tried.returncode:
            return f"`ip {kind} add` is not allowed here: {tried.stderr.strip()}"
        _ip(kind, "del", name)
    return ""


@contextmanager
def running(names: Sequence[str]) -> Iterator[Network]:
    """A network of these hosts, from the first to the last; names of at most ten letters.

    There is one at a time on a machine: a second run waits until the first has ended. What a run that was killed has
    left behind is removed first.
    """
    gateway = f"{PREFIX}.1"
    with ExitStack() as stack:
        lock = stack.enter_context((Path(tempfile.gettempdir()) / f"{BRIDGE}.lock").open("a"))
        fcntl.flock(lock, fcntl.LOCK_EX)  # it ends with the process that holds it, however that ends
        _remove(names)
        stack.callback(_remove, names)
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{gateway}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        hosts = {name: f"{PREFIX}.{number}" for number, name in enumerate(names, 10)}
        for name, address in hosts.items():
            namespace = _namespace(name)
            _ip("netns", "add", namespace)
            _ip("link", "add", f"hy-{name}", "type", "veth", "peer", "name", "eth0", "netns", namespace)
            _ip("link", "set", f"hy-{name}", "master", BRIDGE, "up")
            _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _ip("-n", namespace, "link", "set", device, "up")
        yield Network(gateway, hosts)


def _namespace(host: str) -> str:
    return f"hybrid-{host}"


def _remove(names: Sequence[str]) -> None:
    """The network of these hosts, with whatever still runs in it: a process would keep its namespace."""
    # Devices first: a namespace that goes takes its own away, at a time of the kernel's own.
    for device in (BRIDGE, *(f"hy-{name}" for name in names)):
        if Path("/sys/class/net", device).exists():
            _ip("link", "del", device)
    for namespace in map(_namespace, names):
        if not Path("/run/netns", namespace).exists():
            continue
        for process in _ip("netns", "pids", namespace).split():
            os.kill(int(process), signal.SIGKILL)
        _ip("netns", "del", namespace)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
