"""Whether what is staged is complete, and good enough: nothing is believed because a job said that it finished."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pipelines.reading.shards import Shard
from pipelines.staging.pieces import Piece, beginning, list_pieces, tiling


class RefusedError(RuntimeError):
    """Too many samples were bad, shards were gone, or a model was worse than the one in use: nothing was changed."""


def incomplete(shards: Sequence[Shard], folder: str) -> list[Shard]:
    """The shards whose staged pieces do not tile them, from the first row that is missing on. Nothing is skipped
    because a job said that it finished."""
    staged = list_pieces(folder)
    pieces = [(shard, staged.get(shard.key, [])) for shard in shards]
    return [replace(shard, first=beginning(own)) for shard, own in pieces if tiling(own) is None]


def verify(shards: Sequence[Shard], folder: str) -> list[Piece]:
    """The files that make up these shards exactly.

    Raises:
        RuntimeError: a shard is incomplete, although the computation ended without an error.
    """
    staged = list_pieces(folder)
    chosen: list[Piece] = []
    for shard in shards:
        tiles = tiling(staged.get(shard.key, []))
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
