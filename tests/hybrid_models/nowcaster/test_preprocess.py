import tracemalloc
from datetime import UTC, datetime

import numpy as np
import pytest

from hybrid_models.errors import BadSample
from hybrid_models.inputs import Inputs, Visual
from hybrid_models.nowcaster.config import NowcasterConfig
from hybrid_models.nowcaster.decoding import NowcasterDecoding
from hybrid_models.nowcaster.nowcaster import Nowcaster
from hybrid_models.nowcaster.preprocess import NowcasterPreprocess
from hybrid_models.scores.frames import RAIN_THRESHOLDS
from tests.hybrid_models.nowcaster.test_nowcaster import COLOUR, VIDEO, sample_of, shower


def test_a_window_is_split_at_the_issue_time():
    media = shower(9)
    media[:, 0, 0] = np.nan
    sample = sample_of(media, issue_time="2010-08-26T01:30:00")
    assert sample["past"].dtype == np.float16
    np.testing.assert_array_equal(sample["past"], media[:3].astype(np.float16))
    np.testing.assert_array_equal(sample["future"], media[3:7].astype(np.float16))  # 20 min in steps of 5
    assert sample["n_leads"] == 4
    assert sample["length"] == 7
    assert sample["issue_time"] == datetime(2010, 8, 26, 1, 30, tzinfo=UTC).timestamp() * 1e6
    assert "future" not in sample_of(media[:3], with_target=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2010-08-26T00:00:00.000000000", datetime(2010, 8, 26, tzinfo=UTC)),
        ("2010-08-26T02:00:00+02:00", datetime(2010, 8, 26, tzinfo=UTC)),
        ("1969-12-31T23:59:59.5Z", datetime(1969, 12, 31, 23, 59, 59, 500_000, tzinfo=UTC)),
    ],
)
def test_issue_times_are_utc(text, expected):
    micros = int(sample_of(shower(7), issue_time=text)["issue_time"])
    assert datetime.fromtimestamp(micros / 1e6, UTC) == expected


def test_stored_rain_keeps_its_side_of_every_threshold():
    hundredths = np.arange(0, 2000, dtype=np.float32)[:1024].reshape(32, 32)
    for first in (0.0, 9.76):
        rain = np.round(first + hundredths / 100, 2).astype(np.float32)
        stored = sample_of(np.stack([rain] * 7))["past"][0].astype(np.float32)
        for threshold in RAIN_THRESHOLDS:
            np.testing.assert_array_equal(stored >= threshold, rain >= threshold)


def test_video_is_scaled_and_steps_by_frames():
    media = np.zeros((8, 16, 16), np.uint8)
    media[:, 3, 4] = 255
    sample = sample_of(media, VIDEO)
    assert sample["past"][0, 3, 4] == 1
    assert sample["step_minutes"] == 1
    assert sample["n_leads"] == 4
    assert sample["issue_time"] == -1


def test_a_clip_is_read_in_grey():
    config = NowcasterConfig(past_frames=2, horizon_minutes=3, height=8, width=8, unit="intensity", augment=False)
    preprocess = NowcasterPreprocess(config)
    assert preprocess.visual == Visual(8, 8, 5, sampling="first")
    assert NowcasterPreprocess(NowcasterConfig()).visual is None, "rain is no picture"
    clip = np.zeros((5, 8, 8, 3), np.uint8)
    clip[0], clip[1, ..., 0], clip[2, ..., 1], clip[3, ..., 2] = 255, 255, 255, 255
    sample = preprocess(Inputs(clip, {}), with_target=True)
    greys = np.concatenate([sample["past"], sample["future"]]).mean(axis=(1, 2))
    np.testing.assert_allclose(greys, [1, 0.299, 0.587, 0.114, 0], atol=0.005)


def test_in_colour_a_clip_keeps_its_channels():
    clip = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    sample = sample_of(clip, COLOUR)
    assert (sample["past"].dtype, sample["future"].dtype) == (np.float16, np.float16)
    np.testing.assert_array_equal(sample["past"], (clip[:4] / np.float32(255)).astype(np.float16))
    np.testing.assert_array_equal(sample["future"], (clip[4:8] / np.float32(255)).astype(np.float16))
    assert "future" not in sample_of(clip[:4], COLOUR, with_target=False)


