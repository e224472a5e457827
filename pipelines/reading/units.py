"""Units: small shards whose rows are staged together, many to an object, as if they were one long shard.

Which shards a unit has is decided by their addresses and sizes alone (`grouping`), not by the cluster or the order in
which they are listed: a late or changed shard redoes its unit, and a night that is started again finds the same units.
A row's *place* is its position in its unit. A large shard, a group of lone objects and a clip that is cut are units of
their own, whose places are their rows' indices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.reading import grouping
from pipelines.reading.grouping import Hashed
from pipelines.reading.shards import Shard

UNIT_BYTES = 256 << 10
"""What a unit of several shards costs at most: it is done again when one of them changes."""
OPEN_BYTES = 4 << 10
"""Takes as long to read as it takes to open a shard, or one object of a group."""
SPAN = 1 << 32
"""In a unit of several shards, places from the first row of one to the first row of the next."""
END = -1
"""What follows the last row of a unit."""
PLACED = [pa.field("unit_key", pa.string()), pa.field("unit_place", pa.int64()), pa.field("unit_next", pa.int64())]
"""Columns that a row has until it is written, which no hybrid has: its unit's key, its place there, and that of the row
after it."""


@dataclass(frozen=True, slots=True)
class Part:
    """A shard as part of its unit: what a task reads.

    Args:
        shard: the shard, whose `first` is the first row that is needed.
        unit: its unit's key.
        base: the place of its row 0.
        follows: the place after its last row; `END` in the unit's last shard.
        since: no piece of a moment is given an earlier second: one that is there may be of a clock that is ahead.
    """

    shard: Shard
    unit: str
    base: int = 0
    follows: int = END
    since: int = 0

    @property
    def alone(self) -> bool:
        """Whether its unit has no other shard."""
        return self.base == 0 and self.follows == END


@dataclass(frozen=True)
class Unit:
    """Shards whose rows are staged together.

    Args:
        key: a stem of file names that is unique for these shards in one state; that of a lone one is `Shard.key`.
        shards: in the order of their addresses.
    """

    key: str
    shards: tuple[Shard, ...]

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> Unit:
        """Of these shards, and no others: who their neighbours are does not matter."""
        if len(shards) == 1:
            return cls(shards[0].key, tuple(shards))
        digest = hashlib.sha256(b"unit")
        for shard in shards:
            digest.update(f"\0{shard.uri}\0{shard.etag}".encode())
        return cls(f"unit-of-{len(shards)}-{digest.hexdigest()[:16]}", tuple(shards))

    def parts(self, place: int = 0) -> list[Part]:
        """What is to be read of it, from a place on."""
        if len(self.shards) == 1:
            return [Part(replace(self.shards[0], first=place), self.key)]
        number, first = divmod(place, SPAN)
        ends = [*(SPAN * following for following in range(1, len(self.shards))), END]
        parts = [Part(shard, self.key, SPAN * k, ends[k]) for k, shard in enumerate(self.shards)][number:]
        return [replace(parts[0], shard=replace(parts[0].shard, first=first)), *parts[1:]]


def cost(shard: Shard) -> int:
    """Bytes that take as long to read as this shard does."""
    return shard.size + OPEN_BYTES * max(1, len(shard.members))


def units(shards: Sequence[Shard]) -> list[Unit]:
    """Shards in units, each of them in one; in the order in which the first of each comes."""
    order: dict[str, int] = {}
    for number, shard in enumerate(shards):
        order.setdefault(shard.uri, number)
    small = [shard for shard in shards if may_share(shard)]
    found = [Unit.of([shard]) for shard in shards if not may_share(shard)]
    found += [Unit.of(own) for _, own in grouping.split(grouping.hashed(small, _uri), _uri, _fit)]
    return sorted(found, key=lambda unit: min(order[shard.uri] for shard in unit.shards))


def may_share(shard: Shard) -> bool:
    """Whether a shard may share a unit with others."""
    return not shard.cut and not shard.members and cost(shard) <= UNIT_BYTES


def _uri(shard: Shard) -> str:
    return shard.uri


def _fit(shards: Sequence[Hashed[Shard]]) -> bool:
    """Whether these are no more than a unit may have."""
    held = 0
    for _, shard in shards:  # of 100,000, looked at in halves and halves of them, a few tell that they are too many
        held += cost(shard)
        if held > UNIT_BYTES:
            return False
    return True


def placed(rows: pa.Table, part: Part) -> pa.Table:
    """Rows of a shard, with the columns `index` and `last`, and beside them their places (`PLACED`).

    Raises:
        RuntimeError: a row's index is none that it can have; its place would be another shard's.
    """
    most = pa.scalar((1 << 63) - 1 if part.alone else SPAN - 1, pa.int64())
    index = rows["index"]
    possible = pc.and_(pc.greater_equal(index, 0), pc.less_equal(index, most))
    if index.null_count or not pc.all(possible, min_count=0).as_py():
        raise RuntimeError(f"{part.shard.uri} has a row whose index is not from 0 to {most}")
    place = pc.add(index, part.base)
    last = pc.fill_null(rows["last"], False)
    following = pc.if_else(last, pa.scalar(part.follows, pa.int64()), pc.add(place, 1))
    for field, values in zip(PLACED, (pa.repeat(part.unit, len(rows)), place, following), strict=True):
        rows = rows.append_column(field, values)
    return rows
