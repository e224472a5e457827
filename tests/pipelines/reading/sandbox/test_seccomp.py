import errno
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.reading.sandbox import seccomp
from tests import tiny


def run(program: list[tuple[int, int, int, int]], architecture: int, number: int, *arguments: int) -> int:
    """What a classic BPF program answers to a system call (Linux's Documentation/networking/filter.rst)."""
    words = {0: number, 4: architecture, **{16 + 8 * i: value for i, value in enumerate(arguments)}}
    accumulator = at = 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            accumulator = words.get(operand, 0)
        else:
            test = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: bool(accumulator & operand)}
            at += if_true if test[code] else if_false


ALLOW, REFUSE, ABSENT, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS, 0x80000000
DANGEROUS = {
    "socket": (41, 198), "connect": (42, 203), "socketpair": (53, 199), "bind": (49, 200), "sendto": (44, 206),
    "recvmsg": (47, 212), "execve": (59, 221), "execveat": (322, 281), "memfd_create": (319, 279), "clone3": (435, 435),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "mount": (165, 40), "unshare": (272, 97), "setns": (308, 268), "fsopen": (430, 430),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "keyctl": (250, 219), "add_key": (248, 217),
    "sched_setaffinity": (203, 122), "setpriority": (141, 140), "ftruncate": (77, 46), "fchmod": (91, 52),
    "unlinkat": (263, 35), "mkdirat": (258, 34), "linkat": (265, 37), "shmget": (29, 194), "init_module": (175, 105),
    "personality": (135, 92), "seccomp": (317, 277), "not one yet": (999, 999),
}  # fmt: skip
"""Numbers on x86-64 and arm64."""


@pytest.mark.parametrize(("column", "machine"), list(enumerate(["x86_64", "aarch64"])))
def test_the_filter_of_each_processor(column: int, machine: str) -> None:
    program, architecture = seccomp._program(machine, 4711), seccomp._ARCHITECTURES[machine]
    assert len(program) < 256
    allowed = {numbers[column] for numbers in seccomp._ALLOWED.values()} - {None}
    some = {name: numbers[column] for name, numbers in seccomp._CONDITIONAL.items()}
    assert {run(program, architecture, number) for number in allowed} == {ALLOW}
    others = set(range(1024)) - allowed - set(some.values())
    assert {run(program, architecture, number) for number in others} == {ABSENT}
    assert {numbers[column] for numbers in DANGEROUS.values()} <= others
    assert run(program, 0x40000003, 1) == KILL, "another architecture"
    assert run(program, architecture, 0x40000000) == KILL, "x32"
    assert run(program, architecture, some["clone"], 0x3D0F00) == ALLOW, "a thread, as glibc starts it"
    assert run(program, architecture, some["clone"], 0x1200011) == REFUSE, "a fork"
    assert run(program, architecture, some["clone"], 0x4111) == REFUSE, "a vfork"
    for name in ("kill", "tgkill"):
        assert run(program, architecture, some[name], 4711) == ALLOW
        assert {run(program, architecture, some[name], whose) for whose in (0, 1, 2**32 - 1)} == {REFUSE}
    assert run(program, architecture, some["prlimit64"], 0) == ALLOW
    assert run(program, architecture, some["prlimit64"], 1) == REFUSE
    assert run(program, architecture, some["prctl"], 15) == ALLOW, "PR_SET_NAME"
    assert run(program, architecture, some["prctl"], 4) == REFUSE, "PR_SET_DUMPABLE"
    assert run(program, architecture, some["ioctl"], 2, 0x5401) == ALLOW, "TCGETS"
    assert {run(program, architecture, some["ioctl"], 2, request) for request in (0x5412, 0x541C, 0x8901)} == {REFUSE}
    assert run(program, architecture, some["fcntl"], 2, 3) == ALLOW, "F_GETFL"
    assert run(program, architecture, some["fcntl"], 2, 8, 4711) == ALLOW, "F_SETOWN, as the child's lifeline"
    assert {run(program, architecture, some["fcntl"], 2, 8, whose) for whose in (1, -4711 % 2**32)} == {REFUSE}
    assert {run(program, architecture, some["fcntl"], 2, command) for command in (10, 15, 1024)} == {REFUSE}


HEADERS = {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}


@pytest.mark.parametrize(("column", "machine"), list(enumerate(HEADERS)))
def test_the_numbers_are_those_of_linux(column: int, machine: str) -> None:
    header = Path("/usr/include", HEADERS[machine])
    if not header.exists():
        pytest.skip(f"{header} is not installed")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
    found.setdefault("newfstatat", found.get("fstatat", ""))
    known = {**seccomp._ALLOWED, **seccomp._CONDITIONAL, **DANGEROUS}
    del known["not one yet"]
    numbers = {name: str(one[column]) for name, one in known.items() if one[column] is not None}
    assert {name: found[name] for name in numbers} == numbers


@pytest.mark.skipif(not seccomp.works(), reason="this kernel has no seccomp filters")
def test_the_kernel_executes_none_of_the_dangerous_calls() -> None:
    """By the filter alone, and with arguments that would be good."""
    column = list(seccomp._ARCHITECTURES).index(platform.machine())
    numbers = {name: one[column] for name, one in DANGEROUS.items()}
    script = f"""
import ctypes, json, os
from pipelines.reading.sandbox import kernel, seccomp
parent = os.getppid()
kernel.libc().prctl(38, 1, 0, 0, 0)
seccomp.allow_decoding_only()
found = {{}}
for name, number in {numbers}.items():
    arguments = (b"/bin/true", 0) if name == "execve" else (1, 1, 0)
    kernel.libc().syscall(number, *arguments, 0, 0)
    found[name] = ctypes.get_errno()
for name, attempt in dict(fork=os.fork, kill=lambda: os.kill(parent, 0)).items():
    try:
        attempt()
    except OSError as error:
        found[name] = error.errno
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tiny.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found.pop("fork"), found.pop("kill")) == (errno.EPERM, errno.EPERM)
    assert found == dict.fromkeys(numbers, errno.ENOSYS)


def test_files_send_their_signals_to_nobody_else() -> None:
    """By the filter alone: Landlock refuses it only since its sixth version."""
    script = """
import errno, fcntl, os, struct
from pipelines.reading.sandbox import seccomp
parent, (reader, _) = os.getppid(), os.pipe()
seccomp.allow_decoding_only()
fcntl.fcntl(reader, fcntl.F_SETOWN, os.getpid())
tries = (
    lambda: fcntl.fcntl(reader, fcntl.F_SETOWN, parent),
    lambda: fcntl.fcntl(reader, fcntl.F_SETOWN, -os.getpid()),
    lambda: fcntl.fcntl(reader, 10, 9),
    lambda: fcntl.fcntl(reader, 15, struct.pack("ii", 1, parent)),
    lambda: fcntl.ioctl(reader, 0x8901, struct.pack("i", parent)),
)
for attempt in tries:
    try:
        attempt()
    except PermissionError:
        print("refused")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tiny.ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["refused"] * 5, done.stderr
