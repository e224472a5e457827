"""Compaction: the rows of a night in fewer files, under names by which the same night, inferred again, finds them.

Pieces that follow one another in a unit become one piece of that unit, and their names say all that is needed. Small
shards that lie there each for itself, as versions before units staged them, become pieces of the unit that
`reading.units` puts them in. Which one that is, and its key, depend on the addresses, sizes and etags of all shards of
the night: no piece has these, so the night's input must be listed again. It is believed only if the files that the
table has are what the night, inferred from it now, consists of; so what is no work before a compaction is none after.

A new piece is written over none (`staging.joining`), so earlier versions keep theirs. The commit wants the night to be
as it was looked at: of a night and a compaction of one date, whoever is second looks again, a night replaces, a
compaction gives up. One that was killed leaves whole pieces that no version has: a night of this date uses them instead
of the old ones, or tidying frees them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from deltalake import DeltaTable

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.nights import commit, ownership, tables
from pipelines.nights.commit import Partition
from pipelines.reading.shards import NoShardsError, list_shards
from pipelines.reading.units import SPAN, Unit, units
from pipelines.staging import contents, joining
from pipelines.staging.checks import RefusedError, Staging, tiled
from pipelines.staging.joining import Joined
from pipelines.staging.pieces import Piece, is_own, list_pieces

log = logging.getLogger(__name__)
LEAST_GAIN = 2
"""A night is rewritten if it had at least so many times as many files as it gets."""


@dataclass(frozen=True)
class Plan:
    """How a night would be rewritten."""

    partition: Partition
    before: frozenset[str]
    """Paths, relative to the table, of the files that it has."""
    kept: Sequence[Piece]
    """Those of them that stay."""
    joined: Sequence[Joined]

    @property
    def files(self) -> int:
        """How many it would have."""
        return len(self.kept) + len(self.joined)

    @property
    def gains(self) -> bool:
        """Whether it is worth it."""
        return self.files * LEAST_GAIN <= len(self.before)


@dataclass(frozen=True)
class CompactedNight:
    """A night that was rewritten, or would be."""

    ds: str
    rows: int
    files: int
    """As it was."""
    files_after: int
    version: int | None
    """The table's version that has it so; None if nothing was written."""


@dataclass
class Compacted:
    """What came of a compaction."""

    nights: list[CompactedNight] = field(default_factory=list)
    """Those that gain by it."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Those that cannot be rewritten, and why."""


def compact(uri: str, given: str = "", ds: str = "", dry_run: bool = False) -> Compacted:
    """Rewrites the nights of a table that gain by it, each in a commit of its own.

    Args:
        uri: the table.
        given: the input that its nights were made of, in which `{ds}` stands for the night; without it, shards that
            lie there each for itself are not put together.
        ds: this night alone; without one all nights, of which those that cannot be rewritten are skipped.
        dry_run: write nothing.

    Raises:
        UsageError: there is no such table or night, or the table is another program's.
        RefusedError, NoShardsError: the night that was asked for cannot be rewritten; nothing was changed.
        StorageError: the store kept failing.
    """
    table = tables.open_table(uri)
    if table is None:
        raise UsageError(f"there is no table at {uri}")
    ownership.check_ours(table, uri)
    nights = [night for night in tables.nights(table) if ds in ("", night.ds)]
    if ds and not nights:
        raise UsageError(f"{uri} has no rows of {ds}: `hybrid tables` lists its nights")
    done = Compacted()
    for night in (night for night in nights if night.files >= LEAST_GAIN):
        try:
            found = plan(table, Partition(storage.absolute(uri), night.ds), given.replace("{ds}", night.ds))
            version = rewrite(found) if found.gains and not dry_run else None
        except (RefusedError, NoShardsError) as error:
            if ds:
                raise
            log.warning("%s ds=%s is left alone: %s", uri, night.ds, error)
            done.skipped[night.ds] = str(error)
        else:
            log.info("%s ds=%s: %d files of %d", uri, night.ds, found.files, night.files)
            if found.gains:
                done.nights.append(CompactedNight(night.ds, night.rows, night.files, found.files, version))
    return done


