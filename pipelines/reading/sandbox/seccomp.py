"""A filter of system calls, seccomp (https://docs.kernel.org/userspace-api/seccomp_filter.html): an allow list.

The list has what decoders of every kind call, as `strace` shows it, and what the same libraries call on other versions
and processors. Any other call fails with ENOSYS, as on a kernel that lacks it, so that a library falls back to another
call; a call that is allowed with other arguments fails with EPERM. docs/decisions/decoding-child.md has the reasons.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence

from pipelines.reading.sandbox import kernel

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Numbers on x86-64 (arch/x86/entry/syscalls/syscall_64.tbl) and arm64 (include/uapi/asm-generic/unistd.h).
_ALLOWED: dict[str, tuple[int, int | None]] = {
    # open files, and the socket to the worker
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "lseek": (8, 62),
    "close": (3, 57), "fstat": (5, 80), "sendmsg": (46, 211), "recvfrom": (45, 207), "getsockname": (51, 204),
    "getsockopt": (55, 209), "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    "pipe": (22, None), "pipe2": (293, 59), "eventfd2": (290, 19),
    # names of files, of which Landlock decides
    "open": (2, None), "openat": (257, 56), "stat": (4, None), "lstat": (6, None), "newfstatat": (262, 79),
    "statx": (332, 291), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "readlink": (89, None), "readlinkat": (267, 78), "getdents64": (217, 61), "getcwd": (79, 17),
    # memory
    "brk": (12, 214), "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216),
    "madvise": (28, 233), "mbind": (237, 235),
    # threads and their end
    "futex": (202, 98), "set_robust_list": (273, 99), "rseq": (334, 293), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "getcpu": (309, 168), "exit": (60, 93), "exit_group": (231, 94),
    # signals
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    # time, where the kernel cannot answer in user space
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "time": (201, None),
    # about the process itself
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "uname": (63, 160), "sysinfo": (99, 179), "getrandom": (318, 278),
    "getrlimit": (97, 163), "getrusage": (98, 165), "times": (100, 153),
}  # fmt: skip
_CONDITIONAL = {
    "clone": (56, 220), "fcntl": (72, 25), "ioctl": (16, 29), "kill": (62, 129), "tgkill": (234, 131),
    "prlimit64": (302, 261), "prctl": (157, 167),
}  # fmt: skip
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_CLONE_THREAD = 0x10000
_IOCTLS = (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5451)  # TCGETS, TCGETS2, TIOCGWINSZ, FIONREAD, FIOCLEX
_FCNTLS = (0, 1030, 1, 2, 3, 4)  # F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL, F_SETFL
_SET_OWN = 8  # F_SETOWN: who gets a signal when a file is ready, which may be another process before Landlock's sixth
_PRCTLS = (15, 16, 0x53564D41)  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA: names of threads and of memory
_ALLOW, _KILL, _ERRNO, _FILTER = 0x7FFF0000, 0x80000000, 0x00050000, 2
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_Step = tuple[int, int, int, int]
"""One instruction of a classic BPF program: code, jump if true, jump if false, operand."""


def works() -> bool:
    """Whether this kernel has filters, and there is one for its processor."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return False
    action = struct.pack("=I", _ERRNO)
    return int(kernel.libc().syscall(_SECCOMP[machine], ctypes.c_uint(2), ctypes.c_uint(0), action)) == 0


def allow_decoding_only() -> None:
    """From here on this thread and those it starts are refused what decoding does not need.

    Raises:
        OSError: the kernel has filters and refuses.
    """
    program = b"".join(struct.pack("=HBBI", *step) for step in _program(platform.machine(), os.getpid()))
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    kernel.called("prctl(PR_SET_SECCOMP)", kernel.libc().prctl(22, _FILTER, header, 0, 0))


def _program(machine: str, pid: int) -> list[_Step]:
    """The filter; calls of another architecture end the process."""
    column = list(_ARCHITECTURES).index(machine)
    allowed = [number for numbers in _ALLOWED.values() if (number := numbers[column]) is not None]
    conditions = {
        "clone": _allow_if(0, _ANY_BIT, (_CLONE_THREAD,)),  # clone3, whose flags cannot be read, is absent
        "fcntl": _fcntl(pid),
        "ioctl": _allow_if(1, _EQUAL, _IOCTLS),
        "kill": _allow_if(0, _EQUAL, (pid,)),
        "tgkill": _allow_if(0, _EQUAL, (pid,)),
        "prlimit64": _allow_if(0, _EQUAL, (0, pid)),
        "prctl": _allow_if(0, _EQUAL, _PRCTLS),
    }
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, 0x40000000),  # x32, whose numbers are others
        (_RETURN, 0, 0, _KILL),
        *(step for name, steps in conditions.items() for step in _if_equal(_CONDITIONAL[name][column], steps)),
        *_allow_matches(_EQUAL, allowed, errno.ENOSYS),
    ]


def _fcntl(pid: int) -> list[_Step]:
    """A file's signals are this process's own, and SIGIO."""
    own = _if_equal(_SET_OWN, _allow_if(2, _EQUAL, (pid,)))
    return [(_LOAD, 0, 0, _ARGUMENTS + 8), *own, *_allow_matches(_EQUAL, _FCNTLS)]


def _if_equal(value: int, steps: list[_Step]) -> list[_Step]:
    """Steps that end the program where the loaded word is this value."""
    return [(_EQUAL, 0, len(steps), value), *steps]


def _allow_if(argument: int, test: int, values: Sequence[int]) -> list[_Step]:
    """Allows a call where the low half of an argument passes the test with one of the values."""
    return [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument), *_allow_matches(test, values)]


def _allow_matches(test: int, values: Sequence[int], error: int = errno.EPERM) -> list[_Step]:
    """Allows a call where the loaded word passes the test with one of the values; others fail with the error."""
    tests = [(test, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [*tests, (_RETURN, 0, 0, _ERRNO | error), (_RETURN, 0, 0, _ALLOW)]
