"""What a benchmark's line says: rows of figures, each beside its reference and goal where it has them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sizes:
    """How much is computed at once."""

    training: int
    """Sentences of a translator's step."""
    searching: int
    """Sentences of a batch that is translated."""
    captioning: int
    """Photographs of a batch."""
    fitting: int
    """Photographs of a step of a captioner's training, five captions each."""
    sequences: int
    """Of frames, of a ConvLSTM's step."""
    nowcasts: int


SIZES = {"cpu": Sizes(32, 64, 32, 32, 1, 1), "cuda": Sizes(512, 512, 256, 128, 16, 8)}
"""A kind of device → what fills it."""


def device() -> torch.device:
    """That which models are measured on: a GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def sizes() -> Sizes:
    """Of that device."""
    return SIZES[device().type]


def clock() -> float:
    """Seconds, read when all that was asked of a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


STEADY = 1 / 1.05
"""For `goal_times` of memory that data may not make grow: a twentieth more is the most."""


@dataclass(frozen=True)
class Row:
    """One figure."""

    what: str
    ours: float | None
    """None if it was left out: `what` says why."""
    unit: str
    """`s`, `MiB` and `nats` are better small, all others large."""
    reference: float | None = None
    against: str = ""
    """What the reference is of."""
    goal: float | None = None
    """For `ours`; None where nothing is asked of it."""
    goal_times: float | None = None
    """For `times`; None where nothing is asked of it."""

    @property
    def small(self) -> bool:
        """Whether less is better."""
        return self.unit in ("s", "MiB", "nats")

    @property
    def times(self) -> float | None:
        """How many times as good as the reference."""
        if self.reference is None or self.ours is None:
            return None
        return self.reference / self.ours if self.small else self.ours / self.reference

    @property
    def met(self) -> bool | None:
        """Whether all goals are reached; None without one that can be told."""
        told = []
        if self.goal is not None and self.ours is not None:
            told.append(self.ours <= self.goal if self.small else self.ours >= self.goal)
        if self.goal_times is not None and self.times is not None:
            told.append(self.times >= self.goal_times)
        return all(told) if told else None

    @property
    def asked(self) -> str:
        """Its goals, in words; empty without one."""
        goals = []
        if self.goal is not None:
            goals.append(f"{'≤' if self.small else '≥'} {self.goal:g} {self.unit}")
        if self.goal_times is not None:
            goals.append(f"≥ {self.goal_times:.3g} times")
        return ", ".join(goals)

    @property
    def shown(self) -> str:
        """The figure with its unit; empty if it was left out."""
        return "" if self.ours is None else f"{readable(self.ours)} {self.unit}"


def readable(value: float) -> str:
    """Three digits, and thousands apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def left_out(what: str, why: str) -> Row:
    """A row of what makes no sense on this machine."""
    return Row(f"{what}: left out, {why}", None, "")


def turn(number: int, names: list[str]) -> list[str]:
    """The order of a round: that of these, in every other round the other way round."""
    return names if number % 2 == 0 else names[::-1]


def in_turn(rounds: int, measures: dict[str, Callable[[], float]]) -> dict[str, float]:
    """The median of each measure over some rounds, all of them in turn in each, so that a slow minute is all's."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds):
        for name in turn(number, list(measures)):
            found[name].append(measures[name]())
    return {name: statistics.median(values) for name, values in found.items()}
