"""Staged Parquet: how rows become the files of a night, and how their names tell what is complete.

Shards are staged one object per piece, `<shard stem>-<hash of URI and etag>-<first>-<stop>[-end].parquet`: rows
`first … stop-1`, `-end` if the last of them is the shard's last. A put is atomic, so a listing alone tells what is
complete.
"""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import Datasink
from ray.data.block import BlockAccessor

from pipelines import storage
from pipelines.cluster import counters
from pipelines.reading.shards import Shard

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
    pa.field("lost_rows", pa.int64()),  # rows after this one that are lost with it, where a shard cannot be read on
]
GROWN = frozenset({"lost_rows"})
"""Columns that tables and pieces of an earlier version lack: null there."""
TIMINGS = ("decode_seconds", "predict_seconds")
PIECE = re.compile(r"(?P<shard>.+-[0-9a-f]{16})-(?P<first>\d+)-(?P<stop>\d+)(?P<end>-end)?\.parquet")
PLACE = re.compile(r"ds=\d{4}-\d\d-\d\d/[0-9a-f]{12}/(?P<name>[^/]+)")
UNFINISHED = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}")  # what a put to a disk leaves that was cut short


def table_schema(payload: pa.Schema) -> pa.Schema:
    """Columns of a table's files: `sample_id`, the hybrid's payload, lineage. `ds` is the partition, not a column."""
    return pa.schema([pa.field("sample_id", pa.string()), *payload, *LINEAGE])


# ---- pieces: names that tell what is complete --------------------------------------------------------------------
@dataclass(frozen=True)
class Piece:
    """One staged file: rows `first … stop-1` of a shard."""

    file: storage.FileInfo
    first: int
    stop: int
    end: bool

    @property
    def rows(self) -> int:
        """How many rows the file has."""
        return self.stop - self.first


def shard_key(shard: Shard) -> str:
    """A file-name stem that is unique for a shard in one state (URI and etag)."""
    digest = hashlib.sha256(f"{shard.uri}\0{shard.etag}".encode()).hexdigest()[:16]
    stem = re.sub(r"[^A-Za-z0-9._]+", "-", shard.uri.rsplit("/", 1)[-1]).strip("-._")[:80] or "shard"
    return f"{stem}-{digest}"


def list_pieces(folder: str) -> dict[str, list[Piece]]:
    """The staged pieces in a folder by shard key."""
    pieces: dict[str, list[Piece]] = defaultdict(list)
    for file in storage.list_files(folder):
        if match := PIECE.fullmatch(file.name):
            piece = Piece(file, int(match["first"]), int(match["stop"]), match["end"] is not None)
            pieces[match["shard"]].append(piece)
    return pieces


def is_own(path: str) -> bool:
    """Whether a path below a table is a piece's, or one's whose writing was cut short: what this program made there."""
    place = PLACE.fullmatch(path)
    if place is None:
        return False
    unfinished = UNFINISHED.fullmatch(place["name"])
    return PIECE.fullmatch((unfinished or place)["name"]) is not None


def tiling(pieces: Sequence[Piece]) -> list[Piece] | None:
    """Pieces that tile `0 … n` without gap or overlap up to an `-end`; None if there is no such choice.

    A retried task may have left overlapping pieces, so this looks for a path from 0 to an end piece.
    """
    arriving: dict[int, Piece | None] = {0: None}
    for piece in sorted(pieces, key=lambda piece: (piece.first, -piece.stop)):
        if piece.first not in arriving:
            continue
        if piece.end:
            return [*_path(arriving, piece.first), piece]
        arriving.setdefault(piece.stop, piece)
    return None


def _path(arriving: dict[int, Piece | None], position: int) -> list[Piece]:
    path: list[Piece] = []
    while (piece := arriving[position]) is not None:
        path.append(piece)
        position = piece.first
    return path[::-1]


