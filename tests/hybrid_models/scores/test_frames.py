"""Scores of frames equal those of the scores library and of plain loops."""

import math
import os
import runpy
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scores.categorical import BinaryContingencyManager
from scores.spatial import fss_2d

from hybrid_models.errors import UsageError
from hybrid_models.scores.frames import (
    FSS_WINDOWS,
    RAIN_THRESHOLDS,
    contingency,
    csi,
    error_sums,
    far,
    fss,
    fss_sums,
    pod,
    ssim,
)
from tests import tiny


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def rain(rng):
    observed = np.round(rng.gamma(0.5, 4, (3, 12, 9)), 2)
    forecast = np.round(observed * rng.uniform(0.3, 1.7, observed.shape), 2)
    observed[:, :2, :] = np.nan
    observed[1, 5, 5], forecast[1, 5, 5] = 2.0, 2.0  # exactly on a threshold: an event
    forecast[0, 4, 4], forecast[1, 4, 4], forecast[2, 4, 4] = np.nan, -3.0, np.inf
    observed[:, 4, 4] = 20.0
    return forecast, observed


def test_contingency_and_errors_equal_a_plain_loop(rain):
    forecast, observed = rain
    counts, errors = contingency(forecast, observed), error_sums(forecast, observed)
    for lead in range(3):
        for k, threshold in enumerate(RAIN_THRESHOLDS):
            hits = misses = false_alarms = 0
            for f, o in zip(forecast[lead].flat, observed[lead].flat, strict=True):
                if math.isnan(o):
                    continue
                event = math.isfinite(f) and f >= threshold
                hits += event and o >= threshold
                misses += not event and o >= threshold
                false_alarms += event and o < threshold
            assert counts["hits"][lead, k] == hits
            assert counts["misses"][lead, k] == misses
            assert counts["false_alarms"][lead, k] == false_alarms
        pairs = [
            (f if math.isfinite(f) and f > 0 else 0.0, o)
            for f, o in zip(forecast[lead].flat, observed[lead].flat, strict=True)
            if not math.isnan(o)
        ]
        assert errors["pixels"][lead] == len(pairs) == 90
        assert errors["abs_error"][lead] == pytest.approx(sum(abs(f - o) for f, o in pairs))
        assert errors["sq_error"][lead] == pytest.approx(sum((f - o) ** 2 for f, o in pairs))


def test_csi_far_and_pod_equal_the_scores_library(rain):
    forecast, observed = rain
    committed = np.where(np.isfinite(forecast) & (forecast > 0), forecast, 0)
    counts = contingency(forecast, observed)
    for k, threshold in enumerate(RAIN_THRESHOLDS):
        events = [
            xr.DataArray(np.where(np.isnan(observed), np.nan, field >= threshold), dims=("lead", "y", "x"))
            for field in (committed, observed)
        ]
        theirs = BinaryContingencyManager(*events).transform(preserve_dims="lead")
        np.testing.assert_allclose(csi(counts)[:, k], theirs.critical_success_index())
        np.testing.assert_allclose(far(counts)[:, k], theirs.false_alarm_ratio())
        np.testing.assert_allclose(pod(counts)[:, k], theirs.probability_of_detection())