def test_in_colour_a_grey_array_has_three_equal_channels():
    grey = np.random.default_rng(0).integers(0, 256, (8, 16, 16), dtype=np.uint8)
    sample = sample_of(grey, COLOUR)
    for name, frames in sample_of(np.stack([grey] * 3, axis=3), COLOUR).items():
        np.testing.assert_array_equal(sample[name], frames)
    np.testing.assert_array_equal(sample["past"][..., 1], sample_of(grey, VIDEO)["past"])


@pytest.mark.parametrize(
    ("media", "config", "kind", "message"),
    [
        (np.zeros((8, 16, 16, 2), np.uint8), COLOUR, "ShapeError", r"or, in colour, \[time, height, width, 3\]"),
        (np.zeros((8, 16, 16, 2), np.uint8), VIDEO, "ShapeError", r"or, in colour, \[time, height, width, 3\]"),
        (np.zeros((16, 16), np.uint8), COLOUR, "ShapeError", r"\(16, 16\)"),
        (np.zeros((7, 32, 32, 3), np.uint8), None, "ShapeError", r"32, 3\): expected \[time, height, width\]$"),
        (np.zeros((8, 16, 17, 3), np.uint8), COLOUR, "GridError", "16×17.*16×16"),
        (np.zeros((7, 16, 16, 3), np.uint8), COLOUR, "LengthError", "7 frames where 8 are needed"),
    ],
)
def test_frames_of_another_shape_say_what_is_expected(media, config, kind, message):
    with pytest.raises(BadSample, match=message) as caught:
        sample_of(media, *([config] if config else []))
    assert caught.value.kind == kind


def spoilt(change):
    media = shower(7)
    return change(media)


def with_value(value):
    def change(media):
        media[1, 2, 3] = value
        return media

    return change


def without_newest(media):
    media[2] = np.nan
    return media


def without_future(media):
    media[3:] = np.nan
    return media


@pytest.mark.parametrize(
    ("change", "fields", "kind", "message"),
    [
        (lambda media: None, {}, "MediaError", "no frames"),
        (lambda media: media[0], {}, "ShapeError", r"\(32, 32\)"),
        (lambda media: media[..., None], {}, "ShapeError", r"\[time, height, width\]"),
        (lambda media: media[:, :30], {}, "GridError", "30×32.*32×32.*hybrid prepare radar --crop"),
        (lambda media: media[:6], {}, "LengthError", "6 frames where 7 are needed"),
        (with_value(np.inf), {}, "RangeError", "inf"),
        (with_value(-0.5), {}, "RangeError", "-0.5"),
        (with_value(5000.0), {}, "RangeError", "mm/h lies within"),
        (lambda media: media * np.nan, {}, "CoverageError", "newest frame"),
        (without_newest, {}, "CoverageError", "newest frame"),
        (without_future, {}, "CoverageError", "observed future"),
        (lambda media: media, {"step_minutes": 0}, "StepError", "step_minutes is 0"),
        (lambda media: media, {"step_minutes": "often"}, "StepError", "'often'"),
        (lambda media: media, {"step_minutes": 30}, "StepError", "exceeds the horizon"),
        (lambda media: media, {"issue_time": "noon"}, "TimeError", "'noon'"),
    ],
)
def test_unusable_rows_say_why(change, fields, kind, message):
    with pytest.raises(BadSample, match=message) as caught:
        sample_of(spoilt(change), **fields)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    "config", [NowcasterConfig(past_frames=3, horizon_minutes=4, height=32, width=32), VIDEO, COLOUR]
)
def test_how_large_a_nowcast_will_be_is_known_before(config):
    preprocess = NowcasterPreprocess(config)
    media = np.ones((config.past_frames, config.height, config.width), np.uint8)
    sample = preprocess(Inputs(media, {"step_minutes": 1}), False)
    net = Nowcaster(config, {}).eval()
    (row,) = net.predict(net.collate([sample]), NowcasterDecoding())
    assert len(row["frames"]) + len(row["probability"] or b"") == preprocess.output_bytes(sample) > 0


def test_a_strangers_array_is_refused_before_any_of_it_is_copied() -> None:
    config = NowcasterConfig(height=16, width=16, unit="intensity", horizon_minutes=5)
    huge = np.broadcast_to(np.zeros(1, np.uint8), (500, 3000, 3000, 3))
    tracemalloc.start()
    with pytest.raises(BadSample, match="GridError"):
        NowcasterPreprocess(config)(Inputs(huge, {}), with_target=True)
    long = np.broadcast_to(np.zeros(1, np.uint8), (10**7, 16, 16, 3))
    sample = NowcasterPreprocess(config)(Inputs(long, {}), with_target=True)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(sample["past"]) == 6
    assert most < 1 << 20
