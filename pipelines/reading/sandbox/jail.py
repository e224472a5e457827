"""A cell for the decoding child: no files but code, no network, no other programs, no secrets.

Landlock (https://docs.kernel.org/userspace-api/landlock.html) leaves a process only the files that it names; a seccomp
filter (https://docs.kernel.org/userspace-api/seccomp_filter.html) refuses sockets, programs, processes and whatever
reaches into others. Neither needs rights or can be taken back. Both bind the thread that asks for them and those that
it starts later, so `python -m pipelines.reading.sandbox.jail` enters before it imports more than the standard library.

HYBRID_JAIL=off does without.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import platform
import resource
import stat
import struct
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path

SWITCH = "HYBRID_JAIL"
PASSED_ON = (
    "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TZ", "HYBRID_LOG_FORMAT", SWITCH, "GOMP_SPINCOUNT", "OMP_NUM_THREADS",
    "MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_TRIM_THRESHOLD_", "TOKENIZERS_PARALLELISM",
)  # fmt: skip
"""Of the worker's environment, what the child may know."""
OWN_ENV = {
    "HOME": "/nonexistent",
    "HDF5_PLUGIN_PRELOAD": "::",  # no filters from a folder
    "HDF5_USE_FILE_LOCKING": "FALSE",
    "PYTHONDONTWRITEBYTECODE": "1",
}
MOST_FILES = 256
"""Open files of the child."""


def environment(environ: Mapping[str, str], path: Iterable[str]) -> dict[str, str]:
    """The child's environment: nothing of the worker's but `PASSED_ON`, and where code is found."""
    known = {name: environ[name] for name in PASSED_ON if name in environ}
    return {**known, **OWN_ENV, "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in path)}


def wanted() -> bool:
    """Whether nobody has switched the jail off."""
    return os.environ.get(SWITCH) != "off"


def status() -> dict[str, str]:
    """What keeps the child from files, network and system calls on this machine, or why nothing does."""
    if not wanted():
        return dict.fromkeys(("files", "network", "system calls"), f"not kept away: {SWITCH}=off")
    abi = _landlock_abi()
    files = f"Landlock (ABI {abi})" if abi else "not kept away: this kernel or container has no Landlock"
    filtered = "seccomp" if _seccomp_works() else "not kept away: no seccomp filter for this kernel or processor"
    return {"files": files, "network": filtered, "system calls": filtered}


def available() -> bool:
    """Whether all of the jail can be had here, and nobody has switched it off."""
    return wanted() and _landlock_abi() > 0 and _seccomp_works()


def enter() -> None:
    """Locks this process in, as far as the machine can.

    Raises:
        OSError: the kernel has what it takes and refuses.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = MOST_FILES if most == resource.RLIM_INFINITY else min(MOST_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, few))
    if not wanted():
        return
    _append_errors_only()
    _drop_capabilities()
    readable = [*_import_by_name(), *_library_paths(), *SYSTEM_FILES]
    _call("prctl(PR_SET_NO_NEW_PRIVS)", _libc().prctl(38, 1, 0, 0, 0))
    if abi := _landlock_abi():
        _landlock(abi, readable)
    if _seccomp_works():
        _seccomp()


def _append_errors_only() -> None:
    """Errors go to a log that others write, too: where it is a file, what is there can be neither read nor changed."""
    if not stat.S_ISREG(os.fstat(2).st_mode):
        return
    try:
        log = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_APPEND)
    except OSError:  # another user's file: then nothing is said
        log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 2)
    os.close(log)


def _drop_capabilities() -> None:
    """In a container even root is nobody after this (capset(2))."""
    header, none = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    _call("capset", _libc().capset(header, none))


# ---- files ----------------------------------------------------------------------------------------------------------
SYSTEM_FILES = (
    "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo", "/dev/null", "/dev/zero", "/dev/urandom",
    "/proc/cpuinfo", "/proc/meminfo", "/proc/self/statm", "/proc/sys/vm/overcommit_memory", "/sys/devices/system/cpu",
)  # fmt: skip
"""What libraries ask the system for."""
SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")


def _library_paths() -> list[str]:
    prefixes = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    named = [sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    own = [str(Path(prefix, "lib")) for prefix in prefixes if prefix != "/"]
    loaded = filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep))
    return [*SYSTEM_LIBRARIES, *named, *own, *loaded, *filter(_is_library, sys.path)]


def _is_library(entry: str) -> bool:
    """Whether a folder of the module path holds installed packages; others, such as a working directory, hold more."""
    path = Path(entry).resolve()
    installed = [Path(place).resolve() for place in (*sysconfig.get_paths().values(), *SYSTEM_LIBRARIES)]
    return path.name in ("site-packages", "dist-packages") or any(path.is_relative_to(place) for place in installed)


class _ByName:
    """Finds packages and modules by name, so that the folder that they lie in need not be listed."""

    def __init__(self, places: Mapping[str, Path]) -> None:
        self._places = places

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        """The module of this name, if it is one of them."""
        place = self._places.get(name)
        if place is None:
            return None
        if place.suffix == ".py":
            return spec_from_file_location(name, place)
        return spec_from_file_location(name, place / "__init__.py", submodule_search_locations=[str(place)])


def _code_in(root: str) -> list[Path]:
    """Packages and modules in a folder; none in one that cannot be looked into, where Python would find none either."""
    try:
        found = sorted(Path(root).iterdir())
    except OSError:
        return []
    return [place for place in found if _is_package(place) or _is_module(place)]


def _is_package(place: Path) -> bool:
    return os.access(place / "__init__.py", os.R_OK)


def _is_module(place: Path) -> bool:
    return place.suffix == ".py" and os.access(place, os.R_OK) and place.is_file()


def _import_by_name() -> list[str]:
    """Takes working directories off the module path, but not their packages; returns where these lie."""
    places: dict[str, Path] = {}
    roots = [entry for entry in sys.path if not _is_library(entry) and Path(entry).is_dir()]
    for root in roots:
        for found in _code_in(root):
            places.setdefault(found.stem, found)
    for name in ("pipelines", "hybrid_models"):  # an editable installation finds them by a finder of its own
        spec = find_spec(name)
        for location in (spec.submodule_search_locations or []) if spec is not None else []:
            places.setdefault(name, Path(location))
    sys.path[:] = [entry for entry in sys.path if entry not in roots]
    sys.meta_path.insert(0, _ByName(places))
    return [str(place) for place in places.values()]


# Rights and flags of Linux's include/uapi/linux/landlock.h.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_GET_VERSION = 1
_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""ABI → how many rights over files it knows, all of which are then refused unless granted."""
_TCP_RIGHTS = 0b11
_SCOPES = 0b11


def _landlock_abi() -> int:
    """The kernel's version of Landlock, 0 without it."""
    return max(0, int(_libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_GET_VERSION))))


