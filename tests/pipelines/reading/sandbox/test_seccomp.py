import errno
import subprocess
import sys

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


ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_of_each_processor(machine: str) -> None:
    program, architecture = seccomp._program(machine, 4711), seccomp._ARCHITECTURES[machine]
    assert len(program) < 4096
    # read, write, mmap, futex, exit_group
    harmless = {"x86_64": (0, 1, 9, 202, 231), "aarch64": (63, 64, 222, 98, 94)}[machine]
    assert {run(program, architecture, number) for number in harmless} == {ALLOW}
    assert {run(program, architecture, number) for number in seccomp._REFUSED[machine]} == {REFUSE}
    assert run(program, architecture, 435) == 0x00050000 | errno.ENOSYS
    assert run(program, 0x40000003, 1) == KILL, "another architecture"
    some = seccomp._CONDITIONAL[machine]
    assert run(program, architecture, some["clone"], 0x3D0F00) == ALLOW, "a thread, as glibc starts it"
    assert run(program, architecture, some["clone"], 0x1200011) == REFUSE, "a fork"
    for name in ("kill", "tgkill"):
        assert run(program, architecture, some[name], 4711) == ALLOW
        assert run(program, architecture, some[name], 1) == REFUSE
    assert run(program, architecture, some["prlimit64"], 0) == ALLOW
    assert run(program, architecture, some["prlimit64"], 1) == REFUSE
    assert run(program, architecture, some["ioctl"], 2, 0x5401) == ALLOW
    assert {run(program, architecture, some["ioctl"], 2, request) for request in seccomp._IOCTLS} == {REFUSE}
    assert run(program, architecture, some["fcntl"], 2, 3) == ALLOW, "F_GETFL"
    assert run(program, architecture, some["fcntl"], 2, 8, 4711) == ALLOW, "F_SETOWN, as the child's lifeline"
    assert {run(program, architecture, some["fcntl"], 2, 8, whose) for whose in (1, -4711 % 2**32)} == {REFUSE}
    assert {run(program, architecture, some["fcntl"], 2, command) for command in (10, 15)} == {REFUSE}


def test_files_send_their_signals_to_nobody_else() -> None:
    """By the filter alone: Landlock refuses it only since its sixth version."""
    script = """
import errno, fcntl, os, struct
from pipelines.reading.sandbox import seccomp
parent, (reader, _) = os.getppid(), os.pipe()
seccomp.refuse_the_rest()
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
