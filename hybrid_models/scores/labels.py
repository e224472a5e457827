"""Scores of labels: accuracy, macro F1, confusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hybrid_models.scores.texts import Tally


def accuracy(true: Sequence[str], said: Sequence[str]) -> Tally:
    """Share of samples, 0–1, whose label is right."""
    hits = np.array([[t == s, 1] for t, s in zip(true, said, strict=True)], np.float64)
    return Tally(hits, lambda sums: float(sums[0] / sums[1]))


def macro_f1(true: Sequence[str], said: Sequence[str]) -> Tally:
    """Mean over labels of F1 = 2 · hits / (said + true), 0–1: a rare label counts as much as a frequent one.

    As scikit-learn's `f1_score(average="macro")`: labels are those that are true or said of some sample.
    """
    names = sorted({*true, *said})
    parts = np.zeros((len(true), 2, len(names)))
    for row, (t, s) in enumerate(zip(true, said, strict=True)):
        parts[row, 0, names.index(t)] += t == s
        parts[row, 1, names.index(t)] += 1
        parts[row, 1, names.index(s)] += 1

    def score(sums: np.ndarray) -> float:
        hits, marks = sums.reshape(2, -1)
        there = marks > 0
        return float((2 * hits[there] / marks[there]).mean())

    return Tally(parts.reshape(len(true), -1), score)


def confusion(true: Sequence[str], said: Sequence[str]) -> dict[str, Any]:
    """`labels`, and `counts`: how many samples of each label (a row) were said to be which (a column)."""
    names = sorted({*true, *said})
    counts = np.zeros((len(names), len(names)), int)
    for t, s in zip(true, said, strict=True):
        counts[names.index(t), names.index(s)] += 1
    return {"labels": names, "counts": counts.tolist()}
