import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hybrid_models.errors import UsageError
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.sandbox import jail, landlock, seccomp
from pipelines.reading.sandbox.guard import guarded
from tests import tiny
from tests.pipelines.reading.sandbox.made import ALWAYS, LIMITS, shard

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


@pytest.mark.skipif(jail.in_force("auto") != jail.WHOLE, reason="this machine has no whole decoding jail")
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
    made = jail.environment(environ, ["", "/opt/code"], "required")
    assert made == {
        "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", **jail.OWN_ENV, "HYBRID_JAIL": "required",
        "PYTHONPATH": f"{Path.cwd()}{os.pathsep}/opt/code",
    }  # fmt: skip
    assert made["HOME"] == "/nonexistent"


@pytest.mark.parametrize(
    ("own", "asked", "mode"),
    [
        (None, "off", "auto"), ("", "off", "auto"),
        ("off", "off", "off"), ("off", "auto", "auto"), ("auto", "off", "auto"),
        ("off", "required", "required"), ("required", "off", "required"), ("auto", "required", "required"),
    ],
)  # fmt: skip
def test_the_stricter_mode_wins(monkeypatch: pytest.MonkeyPatch, own: str | None, asked: str, mode: str) -> None:
    monkeypatch.delenv("HYBRID_JAIL", raising=False)
    if own is not None:
        monkeypatch.setenv("HYBRID_JAIL", own)
    assert jail.wanted_mode(asked) == mode


@pytest.mark.parametrize("value", ["on", "Required", "0"])
def test_an_unknown_mode_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HYBRID_JAIL", value)
    with pytest.raises(UsageError, match=f"^HYBRID_JAIL={value} is unknown: set it to required, auto or off$"):
        jail.wanted_mode()


@pytest.fixture
def kernel_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool, bool], None]]:
    """Sets whether the kernel has Landlock and seccomp."""

    def set_parts(has_landlock: bool, has_seccomp: bool) -> None:
        monkeypatch.setattr(landlock, "abi", lambda: 7 * has_landlock)
        monkeypatch.setattr(seccomp, "works", lambda: has_seccomp)
        jail._log_once.cache_clear()

    yield set_parts
    jail._log_once.cache_clear()


@pytest.mark.parametrize(
    ("parts", "missing"),
    [((False, True), "no landlock"), ((True, False), "no seccomp"), ((False, False), "no landlock and no seccomp")],
)
def test_a_required_jail_that_lacks_a_part_is_refused(
    kernel_parts: Callable[[bool, bool], None], parts: tuple[bool, bool], missing: str
) -> None:
    kernel_parts(*parts)
    why = f"the kernel or container of {socket.gethostname()} has {missing}"
    with pytest.raises(UsageError, match=f"^HYBRID_JAIL=required, but {why}: use Linux"):
        jail.ensure("required")


@pytest.mark.parametrize(
    ("mode", "parts", "found", "line"),
    [
        ("required", (True, True), "landlock+seccomp", "decoding jail: landlock+seccomp"),
        ("auto", (True, True), "landlock+seccomp", "decoding jail: landlock+seccomp"),
        (
            "auto", (False, True), "seccomp",
            "decoding jail: SECCOMP (the kernel or container of {host} has no landlock): ",
        ),
        (
            "auto", (False, False), "off",
            "decoding jail: OFF (the kernel or container of {host} has no landlock and no seccomp): ",
        ),
        ("off", (True, True), "off", "decoding jail: OFF (HYBRID_JAIL=off): "),
    ],
)  # fmt: skip
def test_the_jail_in_force_is_logged_once(
    kernel_parts: Callable[[bool, bool], None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    mode: str, parts: tuple[bool, bool], found: str, line: str,
) -> None:  # fmt: skip
    caplog.set_level("INFO")
    kernel_parts(*parts)
    monkeypatch.setenv("HYBRID_JAIL", mode)
    assert [jail.ensure(), jail.ensure()] == [found, found]
    (record,) = caplog.records
    danger = "" if found == jail.WHOLE else "a hostile file could reach files and the network"
    assert record.getMessage() == line.format(host=socket.gethostname()) + danger
    assert record.levelname == ("WARNING" if danger else "INFO")


def test_a_worker_refuses_to_decode_without_a_required_jail(
    kernel_parts: Callable[[bool, bool], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own variable as by the command's; no row is an error row."""
    one = shard(tmp_path, "x")
    kernel_parts(False, True)
    monkeypatch.setenv("HYBRID_JAIL", "off")
    with pytest.raises(UsageError, match=r"^HYBRID_JAIL=required, but "):
        list(guarded(one, ReadOptions(limits=LIMITS), ALWAYS, jail_mode="required"))
    monkeypatch.setenv("HYBRID_JAIL", "required")
    with pytest.raises(UsageError, match=r"^HYBRID_JAIL=required, but "):
        list(guarded(one, ReadOptions(limits=LIMITS), ALWAYS, jail_mode="off"))


@pytest.mark.skipif(jail.in_force("auto") != jail.WHOLE, reason="this machine has no whole decoding jail")
def test_a_child_is_not_reused_in_a_stricter_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = shard(tmp_path, "x")
    monkeypatch.setenv("HYBRID_JAIL", "off")

    def filtered(mode: str) -> bool:
        ((pid,),) = [block["pid"].to_pylist() for block in guarded(one, ReadOptions(), ALWAYS, jail_mode=mode)]
        return "\nSeccomp:\t2\n" in Path(f"/proc/{pid}/status").read_text()

    assert [filtered(mode) for mode in ("off", "required", "off")] == [False, True, False]


WITHOUT_LANDLOCK = """
import os, struct, sys, ctypes
from pipelines.reading.sandbox import kernel, seccomp
program = [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x50000 | 38), (0x06, 0, 0, 0x7FFF0000)]
code = b"".join(struct.pack("=HBBI", *step) for step in program)
buffer = ctypes.create_string_buffer(code, len(code))
kernel.called("no_new_privs", kernel.libc().prctl(38, 1, 0, 0, 0))
kernel.called("filter", kernel.libc().prctl(22, 2, struct.pack("@HP", len(program), ctypes.addressof(buffer)), 0, 0))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Runs Python on a kernel that answers landlock_create_ruleset with ENOSYS."""


@pytest.mark.skipif(not seccomp.works(), reason="this kernel has no seccomp filters")
def test_a_command_ends_before_it_decodes_on_a_kernel_without_landlock(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.nc").write_bytes(b"no event")
    env = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    command = ["-m", "jobs.prepare", "radar", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out")]

    def run(mode: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", WITHOUT_LANDLOCK, *command]
        return subprocess.run(
            words, cwd=tmp_path, env={**env, "HYBRID_JAIL": mode}, capture_output=True, text=True, check=False
        )

    required, host = run("required"), socket.gethostname()
    assert required.returncode == 2
    assert required.stderr.splitlines() == [
        f"hybrid: HYBRID_JAIL=required, but the kernel or container of {host} has no landlock: use Linux 5.13 or newer "
        "with Landlock and seccomp, in a container that permits them, or set HYBRID_JAIL=auto"
    ]
    assert f"decoding jail: SECCOMP (the kernel or container of {host} has no landlock)" in run("auto").stderr
    assert "decoding jail: OFF (HYBRID_JAIL=off): a hostile file could reach" in run("off").stderr
    assert "hybrid: HYBRID_JAIL=on is unknown: set it to required, auto or off" in run("on").stderr
