"""Staged Parquet: how rows become the files of a night, and how their names tell what is complete.

Rows are staged one object per piece, `<unit>-<first>-<stop>[-n<rows>][-end][-m<second>][-r<second>].parquet`: of a unit
(`reading.units`) the rows from place `first` up to, and without, `stop`. A large shard is a unit of its own, named by
its stem and a hash of URI and etag, and its places are its rows' indices. Small shards share one, named by a hash of
all of theirs; the rows of the second begin at place 2^32, those of the third at twice that. A piece's `stop` is the
place of the row that follows its last one, be it the next shard's first; `-n` tells how many rows it has where that is
not `stop - first`. `-end` if no row follows, `-r` if it was made in that second (since 1970) of other pieces: a copy of
one that had waited for long, or several in one. A put is atomic, so a listing tells what is complete, with a footer for
each pack (below): pieces that lead from place 0 to an `-end`, each beginning where another one stops.

`-m` tells the second in which a piece was made some of whose rows could not be read for a reason of that moment: who
was refused an object may be given it later, and neither its address nor its etag is another one then. Such a piece is
good until one of these objects can be read: who does the night again looks.

A *pack* has the rows of many pieces, of any units, one piece after another: `pack-of-<pieces>-<hash>-…`. Their names
stand in its footer, so they are pieces as before; that they lie in one file is all that is new.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hybrid_models.interface import LATER
from pipelines import storage
from pipelines.reading.units import PLACED


@dataclass(frozen=True)
class Lineage:
    """Which model and run made a row."""

    model: str
    model_version: str
    fingerprint: str
    run_id: str


LINEAGE = [
    pa.field("status", pa.string()),  # ok | error
    pa.field("error", pa.string()),  # '<kind>: <message>' where status is error
    pa.field("shard", pa.string()),
    pa.field("index", pa.int64()),
    pa.field("last", pa.bool_()),
    pa.field("model", pa.string()),
    pa.field("model_version", pa.string()),
    pa.field("fingerprint", pa.string()),
    pa.field("run_id", pa.string()),
    pa.field("created_at", pa.timestamp("us", tz="UTC")),
    # rows after this one that are lost with it, where a shard cannot be read on
    pa.field("lost_rows", pa.int64(), metadata=LATER),
    pa.field("object", pa.string(), metadata=LATER),  # of a row of a group: the address of its object
    pa.field("fields", pa.string(), metadata=LATER),  # fields of the input that were to be kept, a JSON object
    pa.field("start_seconds", pa.float64(), metadata=LATER),  # of a window of a clip, from the clip's first frame
    pa.field("end_seconds", pa.float64(), metadata=LATER),
]
PARQUET: dict[str, Any] = {"compression": "zstd", "use_dictionary": False}
"""How pyarrow writes a piece. Few rows have the same text, none the same frames: dictionaries of them take time and
bytes, and what does repeat zstd finds."""
TIMINGS = ("decode_seconds", "predict_seconds")
PASSING = [*PLACED, *(pa.field(name, pa.float32()) for name in TIMINGS)]
"""Columns that rows have until they are written: what their piece is named by, and how long each took."""
PIECE = re.compile(
    r"(?P<unit>.+-[0-9a-f]{16})-(?P<first>\d{1,19})-(?P<stop>\d{1,19})(-n(?P<rows>\d{1,19}))?(?P<end>-end)?"
    r"(-m(?P<moment>\d{1,19}))?(-r(?P<renewed>\d{1,19}))?\.parquet"
)
PACK = re.compile(r"pack-of-\d{1,19}-[0-9a-f]{16}-\d{1,19}-\d{1,19}-end(-r\d{1,19})?\.parquet")
PACKED = b"hybrid.pieces"
"""Key of a pack's metadata: the names of its pieces, in the order of their rows."""
READERS = 16
PACKS_KNOWN = 256
PLACE = re.compile(r"ds=\d{4}-\d\d-\d\d/[0-9a-f]{12}/(?P<name>[^/]+)")
UNFINISHED = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}")  # what a put to a disk leaves that was cut short
log = logging.getLogger(__name__)


def table_schema(payload: pa.Schema) -> pa.Schema:
    """Columns of a table's files: `sample_id`, the hybrid's payload, lineage. `ds` is the partition, not a column."""
    return pa.schema([pa.field("sample_id", pa.string()), *payload, *LINEAGE])


def later_columns(schema: pa.Schema) -> set[str]:
    """Columns that tables and pieces of an earlier version may lack: null there."""
    return {field.name for field in schema if (field.metadata or {}).items() >= LATER.items()}


