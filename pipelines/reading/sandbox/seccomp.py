"""A filter of system calls, seccomp (https://docs.kernel.org/userspace-api/seccomp_filter.html): no sockets, programs,
processes, nothing that reaches into others."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence

from pipelines.reading.sandbox import kernel

# Numbers of Linux's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_REFUSED = {
    "x86_64": (
        41, 42, 43, 49, 50, 53, 288,  # socket, connect, accept, bind, listen, socketpair, accept4
        57, 58, 59, 322,  # fork, vfork, execve, execveat
        101, 310, 311, 312, 200, 129, 297, 424, 434, 438,  # ptrace, process_vm_*, kcmp, tkill, rt_*, pidfd_*
        155, 161, 165, 166, 272, 308, 442, *range(428, 434),  # pivot_root, chroot, *mount*, unshare, setns, fsopen …
        175, 176, 246, 313, 320, 298, 321, 323,  # *_module, kexec_*, perf_event_open, bpf, userfaultfd
        248, 249, 250, 303, 304,  # add_key, request_key, keyctl, name_to_handle_at, open_by_handle_at
        425, 426, 427,  # io_uring_*
        29, 30, 31, 64, 65, 66, 68, 69, 70, 71, 240,  # System V and POSIX shared memory, semaphores, queues
        90, 91, 92, 93, 94, 260, 268, 452,  # *chmod*, *chown*: Landlock knows no metadata
        132, 235, 261, 280, 188, 189, 190, 197, 198, 199, 463, 466,  # *utime*, *setxattr*, *removexattr*
        76, 77, 133, 259, 300,  # truncate, ftruncate, mknod, mknodat, fanotify_init
        141, 142, 144, 251, 314,  # setpriority, sched_setparam, sched_setscheduler, ioprio_set, sched_setattr
        163, 167, 168, 169, 170, 171, 179, 212,  # acct, swap*, reboot, set*name, quotactl, lookup_dcookie
        103, 135, 153, 154, 159, 164, 172, 173, 227, 305,  # syslog, personality, vhangup, modify_ldt, clocks, io*
    ),
    "aarch64": (
        198, 199, 200, 201, 202, 203, 242,  # socket, socketpair, bind, listen, accept, connect, accept4
        221, 281,  # execve, execveat
        117, 270, 271, 272, 130, 138, 240, 424, 434, 438,  # ptrace, process_vm_*, kcmp, tkill, rt_*, pidfd_*
        39, 40, 41, 51, 97, 268, 442, *range(428, 434),  # *mount*, pivot_root, chroot, unshare, setns, fsopen …
        104, 105, 106, 273, 294, 241, 280, 282,  # kexec_*, *_module, perf_event_open, bpf, userfaultfd
        217, 218, 219, 264, 265,  # add_key, request_key, keyctl, name_to_handle_at, open_by_handle_at
        425, 426, 427,  # io_uring_*
        180, 186, 187, 188, 189, 190, 191, 193, 194, 195, 196,  # POSIX and System V queues, semaphores, memory
        52, 53, 54, 55, 452,  # fchmod, fchmodat, fchownat, fchown, fchmodat2: Landlock knows no metadata
        88, 5, 6, 7, 14, 15, 16, 463, 466,  # utimensat, *setxattr*, *removexattr*
        45, 46, 33, 262,  # truncate, ftruncate, mknodat, fanotify_init
        140, 118, 119, 30, 274,  # setpriority, sched_setparam, sched_setscheduler, ioprio_set, sched_setattr
        89, 224, 225, 142, 161, 162, 60, 18,  # acct, swap*, reboot, set*name, quotactl, lookup_dcookie
        116, 92, 58, 171, 170, 112, 266,  # syslog, personality, vhangup, clocks
    ),
}  # fmt: skip
_CONDITIONAL = {
    "x86_64": {
        "seccomp": 317,
        "clone": 56,
        "fcntl": 72,
        "ioctl": 16,
        "kill": 62,
        "tgkill": 234,
        "prlimit64": 302,
        "sched_setaffinity": 203,
    },
    "aarch64": {
        "seccomp": 277,
        "clone": 220,
        "fcntl": 25,
        "ioctl": 29,
        "kill": 129,
        "tgkill": 131,
        "prlimit64": 261,
        "sched_setaffinity": 122,
    },
}
_CLONE3 = 435
_CLONE_THREAD = 0x10000
_IOCTLS = (
    0x5412, 0x541C,  # TIOCSTI, TIOCLINUX: they type into the terminal that an error is written to
    0x8901, 0x8902,  # FIOSETOWN, SIOCSPGRP: as F_SETOWN
)  # fmt: skip
_SET_OWN = 8  # F_SETOWN: who gets a signal when a file is ready, which may be another process before Landlock's sixth
_SET_SIGNAL = (10, 15)  # F_SETSIG, F_SETOWN_EX: which one, and the same again
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
    return int(kernel.libc().syscall(_CONDITIONAL[machine]["seccomp"], ctypes.c_uint(2), ctypes.c_uint(0), action)) == 0


def refuse_the_rest() -> None:
    """From here on this thread and those it starts are refused what decoding does not need.

    Raises:
        OSError: the kernel has filters and refuses.
    """
    program = b"".join(struct.pack("=HBBI", *step) for step in _program(platform.machine(), os.getpid()))
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    kernel.called("prctl(PR_SET_SECCOMP)", kernel.libc().prctl(22, _FILTER, header, 0, 0))


def _program(machine: str, pid: int) -> list[_Step]:
    """The filter: what it refuses fails with EPERM; calls of another architecture end the process."""
    numbers = _CONDITIONAL[machine]
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, 0x40000000),  # x32, whose numbers are others
        (_RETURN, 0, 0, _KILL),
        *(step for number in _REFUSED[machine] for step in _if_number(number, [_refuse(errno.EPERM)])),
        # glibc then uses clone, whose flags can be seen.
        *_if_number(_CLONE3, [_refuse(errno.ENOSYS)]),
        *_if_number(numbers["clone"], _unless(0, _ANY_BIT, (_CLONE_THREAD,), allow_match=True)),
        *_if_number(numbers["fcntl"], _fcntl(pid)),
        *_if_number(numbers["ioctl"], _unless(1, _EQUAL, _IOCTLS, allow_match=False)),
        *_if_number(numbers["kill"], _unless(0, _EQUAL, (pid,), allow_match=True)),
        *_if_number(numbers["tgkill"], _unless(0, _EQUAL, (pid,), allow_match=True)),
        *_if_number(numbers["prlimit64"], _unless(0, _EQUAL, (0, pid), allow_match=True)),
        *_if_number(numbers["sched_setaffinity"], _unless(0, _EQUAL, (0, pid), allow_match=True)),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _refuse(code: int) -> _Step:
    return (_RETURN, 0, 0, _ERRNO | code)


def _fcntl(pid: int) -> list[_Step]:
    """A file's signals are this process's own, and SIGIO."""
    own = _if_number(_SET_OWN, _unless(2, _EQUAL, (pid,), allow_match=True))
    return [(_LOAD, 0, 0, _ARGUMENTS + 8), *own, *_unless(1, _EQUAL, _SET_SIGNAL, allow_match=False)]


def _if_number(number: int, steps: list[_Step]) -> list[_Step]:
    """Steps that end the program, for one system call, or for what else was loaded."""
    return [(_EQUAL, 0, len(steps), number), *steps]


def _unless(argument: int, test: int, values: Sequence[int], allow_match: bool) -> list[_Step]:
    """Lets a call through, or refuses it, where the low half of an argument passes the test with one of the values."""
    allow = (_RETURN, 0, 0, _ALLOW)
    other, match = (_refuse(errno.EPERM), allow) if allow_match else (allow, _refuse(errno.EPERM))
    tests = [(test, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument), *tests, other, match]
