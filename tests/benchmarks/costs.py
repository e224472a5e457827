"""What a million of each costs, by the rates in `docs/benchmarks.json`: the table of `docs/scale.md`.

    python -m tests.benchmarks.costs
    python -m tests.benchmarks.costs --instance mine --cores 8 --hour 0.3

Start-up is left out. Prices are assumptions: an instance's is for an hour, a store's for a thousand reads.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from tests import tiny

MILLION = 1_000_000


@dataclass(frozen=True)
class Prices:
    """What is paid."""

    instance: str
    """Its name."""
    cores: int
    """That it has, each like one of the machine that was measured; of some two "vCPUs" are one."""
    hour: float
    """$ for an hour of it."""
    reads: float = 0.0004
    """$ for a thousand requests to the store."""


NAMED = (Prices("m7a.large", 2, 0.116), Prices("c3d-standard-4", 2, 0.182))
"""Amazon's in us-east-1 and Google's in us-central1, on demand: cores of an EPYC 9004, and memory for a model process
on each, which a c7a.large has not."""


@dataclass(frozen=True)
class Work:
    """Something a night does.

    Args:
        what: how the table calls it.
        line: the benchmark's line that measured it.
        row: which of its figures: a rate of all cores, or the seconds of one core.
        reads: requests to the store for a million of them; None if they are few.
        each: how many of what was measured one of them takes.
    """

    what: str
    line: str
    row: str
    reads: int | None = None
    each: int = 1


WORK = [
    Work("photographs in tars of a thousand, captioned", "captioning", "`hybrid infer captions`", MILLION // 1000),
    Work("photographs as lone objects, captioned", "reading", "photographs as lone objects, captioned", MILLION),
    Work(
        "clips of seven seconds as lone objects, eight frames of each captioned", "reading",
        "clips as lone objects, captioned", MILLION,
    ),
    Work("sentences, beam 5, a net of 6.7 M weights", "translating", "beam 5, batches of 64"),
    Work("nowcasts of 12 leads with probabilities, 256 x 256", "nowcasting", "12 leads of 256 x 256, one core"),
    Work(
        "hours of radar, a frame and such a nowcast every five minutes", "nowcasting",
        "12 leads of 256 x 256, one core", each=12,
    ),
    Work("nowcasts of 1024 x 1024", "nowcasting", "12 leads of 1024 x 1024, one core"),
]  # fmt: skip


def cost(work: Work, measured: Mapping[str, Any], named: Sequence[Prices]) -> list[str]:
    """A row of the table.

    Args:
        work: what is paid for.
        measured: a line of `docs/benchmarks.json`.
        named: of each, the seconds that one of it takes, and the $.

    Raises:
        KeyError: the line has no such row.
    """
    figures = {row["what"]: row for row in measured["rows"]}
    found = figures[work.row]
    if found["unit"] == "s":
        seconds = found["ours"] * work.each
        rate = f"{_short(seconds, 3)} s, one core"
    else:
        cores = measured["machine"]["cores"]
        seconds = cores / found["ours"]
        rate = f"{_short(found['ours'], 3)} a second, {cores} cores"
    hours = seconds * MILLION / 3600
    reads = "few" if work.reads is None else f"{work.reads:,}"
    told = [work.what, rate, _short(hours), reads]
    for prices in named:
        dollars = hours / prices.cores * prices.hour + (work.reads or 0) / 1000 * prices.reads
        told += [_short(hours * 3600 / prices.cores), _short(dollars)]
    return told


def _short(value: float, digits: int = 2) -> str:
    """Two digits, or three of what is large."""
    return f"{value:.{digits}g}" if value < 99.5 else f"{float(f'{value:.3g}'):,.0f}"


def table(lines: Mapping[str, Any], named: Sequence[Prices] = NAMED) -> str:
    """All of it, as Markdown."""
    head = ["a million of", "rate", "core-hours", "reads"]
    head += [text for prices in named for text in (f"seconds on one {prices.instance}", "$")]
    rows = [cost(work, lines[f"{work.line} --full"], named) for work in WORK]
    first, *others = (f"| {' | '.join(row)} |" for row in [head, *rows])
    return "\n".join([first, "|---" * len(head) + "|", *others])


if __name__ == "__main__":
    lines = json.loads((Path(tiny.ROOT) / "docs/benchmarks.json").read_text())
    print(table(lines, (tyro.cli(Prices, description=__doc__),) if sys.argv[1:] else NAMED))
