"""Sums are pooled by lead time before any division."""

import json

import numpy as np
import pytest

from hybrid_models.errors import UsageError
from hybrid_models.scores.frames import ssim
from hybrid_models.scores.leads import lead_tallies, summarise_by_lead, verification_record


def record(forecast, observed, step_minutes, thresholds=(1.0,), probability=None):
    forecast, observed = np.asarray(forecast, float), np.asarray(observed, float)
    return {
        "lead_minutes": [step_minutes * (i + 1) for i in range(len(observed))],
        "thresholds": list(thresholds),
        "model": verification_record(forecast, observed, thresholds, probability),
    }


def test_records_survive_json():
    kept = record([[[1, 0]]], [[[2, np.nan]]], 5)
    assert json.loads(json.dumps(kept)) == kept
    assert kept["model"] == {
        "hits": [[1]],
        "misses": [[0]],
        "false_alarms": [[0]],
        "fss_error": [[[0.0, 0.0]]],
        "fss_most": [[[pytest.approx(4 / 9**4), pytest.approx(4 / 33**4)]]],
        "abs_error": [1.0],
        "sq_error": [1.0],
        "pixels": [1],
        "brier_error": [[0.0]],
        "crps_error": [0.0],
        "bins": {name: [[0, 0, 0, 0, 0, 0, 0, 0, 0, 1]] for name in ("pixels", "probability", "events")},
    }


def test_counts_are_pooled_over_samples_not_averaged():
    # one hit of one event, and one hit of four: 2 of 5, not the mean of 1 and 1/4
    one = record([[[3, 0, 0, 0]]], [[[3, 0, 0, 0]]], 5)
    four = record([[[3, 0, 0, 0]]], [[[3, 3, 3, 3]]], 5)
    metrics, details = summarise_by_lead([one, four])
    assert metrics["csi_1"] == pytest.approx(2 / 5)
    assert details["pod"]["1"] == [pytest.approx(2 / 5)]
    assert details["far"]["1"] == [0.0]
    assert metrics["mae"] == pytest.approx(9 / 8)
    assert metrics["mse"] == pytest.approx(27 / 8)


def test_probabilities_are_pooled_too():
    dry, wet = np.zeros((2, 1, 4)), np.full((2, 1, 4), 2.0)
    unsure = record(wet, wet, 5, probability=np.full((2, 1, 1, 4), 0.7))
    wrong = record(dry, dry, 5, probability=np.full((2, 1, 1, 4), 0.7))
    metrics, details = summarise_by_lead([unsure, wrong])
    assert details["brier"]["1"] == pytest.approx([(0.3**2 + 0.7**2) / 2] * 2)
    bins = details["reliability"]["1"]
    assert bins["pixels"] == [0] * 7 + [16, 0, 0]
    assert (bins["forecast"][7], bins["observed"][7]) == (pytest.approx(0.7), 0.5)
    assert bins["observed"][0] is None
    assert metrics["crps"] == pytest.approx((0.3**2 + 0.7**2) / 2)
    assert details["crps"] == pytest.approx([metrics["crps"]] * 2)


def test_different_steps_meet_at_shared_lead_times():
    hit, miss = [[2.0]], [[0.0]]
    five = record([hit, miss], [hit, hit], 5)  # 5 min: hit, 10 min: miss
    ten = record([hit], [hit], 10)  # 10 min: hit
    metrics, details = summarise_by_lead([five, ten])
    assert details["lead_minutes"] == [5, 10]
    assert details["csi"]["1"] == [1.0, 0.5]
    assert metrics["csi_1"] == pytest.approx(0.75)
    assert details["mae"] == [0.0, 1.0]


def test_scores_that_are_undefined_are_none_in_details_and_left_out_of_the_mean():
    dry, wet = [[0.0]], [[2.0]]
    metrics, details = summarise_by_lead([record([dry, wet], [dry, wet], 5)])
    assert details["csi"]["1"] == [None, 1.0]
    assert metrics["csi_1"] == 1.0
    assert summarise_by_lead([record([dry], [dry], 5)])[0]["csi_1"] == 0.0
    missing = summarise_by_lead([record([dry, dry], [[[np.nan]], dry], 5)])[1]
    assert missing["mae"] == [None, 0.0]


def test_no_records_are_refused():
    with pytest.raises(UsageError, match="no nowcasts"):
        summarise_by_lead([])


