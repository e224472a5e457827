"""Hostile shards of every format: mutations that know its structure. Number *n* of a seed is always the same."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tests.chaos.mutants import archives, columns, events, lines
from tests.chaos.mutants.archives import END, member
from tests.chaos.mutants.columns import written
from tests.chaos.mutants.media import MEMBERS, jpeg

SHARDS = {**archives.SHARDS, **columns.SHARDS, **lines.SHARDS, **events.SHARDS}
"""Format of a shard → mutators by name."""
INSIDE = {**MEMBERS, "json": {"json": lines.json_member}}
"""Format of a member, which a tar or Parquet shard holds → mutators by name."""
FORMATS = (*SHARDS, *INSIDE)
MEMBERS_OF_A_SHARD = 3


@dataclass(frozen=True)
class Mutant:
    """A hostile shard."""

    format: str
    number: int
    mutator: str
    suffix: str
    content: bytes

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.format.replace('.', '-')}-{self.number:05d}-{self.mutator}.{self.suffix}"


def mutant(kind: str, number: int, seed: int) -> Mutant:
    """One of a format's shards; its mutators take turns."""
    rng = np.random.default_rng((seed, zlib.crc32(kind.encode()), number))
    mutators: Mapping = SHARDS[kind] if kind in SHARDS else INSIDE[kind]
    name = list(mutators)[number % len(mutators)]
    if kind in SHARDS:
        return Mutant(kind, number, name, kind, mutators[name](rng))
    contents = [mutators[name](rng) for _ in range(MEMBERS_OF_A_SHARD)]
    in_parquet = kind != "json" and rng.random() < 0.3
    return Mutant(
        kind,
        number,
        name,
        "parquet" if in_parquet else "tar",
        _parquet(contents) if in_parquet else _tar(kind, contents),
    )


def _tar(kind: str, contents: list[bytes]) -> bytes:
    """The members, and a good photograph after them."""
    suffix = kind.encode()
    return b"".join(member(b"%d.%s" % (i, suffix), content) for i, content in enumerate(contents)) + member() + END


def _parquet(contents: list[bytes]) -> bytes:
    return written(pa.table({"media": pa.array([*contents, jpeg(0)], pa.large_binary())}))
