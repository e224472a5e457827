"""Real servers for tests: SeaweedFS as the S3 store, MLflow as the tracking server, nodes of a Ray cluster."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Self

import psutil
import s3fs
from botocore.exceptions import BotoCoreError

ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key"
BUCKET = "lake"
GUEST_KEYS = {"AWS_ACCESS_KEY_ID": "guest-access-key", "AWS_SECRET_ACCESS_KEY": "guest-secret-key"}
GUESTS = "guests"
"""Guests may list the bucket, and read what is below this prefix."""


class Server:
    """A server as a process of its own; killed and started again, it keeps its data and its address.

    Args:
        folder: for its data and its log.
        name: of the log.
        host: the address that it listens on.
        namespace: the network namespace that it runs in; this process's own by default.
    """

    settings: ClassVar[Mapping[str, str]] = {}

    def __init__(self, folder: Path, name: str, host: str = "127.0.0.1", namespace: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.host = host
        self._enter = ["ip", "netns", "exec", namespace] if namespace else []
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen | None = None

    def command(self) -> list[str]:
        """What is run."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it serves yet."""
        raise NotImplementedError

    def start(self, seconds: float = 240, env: Mapping[str, str] | None = None) -> Self:
        """Starts it, by default in this process's environment, and waits until it answers."""
        env = {**(env or os.environ), **self.settings}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._enter, *self.command()], stdout=log, stderr=log, env=env, start_new_session=True
            )
        deadline = time.monotonic() + seconds
        while not self.answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"the server did not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.1)
        return self

    def kill(self) -> None:
        """Ends it, and all its children, without a warning; nothing happens to one that has been killed."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class S3Server(Server):
    """SeaweedFS as an S3 store with one bucket."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        super().__init__(folder, "weed", host)
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        access, secret = GUEST_KEYS.values()
        guest = {
            "name": "guest",
            "credentials": [{"accessKey": access, "secretKey": secret}],
            "actions": [f"List:{BUCKET}", f"Read:{BUCKET}/{GUESTS}/*"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity, guest]}))
        self._ports = free_ports(5)
        self.endpoint = f"http://{host}:{self._ports[3]}"
        self._metrics = f"http://{host}:{self._ports[4]}/metrics"

    def command(self) -> list[str]:
        weed = shutil.which("weed") or str(Path(sys.executable).with_name("weed"))
        master, volume, filer, s3, metrics = self._ports
        return [
            weed, "server", f"-dir={self.folder}", f"-ip={self.host}", f"-ip.bind={self.host}", "-s3",
            f"-s3.config={self.folder / 's3.json'}", f"-master.port={master}", f"-volume.port={volume}",
            f"-filer.port={filer}", f"-s3.port={s3}", f"-metricsPort={metrics}", "-s3.port.iceberg=0",
            "-s3.port.lance=0", "-master.volumeSizeLimitMB=256", "-volume.max=64", "-master.electionTimeout=1s",
        ]  # fmt: skip

    def answers(self) -> bool:
        """Whether objects can be written; the first time this makes the bucket."""
        fs = s3fs.S3FileSystem(
            key=ACCESS_KEY, secret=SECRET_KEY, endpoint_url=self.endpoint, skip_instance_cache=True,
            config_kwargs={"retries": {"max_attempts": 0}},
        )  # fmt: skip
        try:
            fs.makedirs(BUCKET, exist_ok=True)
            fs.pipe_file(f"{BUCKET}/_ready", b"ready")
        except (OSError, BotoCoreError):
            return False
        return True

    def requests(self) -> int:
        """How many it has answered, whoever asked."""
        with urllib.request.urlopen(self._metrics) as answer:
            told = re.findall(r"^SeaweedFS_s3_request_total\{.*\} (.+)$", answer.read().decode(), re.MULTILINE)
        return int(sum(map(float, told)))

    def env(self, endpoint: str = "") -> dict[str, str]:
        """The standard variables that let every client reach it, or what stands in front of it."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }


class MlflowServer(Server):
    """MLflow's tracking server with a database and artifacts of its own."""

    # Its runner of evaluation jobs, which nobody asks for, takes four times the CPU of all the rest to start.
    settings: ClassVar = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        super().__init__(folder, "mlflow", host)
        (self._port,) = free_ports(1)
        self.uri = f"http://{host}:{self._port}"

    def command(self) -> list[str]:
        return [
            sys.executable, "-m", "mlflow", "server", "--host", self.host, "--port", str(self._port),
            "--allowed-hosts", f"{self.host}:{self._port}",
            "--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}",
            "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip

    def answers(self) -> bool:
        """Whether its health page is there."""
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False


class RayNode(Server):
    """A node of a Ray cluster: the head, or one that joins the cluster at `address`.

    Args:
        folder: for its log.
        cpus: how many tasks it runs at once.
        address: the head's; makes this node a head by default.
        dashboard: whether a head takes jobs by HTTP, at `dashboard`.
        host: the node's address.
        namespace: the network namespace that it runs in.
        scratch: the head's own folder for Ray's files, in whose place such a node has one of its own, as another host
            would: nodes that share one remove each other's.
        gpus: how many it says that it has.
    """

    def __init__(
        self,
        folder: Path,
        cpus: int,
        address: str = "",
        dashboard: bool = False,
        host: str = "127.0.0.1",
        namespace: str = "",
        scratch: str = "",
        gpus: int = 0,
    ) -> None:
        super().__init__(folder, "ray", host, namespace)
        self.dashboard = f"http://{host}:{free_ports(1)[0]}" if dashboard else ""
        self._cpus, self._gpus = cpus, gpus
        if gpus:
            self.settings = _showing(gpus)
        self._joins = address
        # In Ray's own folder a head would say that it is this machine's cluster; Ray's sockets need a short path.
        self.scratch = scratch if address else tempfile.mkdtemp(prefix="ray")
        self.address = address or f"{host}:{free_ports(1)[0]}"

    def command(self) -> list[str]:
        head = [
            "--head", f"--port={self.address.split(':')[1]}", f"--temp-dir={self.scratch}",
            f"--include-dashboard={bool(self.dashboard)}".lower(), "--disable-usage-stats",
        ]  # fmt: skip
        if self.dashboard:
            agent, port = free_ports(1)[0], self.dashboard.rsplit(":", 1)[1]
            head += [
                f"--dashboard-port={port}",
                f"--dashboard-host={self.host}",
                f"--dashboard-agent-listen-port={agent}",
            ]
        place = [f"--address={self._joins}"] if self._joins else head
        own = ["sh", "-c", 'mount --bind "$1" "$2" && shift 2 && exec "$@"', "sh", str(self.folder), self.scratch]
        return [
            *(own if self._joins and self.scratch else []),
            sys.executable, "-m", "ray.scripts.scripts", "start", *place, f"--node-ip-address={self.host}",
            f"--num-cpus={self._cpus}", f"--num-gpus={self._gpus}", f"--object-store-memory={256 << 20}",
            "--include-log-monitor=false", "--block",
        ]  # fmt: skip

    def answers(self) -> bool:
        """Whether it says that it runs."""
        return "Ray runtime started" in self.log.read_text()

    def kill(self) -> None:
        """Ends it with all that it started."""
        super().kill()
        if not self._joins:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def workers(self) -> list[psutil.Process]:
        """Processes that Ray started here."""
        assert self._process is not None
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


class GrowingRay(RayNode):
    """A head that computes nothing, whose autoscaler brings nodes, processes of this machine, when work asks for them.

    Args:
        folder: for its log.
        nodes: Ray's resources of each node that comes; one that says that it has a GPU need not have one.
        most: how many may come.
    """

    settings: ClassVar = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_AUTH_MODE": "disabled",
    }  # fmt: skip

    def __init__(self, folder: Path, nodes: Mapping[str, int], most: int) -> None:
        super().__init__(folder, 0)
        self.settings = {**self.settings, **_showing(nodes.get("GPU", 0))}
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        worker = {"resources": dict(nodes), "node_config": {}, "min_workers": 0, "max_workers": most}
        # Nodes are told apart by their ids, as all of them have one address.
        provider = {
            "type": "fake_multinode", "gcs_address": self.address, "use_node_id_as_ip": True,
            "disable_node_updaters": True, "disable_launch_config_check": True,
        }  # fmt: skip
        empty = ("rsync_exclude", "rsync_filter", "cluster_synced_files", "initialization_commands", "setup_commands",
                 "head_setup_commands", "worker_setup_commands", "head_start_ray_commands",
                 "worker_start_ray_commands")  # fmt: skip
        config = {
            "cluster_name": "growing", "max_workers": most, "idle_timeout_minutes": 0.05, "upscaling_speed": 1.0,
            "provider": provider, "auth": {"ssh_user": "nobody"}, "docker": {}, "file_mounts": {},
            "file_mounts_sync_continuously": False, "available_node_types": {"head": head, "worker": worker},
            "head_node_type": "head", **{name: [] for name in empty},
        }  # fmt: skip
        (folder / "autoscaling.json").write_text(json.dumps(config))

    def command(self) -> list[str]:
        return [*super().command(), f"--autoscaling-config={self.folder / 'autoscaling.json'}"]

    def nodes(self) -> int:
        """How many have come and are there."""
        parents = {}
        for process in self.workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == "raylet":  # or its fork, which becomes a worker
                    parents[process.pid] = process.ppid()
        return sum(parent not in parents for parent in parents.values()) - 1

    def kill(self) -> None:
        """Ends it, and its nodes."""
        own = self.workers() if self._process is not None else []
        super().kill()
        for process in own:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _showing(gpus: int) -> dict[str, str]:
    """The environment of a node that says that it has so many: tests hide the true ones, and Ray would refuse it."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus)))}


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now, nor at that plus 10,000, where SeaweedFS has gRPC."""
    ports: list[int] = []
    for port in _own_ports():
        with socket.socket() as http, socket.socket() as grpc:
            try:
                http.bind(("127.0.0.1", port))
                grpc.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            break
    return ports


@functools.cache
def _own_ports() -> Iterator[int]:
    """This process's, each again only after all others: what takes one later must find it free.

    With 10,000 added they are below 32,768, from where on Linux gives ports to connections, and above those of Ray's
    workers (10,002 to 19,999). Of pytest-xdist's processes each has its own.
    """
    lanes = 16
    ports = range(20000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw15")[2:]) % lanes, 22768, lanes)
    start = os.getpid() % len(ports)
    return itertools.cycle([*ports[start:], *ports[:start]])
