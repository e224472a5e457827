"""Whether one model is better than another on the same test set: the paired bootstrap (Koehn 2004)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hybrid_models.errors import UsageError
from hybrid_models.scores.texts import Tally

RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """How a second model differs from a first one in one metric."""

    first: float
    second: float
    difference: float
    """second − first."""
    low: float | None
    high: float | None
    """Bounds of the difference's 95 % confidence interval, percentiles of the resampled ones; None of one block."""
    p: float | None
    """Chance of so large a difference, of either sign, between equal models (the resampled differences, centred at
    zero, as in sacrebleu's test); None of one block."""


def paired_bootstrap(
    first: Tally, second: Tally, blocks: Sequence[int], resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Draws test sets of as many blocks with replacement, the same ones for both models, and scores both.

    Args:
        first: a metric of the first model, by sample.
        second: the same metric of the second model, of the same samples in the same order.
        blocks: which samples depend on each other and are drawn together: a block's number for each sample.
        resamples: how many test sets are drawn.
        seed: of the draws.

    Raises:
        UsageError: the two have different samples, or none.
    """
    if not len(first.parts) == len(second.parts) == len(blocks) or not len(blocks):
        raise UsageError(
            f"{len(first.parts)} and {len(second.parts)} samples: both models must have the same, and some"
        )
    difference = second.total - first.total
    _, place = np.unique(np.asarray(blocks), return_inverse=True)
    count = int(place.max()) + 1
    if count == 1:
        return Difference(first.total, second.total, difference, None, None, None)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    drawn = []
    for tally in (first, second):
        sums = np.zeros((count, tally.parts.shape[1]))
        np.add.at(sums, place, tally.parts)
        drawn.append(np.array([tally.score(total) for total in draws @ sums]))
    differences = drawn[1] - drawn[0]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(differences, [tail, 100 - tail])
    as_large = np.abs(differences - differences.mean()) >= abs(difference)
    p = (int(as_large.sum()) + 1) / (resamples + 1)
    return Difference(first.total, second.total, difference, float(low), float(high), p)


def consecutive(keys: Sequence[tuple[str, int]], size: Callable[[str], int]) -> list[int]:
    """Blocks of a shard's `size` neighbouring positions; `keys` are shard and position of each sample."""
    numbers: dict[tuple[str, int], int] = {}
    return [numbers.setdefault((shard, index // size(shard)), len(numbers)) for shard, index in keys]
