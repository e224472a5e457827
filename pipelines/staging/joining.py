"""Pieces put together: the same rows in fewer files. Those of a unit that follow one another become one piece of it;
small ones of any units a pack, in which they stay what they are (`staging.pieces`).

What is made has the second of its making in its name, as a copy has: nothing is ever written over. Nothing is removed
here; tidying does it, when no version needs the old files any more.
"""

from __future__ import annotations

import io
import json
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.reading.units import Part, may_share
from pipelines.staging import contents
from pipelines.staging.contents import Contents, Known
from pipelines.staging.pieces import (
    PACKED,
    PARQUET,
    Piece,
    list_pieces,
    pack_name,
    piece_name,
    renewed_name,
    tiling,
)
from pipelines.storage import FileInfo

PIECE_BYTES = 32 << 20
"""No more than so much of files is put into one; they are in memory together."""
ROWS_BYTES = 16 << 20
"""So much of rows is in memory at a time, and lies together in a file."""
MOST_ROWS = 1024
PACK_BYTES = 64 << 20
"""No more than so much of files is put into a pack; files of half as much stay as they are."""
LEAST_FILES = 32
"""A night of so many small ones is packed before its commit. Years of nights of fewer make no table that is slow to
open."""
WRITERS, READERS = 4, 8
"""Pieces that are made at the same time, and of each of them those that are read."""


@dataclass(frozen=True)
class Joined:
    """A file to be made of others."""

    piece: Piece
    """All of it, as one; a pack's unit is its own."""
    sources: Sequence[Piece]
    """Those that have its rows now, in their order; of one pack together, as they are there."""
    notes: Mapping[bytes, bytes] = field(default_factory=dict)
    """What stands in its footer."""


Made = tuple[Piece, Contents]
"""A file as it lies in the store, and what it contains."""
Writer = Callable[[Sequence[Joined]], list[Made]]
"""`write`, or who has others do it."""


def small_units(parts: Iterable[Part]) -> set[str]:
    """Of these parts the units, by their keys, that become one piece: those of small shards."""
    return {part.unit for part in parts if may_share(part.shard)}


def join(units: Collection[str], folder: str) -> Known:
    """Puts together what was staged of these units in several pieces, unless they are so many that they become packs.
    What the new pieces contain is returned.

    Args:
        units: by their keys; one of which something is not staged stays as it is.
        folder: where they lie.

    Raises:
        RuntimeError: a piece is gone, or has not the rows that its name tells.
        StorageError: the store kept failing.
    """
    staged = list_pieces(folder) if units else {}
    own = {key: staged.get(key, []) for key in units}
    if sum(len(tiling(pieces) or []) for pieces in own.values()) >= LEAST_FILES:
        return {}
    return _known(write([joined for key, pieces in own.items() for joined in _fewer_of(folder, key, pieces)]))


def _fewer_of(folder: str, key: str, staged: Sequence[Piece]) -> list[Joined]:
    """What is to be made of a unit's pieces: nothing if that would not make them fewer, or if a night would choose
    others among what is staged."""
    own = tiling(staged) or []
    second = max(int(time.time()), *(piece.renewed + 1 for piece in staged), 0)
    runs = _runs(own)
    joined = [_made(folder, key, run, second) for run in runs if len(run) > 1]
    after = sorted([*(run[0] for run in runs if len(run) == 1), *(each.piece for each in joined)], key=_first)
    return joined if len(after) < len(own) and tiling([*staged, *after]) == after else []


def _first(piece: Piece) -> int:
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
    moment = max(piece.moment for piece in run)
    name = renewed_name(piece_name(key, run[0].first, run[-1].stop, rows, run[-1].end, moment), second)
    file = FileInfo(storage.join(folder, name), 0, "")
    return Joined(Piece(file, run[0].first, run[-1].stop, run[-1].end, second, rows, moment=moment), run)


def pack(folder: str, pieces: Sequence[Piece]) -> Joined:
    """A file of all these pieces, to be put into a folder."""
    sources = [piece for own in by_file(pieces) for piece in own]
    names = [piece.name for piece in sources]
    rows = sum(piece.rows for piece in sources)
    second = max(int(time.time()), *(piece.pack.second + 1 for piece in sources if piece.pack), 0)
    name = renewed_name(pack_name(names, rows), second)
    file = FileInfo(storage.join(folder, name), 0, "")
    return Joined(Piece(file, 0, rows, True, second, rows), sources, {PACKED: json.dumps(names).encode()})


