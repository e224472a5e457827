"""Whether what is staged is complete, and good enough: nothing is believed because a job said that it finished."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from pipelines import storage
from pipelines.reading.shards import Shard
from pipelines.reading.units import Part, Unit, units
from pipelines.staging import contents
from pipelines.staging.pieces import Piece, beginning, lasting, leading, list_pieces, tiling, whole_packs_first

log = logging.getLogger(__name__)


class RefusedError(RuntimeError):
    """Too many samples were bad, shards were gone, a night was not as a compaction found it, or a model was worse than
    the one in use: nothing was changed."""


def incomplete(shards: Sequence[Shard], folder: str, once: bool = False) -> list[Part]:
    """What is to be computed: of each unit of these shards whose staged pieces do not tile it, the parts from the first
    row that is missing on; and those from the first piece of a moment on, if an object that could not be read then can
    be now. Nothing is skipped because a job said that it finished.

    Args:
        shards: the input.
        folder: where pieces are staged.
        once: rows that failed for a reason of the moment stay as they are.
    """
    todo: list[Part] = []
    passing: list[tuple[Unit, Sequence[Piece], Piece]] = []
    for unit, own, tiles in tiled(shards, list_pieces(folder)):
        if tiles is None:
            todo += _parts(unit, own, own if once else lasting(own))
        elif not once:
            passing += [(unit, own, piece) for piece in tiles if piece.moment]
    over = _over([piece for *_, piece in passing])
    for unit, own in {unit.key: (unit, own) for unit, own, piece in passing if piece in over}.values():
        todo += _parts(unit, own, lasting(own))
    return todo


def _parts(unit: Unit, own: Sequence[Piece], kept: Sequence[Piece]) -> list[Part]:
    """What is to be computed of a unit whose pieces are some, of which these are gone on from."""
    since = max((piece.moment + 1 for piece in own if piece.moment), default=0)
    return [replace(part, since=since) for part in unit.parts(beginning(kept))]


def _over(pieces: Sequence[Piece]) -> set[Piece]:
    """Pieces of a moment of which an object that could not be read then can be read now."""
    if not pieces:
        return set()
    files: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        files[piece.file.uri].append(piece)
    with ThreadPoolExecutor(contents.READERS) as threads:
        told = {piece: uris for found in threads.map(contents.refused, files.values()) for piece, uris in found.items()}
    log.info("looking whether %d objects that could not be read can be now", sum(map(len, told.values())))
    readable = storage.readable(set[str]().union(*told.values()))
    return {piece for piece, uris in told.items() if uris & readable}


def reused(shards: Sequence[Shard], folder: str, todo: Sequence[Part]) -> list[Piece]:
    """The files that these parts, which `incomplete` has found, go on from, and those of units that lack nothing."""
    staged, again = list_pieces(folder), {part.unit for part in todo}
    return [
        piece
        for unit in _units(shards, staged)
        for own in [staged.get(unit.key, [])]
        for piece in leading(lasting(own) if unit.key in again else own)
    ]


def verify(shards: Sequence[Shard], folder: str) -> list[Piece]:
    """The files that make up these shards exactly.

    Raises:
        RuntimeError: a shard is incomplete, although the computation ended without an error.
    """
    staged = list_pieces(folder)
    chosen: list[Piece] = []
    for unit, own, tiles in tiled(shards, staged):
        if tiles is None:
            missing = unit.parts(beginning(own))[0].shard
            raise RuntimeError(
                f"{missing.uri} is incomplete in {folder}: start the job again, it computes what is missing"
            )
        chosen += tiles
    return whole_packs_first(chosen, staged)


def check_there(pieces: Sequence[Piece], folder: str) -> None:
    """Refuses a night of which a file is gone.

    Raises:
        RuntimeError: names it.
    """
    there = {piece.file.uri for staged in list_pieces(folder).values() for piece in staged}
    if gone := next((piece.file.uri for piece in pieces if piece.file.uri not in there), None):
        raise RuntimeError(f"{gone} is gone from its folder: start the job again, it computes what is missing")


Staging = Mapping[str, Sequence[Piece]]
"""What lies in a folder, by the key of its unit."""


def tiled(shards: Sequence[Shard], staged: Staging) -> Iterator[tuple[Unit, Sequence[Piece], list[Piece] | None]]:
    """The units of these shards, what is staged of each, and which of it makes it up exactly; None if nothing does."""
    for unit in _units(shards, staged):
        own = staged.get(unit.key, [])
        yield unit, own, tiling(own)


def _units(shards: Sequence[Shard], staged: Staging) -> Iterator[Unit]:
    """Units of these shards; of one that is not there, shards that are, each for itself, are units of their own."""
    for unit in units(shards):
        whole = tiling(staged.get(unit.key, []))
        alone = set[Shard]() if whole else {shard for shard in unit.shards if tiling(staged.get(shard.key, []))}
        yield from (Unit.of([shard]) for shard in unit.shards if shard in alone)
        if others := [shard for shard in unit.shards if shard not in alone]:
            yield Unit.of(others)


def too_many(errors: Counter[str], rows: int, max_fraction: float) -> bool:
    """Whether more than so large a share of the rows is bad."""
    return sum(errors.values()) > max_fraction * rows


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
    if too_many(errors, rows, max_fraction):
        bad = sum(errors.values())
        kind, count = errors.most_common(1)[0]
        raise RefusedError(
            f"{bad} of {rows} samples are bad (most: {count} x {kind}), more than {limit} {max_fraction}: {advice}"
        )
