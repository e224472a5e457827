"""Landlock (https://docs.kernel.org/userspace-api/landlock.html): a process reads what it named before, and no more."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from pipelines.reading.sandbox import kernel

# Rights and flags of Linux's include/uapi/linux/landlock.h.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_GET_VERSION = 1
_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""ABI → how many rights over files it knows, all of which are then refused unless granted."""
_TCP_RIGHTS = 0b11
_SCOPES = 0b11


def abi() -> int:
    """The kernel's version of Landlock, 0 without it."""
    return max(0, int(kernel.libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_GET_VERSION))))


def leave_only(readable: Iterable[str]) -> None:
    """From here on this thread and those it starts may read these files and folders, and no others.

    Raises:
        OSError: the kernel has Landlock and refuses.
    """
    known = abi()
    rights = max(count for version, count in _FILE_RIGHTS.items() if version <= known)
    fields = [(1 << rights) - 1, *([_TCP_RIGHTS] if known >= 4 else []), *([_SCOPES] if known >= 6 else [])]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    made = kernel.libc().syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    ruleset = kernel.called("landlock_create_ruleset", made)
    for path in dict.fromkeys(readable):
        _allow_reading(ruleset, path)
    kernel.called("landlock_restrict_self", kernel.libc().syscall(_RESTRICT_SELF, ruleset, ctypes.c_uint32(0)))
    os.close(ruleset)


def _allow_reading(ruleset: int, path: str) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:  # not every system has all of them
        return
    rights = _READ_FILE | (_READ_DIR if Path(path).is_dir() else 0)
    rule = struct.pack("=Qi", rights, place)
    added = kernel.libc().syscall(_ADD_RULE, ruleset, ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0))
    kernel.called(f"landlock_add_rule for {path}", added)
    os.close(place)
