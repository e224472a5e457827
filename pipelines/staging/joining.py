"""Pieces of a unit that follow one another, put together: the same rows in fewer files.

A new piece has the second of its making in its name, as a copy has: none is ever written over. Nothing is removed here;
tidying does it, when no version needs the old pieces any more.
"""

from __future__ import annotations

import io
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.reading.units import Part, may_share
from pipelines.staging import contents
from pipelines.staging.contents import Contents, Known
from pipelines.staging.pieces import PARQUET, Piece, list_pieces, piece_name, renewed_name, tiling
from pipelines.storage import FileInfo

PIECE_BYTES = 32 << 20
"""No more than so much of files is put into one; they are in memory together."""
ROWS_BYTES = 16 << 20
"""So much of rows is in memory at a time, and lies together in a file."""
MOST_ROWS = 1024
WRITERS, READERS = 4, 8
"""Pieces that are made at the same time, and of each of them those that are read."""


@dataclass(frozen=True)
class Joined:
    """A piece to be made of others."""

    piece: Piece
    sources: Sequence[Piece]
    """Those that have its rows now, in their order."""


def small_units(parts: Iterable[Part]) -> set[str]:
    """Of these parts the units, by their keys, that become one piece: those of small shards."""
    return {part.unit for part in parts if may_share(part.shard)}


def join(units: Collection[str], folder: str) -> Known:
    """Puts together what was staged of these units in several pieces.

    Args:
        units: by their keys; one of which something is not staged stays as it is.
        folder: where they lie.

    Returns:
        What the new pieces contain.

    Raises:
        RuntimeError: a piece is gone, or has not the rows that its name tells.
        StorageError: the store kept failing.
    """
    staged = list_pieces(folder) if units else {}
    found = [joined for key in units for joined in _fewer_of(folder, key, staged.get(key, []))]
    return {(piece.file.name, piece.file.size): told for piece, told in write(found)}


def _fewer_of(folder: str, key: str, staged: Sequence[Piece]) -> list[Joined]:
    return fewer(folder, key, tiling(staged) or [], staged)[1]


def fewer(folder: str, key: str, own: Sequence[Piece], staged: Sequence[Piece]) -> tuple[list[Piece], list[Joined]]:
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
    after = sorted([*kept, *(each.piece for each in joined)], key=first)
    if len(after) < len(own) and tiling(own) == own and tiling([*staged, *after]) == after:
        return kept, joined
    return list(own), []


def first(piece: Piece) -> int:
    """The place that a piece begins at, by which they are ordered."""
    return piece.first


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


def write(joined: Sequence[Joined]) -> list[tuple[Piece, Contents]]:
    """Puts pieces into the store; each of them as it lies there, and what it contains.

    Raises: as `join`.
    """
    with ThreadPoolExecutor(WRITERS) as threads:
        return list(threads.map(_write, joined))


def _write(joined: Joined) -> tuple[Piece, Contents]:
    with ThreadPoolExecutor(READERS) as threads:
        files = list(threads.map(_data, joined.sources))
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
    storage.write_new(piece.file.uri, buffer.getvalue())
    return replace(piece, file=storage.info(piece.file.uri), bad=found.bad), found


def _data(source: Piece) -> bytes:
    try:
        return storage.read_bytes(source.file.uri)
    except FileNotFoundError:
        raise RuntimeError(f"{source.file.uri} was removed meanwhile: start again") from None


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