def by_file(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """These pieces by the file that they are in, those of a pack in their order there."""
    found: dict[FileInfo, list[Piece]] = defaultdict(list)
    for piece in pieces:
        found[piece.file].append(piece)
    return [sorted(own, key=_row) for own in found.values()]


def _row(piece: Piece) -> int:
    return piece.pack.row if piece.pack else 0


def files(pieces: Sequence[Piece], writer: Writer, put_together: bool = False) -> tuple[list[Piece], Known]:
    """The files that have the rows of these pieces and no others, each as one piece. Of a pack some of whose pieces are
    not among these, a new one is made of those that are; and what such new ones contain.

    Args:
        pieces: of one folder.
        writer: makes the packs.
        put_together: make packs of small files, too, where they are many.

    Raises: as `join`.
    """
    found = by_file(pieces)
    whole = {own[0].file.uri: own for own in found if _is_whole(own)}
    packs = [_packed(own) for own in found if not _is_whole(own)]
    together = [run for run in runs({uri: own[0].file.size for uri, own in whole.items()}) if len(run) > 1]
    if put_together and sum(map(len, together)) >= LEAST_FILES:
        packs += [_packed([piece for uri in run for piece in whole.pop(uri)]) for run in together]
    made = writer(packs) if packs else []
    return [*map(whole_file, whole.values()), *(piece for piece, _ in made)], _known(made)


def runs(sizes: Mapping[str, int]) -> list[list[str]]:
    """Which files, by their names and sizes, become one; large ones stay by themselves."""
    large = [name for name in sorted(sizes) if sizes[name] >= PACK_BYTES // 2]
    together: list[list[str]] = []
    room = 0
    for name in sorted(set(sizes) - set(large)):
        if sizes[name] > room:
            together.append([])
            room = PACK_BYTES
        together[-1].append(name)
        room -= sizes[name]
    return [*([name] for name in large), *together]


def _packed(pieces: Sequence[Piece]) -> Joined:
    """A pack where they are."""
    return pack(pieces[0].file.uri.rpartition("/")[0], pieces)


def _known(made: Sequence[Made]) -> Known:
    return {(piece.file.name, piece.file.size): told for piece, told in made}


def _is_whole(own: Sequence[Piece]) -> bool:
    return own[0].pack is None or sum(piece.rows for piece in own) == own[0].pack.of


def whole_file(own: Sequence[Piece]) -> Piece:
    """All pieces of a file as one."""
    within = own[0].pack
    return own[0] if within is None else Piece(own[0].file, 0, within.of, True, within.second, within.of)


def write(joined: Sequence[Joined]) -> list[Made]:
    """Puts files into the store.

    Raises: as `join`.
    """
    with ThreadPoolExecutor(WRITERS) as threads:
        return list(threads.map(write_one, joined))


def write_one(joined: Joined) -> Made:
    """Puts a file into the store.

    Raises: as `join`.
    """
    with ThreadPoolExecutor(READERS) as threads:
        taken = list(threads.map(_Taken.read, _as_they_lie(joined.sources)))
    found = contents.added(each.contents for each in taken)
    schema = found.noted(_schema([each.schema for each in taken]).empty_table()).schema
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, **PARQUET) as writer:
        for rows in _blocks(taken, schema):
            writer.write_table(rows)
        writer.add_key_value_metadata(joined.notes)  # not in the schema, of which a file has two copies
    piece = joined.piece
    storage.write_new(piece.file.uri, buffer.getvalue())
    return replace(piece, file=storage.info(piece.file.uri), bad=found.bad), found


def _as_they_lie(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces by the file that they are in, as far as they follow one another there."""
    found: list[list[Piece]] = []
    for piece in pieces:
        if not found or found[-1][-1].file != piece.file or _row(found[-1][-1]) >= _row(piece):
            found.append([])
        found[-1].append(piece)
    return found


@dataclass(frozen=True)
class _Taken:
    """A file in memory, of which some rows are taken. Of thousands no reader is kept: each takes more than its file."""

    uri: str
    data: bytes
    spans: Sequence[tuple[int, int]]
    """From one row up to another, in their order."""
    schema: pa.Schema
    contents: Contents
    """Of the rows that are taken."""

    @classmethod
    def read(cls, own: Sequence[Piece]) -> _Taken:
        """Of the file that all these pieces are in."""
        uri = own[0].file.uri
        try:
            data = storage.read_bytes(uri)
        except FileNotFoundError:
            raise RuntimeError(f"{uri} was removed meanwhile: start again") from None
        with contents.undamaged(uri):
            reader = pq.ParquetFile(pa.BufferReader(data))
            rows, schema = reader.metadata.num_rows, reader.schema_arrow
        if rows != whole_file(own).rows:
            raise RuntimeError(f"{uri} has {rows} rows, and its name says otherwise")
        spans = _spans(own)
        with contents.undamaged(uri):
            if _is_whole(own):
                return cls(uri, data, spans, schema, Contents.of_file(data))
            told = [name for name in contents.TOLD_BY if name in schema.names]
            whole = Contents(jails=Contents.of_file(data).jails)
            return cls(uri, data, spans, schema, contents.added([whole, *map(Contents.of, _rows(data, spans, told))]))


def _rows(data: bytes, spans: Sequence[tuple[int, int]], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """These rows of a file, a few at a time; the others of it are not held."""
    reader = pq.ParquetFile(pa.BufferReader(data))
    wanted = np.zeros(reader.metadata.num_rows, dtype=bool)
    for first, stop in spans:
        wanted[first:stop] = True
    start = 0
    for batch in reader.iter_batches(_batch_rows(reader.metadata), columns=columns):
        mask = wanted[start : start + len(batch)]
        start += len(batch)
        if mask.any():
            yield pa.Table.from_batches([batch if mask.all() else batch.filter(pa.array(mask))])


def _spans(own: Sequence[Piece]) -> list[tuple[int, int]]:
    """The rows of pieces of one file, each from one up to another."""
    return [(_row(piece), _row(piece) + piece.rows) for piece in own]


def _schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Columns that any of these files has; those of earlier versions lack some."""
    metadata: dict[bytes, bytes] = {}
    for schema in schemas:
        metadata |= schema.metadata or {}
    return pa.unify_schemas(schemas).with_metadata(metadata)


def _blocks(taken: Sequence[_Taken], schema: pa.Schema) -> Iterator[pa.Table]:
    """All rows of these files, so many together as `ROWS_BYTES` has room for."""
    held: list[pa.Table] = []
    size = 0
    for each in taken:
        with contents.undamaged(each.uri):
            for rows in _rows(each.data, each.spans):
                held.append(rows)
                size += rows.nbytes
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