def _landlock(abi: int, readable: Iterable[str]) -> None:
    rights = max(count for known, count in _FILE_RIGHTS.items() if known <= abi)
    fields = [(1 << rights) - 1, *([_TCP_RIGHTS] if abi >= 4 else []), *([_SCOPES] if abi >= 6 else [])]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    made = _libc().syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    ruleset = _call("landlock_create_ruleset", made)
    for path in dict.fromkeys(readable):
        _allow_reading(ruleset, path)
    _call("landlock_restrict_self", _libc().syscall(_RESTRICT_SELF, ruleset, ctypes.c_uint32(0)))
    os.close(ruleset)


def _allow_reading(ruleset: int, path: str) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:  # not every system has all of them
        return
    rights = _READ_FILE | (_READ_DIR if Path(path).is_dir() else 0)
    rule = struct.pack("=Qi", rights, place)
    added = _libc().syscall(_ADD_RULE, ruleset, ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0))
    _call(f"landlock_add_rule for {path}", added)
    os.close(place)


# ---- system calls ---------------------------------------------------------------------------------------------------
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
        "ioctl": 16,
        "kill": 62,
        "tgkill": 234,
        "prlimit64": 302,
        "sched_setaffinity": 203,
    },
    "aarch64": {
        "seccomp": 277,
        "clone": 220,
        "ioctl": 29,
        "kill": 129,
        "tgkill": 131,
        "prlimit64": 261,
        "sched_setaffinity": 122,
    },
}
_CLONE3 = 435
_CLONE_THREAD = 0x10000
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: they type into the terminal that an error is written to
_ALLOW, _KILL, _ERRNO, _FILTER = 0x7FFF0000, 0x80000000, 0x00050000, 2
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_Step = tuple[int, int, int, int]
"""One instruction of a classic BPF program: code, jump if true, jump if false, operand."""


def _seccomp_works() -> bool:
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return False
    action = struct.pack("=I", _ERRNO)
    return int(_libc().syscall(_CONDITIONAL[machine]["seccomp"], ctypes.c_uint(2), ctypes.c_uint(0), action)) == 0


def _seccomp() -> None:
    program = b"".join(struct.pack("=HBBI", *step) for step in _program(platform.machine(), os.getpid()))
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    _call("prctl(PR_SET_SECCOMP)", _libc().prctl(22, _FILTER, header, 0, 0))


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
        *_if_number(numbers["ioctl"], _unless(1, _EQUAL, _TERMINAL_INPUT, allow_match=False)),
        *_if_number(numbers["kill"], _unless(0, _EQUAL, (pid,), allow_match=True)),
        *_if_number(numbers["tgkill"], _unless(0, _EQUAL, (pid,), allow_match=True)),
        *_if_number(numbers["prlimit64"], _unless(0, _EQUAL, (0, pid), allow_match=True)),
        *_if_number(numbers["sched_setaffinity"], _unless(0, _EQUAL, (0, pid), allow_match=True)),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _refuse(code: int) -> _Step:
    return (_RETURN, 0, 0, _ERRNO | code)


def _if_number(number: int, steps: list[_Step]) -> list[_Step]:
    """Steps that end the program, for one system call."""
    return [(_EQUAL, 0, len(steps), number), *steps]


def _unless(argument: int, test: int, values: Sequence[int], allow_match: bool) -> list[_Step]:
    """Lets a call through, or refuses it, where the low half of an argument passes the test with one of the values."""
    allow = (_RETURN, 0, 0, _ALLOW)
    other, match = (_refuse(errno.EPERM), allow) if allow_match else (allow, _refuse(errno.EPERM))
    tests = [(test, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument), *tests, other, match]


# ---- the C library --------------------------------------------------------------------------------------------------
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(what: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}; {SWITCH}=off does without the jail")
    return result


if __name__ == "__main__":
    enter()
    importlib.import_module("pipelines.reading.sandbox.child").main(*map(int, sys.argv[1:]))
