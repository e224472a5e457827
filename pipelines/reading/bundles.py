"""Bundles: which parts one task reads. Nothing that is staged depends on them; how fast, and at what cost, does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby

from pipelines.reading.units import Part, cost

TASK_BYTES = 1 << 20
"""Of small shards so many are read in one task, ten thousand sentences: what is done again if its process dies. More
where there would be too many tasks: a task holds no more at a time because it reads more."""
TASKS_A_PROCESS = 16
"""At least, where there are so many shards and `MOST_TASKS` allows it: the last process is done a sixteenth later than
the first, at most."""
MOST_TASKS = 1600
"""Or one for each process, if these are more: a hundred nodes with 16 cores have one each. Ray's part of each is 12 to
16 ms of the driver, 23 s in all; a hundred thousand shards may take it a minute."""
CUT_UNITS = 256
"""No more units are cut, as what became of each is written again before the commit; where they stay whole, a night is
a minute longer at most, as a core takes so long for one."""


def bundled(parts: Sequence[Part], processes: int) -> list[list[Part]]:
    """Neighbours that one task reads, about equally much. Each task costs the driver 12 to 16 ms, and the model a batch
    that is not full.

    Several tasks read parts of one unit only where processes would have nothing to do otherwise: where there are fewer
    than two units for each, and few.

    Args:
        parts: in an order that stays, those of a unit together.
        processes: how many there are for these tasks.
    """
    units = [list(own) for _, own in groupby(parts, _unit)]
    share = _share(_cost(parts), processes)
    few = len(units) < 2 * processes and len(units) <= CUT_UNITS
    return _filled([piece for unit in units for piece in _cut(unit, share)] if few else units, share)


def _share(total: int, processes: int) -> float:
    """What a task reads of so much. Where tasks are many they come in whole rounds: all processes end together."""
    most = processes * max(1, MOST_TASKS // processes)
    return max(min(TASK_BYTES, total / (TASKS_A_PROCESS * processes)), total / most)


def _cut(unit: list[Part], share: float) -> list[list[Part]]:
    """A unit, or each part of one that is more than a task's share."""
    return [unit] if _cost(unit) <= share else [[part] for part in unit]


def _filled(pieces: Sequence[list[Part]], share: float) -> list[list[Part]]:
    """Pieces by the share that their middle lies in: so there are no more tasks than shares, whatever sizes pieces
    have, and two that are larger than a share are never in one."""
    bundles: defaultdict[int, list[Part]] = defaultdict(list)
    before = 0
    for piece in pieces:
        size = _cost(piece)
        bundles[int((before + size / 2) / share)] += piece
        before += size
    return list(bundles.values())


def _unit(part: Part) -> str:
    return part.unit


def _cost(parts: Sequence[Part]) -> int:
    return sum(cost(part.shard) for part in parts)
