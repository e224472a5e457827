"""What is made of files in the decoding child, which imports this module: it needs no library."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from hybrid_models.errors import BadSample


def told(data: bytes) -> bytes:
    """Who opens a file of so many bytes, and what it knows."""
    return json.dumps([os.getpid(), len(data), dict(os.environ)]).encode()


def read_secret(data: bytes) -> bytes:
    """Tries to read the file whose name the other one holds."""
    return Path(data.decode()).read_bytes()


def refuses(data: bytes) -> bytes:
    """Says what is wrong with it."""
    raise BadSample("Odd", f"{len(data)} bytes")


def fails(data: bytes) -> bytes:
    """As no one has thought of."""
    raise LookupError(f"{len(data)} bytes")


def crashes(data: bytes) -> bytes:
    """As a hole in a decoder does."""
    os.kill(os.getpid(), signal.SIGSEGV)
    return data
