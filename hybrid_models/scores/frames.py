"""Metrics of frames: CSI, FAR, POD and FSS of rain in mm/h, error sums, SSIM of video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hybrid_models.errors import UsageError

RAIN_THRESHOLDS = (0.5, 1, 2, 5, 10)
"""Rain rates (mm/h) at which forecasts are verified."""
FSS_WINDOWS = (9, 33)
"""Sides (pixels, odd) of the windows in which shares of rain are compared."""
SSIM_RANGE = 2.0
"""Span of the values that published SSIM of video prediction takes, although intensities are 0 … 1."""
_SSIM_WINDOW = 7


# ---- rain ----------------------------------------------------------------------------------------------------------
def contingency(
    forecast: np.ndarray, observed: np.ndarray, thresholds: Sequence[float] = RAIN_THRESHOLDS
) -> dict[str, np.ndarray]:
    """Counts of events `value >= threshold` over the pixels that were observed.

    Args:
        forecast: `[L, H, W]` mm/h by lead time; NaN, infinite or negative counts as 0, since a forecast must commit.
        observed: `[L, H, W]` mm/h, NaN where nothing was measured.

    Returns:
        `hits`, `misses` and `false_alarms`, each int64 `[L, thresholds]`.
    """
    predicted, truth, _ = _verified(forecast, observed)
    counts = {name: np.zeros((len(truth), len(thresholds)), np.int64) for name in ("hits", "misses", "false_alarms")}
    for k, threshold in enumerate(thresholds):
        warned, rained = predicted >= threshold, truth >= threshold
        counts["hits"][:, k] = (warned & rained).sum((1, 2))
        counts["misses"][:, k] = (~warned & rained).sum((1, 2))
        counts["false_alarms"][:, k] = (warned & ~rained).sum((1, 2))
    return counts


def error_sums(forecast: np.ndarray, observed: np.ndarray) -> dict[str, np.ndarray]:
    """Sums of absolute and squared errors over observed pixels, dry ones included; arguments as in `contingency`.

    Returns:
        `abs_error` and `sq_error`, float64 `[L]`, and `pixels`, int64 `[L]`: how many pixels were observed.
    """
    predicted, truth, valid = _verified(forecast, observed)
    error = predicted.astype(np.float64) - truth
    return {
        "abs_error": np.abs(error).sum((1, 2)),
        "sq_error": np.square(error).sum((1, 2)),
        "pixels": valid.sum((1, 2)),
    }


def fss_sums(
    forecast: np.ndarray,
    observed: np.ndarray,
    thresholds: Sequence[float] = RAIN_THRESHOLDS,
    windows: Sequence[int] = FSS_WINDOWS,
) -> dict[str, np.ndarray]:
    """Sums of the fractions skill score (Roberts & Lean 2008), which forgives rain that is a little out of place.

    In the square window around every pixel the share of pixels with an event is compared; beyond the grid there is
    none, as in pysteps.

    Args:
        forecast: as in `contingency`.
        observed: as in `contingency`; where nothing was measured neither field has events.
        thresholds: rain rates (mm/h) that are events.
        windows: sides of the windows, odd numbers of pixels.

    Returns:
        `fss_error`, the summed squared differences of shares, and `fss_most`, the sums of their squares, the most that
        the error can be: each float64 `[L, thresholds, windows]`.
    """
    predicted, truth, _ = _verified(forecast, observed)
    sums = {name: np.zeros((len(truth), len(thresholds), len(windows))) for name in ("fss_error", "fss_most")}
    for k, threshold in enumerate(thresholds):
        margin = max(windows) // 2
        corners = [_corner_sums(field >= threshold, margin) for field in (predicted, truth)]
        for w, window in enumerate(windows):
            inner = slice(margin - window // 2, -(margin - window // 2) or None)
            warned, rained = (_in_windows(sums_at[:, inner, inner], window) for sums_at in corners)
            sums["fss_error"][:, k, w] = _squares(warned - rained) / window**4
            sums["fss_most"][:, k, w] = (_squares(warned) + _squares(rained)) / window**4
    return sums


def _corner_sums(events: np.ndarray, margin: int) -> np.ndarray:
    """How many events lie above and left of each corner of a pixel, `[L, H+1, W+1]` with a margin around the grid."""
    padded = np.pad(events, ((0, 0), (margin, margin), (margin, margin)))
    leads, height, width = padded.shape
    sums = np.zeros((leads, height + 1, width + 1), np.int32)
    np.cumsum(padded, axis=2, out=sums[:, 1:, 1:])
    np.cumsum(sums[:, 1:, 1:], axis=1, out=sums[:, 1:, 1:])
    return sums


def _in_windows(corner_sums: np.ndarray, window: int) -> np.ndarray:
    """How many events are in every window, from the sums at its four corners."""
    rows = corner_sums[:, window:] - corner_sums[:, :-window]
    return np.asarray(rows[..., window:] - rows[..., :-window], np.float64)


def _squares(counts: np.ndarray) -> np.ndarray:
    """Sums of squares `[L]`; of whole numbers, so exact."""
    return np.asarray(np.einsum("lyx,lyx->l", counts, counts))


def fss(sums: Mapping[str, np.ndarray]) -> np.ndarray:
    """Fractions skill score, 1 − error / most: 1 is perfect, 0 no skill; NaN where there was no event at all."""
    return 1 - ratio(sums["fss_error"], sums["fss_most"])


def _verified(forecast: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Forecast and observation with 0 (not an event, no error) where there is no observation, and where there is."""
    forecast, observed = np.asarray(forecast), np.asarray(observed)
    if forecast.shape != observed.shape or forecast.ndim != 3:
        raise UsageError(f"forecast {forecast.shape} and observation {observed.shape} must have one shape [L, H, W]")
    valid = np.isfinite(observed)
    committed = np.where(np.isfinite(forecast) & (forecast > 0) & valid, forecast, 0)
    return committed, np.where(valid, observed, 0), valid


