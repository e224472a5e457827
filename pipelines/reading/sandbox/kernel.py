"""The C library: calls of the kernel's, and its errors."""

from __future__ import annotations

import ctypes
import os

SWITCH = "HYBRID_JAIL"
"""The jail's, in the environment."""


def libc() -> ctypes.CDLL:
    """Its functions, and the kernel's calls that have none."""
    return ctypes.CDLL(None, use_errno=True)


def called(what: str, result: int) -> int:
    """What a call answered.

    Raises:
        OSError: it was refused.
    """
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}; {SWITCH}=off does without the jail")
    return result
