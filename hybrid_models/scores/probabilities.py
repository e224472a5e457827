"""Metrics of probabilities that rain reaches thresholds: Brier score, reliability, CRPS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from hybrid_models.scores.frames import ratio

RELIABILITY_BINS = 10
"""Bins of equal width in which forecast probabilities meet observed frequencies."""


def brier_sums(probability: np.ndarray, observed: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Squared differences of probability and event (Brier 1950), summed over the observed pixels, `[L, thresholds]`.

    Args:
        probability: `[L, thresholds, H, W]`, 0 … 1: that there is at least so much rain. It must not rise with the
            threshold.
        observed: `[L, H, W]` mm/h, NaN where nothing was measured.
        thresholds: mm/h, rising.
    """
    error = np.square(probability - _events(observed, thresholds)) * np.isfinite(observed)[:, None]
    summed: np.ndarray = error.sum(axis=(2, 3), dtype=np.float64)
    return summed


def bin_sums(probability: np.ndarray, observed: np.ndarray, thresholds: Sequence[float]) -> dict[str, np.ndarray]:
    """Sums over the observed pixels of all lead times by bin of probability; arguments as in `brier_sums`.

    Returns:
        `pixels`, `probability` (their sum) and `events`, `[thresholds, bins]`.
    """
    kinds = len(thresholds)
    weight = np.broadcast_to(np.isfinite(observed)[:, None], probability.shape)
    bins = np.minimum(probability * RELIABILITY_BINS + 1e-6, RELIABILITY_BINS - 1).astype(np.int64)
    bins += RELIABILITY_BINS * np.arange(kinds).reshape(kinds, 1, 1)

    def by_bin(values: np.ndarray) -> np.ndarray:
        counts = np.bincount(bins.ravel(), values.ravel(), minlength=kinds * RELIABILITY_BINS)
        return counts.reshape(kinds, RELIABILITY_BINS)

    return {
        "pixels": by_bin(weight),
        "probability": by_bin(probability * weight),
        "events": by_bin(_events(observed, thresholds) & weight),
    }


def _events(observed: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    return np.stack([observed >= threshold for threshold in thresholds], axis=1)


def crps_sums(probability: np.ndarray, observed: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Continuous ranked probability score (Matheson & Winkler 1976) in mm/h, summed over the observed pixels, `[L]`.

    ∫ (P(rain ≥ x) − 1[observed ≥ x])² dx from 0 to the highest threshold, beyond which nothing is known. Between
    thresholds the probability is taken as linear; below the first it is that of the first, since mostly there is no
    rain at all. Arguments as in `brier_sums`.
    """
    valid, truth = np.isfinite(observed), np.nan_to_num(observed).astype(np.float32)
    below = probability[:, 0].astype(np.float32)  # the probability at the lower end of a segment
    total = np.zeros_like(truth)
    for k, (low, high) in enumerate(pairwise((0.0, *thresholds))):
        above = probability[:, k].astype(np.float32)
        part = np.clip((truth - low) / (high - low), 0, 1)  # of the segment that lies below the observation
        there = below + (above - below) * part
        missed = part * _mean_square(1 - below, 1 - there)
        total += (high - low) * (missed + (1 - part) * _mean_square(there, above))
        below = above
    summed: np.ndarray = (total * valid).sum(axis=(1, 2), dtype=np.float64)
    return summed


def _mean_square(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Mean square of what goes from start to end along a line."""
    return np.asarray((start * start + start * end + end * end) / 3)


def certain_crps_sums(forecast: np.ndarray, observed: np.ndarray, most: float) -> np.ndarray:
    """`crps_sums` of a forecast without probabilities `[L, H, W]` mm/h: its absolute error, up to `most` mm/h."""
    error = np.abs(np.minimum(np.nan_to_num(forecast), most) - np.minimum(np.nan_to_num(observed), most))
    summed: np.ndarray = (error * np.isfinite(observed)).sum(axis=(1, 2), dtype=np.float64)
    return summed


def certain(forecast: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """A forecast without probabilities `[L, H, W]` mm/h as probabilities 0 and 1, `[L, thresholds, H, W]`."""
    return np.stack([forecast >= threshold for threshold in thresholds], axis=1).astype(np.float32)


def reliability(bins: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What was forecast and what came, by threshold and bin, of `bin_sums` added up over nowcasts.

    Returns:
        `pixels`, mean `forecast` probability and `observed` frequency, `[thresholds, bins]`; NaN in empty bins.
    """
    pixels = bins["pixels"]
    means = {name: ratio(bins[part], pixels) for name, part in (("forecast", "probability"), ("observed", "events"))}
    return {"pixels": pixels, **means}