def csi(counts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Critical success index, hits / (hits + misses + false alarms); NaN where there was no event at all."""
    return ratio(counts["hits"], counts["hits"] + counts["misses"] + counts["false_alarms"])


def far(counts: Mapping[str, np.ndarray]) -> np.ndarray:
    """False alarm ratio, false alarms / (hits + false alarms); NaN where nothing was forecast."""
    return ratio(counts["false_alarms"], counts["hits"] + counts["false_alarms"])


def pod(counts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Probability of detection, hits / (hits + misses); NaN where nothing was observed."""
    return ratio(counts["hits"], counts["hits"] + counts["misses"])


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`, NaN where the whole is 0."""
    out = np.full(np.broadcast_shapes(np.shape(part), np.shape(whole)), np.nan)
    return np.asarray(np.divide(part, whole, out=out, where=np.asarray(whole) > 0))


# ---- video -------------------------------------------------------------------------------------------------------
def ssim(forecast: np.ndarray, observed: np.ndarray, data_range: float = SSIM_RANGE) -> np.ndarray:
    """Structural similarity (Wang et al. 2004) of each frame, `[L]`: the mean over all 7 x 7 windows, unweighted, with
    sample covariances, as scikit-image computes it.

    Args:
        forecast: `[L, H, W]`, at least 7 x 7; one that is no number, as persistence has of a gap, is a 0.
        observed: `[L, H, W]`, NaN where nothing was measured: windows with such a pixel are left out, and a frame
            without any other has NaN.
        data_range: span of the values.

    Raises:
        UsageError: the frames are too small, or shapes differ.
    """
    if forecast.shape != observed.shape or forecast.ndim != 3 or min(forecast.shape[1:]) < _SSIM_WINDOW:
        raise UsageError(
            f"frames {forecast.shape} and {observed.shape}: they must have one shape [L, H, W] of {_SSIM_WINDOW} x "
            f"{_SSIM_WINDOW} or more"
        )
    missing = ~np.isfinite(observed)
    x, y = (np.where(missing | ~np.isfinite(frames), 0, frames).astype(np.float64) for frames in (forecast, observed))
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = (_window_means(field) for field in (x, y, x * x, y * y, x * y))
    pixels = _SSIM_WINDOW**2
    var_x, var_y, cov = (
        (mean - product) * pixels / (pixels - 1)
        for mean, product in ((mean_xx, mean_x**2), (mean_yy, mean_y**2), (mean_xy, mean_x * mean_y))
    )
    c1, c2 = ((k * data_range) ** 2 for k in (0.01, 0.03))
    similarity = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    whole = _window_means(missing.astype(np.float64)) == 0
    return ratio((similarity * whole).sum((1, 2)), whole.sum((1, 2)))


def _window_means(field: np.ndarray) -> np.ndarray:
    """Means over the windows of a frame, by sums at their corners."""
    sums = np.pad(field.cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    rows = sums[:, _SSIM_WINDOW:] - sums[:, :-_SSIM_WINDOW]
    return np.asarray((rows[..., _SSIM_WINDOW:] - rows[..., :-_SSIM_WINDOW]) / _SSIM_WINDOW**2)
