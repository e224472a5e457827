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


def in_force(mode: str) -> str:
    """The parts of the jail that a child on this machine has: `WHOLE`, one of the two, or `off`."""
    parts = {"landlock": landlock.abi() > 0, "seccomp": seccomp.works()} if mode != "off" else {}
    return "+".join(name for name, is_there in parts.items() if is_there) or "off"


def shortcoming(mode: str) -> str:
    """Why a child on this machine has not the whole jail; empty if it has."""
    missing = [part for part in WHOLE.split("+") if part not in in_force(mode)]
    if mode == "off" or not missing:
        return f"{SWITCH}=off" if missing else ""
    return f"the kernel or container of {socket.gethostname()} has no {' and no '.join(missing)}"


def ensure(asked: str = "off") -> str:
    """Checks that this machine has the jail that is demanded, and logs once which one is in force.

    Args:
        asked: the mode of the command, where that runs on another machine.

    Returns:
        As `in_force`.

    Raises:
        UsageError: all of the jail is required, and the kernel lacks a part; or HYBRID_JAIL has an unknown value.
    """
    mode = wanted_mode(asked)
    found, why = in_force(mode), shortcoming(mode)
    if why and mode == "required":
        raise UsageError(
            f"{SWITCH}=required, but {why}: use Linux 5.13 or newer with Landlock and seccomp, in a container "
            f"that permits them, or set {SWITCH}=auto"
        )
    _log_once(found, why)
    return found


@cache
def _log_once(found: str, why: str) -> None:
    if why:
        log.warning("decoding jail: %s (%s): a hostile file could reach files and the network", found.upper(), why)
    else:
        log.info("decoding jail: %s", found)


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