@pytest.mark.parametrize("window", [1, 5, 33])
def test_fss_is_that_of_the_scores_library(window, rng):
    forecast, observed = (rng.gamma(0.3, 4.0, (3, 16, 12)) for _ in range(2))
    forecast[2] = observed[2]
    thresholds = (1.0, 5.0)
    found = fss(fss_sums(forecast, observed, thresholds, (window,)))
    margin = (window // 2, window // 2)  # theirs takes whole windows alone, ours one around each pixel
    padded = [np.pad(field, ((0, 0), margin, margin)) for field in (forecast, observed)]
    fields = [xr.DataArray(field, dims=("lead", "y", "x")) for field in padded]
    for k, threshold in enumerate(thresholds):
        theirs = fss_2d(
            *fields, event_threshold=threshold, window_size=(window, window), spatial_dims=("y", "x"),
            preserve_dims="lead", threshold_operator=np.greater_equal,
        )  # fmt: skip
        np.testing.assert_allclose(found[:, k, 0], theirs)
    np.testing.assert_allclose(found[2], 1)


def test_scores_are_those_of_the_protocol(rng):
    """The published figures of the radar nowcaster are by this protocol."""
    path = Path(os.environ.get("RADAR_PROTOCOL", tiny.ROOT.parent / "shared" / "radar_protocol.py"))
    if not path.exists():
        pytest.skip(f"there is no {path}: RADAR_PROTOCOL names the file")
    protocol = runpy.run_path(str(path))
    forecast, observed = (rng.gamma(0.5, 4, (2, 40, 36)) for _ in range(2))
    observed[:, :5] = np.nan
    theirs = protocol["evaluate"](forecast, observed, 15, windows=FSS_WINDOWS, thresholds=RAIN_THRESHOLDS)
    errors = error_sums(forecast, observed)
    assert errors["abs_error"].sum() / errors["pixels"].sum() == pytest.approx(theirs["mae_all_leads"], abs=1e-4)
    scores, shares = csi(contingency(forecast, observed)), fss(fss_sums(forecast, observed))
    for k, threshold in enumerate(RAIN_THRESHOLDS):
        assert scores[:, k] == pytest.approx(theirs["csi"][f"{threshold:g}"], abs=1e-4)
    for w, window in enumerate(FSS_WINDOWS):
        at = theirs["fss_1mm"][f"{window}px"]
        assert shares[:, RAIN_THRESHOLDS.index(1), w] == pytest.approx([at["15"], at["30"]], abs=1e-4)


def test_fss_forgives_a_shift_that_csi_does_not():
    observed = np.zeros((1, 40, 40))
    observed[0, 18:22, 18:22] = 3
    shifted = np.roll(observed, 4, axis=2)
    assert csi(contingency(shifted, observed, (1,)))[0, 0] == 0
    near, far_off = (fss(fss_sums(np.roll(observed, by, axis=2), observed, (1,), (9,)))[0, 0, 0] for by in (4, 12))
    assert near > 0.5
    assert far_off == 0


def test_fss_of_dry_fields_is_undefined():
    assert np.isnan(fss(fss_sums(np.zeros((1, 8, 8)), np.zeros((1, 8, 8)), (0.5,), (3,)))).all()


def test_ratios_without_events_are_nan():
    dry = contingency(np.zeros((1, 4, 4)), np.zeros((1, 4, 4)), (1,))
    assert all(np.isnan(ratio(dry)).all() for ratio in (csi, far, pod))


def test_shapes_that_differ_are_refused():
    with pytest.raises(UsageError, match=r"\(1, 4, 4\).*\(2, 4, 4\)"):
        contingency(np.zeros((1, 4, 4)), np.zeros((2, 4, 4)))


@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_ssim_is_the_formula_in_every_window(data_range, rng):
    observed = rng.random((2, 12, 9))
    forecast = np.clip(observed + rng.normal(0, 0.2, observed.shape), 0, 1)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    expected = []
    for x, y in zip(forecast, observed, strict=True):
        values = []
        for row in range(12 - 6):
            for column in range(9 - 6):
                a, b = (field[row : row + 7, column : column + 7].ravel() for field in (x, y))
                cov = np.cov(a, b)
                over = (2 * a.mean() * b.mean() + c1) * (2 * cov[0, 1] + c2)
                under = (a.mean() ** 2 + b.mean() ** 2 + c1) * (cov[0, 0] + cov[1, 1] + c2)
                values.append(over / under)
        expected.append(np.mean(values))
    np.testing.assert_allclose(ssim(forecast, observed, data_range), expected)
    np.testing.assert_allclose(ssim(observed, observed, data_range), 1)


def test_ssim_leaves_out_windows_over_what_was_not_measured(rng):
    observed, forecast = rng.random((3, 12, 9)), rng.random((3, 12, 9))
    holed = observed.copy()
    holed[0, 0, :] = np.nan  # the first of six rows of windows
    holed[1, 6, 4] = np.nan  # a pixel that all windows hold
    whole = ssim(forecast[:1, 1:], observed[:1, 1:])
    np.testing.assert_allclose(ssim(forecast, holed), [whole[0], np.nan, ssim(forecast, observed)[2]])


def test_ssim_takes_a_gap_in_a_forecast_for_nothing(rng):
    """The newest frame, which persistence says again, may have one: it would be judged on fewer frames, or on none."""
    observed, forecast = rng.random((2, 9, 9)), rng.random((2, 9, 9))
    holed, dark = forecast.copy(), forecast.copy()
    holed[0, 1, 1], dark[0, 1, 1] = np.nan, 0
    np.testing.assert_array_equal(ssim(holed, observed), ssim(dark, observed))


def test_ssim_needs_frames_of_a_window():
    with pytest.raises(UsageError, match=r"\(1, 6, 9\).*7 x 7 or more"):
        ssim(np.zeros((1, 6, 9)), np.zeros((1, 6, 9)))
