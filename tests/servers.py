"""Real servers for tests: SeaweedFS as the S3 store."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key"
BUCKET = "lake"


@dataclass
class S3Server:
    """A running store with one bucket."""

    process: subprocess.Popen
    endpoint: str

    @property
    def env(self) -> dict[str, str]:
        """The standard variables that let every client reach it."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    def stop(self) -> None:
        """Ends the server."""
        self.process.kill()
        self.process.wait()


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now. SeaweedFS adds 10,000 for gRPC, so both must be free."""
    ports: list[int] = []
    while len(ports) < count:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1] % 20000 + 20000
            try:
                second.bind(("127.0.0.1", port))
                with socket.socket() as grpc:
                    grpc.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def start_s3(folder: Path) -> S3Server:
    """Starts `weed server -s3` with its data in `folder`, makes the bucket, and waits until it answers."""
    weed = shutil.which("weed") or str(Path(sys.executable).with_name("weed"))
    folder.mkdir(parents=True, exist_ok=True)
    identities = {
        "identities": [
            {
                "name": "tests",
                "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            }
        ]
    }
    config = folder / "s3.json"
    config.write_text(json.dumps(identities))
    master, volume, filer, s3 = free_ports(4)
    command = [
        weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={config}",
        f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=256", "-volume.max=64",
    ]  # fmt: skip
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    server = S3Server(process, f"http://127.0.0.1:{s3}")
    _make_bucket(server, folder / "weed.log")
    return server


def _make_bucket(server: S3Server, log: Path, seconds: float = 60) -> None:
    import s3fs

    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(server.endpoint, timeout=2)
        except urllib.error.HTTPError:
            pass  # it answers: anonymous access is refused
        except OSError:
            if time.monotonic() > deadline or server.process.poll() is not None:
                raise RuntimeError(f"the S3 server did not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.2)
            continue
        fs = s3fs.S3FileSystem(
            key=ACCESS_KEY, secret=SECRET_KEY, endpoint_url=server.endpoint, skip_instance_cache=True
        )
        try:
            fs.makedirs(BUCKET, exist_ok=True)
            fs.pipe_file(f"{BUCKET}/_ready", b"ready")
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
