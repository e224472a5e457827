"""The goals that this project set itself, and which rows of figures tell whether one is met."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.figures import Row


@dataclass(frozen=True)
class Goal:
    """What is asked."""

    asked: str
    line: str
    told: str = ""
    """What the name of a row of that line, or of its reference, has in it, as a regular expression: the rows that
    tell."""


GOALS = (
    Goal("`make setup`, the package cache warm: 45 s", "setup"),
    Goal("`hybrid demo` from nothing, two cores: 130 s", "demo"),
    Goal("90 sentences in 11 s, nothing to do in 3, a question in 1.5, any help text in 0.3", "waiting"),
    Goal("captions: 0.97 of the best bare loop, 1.15 times each other program's", "captioning", "loop|Data|Daft"),
    Goal("captions: 1.5 times the earlier commit's", "captioning", "commit"),
    Goal("translations: 3 times JoeyNMT's with beam 5, 2.5 times greedily", "translating", "beam|greedy"),
    Goal("a translator's training: 2.5 times JoeyNMT's", "translating", "training"),
    Goal("a captioner's training: 1.5 times the earlier commit's, 2.5 times on rewards", "fitting", "commit"),
    Goal("ConvLSTM, there and back and there alone: 1.8 times a textbook's loop in float32", "convlstm"),
    Goal("a nowcast on one core: Lucas-Kanade's time, 0.4 of S-PROG's", "nowcasting"),
    Goal("a training on two cores: 1.6 times one core's", "fitting", "one core|one GPU"),
    Goal("a night of 16 times the rows: 1.05 times the memory", "captioning", "memory"),
)
"""In the order in which they are numbered."""


def table(known: Mapping[str, Any]) -> list[str]:
    """One row of Markdown for each goal, by the figures beside others, where there are some, or by those alone.

    Args:
        known: a line's place → its figures, as they are kept.
    """
    text = ["| | goal | met | figures; those that miss it in bold | command |", "|---|---|---|---|---|"]
    for number, goal in enumerate(GOALS, start=1):
        place = next((place for place in (f"{goal.line} --full", goal.line) if place in known), f"{goal.line} --full")
        line = known.get(place)
        judged = [] if line is None else [row for row in rows_of(goal, line["rows"]) if row.met is not None]
        figures = "; ".join(_told(row) if row.met else f"**{_told(row)}**" for row in judged)
        met = f"{sum(bool(row.met) for row in judged)} of {len(judged)}" if judged else "not measured"
        text.append(f"| {number} | {goal.asked} | {met} | {figures} | `python -m tests.benchmarks {place}` |")
    return text


def rows_of(goal: Goal, rows: list[dict[str, Any]]) -> list[Row]:
    """The rows of a line that tell of a goal."""
    made = [Row(**row) for row in rows]
    return [row for row in made if re.search(goal.told, f"{row.what} {row.against}")]


def _told(row: Row) -> str:
    beside = f", {row.against}" if row.against else ""
    reached = row.shown if row.goal is not None or row.times is None else f"{row.times:.2f}"
    return f"{row.what}{beside}: {reached} of {row.asked}"
