"""What a decoder that was taken over would try, and a hybrid that shows all that it was given."""

# System calls are meant, one by one.
# ruff: noqa: PTH101, PTH102, PTH104, PTH106, PTH108, PTH116, PTH208, PTH211
from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import multiprocessing.shared_memory
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hybrid_models.inputs import Inputs, Preprocess, Sample, Visual, Window
from pipelines.reading.rows import Begin

REPORT = pa.schema([("index", pa.int64()), ("report", pa.string())])


class Echo(Preprocess):
    """A sample is whatever the row holds, as bytes."""

    visual = Visual(16, 16, 2)
    window = Window(past_frames=3, horizon_minutes=15)

    def __call__(self, inputs: Inputs, with_target: bool) -> Sample:
        media = np.zeros(0) if inputs.media is None else np.nan_to_num(inputs.media)
        fields = np.frombuffer(json.dumps(inputs.fields).encode(), np.uint8)
        return {"media": media.astype(np.uint8), "fields": fields, "length": np.int64(1)}


@dataclass(frozen=True)
class Place:
    """Where the intruder is let loose: what lies and listens around it."""

    word: str
    """That nobody may learn."""
    folder: str
    """With the files below, for writing."""
    file: str
    """Holds the word, and is open in the parent."""
    unix: str
    """Address of a listening Unix socket; its abstract twin has this name, too."""
    port: int
    """Of a listening TCP socket and a UDP socket on 127.0.0.1."""
    parent: int
    """Process id of the worker."""


@dataclass(frozen=True)
class Intruder:
    """Tries everything for the first row of a shard, and reports what came of it: name → what it got, or how not."""

    place: Place
    schema = REPORT

    def __call__(self, rows: pa.Table, begin: Begin) -> pa.Table:
        report = {name: _try(attempt, self.place) for name, attempt in ATTEMPTS.items()}
        index = rows["index"].to_pylist()
        reports = [json.dumps(report)] + [""] * (len(index) - 1)
        return pa.table({"index": index, "report": reports}, schema=REPORT)


GOT = "got "


def _try(attempt: Callable[[Place], Any], place: Place) -> str:
    try:
        return f"{GOT}{attempt(place)!r}"[:200]
    except OSError as error:
        return f"{errno.errorcode.get(error.errno or 0, '')}: {error}"[:200]
    except subprocess.SubprocessError as error:
        return f"{type(error).__name__}: {error}"[:200]


class NothingError(OSError):
    """There was nothing to be had."""


# ---- files -------------------------------------------------------------------------------------------------------
def _read(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(200)


def _create(path: str) -> str:
    Path(path).write_text("intruder")
    Path(path).unlink()
    return path


def _inherited(place: Place) -> list[int]:
    """Files that came along and hold the word."""
    found = []
    for fd in range(256):
        try:
            if place.word.encode() in os.pread(fd, 4096, 0):
                found.append(fd)
        except OSError:
            continue
    if not found:
        raise NothingError("no file that is open holds it")
    return found


def _environment(place: Place) -> list[str]:
    found = [name for name, value in os.environ.items() if place.word in value]
    if not found:
        raise NothingError("not in the environment")
    return found


def _shared_memory(place: Place) -> str:
    memory = multiprocessing.shared_memory.SharedMemory(create=True, size=64)
    memory.unlink()
    return memory.name


# ---- processes ---------------------------------------------------------------------------------------------------
_LIBC = ctypes.CDLL(None, use_errno=True)
_X86 = os.uname().machine == "x86_64"
NUMBERS = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "pidfd_open": (434, 434), "execve": (59, 221),
    "bpf": (321, 280),
    "rt_sigqueueinfo": (129, 138), "unshare": (272, 97), "io_uring_setup": (425, 425), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "add_key": (248, 217), "shmget": (29, 194), "kcmp": (312, 272), "mount": (165, 40),
    "sethostname": (170, 161), "open_by_handle_at": (304, 265), "ioprio_set": (251, 30),
}  # fmt: skip
"""System calls of x86-64 and arm64."""


