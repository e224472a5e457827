"""Probabilities against the `scores` library and against sums by hand."""

import numpy as np
import pytest
import xarray as xr
from scores.probability import brier_score, crps_cdf

from hybrid_models.scores.probabilities import bin_sums, brier_sums, certain, certain_crps_sums, crps_sums, reliability

THRESHOLDS = (0.5, 1, 2, 5, 10)


def fields(leads=2, size=12, missing=True):
    """Falling probabilities `[L, K, H, W]` in whole percents, and rain `[L, H, W]`."""
    rng = np.random.default_rng(3)
    probability = np.round(np.sort(rng.random((leads, len(THRESHOLDS), size, size)), axis=1)[:, ::-1], 2)
    observed = rng.gamma(0.7, 4.0, (leads, size, size))
    if missing:
        observed[:, :3, 5:] = np.nan
    return probability, observed


@pytest.mark.filterwarnings("ignore:numba is not available")
def test_crps_is_that_of_scores():
    probability, observed = fields(size=8)
    # a CDF is 1 - P(rain >= x), from 0 mm/h, where it starts as at the first threshold, to the highest one
    levels = [0.0, *THRESHOLDS]
    cdf = 1 - np.concatenate([probability[:, :1], probability], axis=1)
    forecast = xr.DataArray(cdf, dims=("lead", "x", "row", "column"), coords={"x": levels})
    truth = xr.DataArray(np.minimum(observed, THRESHOLDS[-1]), dims=("lead", "row", "column"))
    expected = crps_cdf(forecast, truth, threshold_dim="x", preserve_dims=("lead", "row", "column"))["total"]
    assert int(expected.isnull().sum()) == np.isnan(observed).sum() > 0
    np.testing.assert_allclose(crps_sums(probability, observed, THRESHOLDS), expected.sum(("row", "column")), rtol=1e-5)


def test_certainty_that_no_rain_falls_costs_nothing_and_doubt_costs_less_than_error():
    dry = np.zeros((1, 1, 1))
    assert crps_sums(np.zeros((1, 5, 1, 1)), dry, THRESHOLDS).tolist() == [0.0]
    doubt = crps_sums(np.array([0.5, 0.5, 0.5, 0.0, 0.0]).reshape(1, 5, 1, 1), dry, THRESHOLDS)
    assert 0 < doubt[0] < certain_crps_sums(np.full((1, 1, 1), 3.0), dry, 10)[0] == 3.0
    forecast, observed = np.array([[[12.0, 4.0, np.nan, 3.0]]]), np.array([[[20.0, 2.5, 1.0, np.nan]]])
    assert certain_crps_sums(forecast, observed, 10).tolist() == [1.5 + 1.0]


def test_brier_score_is_that_of_scores():
    probability, observed = fields()
    sums = brier_sums(probability, observed, THRESHOLDS)
    valid = np.isfinite(observed)
    for k, threshold in enumerate(THRESHOLDS):
        events = np.where(valid, observed >= threshold, np.nan)
        expected = brier_score(
            xr.DataArray(probability[:, k], dims=("lead", "row", "column")),
            xr.DataArray(events, dims=("lead", "row", "column")),
            preserve_dims="lead",
        )
        np.testing.assert_allclose(sums[:, k] / valid.sum((1, 2)), expected, rtol=1e-6)


def test_bins_hold_every_observed_pixel_once():
    probability, observed = fields()
    bins = bin_sums(probability, observed, THRESHOLDS)
    valid = np.isfinite(observed)
    assert bins["pixels"].sum(1).tolist() == [valid.sum()] * 5
    inside = (probability[:, 2] >= 0.3) & (probability[:, 2] < 0.4) & valid
    assert bins["pixels"][2, 3] == inside.sum() > 0
    assert bins["probability"][2, 3] == pytest.approx(probability[:, 2][inside].sum())
    assert bins["events"][2, 3] == (observed[inside] >= 2).sum()


def test_true_probabilities_are_reliable_and_score_better_than_certainty():
    rng = np.random.default_rng(0)
    chance = rng.random((1, 1, 300, 300))
    observed = np.where(rng.random((1, 300, 300)) < chance[:, 0], 1.5, 0.0)
    pooled = reliability(bin_sums(chance, observed, (1.0,)))
    np.testing.assert_allclose(pooled["forecast"][0], np.arange(0.05, 1, 0.1), atol=0.01)
    np.testing.assert_allclose(pooled["observed"], pooled["forecast"], atol=0.02)
    unsure, bold = (brier_sums(forecast, observed, (1.0,)) for forecast in (chance, np.round(chance)))
    assert unsure[0, 0] < 0.7 * bold[0, 0]


def test_an_empty_bin_has_no_frequency():
    pooled = reliability(bin_sums(np.zeros((1, 1, 2, 2)), np.zeros((1, 2, 2)), (1.0,)))
    assert pooled["pixels"].tolist() == [[4, *[0] * 9]]
    assert np.isnan(pooled["observed"][0, 1:]).all()


def test_certainty():
    assert certain(np.array([[[0.0, 0.5, 7.0]]]), (0.5, 5)).tolist() == [[[[0, 1, 1]], [[0, 0, 1]]]]