class StageSink(Datasink[dict[str, float]]):
    """Ray Data sink that puts one Parquet object per contiguous piece of a shard; a retried task overwrites its own.

    After the write, `written` sums up what all tasks report: rows, bytes, seconds by stage.

    Args:
        folder: URI of the staging folder.
        shards: what is staged.
        schema: columns of the files.
        name: how Ray's metrics call it; without one nothing is counted.
    """

    def __init__(self, folder: str, shards: Sequence[Shard], schema: pa.Schema, name: str = "") -> None:
        self._folder = folder
        self._name = name
        self._keys = {shard.uri: shard_key(shard) for shard in shards}
        self._schema = schema
        self.written: dict[str, float] = defaultdict(float)

    def write(self, blocks: Iterable[Any], ctx: Any) -> dict[str, float]:
        """Writes the rows of these blocks; returns counts and seconds."""
        started = time.perf_counter()
        done: dict[str, float] = defaultdict(float)
        tables = [table for table in (BlockAccessor.for_block(block).to_arrow() for block in blocks) if len(table)]
        if not tables:
            return dict(done)
        table = pa.concat_tables(tables).sort_by([("shard", "ascending"), ("index", "ascending")])
        for first, stop in _runs(table):
            done["bytes"] += self._put(table.slice(first, stop - first))
        done["rows"] = len(table)
        for name in TIMINGS:
            if name in table.column_names:
                done[name] = pa.compute.sum(table[name]).as_py() or 0.0
        done["write_seconds"] = time.perf_counter() - started
        if self._name:
            seconds = {stage: done.get(f"{stage}_seconds", 0.0) for stage in ("decode", "predict", "write")}
            counters.count_staged(self._name, len(table), _kinds(table["error"]), seconds, int(done["bytes"]))
        return dict(done)

    def _put(self, rows: pa.Table) -> int:
        first, stop = rows["index"][0].as_py(), rows["index"][-1].as_py() + 1
        end = "-end" if rows["last"][-1].as_py() else ""
        name = f"{self._keys[rows['shard'][0].as_py()]}-{first:08d}-{stop:08d}{end}.parquet"
        buffer = io.BytesIO()
        pq.write_table(rows.select(self._schema.names).cast(self._schema), buffer, compression="zstd")
        storage.write_bytes(storage.join(self._folder, name), buffer.getvalue())
        return buffer.tell()

    def on_write_complete(self, write_result: Any) -> None:
        """Adds up what the tasks returned."""
        for done in write_result.write_returns:
            for name, value in done.items():
                self.written[name] += value


def _runs(table: pa.Table) -> list[tuple[int, int]]:
    """Slices of a sorted table in which the shard is one and the index has no gap."""
    shards, index = table["shard"].to_pylist(), table["index"].to_pylist()
    cuts = [i for i in range(1, len(index)) if shards[i] != shards[i - 1] or index[i] != index[i - 1] + 1]
    return list(zip([0, *cuts], [*cuts, len(index)], strict=True))


# ---- counting ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Errors:
    """What is bad in some pieces."""

    kinds: Counter[str]
    """How many rows by kind of error, those with no row of their own included."""
    lost: int
    """How many have no row of their own: they are lost with one that says so."""


def count_errors(pieces: Iterable[Piece]) -> Errors:
    """Error rows of these files, and the rows that are lost with them; reads the columns that tell."""
    kinds: Counter[str] = Counter()
    lost = 0
    for piece in pieces:
        with storage.open_input(piece.file.uri) as stream:
            rows = pq.ParquetFile(stream).read(columns=["error", "lost_rows"])  # earlier versions have but the first
        for row in rows.filter(rows["error"].is_valid()).to_pylist():
            beyond = row.get("lost_rows") or 0
            kinds[_kind(row["error"])] += 1 + beyond
            lost += beyond
    return Errors(kinds, lost)


def _kinds(errors: pa.ChunkedArray) -> Counter[str]:
    return Counter(_kind(error) for error in errors.drop_null().to_pylist())


def _kind(error: str) -> str:
    return error.split(":", 1)[0]