def plan(table: DeltaTable, partition: Partition, given: str = "") -> Plan:
    """How a night would be rewritten.

    Args:
        table: it, opened.
        partition: the night.
        given: the input that it was made of, or nothing; see `compact`.

    Raises:
        RefusedError: the night is not what this program staged, or not what the input would become.
        NoShardsError: there is no input.
        StorageError: the store kept failing.
    """
    before = frozenset(tables.night_files(table, partition.ds))
    folder = _folder(partition, before)
    staged = list_pieces(folder)
    night = _in_use(partition, before, staged)
    groups = dict(night)
    for unit in _apart(partition, night, given) if given else []:
        groups[unit.key] = [
            _placed(piece, number, len(unit.shards))
            for number, shard in enumerate(unit.shards)
            for piece in groups.pop(shard.key)
        ]
    kept: list[Piece] = []
    joined: list[Joined] = []
    for key, own in groups.items():
        stay, made = joining.fewer(folder, key, own, staged.get(key, []))
        kept += stay
        joined += made
    return Plan(partition, before, kept, joined)


def _folder(partition: Partition, before: frozenset[str]) -> str:
    """Where all files of a night lie."""
    foreign = sorted(path for path in before if not is_own(path))
    folders = {path.rpartition("/")[0] for path in before}
    if foreign or len(folders) > 1:
        raise RefusedError(
            f"{partition} has {foreign[0] if foreign else 'files of several folders'}, which no night of this program "
            "has: infer the night again"
        )
    return storage.join(partition.table, *folders)


def _in_use(partition: Partition, before: frozenset[str], staged: Staging) -> dict[str, list[Piece]]:
    """Those of the staged pieces that a night has, by the key of their unit."""
    root = storage.absolute(partition.table) + "/"
    used = {
        key: sorted((piece for piece in pieces if piece.file.uri.removeprefix(root) in before), key=joining.first)
        for key, pieces in staged.items()
    }
    there = {piece.file.uri.removeprefix(root) for pieces in used.values() for piece in pieces}
    if gone := sorted(before - there):
        raise RefusedError(f"{partition} lacks its file {gone[0]}: infer the night again")
    return {key: pieces for key, pieces in used.items() if pieces}


def _apart(partition: Partition, night: Staging, given: str) -> list[Unit]:
    """Units whose shards lie there each for itself."""
    shards = list_shards(given)
    wanted = [tiles for _, _, tiles in tiled(shards, night)]
    if None in wanted or sum(map(len, filter(None, wanted))) != sum(map(len, night.values())):
        raise RefusedError(
            f"{partition} is not what {given} would become now: a shard came, went or changed, or this is not its "
            "`input`; infer the night again first, or leave `input` out"
        )
    return [unit for unit in units(shards) if len(unit.shards) > 1 and all(shard.key in night for shard in unit.shards)]


def _placed(piece: Piece, number: int, shards: int) -> Piece:
    """A piece of the shard of this number, as one of a unit of so many."""
    base, last = SPAN * number, number == shards - 1
    stop = SPAN * (number + 1) if piece.end and not last else base + piece.stop
    return replace(piece, first=base + piece.first, stop=stop, end=piece.end and last, count=piece.rows)


def rewrite(found: Plan) -> int | None:
    """Writes the new pieces and commits the night with them.

    Returns:
        The table's new version.

    Raises:
        RefusedError: another writer has replaced the night.
        RuntimeError: a piece has not the rows that its name tells.
        StorageError: the store kept failing.
    """
    made = [piece for piece, _ in joining.write(found.joined)]
    told = contents.each(found.kept)
    kept = [replace(piece, bad=each.bad) for piece, each in zip(found.kept, told, strict=True)]
    return commit.rewrite_night(found.partition, found.before, [*kept, *made])
