"""Who needs a folder of staged pieces: whoever uses one leaves a mark in it, by which tidying knows."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass

from pipelines import storage

RUN, MODEL = "run", "model"
"""Kinds of users: a training run by the URI of its folder, a model by its own."""
MARK = re.compile(r"_used/[0-9a-f]{16}\.json")
"""Path of a mark below the folder. Listings of data leave it out."""
MAX_MARK = 64 << 10
"""Bytes of a mark: a larger one is none of ours, and not worth its memory."""


@dataclass(frozen=True)
class Use:
    """A mark."""

    kind: str
    user: str


def mark(folder: str, kind: str, user: str) -> None:
    """Notes that somebody uses a folder; the newest mark is as young as the last use."""
    name = hashlib.sha256(f"{kind} {user}".encode()).hexdigest()[:16]
    data = json.dumps(asdict(Use(kind, user))).encode()
    same = storage.has_digest([hashlib.sha256(data).hexdigest()])
    storage.write_bytes(storage.join(folder, "_used", f"{name}.json"), data, same)


def read(uri: str) -> Use | None:
    """A mark; None if it is damaged, or of a kind that this version does not know."""
    try:
        said = json.loads(storage.read_text(uri))
        use = Use(str(said["kind"]), str(said["user"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return use if use.kind in (RUN, MODEL) else None
