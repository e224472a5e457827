"""The ports that tests' servers get."""

from __future__ import annotations

import socket
import subprocess
import sys

from tests.servers import free_ports


def test_no_port_comes_again_soon_nor_is_one_that_linux_gives_to_connections() -> None:
    ports = [port for _ in range(20) for port in free_ports(5)]
    assert len(set(ports)) == 100
    assert min(ports) >= 20000
    assert max(ports) + 10000 < 32768


def test_a_port_that_is_listened_on_or_whose_place_for_grpc_is_comes_never() -> None:
    for more in (0, 10000):
        (first,) = free_ports(1)
        with socket.create_server(("127.0.0.1", first + more)):
            assert first not in free_ports(200), "more than this process has"


def test_processes_of_xdist_have_ports_of_their_own() -> None:
    program = "from tests.servers import free_ports; print(*free_ports(170))"
    told = [
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTEST_XDIST_WORKER": worker}, check=True, capture_output=True
        ).stdout.split()
        for worker in ("gw8", "gw9")  # no run has as many: their servers are not met
    ]
    assert len(told[0]) == len(told[1]) == 170
    assert not {*told[0]} & {*told[1]}
