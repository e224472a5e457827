import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.reading.sandbox import jail
from tests import tiny

TRY = """
import os, socket, sys, threading
from pipelines.reading.sandbox import jail
jail.enter()
import json
from hybrid_models import inputs  # code is found, though its folder cannot be listed
import numpy, pyarrow
attempts = {
    "read a file": lambda: open("/etc/passwd").read(),
    "read beside the code": lambda: open(os.path.join(sys.argv[1], "README.md")).read(),
    "list beside the code": lambda: os.listdir(sys.argv[1]),
    "list the home": lambda: os.listdir("/home"),
    "read its parent": lambda: open(f"/proc/{os.getppid()}/environ").read(),
    "read its environment": lambda: open("/proc/self/environ").read(),
    "write": lambda: open("/tmp/written", "w"),
    "shared memory": lambda: os.listdir("/dev/shm"),
    "tcp": lambda: socket.socket(),
    "udp": lambda: socket.socket(type=socket.SOCK_DGRAM),
    "unix": lambda: socket.socket(socket.AF_UNIX),
    "fork": os.fork,
    "run": lambda: os.execv("/bin/true", ["true"]),
    "kill": lambda: os.kill(os.getppid(), 0),
    "limit": lambda: __import__("resource").prlimit(os.getppid(), 7),
    "type": lambda: __import__("fcntl").ioctl(2, 0x5412, b"x"),
}
found = {}
for name, attempt in attempts.items():
    try:
        found[name] = str(attempt())
    except OSError as error:
        found[name] = error.errno
threading.Thread(target=lambda: found.update(thread="runs")).start()
found["itself"] = os.kill(os.getpid(), 0)
print(json.dumps(found))
"""


@pytest.mark.skipif(not jail.available(), reason=f"no jail here: {jail.status()}")
def test_what_is_refused_and_what_is_not(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", TRY, str(tiny.ROOT)], cwd=tmp_path, env=jail.environment({}, [str(tiny.ROOT)]),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("thread") == "runs"
    assert found.pop("itself") is None
    assert set(found.values()) <= {errno.EACCES, errno.EPERM, errno.ENOSYS}, found
    assert not Path("/tmp/written").exists()


def test_the_environment_has_no_secrets_and_the_path_no_working_directory() -> None:
    environ = {"AWS_SECRET_ACCESS_KEY": "canary", "HOME": "/home/somebody", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    made = jail.environment(environ, ["", "/opt/code"])
    assert made == {
        "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", **jail.OWN_ENV, "PYTHONPATH": f"{Path.cwd()}{os.pathsep}/opt/code",
    }  # fmt: skip
    assert made["HOME"] == "/nonexistent"


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_JAIL", "off")
    assert not jail.available()
    assert jail.status() == dict.fromkeys(("files", "network", "system calls"), "not kept away: HYBRID_JAIL=off")