@dataclass(frozen=True)
class Within:
    """Where in a pack a piece of this name is: from which row on, of how many; and the second in which it was made."""

    name: str
    row: int
    of: int
    second: int


@dataclass(frozen=True)
class Piece:
    """Staged rows, those of a unit from place `first` up to `stop`, where the next row's is: a file, or part of a pack.

    One that was made of others has the second of its making, and so has one of a moment. Where places are left out, at
    the end of a small shard, `count` is how many rows it has; `bad` is how many of them are error rows, where somebody
    looked.
    """

    file: storage.FileInfo
    first: int
    stop: int
    end: bool
    renewed: int = 0
    count: int | None = None
    bad: int | None = None
    pack: Within | None = None
    moment: int = 0

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return self.stop - self.first if self.count is None else self.count

    @property
    def name(self) -> str:
        """By which its unit, its places and its rows are known."""
        return self.pack.name if self.pack else self.file.name


def piece_name(unit: str, first: int, stop: int, rows: int, end: bool, moment: int = 0) -> str:
    """The name of a piece with so many rows; of the moment, if that is a second since 1970."""
    count = "" if rows == stop - first else f"-n{rows}"
    last, passing = "-end" if end else "", f"-m{moment}" if moment else ""
    return f"{unit}-{first:08d}-{stop:08d}{count}{last}{passing}.parquet"


def pack_name(names: Sequence[str], rows: int) -> str:
    """The name of a pack of the pieces of these names, which have so many rows together."""
    digest = hashlib.sha256("\0".join(names).encode()).hexdigest()[:16]
    return piece_name(f"pack-of-{len(names)}-{digest}", 0, rows, rows, end=True)


def list_pieces(folder: str) -> dict[str, list[Piece]]:
    """The staged pieces in a folder by their unit's key.

    Raises:
        StorageError: the store kept failing.
    """
    files = storage.list_files(folder)
    with ThreadPoolExecutor(READERS) as threads:
        packs = [file for file in files if PACK.fullmatch(file.name)]
        packed = dict(zip(packs, threads.map(_packed, packs), strict=True))
    pieces: dict[str, list[Piece]] = defaultdict(list)
    for file in files:
        for unit, piece in _within(file, names) if (names := packed.get(file)) else _named(file, file.name):
            pieces[unit].append(piece)
    return pieces


def whole_packs_first(chosen: Sequence[Piece], staged: Mapping[str, Sequence[Piece]]) -> list[Piece]:
    """The same rows, from packs that have no others, as far as there are such, the larger ones first; where the packs
    that were chosen have others. The newest may be one that a night left which ended before its commit.
    """
    packs: dict[storage.FileInfo, list[Piece]] = defaultdict(list)
    for piece in (piece for own in staged.values() for piece in own if piece.pack):
        packs[piece.file].append(piece)
    found = list(chosen)
    if _are_whole(chosen):
        return found
    place = {piece.name: number for number, piece in enumerate(chosen)}
    for own in sorted(packs.values(), key=_largest_and_newest):
        if all(piece.name in place for piece in own):
            for piece in own:
                found[place.pop(piece.name)] = piece
    return found


def _are_whole(chosen: Sequence[Piece]) -> bool:
    """Whether no pack has other rows than these."""
    taken: dict[storage.FileInfo, int] = defaultdict(int)
    for piece in chosen:
        taken[piece.file] += piece.rows
    return all(piece.pack is None or taken[piece.file] == piece.pack.of for piece in chosen)


def _largest_and_newest(own: Sequence[Piece]) -> tuple[int, ...]:
    pack = own[0].pack
    assert pack is not None
    return -pack.of, -pack.second


def unit_of(name: str) -> str | None:
    """Which unit's piece has this name; None if it is no piece's."""
    match = PIECE.fullmatch(name)
    return match["unit"] if match else None


def _within(file: storage.FileInfo, names: Sequence[str]) -> Iterator[tuple[str, Piece]]:
    """The pieces of a pack, each with its unit's key."""
    ((_, whole),) = _named(file, file.name)
    row = 0
    for name in names:
        for unit, piece in _named(file, name):
            yield unit, replace(piece, pack=Within(name, row, whole.rows, whole.renewed))
            row += piece.rows


