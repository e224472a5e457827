"""Files that a data set is made of, opened in the decoding child: they may be a stranger's, as those of a night are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hybrid_models.errors import BadSample, UsageError
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import DEFAULT_LIMITS
from pipelines.reading.rows import Begin
from pipelines.reading.sandbox.guard import guarded
from pipelines.reading.shards import lone

Make = Callable[[bytes], bytes]
"""A file's bytes → what is wanted of it; a function of a module, which the child imports."""
MADE = pa.schema([pa.field("made", pa.large_binary()), pa.field("error", pa.string())])
NOTHING = "InputCrashed: the process that worked on it answered nothing"


@dataclass(frozen=True)
class _Open:
    """What is made of whole files: a `Step` of `sandbox.protocol`."""

    make: Make

    @property
    def schema(self) -> pa.Schema:
        """`MADE`."""
        return MADE

    def __call__(self, rows: pa.Table, begin: Begin) -> pa.Table:
        """One row for each."""
        made = []
        for row in rows.select(["index", "media", "error"]).to_pylist():
            begin(row["index"])
            made.append(self._made(row))
        return pa.Table.from_pylist(made, schema=MADE)

    def _made(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            if row["error"] is not None:
                raise BadSample.of(row["error"])
            return {"made": self.make(row["media"]), "error": None}
        except BadSample as bad:
            return {"made": None, "error": str(bad)}


def opened(uri: str, make: Make) -> bytes:
    """What is made of a file, in a process without keys that is locked in where the machine can.

    Args:
        uri: its address; not of a `.txt`, whose text would be read.
        make: is called there.

    Raises:
        BadSample: what is wrong with the file, or what became of the process that opened it.
        FileNotFoundError: it is not there.
        StorageError: the store failed.
        RuntimeError: the machine failed: a library is missing, or no child can be started.
    """
    rows = [row for block in guarded(lone(uri), ReadOptions(), _Open(make)) for row in block.to_pylist()]
    row = rows[0] if rows else dict.fromkeys(MADE.names)
    made: bytes | None = row["made"]
    if made is None:
        raise BadSample.of(row["error"] or NOTHING)
    return made


def check_bytes(where: str, size: int) -> None:
    """Refuses a file that is larger than the child would be given: archives may hold one of any size in few bytes.

    Raises:
        UsageError: names it.
    """
    if size > (most := DEFAULT_LIMITS.max_bytes):
        raise UsageError(f"{where} has {size:,} bytes, more than {most:,}: it is none of this data set's files")
