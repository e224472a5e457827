"""`python -m tests.chaos`: the whole matrix of accidents, and its table in README.md."""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import tyro

from tests.chaos import runner, world
from tests.chaos.runner import POINTS, Accident, Outcome
from tests.chaos.world import VICTIMS

README = Path(__file__).with_name("README.md")
START, END = "<!-- results -->\n", "<!-- end of results -->\n"


@dataclass(frozen=True)
class Options:
    """What is run."""

    runs: int = 224
    """How many nights with an accident; 224 are all combinations of task, victim and point."""
    seed: int = 1
    """Of all choices."""
    only: int = -1
    """Repeat this run of them alone; leaves the table as it is."""
    keep: str = ""
    """Folder for what the jobs said; a temporary one by default."""


def main() -> None:
    """Exit code 1 if a night was not right."""
    options = tyro.cli(Options, description=__doc__)
    plans = runner.matrix(options.runs, options.seed)
    if options.only >= 0:
        plans = [plans[options.only]]
    with tempfile.TemporaryDirectory() as scratch, world.running(Path(options.keep or scratch).resolve()) as here:
        outcomes: list[Outcome] = []
        for outcome in runner.main(here, plans, options.seed):
            outcomes.append(outcome)
            if options.only < 0:
                write_table(outcomes, options)
    sys.exit(any(outcome.problem for outcome in outcomes))


def write_table(outcomes: list[Outcome], options: Options) -> None:
    """Puts the results between the marks in README.md."""
    text = README.read_text()
    head, tail = text.split(START)[0], text.split(END)[1]
    README.write_text(head + START + table(outcomes, options) + END + tail)


def table(outcomes: list[Outcome], options: Options) -> str:
    """Victims by points: nights that were right in the end, and how many starts they took."""
    cells: dict[Accident, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        cells[outcome.plan.accidents[0]].append(outcome)
    right = sum(not outcome.problem for outcome in outcomes)
    hit = sum(outcome.hit for outcome in outcomes)
    starts = sum(len(outcome.codes) for outcome in outcomes)
    lines = [
        f"`make chaos RUNS={options.runs} SEED={options.seed}`: {right} of {len(outcomes)} nights right. "
        f"In {hit} of them the victim was there to be killed; {starts} starts in all.",
        "",
        f"| victim | {' | '.join(POINTS)} |",
        "|---|" + "---|" * len(POINTS),
        *(
            f"| {victim} | {' | '.join(_cell(cells[Accident(victim, point)]) for point in POINTS)} |"
            for victim in VICTIMS
        ),
        "",
    ]
    wrong = [outcome for outcome in outcomes if outcome.problem]
    lines += [f"- run {o.plan.number} ({o.plan.task}, {', '.join(o.plan.accidents[0])}): {o.problem}" for o in wrong]
    return "\n".join(lines + [""] * bool(wrong))


def _cell(outcomes: list[Outcome]) -> str:
    if not outcomes:
        return ""
    right = sum(not outcome.problem for outcome in outcomes)
    starts = sum(len(outcome.codes) for outcome in outcomes)
    return f"{right}/{len(outcomes)}, {starts}"


if __name__ == "__main__":
    main()