def _named(file: storage.FileInfo, name: str) -> list[tuple[str, Piece]]:
    """The piece that has this name, with its unit's key; none if it is no piece's name."""
    if not (match := PIECE.fullmatch(name)):
        return []
    first, stop, renewed, moment = (int(match[part] or 0) for part in ("first", "stop", "renewed", "moment"))
    count = None if match["rows"] is None else int(match["rows"])
    return [(match["unit"], Piece(file, first, stop, match["end"] is not None, renewed, count, moment=moment))]


def names_in(file: storage.FileInfo) -> Sequence[str]:
    """The names of the pieces in a file: of a pack those that its footer tells, its own of any other one.

    Raises:
        StorageError: the store kept failing.
    """
    return (PACK.fullmatch(file.name) and _packed(file)) or [file.name]


@lru_cache(PACKS_KNOWN)
def _packed(file: storage.FileInfo) -> Sequence[str] | None:
    """The names of a pack's pieces; None if its footer tells of none that it could have, or it is gone."""
    try:
        with storage.open_input(file.uri) as stream:
            footer = pq.ParquetFile(stream).metadata
        names = json.loads((footer.metadata or {}).get(PACKED, b"null"))
    except FileNotFoundError:
        return None
    except (pa.ArrowInvalid, OSError, ValueError, RecursionError) as error:
        log.warning("%s is damaged, and is left alone: %s", file.uri, error)
        return None
    known = isinstance(names, list) and all(isinstance(name, str) and PIECE.fullmatch(name) for name in names)
    if not known or len(set(names)) < len(names):
        log.warning("%s does not tell whose rows it has, and is left alone", file.uri)
        return None
    if sum(piece.rows for name in names for _, piece in _named(file, name)) != footer.num_rows:
        log.warning("%s has not the rows that its pieces have, and is left alone", file.uri)
        return None
    return tuple(names)


def renewed_name(name: str, second: int) -> str:
    """The name of a piece's copy that is made in a second since 1970."""
    return re.sub(r"(-r\d+)?\.parquet$", f"-r{second}.parquet", name)


def is_own(path: str) -> bool:
    """Whether a path below a table is a piece's, or one's whose writing was cut short: what this program made there."""
    place = PLACE.fullmatch(path)
    if place is None:
        return False
    unfinished = UNFINISHED.fullmatch(place["name"])
    return PIECE.fullmatch((unfinished or place)["name"]) is not None


def tiling(pieces: Sequence[Piece]) -> list[Piece] | None:
    """Pieces that lead from place 0 to an `-end` without gap or overlap; None if there is no such choice.

    A retried task may have left overlapping pieces, so this looks for a path from 0 to an end piece. Of a piece and its
    copies the newest is taken, and rather one in a pack: the others may be tidied. None of a moment is, unless there is
    no other way; then it is one of the newest.
    """
    for since in sorted({_since(piece) for piece in pieces}, reverse=True):
        arriving, last = _arriving([piece for piece in pieces if _since(piece) >= since])
        if last is not None:
            return [*_path(arriving, last.first), last]
    return None


def _since(piece: Piece) -> float:
    """The second of a piece of a moment; others are always good."""
    return piece.moment or math.inf


def lasting(pieces: Sequence[Piece]) -> list[Piece]:
    """Those that are of no moment."""
    return [piece for piece in pieces if not piece.moment]


def leading(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces that lead from place 0 on without gap or overlap, as far as any choice of them does."""
    arriving, last = _arriving(pieces)
    return _path(arriving, max(arriving)) if last is None else [*_path(arriving, last.first), last]


def beginning(pieces: Sequence[Piece]) -> int:
    """Up to which place pieces lead from 0 on without gap or overlap, as far as any choice of them does."""
    return max(_arriving(pieces)[0])


def _arriving(pieces: Sequence[Piece]) -> tuple[dict[int, Piece | None], Piece | None]:
    """Places up to which pieces lead from 0 on → the last of these pieces; and an end piece that goes on from there."""
    arriving: dict[int, Piece | None] = {0: None}
    for piece in sorted(pieces, key=_longest_and_newest):
        if piece.first not in arriving:
            continue
        if piece.end:
            return arriving, piece
        arriving.setdefault(piece.stop, piece)
    return arriving, None


def _longest_and_newest(piece: Piece) -> tuple[int, ...]:
    return piece.first, -piece.stop, -piece.renewed, -piece.pack.second if piece.pack else 0


def _path(arriving: dict[int, Piece | None], position: int) -> list[Piece]:
    path: list[Piece] = []
    while (piece := arriving[position]) is not None:
        path.append(piece)
        position = piece.first
    return path[::-1]
