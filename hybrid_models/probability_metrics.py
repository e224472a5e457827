"""Metrics of probabilities that rain reaches thresholds: Brier score, reliability, CRPS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

RELIABILITY_BINS = 10
"""Bins of equal width in which forecast probabilities meet observed frequencies."""


def probability_sums(
    probability: np.ndarray, observed: np.ndarray, thresholds: Sequence[float]
) -> dict[str, np.ndarray]:
    """Sums over the observed pixels of one nowcast.

    Args:
        probability: `[L, thresholds, H, W]`, 0 … 1: that there is at least so much rain. It must not rise with the
            threshold.
        observed: `[L, H, W]` mm/h, NaN where nothing was measured.
        thresholds: mm/h, rising.

    Returns:
        `brier_error` `[L, thresholds]`, the squared differences of probability and event (Brier 1950); by bin of
        probability, `[L, thresholds, bins]`, `bin_pixels`, `bin_probability` (their sum) and `bin_events`.
    """
    valid = np.isfinite(observed)
    events = np.stack([observed >= threshold for threshold in thresholds], axis=1)
    weight = np.broadcast_to(valid[:, None], events.shape)
    leads, kinds = events.shape[:2]
    bins = np.minimum(probability * RELIABILITY_BINS + 1e-6, RELIABILITY_BINS - 1).astype(np.int64)
    bins += RELIABILITY_BINS * np.arange(leads * kinds).reshape(leads, kinds, 1, 1)

    def by_bin(values: np.ndarray) -> np.ndarray:
        counts = np.bincount(bins.ravel(), values.ravel(), minlength=leads * kinds * RELIABILITY_BINS)
        return counts.reshape(leads, kinds, RELIABILITY_BINS)

    return {
        "brier_error": (np.square(probability - events) * weight).sum(axis=(2, 3), dtype=np.float64),
        "bin_pixels": by_bin(weight),
        "bin_probability": by_bin(probability * weight),
        "bin_events": by_bin(events & weight),
    }


def crps_sums(probability: np.ndarray, observed: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Continuous ranked probability score (Matheson & Winkler 1976) in mm/h, summed over the observed pixels, `[L]`.

    ∫ (P(rain ≥ x) − 1[observed ≥ x])² dx from 0 to the highest threshold, beyond which nothing is known. Between
    thresholds the probability is taken as linear; below the first it is that of the first, since mostly there is no
    rain at all. Arguments as in `probability_sums`.
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
    return (start * start + start * end + end * end) / 3


def certain_crps_sums(forecast: np.ndarray, observed: np.ndarray, most: float) -> np.ndarray:
    """`crps_sums` of a forecast without probabilities `[L, H, W]` mm/h: its absolute error, up to `most` mm/h."""
    error = np.abs(np.minimum(np.nan_to_num(forecast), most) - np.minimum(np.nan_to_num(observed), most))
    summed: np.ndarray = (error * np.isfinite(observed)).sum(axis=(1, 2), dtype=np.float64)
    return summed


def certain(forecast: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """A forecast without probabilities `[L, H, W]` mm/h as probabilities 0 and 1, `[L, thresholds, H, W]`."""
    return np.stack([forecast >= threshold for threshold in thresholds], axis=1).astype(np.float32)


def reliability(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What was forecast and what came, by threshold and bin, of `probability_sums` summed over nowcasts and lead times.

    Returns:
        `pixels`, mean `forecast` probability and `observed` frequency, `[thresholds, bins]`; NaN in empty bins.
    """
    pixels = sums["bin_pixels"]
    empty = np.full(pixels.shape, np.nan)
    means = {
        name: np.divide(sums[part], pixels, out=empty.copy(), where=pixels > 0)
        for name, part in (("forecast", "bin_probability"), ("observed", "bin_events"))
    }
    return {"pixels": pixels, **means}
