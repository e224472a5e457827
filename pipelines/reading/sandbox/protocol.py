"""What worker and child say to each other.

The child unpickles its worker's tasks; the worker takes nothing but JSON and Arrow from the child, and checks both. An
answer is a JSON header, which a block follows; a request for a range or an object is a header, too. A note in memory
that both share tells the row that is worked on.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.rows import Begin
from pipelines.reading.shards import Shard

NOTE = struct.Struct("<qq")
STARTING = -1
"""Noted as the row before there is one."""
END: dict[str, Any] = {"end": True}
HEADER_BYTES = 1 << 16


class Step(Protocol):
    """Raw rows → what becomes of them."""

    @property
    def schema(self) -> pa.Schema:
        """The columns of what it gives; another table is not taken from a child."""

    def __call__(self, rows: pa.Table, begin: Begin) -> pa.Table:
        """What becomes of these rows; `begin` is told the index of each before its turn."""


@dataclass(frozen=True)
class Poison:
    """Rows of a shard at which its process died too often, and why."""

    read: dict[int, str] = field(default_factory=dict)
    """The row cannot even be read, so it is the shard's last, if that is no group."""
    decode: dict[int, str] = field(default_factory=dict)
    demux: dict[int, str] = field(default_factory=dict)
    """The packets of a window cannot be read: its clip ends with it."""
    uncounted: set[int] = field(default_factory=set)
    """Of `read`, where counting the rows that follow was fatal, too."""


@dataclass(frozen=True)
class Task:
    """What a child does next."""

    shard: Shard
    options: ReadOptions
    step: Step
    skip: int
    """Rows that are done."""
    poison: Poison
    until: int | None
    """The first row that is not wanted any more, if there is one."""
