"""Staged Parquet: how rows become the files of a night, and how their names tell what is complete.

Rows are staged one object per piece, `<unit>-<first>-<stop>[-n<rows>][-end][-r<second>].parquet`: of a unit
(`reading.units`) the rows from place `first` up to, and without, `stop`. A large shard is a unit of its own, named by
its stem and a hash of URI and etag, and its places are its rows' indices. Small shards share one, named by a hash of
all of theirs; the rows of the second begin at place 2^32, those of the third at twice that. A piece's `stop` is the
place of the row that follows its last one, be it the next shard's first; `-n` tells how many rows it has where that is
not `stop - first`. `-end` if no row follows, `-r` if it was made in that second (since 1970) of other pieces: a copy of
one that had waited for long, or several in one. A put is atomic, so a listing alone tells what is complete: pieces that
lead from place 0 to an `-end`, each beginning where another one stops.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

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
    r"(?P<unit>.+-[0-9a-f]{16})-(?P<first>\d+)-(?P<stop>\d+)(-n(?P<rows>\d+))?(?P<end>-end)?"
    r"(-r(?P<renewed>\d+))?\.parquet"
)
PLACE = re.compile(r"ds=\d{4}-\d\d-\d\d/[0-9a-f]{12}/(?P<name>[^/]+)")
UNFINISHED = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}")  # what a put to a disk leaves that was cut short


def table_schema(payload: pa.Schema) -> pa.Schema:
    """Columns of a table's files: `sample_id`, the hybrid's payload, lineage. `ds` is the partition, not a column."""
    return pa.schema([pa.field("sample_id", pa.string()), *payload, *LINEAGE])


def later_columns(schema: pa.Schema) -> set[str]:
    """Columns that tables and pieces of an earlier version may lack: null there."""
    return {field.name for field in schema if (field.metadata or {}).items() >= LATER.items()}


@dataclass(frozen=True)
class Piece:
    """One staged file: the rows of a unit from place `first` up to `stop`, where the next row's is.

    One that was made of others has the second of its making. Where places are left out, at the end of a small shard,
    `count` is how many rows the file has; `bad` is how many of them are error rows, where somebody looked.
    """

    file: storage.FileInfo
    first: int
    stop: int
    end: bool
    renewed: int = 0
    count: int | None = None
    bad: int | None = None

    @property
    def rows(self) -> int:
        """How many rows the file has."""
        return self.stop - self.first if self.count is None else self.count


def piece_name(unit: str, first: int, stop: int, rows: int, end: bool) -> str:
    """The name of a piece with so many rows."""
    count = "" if rows == stop - first else f"-n{rows}"
    return f"{unit}-{first:08d}-{stop:08d}{count}{'-end' if end else ''}.parquet"


def list_pieces(folder: str) -> dict[str, list[Piece]]:
    """The staged pieces in a folder by their unit's key."""
    pieces: dict[str, list[Piece]] = defaultdict(list)
    for file in storage.list_files(folder):
        if match := PIECE.fullmatch(file.name):
            first, stop, renewed = (int(match[part] or 0) for part in ("first", "stop", "renewed"))
            count = None if match["rows"] is None else int(match["rows"])
            pieces[match["unit"]].append(Piece(file, first, stop, match["end"] is not None, renewed, count))
    return pieces


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
    copies the newest is taken: the others may be tidied.
    """
    arriving, last = _arriving(pieces)
    return None if last is None else [*_path(arriving, last.first), last]


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
    for piece in sorted(pieces, key=lambda piece: (piece.first, -piece.stop, -piece.renewed)):
        if piece.first not in arriving:
            continue
        if piece.end:
            return arriving, piece
        arriving.setdefault(piece.stop, piece)
    return arriving, None


def _path(arriving: dict[int, Piece | None], position: int) -> list[Piece]:
    path: list[Piece] = []
    while (piece := arriving[position]) is not None:
        path.append(piece)
        position = piece.first
    return path[::-1]