def _call(name: str, *arguments: Any) -> int:
    """A system call past all libraries."""
    number = NUMBERS[name][0 if _X86 else 1]
    result: int = _LIBC.syscall(number, *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _execve(place: Place) -> str:
    """Of a program that is not there: only who may start programs is told so."""
    try:
        _call("execve", b"/nonexistent", None, None)
    except FileNotFoundError:
        return "programs may be started"
    return "started"


def _fork(place: Place) -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def _trace(place: Place) -> str:
    """Whoever may trace is told that the parent is not traced yet; it would stop for ever if it were."""
    try:
        _call("ptrace", 2, place.parent, 0, 0)
    except ProcessLookupError:
        return "processes may be traced"
    return "traced"


def _peek(place: Place) -> str:
    """At an address where nothing is: only who may look is told so."""
    buffer = ctypes.create_string_buffer(8)
    local, remote = struct.pack("PN", ctypes.addressof(buffer), 8), struct.pack("PN", 8, 8)
    try:
        _call("process_vm_readv", place.parent, local, 1, remote, 1, 0)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
    return "memory may be looked at"


def _signal_of_a_pipe(place: Place) -> str:
    """The kernel sends a signal to the owner of a pipe; this one is ignored unless someone waits for it."""
    reading, writing = os.pipe()
    fcntl.fcntl(reading, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(reading, fcntl.F_SETOWN, place.parent)
    fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    os.write(writing, b"x")
    raise NothingError("sent to whoever may be sent one")


def _slow_down(place: Place) -> int:
    os.setpriority(os.PRIO_PROCESS, place.parent, os.getpriority(os.PRIO_PROCESS, place.parent))
    return place.parent


def _pin(place: Place) -> int:
    os.sched_setaffinity(place.parent, os.sched_getaffinity(place.parent))
    return place.parent


def _mount(place: Place) -> str:
    """Of a kind that is none: only who may mount is told so."""
    try:
        _call("mount", b"none", place.folder.encode(), b"nonsense", 0, None)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
    return "file systems may be mounted"


def _hostname(place: Place) -> int:
    name = socket.gethostname().encode()
    return _call("sethostname", name, len(name))


# ---- network -----------------------------------------------------------------------------------------------------
def _connect(family: int, kind: int, address: Any) -> str:
    with socket.socket(family, kind) as connection:
        connection.settimeout(2)
        connection.connect(address)
        if kind == socket.SOCK_DGRAM:
            connection.send(b"intruder")
    return str(address)


ATTEMPTS: Mapping[str, Callable[[Place], Any]] = {
    "read the canary": lambda p: _read(p.file),
    "read /etc/passwd": lambda p: _read("/etc/passwd"),
    "read /etc/hostname": lambda p: _read("/etc/hostname"),
    "read the parent's environment": lambda p: _read(f"/proc/{p.parent}/environ"),
    "read the parent's command": lambda p: _read(f"/proc/{p.parent}/cmdline"),
    "read the parent's memory": lambda p: _read(f"/proc/{p.parent}/maps"),
    "read its own environment": _environment,
    "read its first environment": lambda p: _read("/proc/self/environ"),
    "read from files that came along": _inherited,
    "list /": lambda p: os.listdir("/"),
    "list the folder": lambda p: os.listdir(p.folder),
    "list home": lambda p: os.listdir(str(Path.home())),
    "list where it is": lambda p: os.listdir("."),
    "list /tmp": lambda p: os.listdir("/tmp"),
    "list /proc": lambda p: os.listdir("/proc"),
    "list /dev/shm": lambda p: os.listdir("/dev/shm"),
    "write where it is": lambda p: _create("intruder"),
    "write into the folder": lambda p: _create(f"{p.folder}/intruder"),
    "write into /tmp": lambda p: _create("/tmp/intruder"),
    "write into /dev/shm": lambda p: _create("/dev/shm/intruder"),
    "write to the canary": lambda p: os.close(os.open(p.file, os.O_WRONLY | os.O_APPEND)),
    "write a file without a name": lambda p: os.close(os.open(p.folder, os.O_TMPFILE | os.O_WRONLY)),
    "cut the canary": lambda p: os.truncate(p.file, os.stat(p.file).st_size),
    "link the canary": lambda p: (os.link(p.file, f"{p.folder}/twin"), os.unlink(f"{p.folder}/twin")),
    "rename the canary": lambda p: (os.rename(p.file, f"{p.file}2"), os.rename(f"{p.file}2", p.file)),
    "make a folder": lambda p: (os.mkdir(f"{p.folder}/new"), os.rmdir(f"{p.folder}/new")),
    "make a link": lambda p: (os.symlink("/etc", f"{p.folder}/etc"), os.unlink(f"{p.folder}/etc")),
    "make a pipe": lambda p: (os.mkfifo(f"{p.folder}/fifo"), os.unlink(f"{p.folder}/fifo")),
    "change the canary's mode": lambda p: os.chmod(p.file, os.stat(p.file).st_mode),
    "change the canary's owner": lambda p: os.chown(p.file, os.getuid(), os.getgid()),
    "change the canary's times": lambda p: os.utime(p.file),
    "change the canary's attributes": lambda p: os.setxattr(p.file, "user.intruder", b"1"),
    "cut the log": lambda p: os.ftruncate(2, os.fstat(2).st_size),
    "share memory": _shared_memory,
    "share System V memory": lambda p: _call("shmget", 0, 64, 0o1600),
    "connect by TCP": lambda p: _connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", p.port)),
    "send by UDP": lambda p: _connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", p.port)),
    "connect by a Unix socket": lambda p: _connect(socket.AF_UNIX, socket.SOCK_STREAM, p.unix),
    "connect by an abstract socket": lambda p: _connect(socket.AF_UNIX, socket.SOCK_STREAM, f"\0{p.unix}"),
    "ask for a name": lambda p: socket.getaddrinfo("localhost", 80),
    "ask the kernel about the network": lambda p: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close(),
    "start a program": lambda p: subprocess.run(["/bin/true"], check=True),
    "become a program": _execve,
    "fork": _fork,
    "trace the parent": _trace,
    "peek at the parent": _peek,
    "open the parent": lambda p: _call("pidfd_open", p.parent, 0),
    "compare with the parent": lambda p: _call("kcmp", os.getpid(), p.parent, 1, 0, 0),
    "signal the parent": lambda p: os.kill(p.parent, 0),
    "queue the parent a signal": lambda p: _call(
        "rt_sigqueueinfo", p.parent, signal.SIGURG, struct.pack("iii", signal.SIGURG, 0, -1) + b"\0" * 116
    ),
    "signal the parent by a pipe": _signal_of_a_pipe,
    "slow the parent down": _slow_down,
    "pin the parent": _pin,
    "delay what the parent reads": lambda p: _call("ioprio_set", 1, p.parent, 0),
    "leave by a namespace": lambda p: _call("unshare", 0x10000000),
    "mount": _mount,
    "open by a handle": lambda p: _call("open_by_handle_at", -100, struct.pack("II", 8, 1) + b"\0" * 8, 0) or 0,
    "name the host": _hostname,
    "use io_uring": lambda p: _call("io_uring_setup", 1, ctypes.create_string_buffer(256)),
    "load a program into the kernel": lambda p: _call("bpf", 0, ctypes.create_string_buffer(128), 128),
    "keep a key": lambda p: _call("add_key", b"user", b"intruder", b"x", 1, -3),
}  # fmt: skip
"""What is tried: returns what it got, raises an OSError if refused."""
