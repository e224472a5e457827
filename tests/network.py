"""A network of several hosts on this machine: namespaces, each with its own address, on a bridge to this one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache

PREFIX = "10.77.0"


@dataclass(frozen=True)
class Network:
    """Hosts by name.

    Args:
        gateway: this process's own address in it.
        hosts: address by name of the namespace.
    """

    gateway: str
    hosts: dict[str, str]

    def cut(self, host: str) -> None:
        """Nothing reaches this host any more, nor comes from it."""
        _ip("link", "set", f"v-{host}", "down")

    def mend(self, host: str) -> None:
        """It is back."""
        _ip("link", "set", f"v-{host}", "up")


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
    """A network of these hosts, from the first to the last; names of at most ten letters."""
    gateway = f"{PREFIX}.1"
    with ExitStack() as stack:
        _ip("link", "add", "hybrid0", "type", "bridge")
        stack.callback(_ip, "link", "del", "hybrid0")
        _ip("addr", "add", f"{gateway}/24", "dev", "hybrid0")
        _ip("link", "set", "hybrid0", "up")
        hosts = {name: f"{PREFIX}.{number}" for number, name in enumerate(names, 10)}
        for name, address in hosts.items():
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
            _ip("link", "add", f"v-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
            stack.callback(_ip, "link", "del", f"v-{name}")  # a process that is still there would keep the namespace
            _ip("link", "set", f"v-{name}", "master", "hybrid0", "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _ip("-n", name, "link", "set", device, "up")
        yield Network(gateway, hosts)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