def test_tallies_of_a_part_are_the_metrics_of_that_part():
    rng = np.random.default_rng(0)
    records = [record(rng.gamma(1.0, 2.0, (3, 8, 8)), rng.gamma(1.0, 2.0, (3, 8, 8)), 5, (1.0, 5.0)) for _ in range(6)]
    tallies = lead_tallies(records)
    metrics, _ = summarise_by_lead(records[:2] + records[:1])
    assert set(tallies) == {"csi_1", "csi_5", "crps", "mse", "mae"}
    for name, tally in tallies.items():
        assert tally.score(2 * tally.parts[0] + tally.parts[1]) == pytest.approx(metrics[name])


def test_video_has_ssim_and_errors_summed_over_a_frame():
    rng = np.random.default_rng(0)
    forecast, observed = rng.random((2, 3, 8, 10))
    kept = [{**record(forecast, observed, 1, ()), "thresholds": []} for _ in range(2)]
    metrics, details = summarise_by_lead(kept)
    assert metrics["frame_mse"] == pytest.approx(np.square(forecast - observed).sum((1, 2)).mean())
    assert metrics["ssim"] == pytest.approx(ssim(forecast, observed).mean())
    assert details["ssim"] == pytest.approx(ssim(forecast, observed).tolist())
    assert metrics["mse"] == pytest.approx(np.square(forecast - observed).mean())
    assert set(metrics) == {"mse", "mae", "ssim", "frame_mse"}
    assert set(details) == {"lead_minutes", "mse", "mae", "ssim"}


def test_video_that_is_measured_in_parts_is_judged_there():
    rng = np.random.default_rng(0)
    forecast, observed = rng.random((2, 2, 8, 10))
    observed[0, :4] = np.nan  # no window is whole in the first frame, half of its pixels are there
    metrics, details = summarise_by_lead([{**record(forecast, observed, 1, ()), "thresholds": []}])
    second = np.square(forecast - observed)[1].sum()
    half = summarise_by_lead([{**record(forecast[:1], observed[:1], 1, ()), "thresholds": []}])[0]
    error = np.square(forecast - observed)[0, 4:].mean()
    assert half["frame_mse"] == pytest.approx(80 * error), "half a frame tells of a whole one"
    assert metrics["frame_mse"] == pytest.approx((np.square(forecast - observed)[0, 4:].sum() + second) / 1.5)
    assert metrics["ssim"] == pytest.approx(ssim(forecast, observed)[1])
    assert details["ssim"] == [None, pytest.approx(metrics["ssim"])]


def test_video_in_colour_is_judged_over_all_channels():
    """As scikit-image does with a `channel_axis`, SSIM is the mean of that of each channel."""
    rng = np.random.default_rng(0)
    forecast, observed = rng.random((2, 3, 8, 10, 3))
    metrics, details = summarise_by_lead([{**record(forecast, observed, 1, ()), "thresholds": []}])
    errors = forecast - observed
    similar = np.mean([ssim(forecast[..., i], observed[..., i]) for i in range(3)], axis=0)
    assert metrics == {
        "mse": pytest.approx(np.square(errors).mean()),
        "mae": pytest.approx(np.abs(errors).mean()),
        "frame_mse": pytest.approx(np.square(errors).sum((1, 2, 3)).mean()),
        "ssim": pytest.approx(similar.mean()),
    }
    assert details["ssim"] == pytest.approx(similar.tolist())
    assert details["mse"] == pytest.approx(np.square(errors).mean((1, 2, 3)).tolist())


@pytest.mark.parametrize("shape", [(2, 8, 9), (2, 9, 8, 3), (3, 9, 8)])
def test_frames_of_another_shape_are_not_compared(shape):
    with pytest.raises(UsageError, match="must have one shape"):
        verification_record(np.zeros(shape), np.zeros((2, 9, 8)), ())


def test_equal_channels_score_as_grey():
    rng = np.random.default_rng(0)
    forecast, observed = rng.random((2, 3, 8, 10))
    observed[0, :4], observed[1, 0] = np.nan, np.nan
    grey, coloured = (
        summarise_by_lead([{**record(*frames, 1, ()), "thresholds": []}])
        for frames in ((forecast, observed), (np.stack([each] * 3, axis=3) for each in (forecast, observed)))
    )
    assert coloured[0] == pytest.approx({**grey[0], "frame_mse": 3 * grey[0]["frame_mse"]})
    assert coloured[1]["ssim"] == [None, *map(pytest.approx, grey[1]["ssim"][1:])]
    assert coloured[1]["mae"] == pytest.approx(grey[1]["mae"])
