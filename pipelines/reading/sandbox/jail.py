"""A cell for the decoding child: no files but code, no network, no other programs, no secrets.

`landlock` leaves a process only the files that it names; `seccomp` refuses sockets, programs, processes and whatever
reaches into others. Neither needs rights or can be taken back. Both bind the thread that asks for them and those that
it starts later, so `python -m pipelines.reading.sandbox.jail` enters before it imports any library but Python's own.

HYBRID_JAIL says how much of it there must be: `required` decodes nothing without all of it, `auto` (the default) takes
what the kernel has, `off` does without. A file is decoded under the stricter of the values of the command and of the
machine that decodes: neither can weaken what the other asks for.
"""

from __future__ import annotations

import importlib
import logging
import os
import resource
import socket
import stat
import struct
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from hybrid_models.errors import UsageError
from pipelines.reading.sandbox import importing, kernel, landlock, seccomp
from pipelines.reading.sandbox.kernel import SWITCH

PASSED_ON = (
    "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TZ", "HYBRID_LOG_FORMAT", "GOMP_SPINCOUNT", "OMP_NUM_THREADS",
    "MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_TRIM_THRESHOLD_", "TOKENIZERS_PARALLELISM",
)  # fmt: skip
"""Of the worker's environment, what the child may know."""
OWN_ENV = {
    "HOME": "/nonexistent",
    "HDF5_PLUGIN_PRELOAD": "::",  # no filters from a folder
    "HDF5_USE_FILE_LOCKING": "FALSE",
    "PYTHONDONTWRITEBYTECODE": "1",
}
log = logging.getLogger(__name__)
MODES = ("off", "auto", "required")
"""Values of HYBRID_JAIL, from the weakest to the strictest."""
WHOLE = "landlock+seccomp"
OFF = "off"
MOST_FILES = 256
"""Open files of the child."""


def environment(environ: Mapping[str, str], path: Iterable[str], mode: str = "auto") -> dict[str, str]:
    """The child's environment: nothing of the worker's but `PASSED_ON`, the jail's mode, and where code is found."""
    known = {name: environ[name] for name in PASSED_ON if name in environ}
    code = os.pathsep.join(entry or str(Path.cwd()) for entry in path)
    return {**known, **OWN_ENV, SWITCH: mode, "PYTHONPATH": code}


def wanted_mode(asked: str = "off") -> str:
    """The stricter of this machine's HYBRID_JAIL and what another one asks for.

    Raises:
        UsageError: the variable has an unknown value.
    """
    own = os.environ.get(SWITCH) or "auto"
    if own not in MODES:
        raise UsageError(f"{SWITCH}={own} is unknown: set it to required, auto or off")
    return max(own, asked, key=MODES.index)


def status() -> dict[str, str]:
    """What keeps the child from files, network and system calls on this machine, or why nothing does."""
    if wanted_mode() == "off":
        return dict.fromkeys(("files", "network", "system calls"), f"not kept away: {SWITCH}=off")
    abi = landlock.abi()
    files = f"Landlock (ABI {abi})" if abi else "not kept away: this kernel or container has no Landlock"
    filtered = "seccomp" if seccomp.works() else "not kept away: no seccomp filter for this kernel or processor"
    return {"files": files, "network": filtered, "system calls": filtered}


def in_force(mode: str) -> str:
    """The parts of the jail that a child on this machine has: `WHOLE`, one of the two, or `OFF`."""
    parts = {"landlock": landlock.abi() > 0, "seccomp": seccomp.works()} if mode != "off" else {}
    return "+".join(name for name, is_there in parts.items() if is_there) or OFF


def available() -> bool:
    """Whether a child on this machine has all of the jail."""
    return in_force(wanted_mode()) == WHOLE


@cache
def ensure(mode: str) -> str:
    """Checks that this machine has the jail that a mode demands, and logs once which one is in force.

    Returns:
        As `in_force`.

    Raises:
        UsageError: all of it is required, and the kernel lacks a part.
    """
    found = in_force(mode)
    if found == WHOLE:
        log.info("decoding jail: %s", found)
        return found
    if mode == "required":
        raise UsageError(
            f"{SWITCH}=required, but {socket.gethostname()} has no {_missing(found)} for the decoding child: use Linux "
            f"5.13 or newer with both, in a container that permits them, or set {SWITCH}=auto"
        )
    why = f"{SWITCH}=off" if mode == "off" else f"this kernel or container has no {_missing(found)}"
    log.warning("decoding jail: %s (%s): a hostile file could reach files and the network", found.upper(), why)
    return found


def _missing(found: str) -> str:
    return " and no ".join(part for part in WHOLE.split("+") if part not in found)


def enter() -> None:
    """Locks this process in, as far as the machine can.

    Raises:
        OSError: the kernel has what it takes and refuses.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = MOST_FILES if most == resource.RLIM_INFINITY else min(MOST_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, few))
    if wanted_mode() == "off":
        return
    _append_errors_only()
    _drop_capabilities()
    readable = [*importing.import_by_name(), *importing.library_paths(), *SYSTEM_FILES]
    kernel.called("prctl(PR_SET_NO_NEW_PRIVS)", kernel.libc().prctl(38, 1, 0, 0, 0))
    if landlock.abi():
        landlock.leave_only(readable)
    if seccomp.works():
        seccomp.allow_decoding_only()


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
    kernel.called("capset", kernel.libc().capset(header, none))


# ---- files ----------------------------------------------------------------------------------------------------------
SYSTEM_FILES = (
    "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo", "/dev/null", "/dev/zero", "/dev/urandom",
    "/proc/cpuinfo", "/proc/meminfo", "/proc/self/statm", "/proc/sys/vm/overcommit_memory", "/sys/devices/system/cpu",
)  # fmt: skip
"""What libraries ask the system for."""


if __name__ == "__main__":
    enter()
    importlib.import_module("pipelines.reading.sandbox.child").main(*map(int, sys.argv[1:]))
