"""Compaction: the rows of a night in fewer files, under names by which the same night, inferred again, finds them.

Pieces that follow one another in a unit become one piece of that unit, and their names say all that is needed. Small
shards that lie there each for itself, as versions before units staged them, become pieces of the unit that
`reading.units` puts them in. Which one that is, and its key, depend on the addresses, sizes and etags of all shards of
the night: no piece has these, so the night's input must be listed again. It is believed only if the files that the
table has are what the night, inferred from it now, consists of; so what is no work before a compaction is none after.

A new piece has the second of its making in its name, as a copy has: none is ever written over, and earlier versions
keep theirs. Nothing is removed here: tidying does it, when no version needs the old pieces any more. The commit wants
the night to be as it was looked at: of a night and a compaction of one date, whoever is second looks again, a night
replaces, a compaction gives up. One that was killed leaves whole pieces that no version has: a night of this date uses
them instead of the old ones, or tidying frees them.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.nights import commit, ownership, tables
from pipelines.nights.commit import Partition
from pipelines.reading.shards import NoShardsError, list_shards
from pipelines.reading.units import SPAN, Unit, units
from pipelines.staging import contents
from pipelines.staging.checks import RefusedError, Staging, tiled
from pipelines.staging.contents import Contents
from pipelines.staging.pieces import PARQUET, Piece, is_own, list_pieces, piece_name, renewed_name, tiling
from pipelines.storage import FileInfo

log = logging.getLogger(__name__)
LEAST_GAIN = 2
"""A night is rewritten if it had at least so many times as many files as it gets."""
PIECE_BYTES = 32 << 20
"""No more than so much of files is put into one; they are in memory together."""
ROWS_BYTES = 16 << 20
"""So much of rows is in memory at a time, and lies together in a file."""
MOST_ROWS = 1024
WRITERS = 4
"""Pieces that are made at the same time."""


@dataclass(frozen=True)
class Joined:
    """A piece to be made of others."""

    piece: Piece
    sources: Sequence[Piece]
    """Those that have its rows now, in their order."""


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
        stay, made = _joined(folder, key, own, staged.get(key, []))
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
        key: sorted((piece for piece in pieces if piece.file.uri.removeprefix(root) in before), key=_first)
        for key, pieces in staged.items()
    }
    there = {piece.file.uri.removeprefix(root) for pieces in used.values() for piece in pieces}
    if gone := sorted(before - there):
        raise RefusedError(f"{partition} lacks its file {gone[0]}: infer the night again")
    return {key: pieces for key, pieces in used.items() if pieces}


def _first(piece: Piece) -> int:
    return piece.first


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


def _joined(folder: str, key: str, own: Sequence[Piece], staged: Sequence[Piece]) -> tuple[list[Piece], list[Joined]]:
    """Of a unit's pieces those that stay, and those to be made of the others. All stay if that would not make them
    fewer, or if a night would choose others among what is staged.

    Args:
        folder: where they lie.
        key: the unit's.
        own: what the night has of it, at their places in the unit.
        staged: whatever lies there under this key.
    """
    second = max(int(time.time()), *(piece.renewed + 1 for piece in staged), 0)
    kept: list[Piece] = []
    joined: list[Joined] = []
    for run in _runs(own):
        if len(run) == 1 and run[0] in staged:
            kept += run
        else:
            joined.append(_made(folder, key, run, second))
    after = sorted([*kept, *(each.piece for each in joined)], key=_first)
    if len(after) < len(own) and tiling(own) == own and tiling([*staged, *after]) == after:
        return kept, joined
    return list(own), []


def _runs(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Neighbours that become one piece."""
    runs: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        if piece.file.size > room:
            runs.append([])
            room = PIECE_BYTES
        runs[-1].append(piece)
        room -= piece.file.size
    return runs


def _made(folder: str, key: str, run: Sequence[Piece], second: int) -> Joined:
    rows = sum(piece.rows for piece in run)
    name = renewed_name(piece_name(key, run[0].first, run[-1].stop, rows, run[-1].end), second)
    file = FileInfo(storage.join(folder, name), 0, "")
    return Joined(Piece(file, run[0].first, run[-1].stop, run[-1].end, second, rows), run)


def rewrite(found: Plan) -> int | None:
    """Writes the new pieces and commits the night with them.

    Returns:
        The table's new version.

    Raises:
        RefusedError: another writer has replaced the night.
        RuntimeError: a piece has not the rows that its name tells.
        StorageError: the store kept failing.
    """
    with ThreadPoolExecutor(WRITERS) as threads:
        made = list(threads.map(_write, found.joined))
    told = contents.each(found.kept)
    kept = [replace(piece, bad=each.bad) for piece, each in zip(found.kept, told, strict=True)]
    return commit.rewrite_night(found.partition, found.before, [*kept, *made])


def _write(joined: Joined) -> Piece:
    """Puts a piece into the store."""
    files = [storage.read_bytes(source.file.uri) for source in joined.sources]
    readers = [pq.ParquetFile(pa.BufferReader(data)) for data in files]
    for source, reader in zip(joined.sources, readers, strict=True):
        if reader.metadata.num_rows != source.rows:
            raise RuntimeError(f"{source.file.uri} has {reader.metadata.num_rows} rows, and its name says otherwise")
    found = contents.added(map(Contents.of_file, files))
    schema = found.noted(_schema(readers).empty_table()).schema
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, **PARQUET) as writer:
        for rows in _blocks(readers, schema):
            writer.write_table(rows)
    piece = joined.piece
    storage.write_bytes(piece.file.uri, buffer.getvalue())
    return replace(piece, file=replace(piece.file, size=buffer.tell()), bad=found.bad)


def _schema(readers: Sequence[pq.ParquetFile]) -> pa.Schema:
    """Columns that any of these files has; those of earlier versions lack some."""
    schemas = [reader.schema_arrow for reader in readers]
    metadata: dict[bytes, bytes] = {}
    for schema in schemas:
        metadata |= schema.metadata or {}
    return pa.unify_schemas(schemas).with_metadata(metadata)


def _blocks(readers: Sequence[pq.ParquetFile], schema: pa.Schema) -> Iterator[pa.Table]:
    """All rows of these files, so many together as `ROWS_BYTES` has room for."""
    held: list[pa.Table] = []
    size = 0
    for reader in readers:
        for batch in reader.iter_batches(_batch_rows(reader.metadata)):
            held.append(pa.Table.from_batches([batch]))
            size += batch.nbytes
            if size >= ROWS_BYTES:
                yield _table(held, schema)
                held, size = [], 0
    if held:
        yield _table(held, schema)


def _batch_rows(metadata: pq.FileMetaData) -> int:
    """How many rows of a file have room, as large as its rows are."""
    size: int = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    rows: int = metadata.num_rows
    return max(1, min(MOST_ROWS, ROWS_BYTES * rows // max(1, size)))


def _table(held: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *held], promote_options="default")
