"""Whether what is staged is complete, and good enough: nothing is believed because a job said that it finished."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.reading.shards import Shard
from pipelines.staging.pieces import Piece, beginning, list_pieces, shard_key, tiling


class RefusedError(RuntimeError):
    """Too many samples were bad, shards were gone, or a model was worse than the one in use: nothing was changed."""


def incomplete(shards: Sequence[Shard], folder: str) -> list[Shard]:
    """The shards whose staged pieces do not tile them, from the first row that is missing on. Nothing is skipped
    because a job said that it finished."""
    staged = list_pieces(folder)
    pieces = [(shard, staged.get(shard_key(shard), [])) for shard in shards]
    return [replace(shard, first=beginning(own)) for shard, own in pieces if tiling(own) is None]


def verify(shards: Sequence[Shard], folder: str) -> list[Piece]:
    """The files that make up these shards exactly.

    Raises:
        RuntimeError: a shard is incomplete, although the computation ended without an error.
    """
    staged = list_pieces(folder)
    chosen: list[Piece] = []
    for shard in shards:
        tiles = tiling(staged.get(shard_key(shard), []))
        if tiles is None:
            raise RuntimeError(
                f"{shard.uri} is incomplete in {folder}: start the job again, it computes what is missing"
            )
        chosen += tiles
    return chosen


def check_errors(
    errors: Counter[str],
    rows: int,
    max_fraction: float,
    limit: str = "`max_error_fraction`",
    advice: str = "nothing was committed; mend the input or raise the limit",
) -> None:
    """Refuses too many bad samples; `limit` is how the message calls `max_fraction`, `advice` says the way out.

    Raises:
        RefusedError: names the commonest reason and the way out.
    """
    bad = sum(errors.values())
    if bad > max_fraction * rows:
        kind, count = errors.most_common(1)[0]
        raise RefusedError(
            f"{bad} of {rows} samples are bad (most: {count} x {kind}), more than {limit} {max_fraction}: {advice}"
        )


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


def absent(pieces: Iterable[Piece], keep: Sequence[str]) -> list[str]:
    """Which fields that were to be kept no row of these files has."""
    missing = list(keep)
    for piece in pieces:
        if not missing:
            break
        with storage.open_input(piece.file.uri) as stream:
            kept = pq.ParquetFile(stream).read(columns=["fields"])["fields"]
        missing = [
            name
            for name in missing
            if not pc.any(pc.match_substring(kept, f"{json.dumps(name, ensure_ascii=False)}:")).as_py()
        ]
    return missing


def kinds_of(errors: pa.ChunkedArray) -> Counter[str]:
    return Counter(_kind(error) for error in errors.drop_null().to_pylist())


def _kind(error: str) -> str:
    return error.split(":", 1)[0]
