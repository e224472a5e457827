"""Rows become checked samples, samples become nowcasts, nowcasts are judged; tiny models learn."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from hybrid_models.errors import UsageError
from hybrid_models.inputs import Inputs
from hybrid_models.nowcaster.config import NowcasterConfig
from hybrid_models.nowcaster.decoding import NowcasterDecoding
from hybrid_models.nowcaster.nowcaster import Nowcaster
from hybrid_models.scores.frames import contingency, csi, ssim
from tests import fixtures, tiny
from tests.fixtures import write_nowcast
from tests.waits import Waits

TINY = NowcasterConfig(past_frames=3, horizon_minutes=20, height=32, width=32, hidden_dims=(8,))
VIDEO = NowcasterConfig(
    past_frames=4, horizon_minutes=4, height=16, width=16, unit="intensity", patch=4, hidden_dims=(16,), augment=False
)

COLOUR = replace(VIDEO, colour=True)


def shower(frames, size=32, speed=1.5, start=8.0, growth=1.0):
    """A shower that moves right and grows, `[frames, size, size]` mm/h to the hundredth."""
    y, x = np.mgrid[:size, :size]
    t = np.arange(frames)[:, None, None]
    rain = 12 * growth**t * np.exp(-((x - start - speed * t) ** 2 + (y - size / 2) ** 2) / (2 * 4.0**2))
    return np.round(rain, 2).astype(np.float32)


def sample_of(media, config=TINY, with_target=True, **fields):
    fields = {"step_minutes": 5.0} | fields if config.unit == "mm/h" else fields
    return Nowcaster.preprocess(config, {})(Inputs(media, fields), with_target)


def test_a_nowcast_is_what_it_was_before_it_was_made_faster():
    """To float32's rounding of motions, which shows where amounts change from pixel to pixel."""
    known = np.load(Path(fixtures.__file__).parent / "nowcast-5f43e3f.npz")
    model = Nowcaster(write_nowcast.CONFIG, {}).eval()
    model.load_state_dict(
        {name.removeprefix("state."): torch.from_numpy(known[name]) for name in known if name.startswith("state.")}
    )
    past, step = torch.from_numpy(known["past"]), torch.tensor([write_nowcast.STEP_MINUTES])
    with torch.inference_mode():
        forecast, logits = model.net(past[None], step, write_nowcast.LEADS)
    assert known["forecast"].max() > 20
    np.testing.assert_allclose(forecast.numpy(), known["forecast"], rtol=1e-3, atol=1e-2, equal_nan=True)
    np.testing.assert_allclose(logits.numpy(), known["logits"], atol=5e-3)


# ---- batches and loss ----------------------------------------------------------------------------------------------
def test_batches_are_padded_to_the_most_leads_without_loss():
    model = Nowcaster(TINY, {})
    five, ten = sample_of(shower(7)), sample_of(shower(7, speed=3), step_minutes=10.0)
    batch = model.collate([five, ten])
    assert batch["future"].shape == (2, 4, 32, 32)
    assert batch["future"][1, 2:].isnan().all()
    assert model(batch).terms == (4 + 2) * 32 * 32
    apart = [model(model.collate([sample])) for sample in (five, ten)]
    assert model(batch).total.item() == pytest.approx(sum(loss.total.item() for loss in apart), rel=0.01)


def test_missing_pixels_carry_no_loss():
    media = shower(7)
    model = Nowcaster(TINY, {})
    whole = model(model.collate([sample_of(media)]))
    media[3:, :16] = np.nan
    half = model(model.collate([sample_of(media)]))
    assert half.terms == whole.terms // 2
    assert half.total.item() == pytest.approx(whole.total.item() / 2, rel=0.2)


def test_training_batches_are_turned_past_and_future_alike():
    model = Nowcaster(TINY, {})
    sample = sample_of(shower(7))
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        batch = model.collate([sample], rng)
        frames = torch.cat((batch["past"][0], batch["future"][0])).numpy()
        versions = [
            np.rot90(shower(7).astype(np.float16), turns, (1, 2))[..., :: 1 - 2 * mirror]
            for turns in range(4)
            for mirror in range(2)
        ]
        matches = [i for i, version in enumerate(versions) if np.array_equal(frames, version)]
        assert matches
        seen.add(matches[0])
    assert len(seen) >= 4  # the shower is symmetric up and down


def test_frames_in_colour_are_turned_as_those_in_grey():
    media = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    config = replace(COLOUR, augment=True)
    grey = Nowcaster(replace(VIDEO, augment=True), {})
    coloured, samples = Nowcaster(config, {}), [sample_of(media[..., i], VIDEO) for i in range(3)]
    batch = coloured.collate([sample_of(media, config)] * 20, np.random.default_rng(5))
    for i, sample in enumerate(samples):
        alone = grey.collate([sample] * 20, np.random.default_rng(5))
        for name in ("past", "future"):
            torch.testing.assert_close(batch[name][..., i], alone[name], rtol=0, atol=0)
    assert len({frames.numpy().tobytes() for frames in batch["past"]}) > 4


# ---- prediction ----------------------------------------------------------------------------------------------------
def test_payload_rows_hold_the_frames_and_their_summary():
    model = Nowcaster(TINY, {})
    media = shower(7)
    media[:, :, :6] = np.nan
    five, ten = sample_of(media, issue_time="2020-01-02T03:04:05"), sample_of(media, step_minutes=10.0)
    batch = model.collate([five, ten])
    table = pa.Table.from_pylist(model.predict(batch, NowcasterDecoding()), schema=Nowcaster.payload_schema)
    first, second = table.to_pylist()
    assert first["issue_time"] == datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert second["issue_time"] is None
    assert first["lead_minutes"] == [5, 10, 15, 20]
    assert second["lead_minutes"] == [10, 20]
    assert second["frames_shape"] == [2, 32, 32]
    alone = model.predict(model.collate([ten]), NowcasterDecoding())[0]
    percents = [np.frombuffer(row["probability"], np.uint8).astype(int) for row in (second, alone)]
    assert percents[0].size == 2 * 5 * 32 * 32
    np.testing.assert_allclose(*percents, atol=1)

    frames = np.frombuffer(first["frames"], "<f2").reshape(first["frames_shape"]).astype(np.float32)
    expected = model.nowcast(five["past"].astype(np.float32), 4, 5.0)
    np.testing.assert_allclose(frames, expected, atol=0.05)
    seen = frames[:, :, 6:]  # where the newest frame looks
    np.testing.assert_allclose(first["mean_mm_h"], seen.mean((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(first["max_mm_h"], seen.max((1, 2)))
    np.testing.assert_allclose(first["wet_fraction"], (seen >= 0.1).mean((1, 2)), rtol=1e-5)
    assert (first["mean"], first["max"], first["unit"]) == (first["mean_mm_h"], first["max_mm_h"], "mm/h")


def test_frames_of_video_have_no_rain():
    model, sample = Nowcaster(VIDEO, {}), sample_of(shower(8, size=16) / 12, VIDEO)
    (row,) = model.predict(model.collate([sample]), NowcasterDecoding())
    table = pa.Table.from_pylist([row], schema=Nowcaster.payload_schema).to_pylist()[0]
    frames = np.frombuffer(table["frames"], "<f2").reshape(table["frames_shape"]).astype(np.float32)
    np.testing.assert_allclose(table["mean"], frames.mean((1, 2)), rtol=1e-3)
    np.testing.assert_allclose(table["max"], frames.max((1, 2)))
    assert table["unit"] == "intensity"
    assert [table[name] for name in ("mean_mm_h", "max_mm_h", "wet_fraction", "probability")] == [None] * 4


def test_a_nowcast_in_colour_from_prediction_to_table_to_judgement():
    model, media = Nowcaster(COLOUR, {}), np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    with torch.no_grad():
        model.net.head.weight *= 20
    short = dict(sample_of(media, COLOUR), n_leads=np.int32(2))
    batch = model.collate([sample_of(media, COLOUR), short])
    rows = model.predict(batch, NowcasterDecoding())
    table = pa.Table.from_pylist(rows, schema=Nowcaster.payload_schema).to_pylist()
    assert [row["frames_shape"] for row in table] == [[4, 16, 16, 3], [2, 16, 16, 3]]
    frames = np.frombuffer(table[0]["frames"], "<f2").reshape(4, 16, 16, 3).astype(np.float32)
    past = media[:4] / np.float32(255)
    np.testing.assert_allclose(frames, model.nowcast(past, 4, 1), atol=0.02)
    assert np.ptp(frames, axis=-1).max() > 0.05, "channels differ"
    np.testing.assert_allclose(table[0]["mean"], frames.mean((1, 2, 3)), rtol=1e-3)
    np.testing.assert_allclose(table[0]["max"], frames.max((1, 2, 3)))
    assert (table[0]["unit"], table[0]["probability"], table[0]["mean_mm_h"]) == ("intensity", None, None)

    sample = sample_of(media, COLOUR)
    summary = model.summarise([model.record(sample, table[0])])
    observed = sample["future"].astype(np.float64)
    for scores, forecast in ((summary["metrics"], frames), (summary["baseline"], sample["past"][-1:])):
        errors = forecast.astype(np.float64) - observed
        assert scores["mse"] == pytest.approx(np.square(errors).mean())
        assert scores["mae"] == pytest.approx(np.abs(errors).mean())
        assert scores["frame_mse"] == pytest.approx(np.square(errors).sum((1, 2, 3)).mean())
        channels = np.broadcast_to(forecast, observed.shape).astype(np.float64)
        similar = [ssim(channels[..., i], observed[..., i]).mean() for i in range(3)]
        assert scores["ssim"] == pytest.approx(np.mean(similar))
    (shown,) = model.explain([sample], NowcasterDecoding())
    np.testing.assert_array_equal(shown.past, sample["past"].astype(np.float32))
    np.testing.assert_allclose(shown.nowcast, frames, atol=0.02)
    np.testing.assert_array_equal(shown.observed, sample["future"].astype(np.float32))
    assert shown.chance is None


def test_what_is_missing_in_colour_is_left_out_by_value():
    model, media = Nowcaster(COLOUR, {}), np.random.default_rng(0).random((8, 16, 16)).astype(np.float32) * 255
    media[3, :5] = np.nan
    sample = sample_of(media, COLOUR)
    sample["past"][3, 7, 7, 2] = np.nan
    row = model.predict(model.collate([sample]), NowcasterDecoding())[0]
    frames = np.frombuffer(row["frames"], "<f2").reshape(row["frames_shape"]).astype(np.float32)
    assert np.isfinite(frames).all()
    seen = frames[:, np.isfinite(sample["past"][3])]
    assert seen.shape == (4, 11 * 16 * 3 - 1)
    np.testing.assert_allclose(row["mean"], seen.mean(1), rtol=1e-5)
    np.testing.assert_allclose(row["max"], seen.max(1))


@pytest.mark.parametrize(("config", "expected"), [(TINY, 4), (VIDEO, 2)], ids=["rain", "video"])
@pytest.mark.parametrize("count", [1, 4])
def test_a_batch_waits_for_its_device_as_often_as_one_nowcast(config, expected, count):
    """For summaries and frames; of rain also for how much is wet, and for probabilities."""
    model = Nowcaster(config, {})
    batch = model.collate([sample_of(shower(8, config.height) / 12, config)] * count)
    with Waits() as waits:
        rows = model.predict(batch, NowcasterDecoding())
    assert len(rows) == count
    assert waits.count == expected


def test_summaries_are_exact_for_what_the_table_keeps():
    model = Nowcaster(TINY, {})
    media = shower(7)
    media[2, 5:, :6] = np.nan
    sample = sample_of(media)
    row = model.predict(model.collate([sample]), NowcasterDecoding())[0]
    kept = np.frombuffer(row["frames"], "<f2").reshape(row["frames_shape"]).astype(np.float64)
    seen = kept[:, np.isfinite(sample["past"][-1])]
    assert seen.shape == (4, 32 * 32 - 27 * 6)
    assert row["mean"] == seen.mean(1).tolist()
    assert row["max"] == seen.max(1).tolist()
    assert row["wet_fraction"] == (seen >= 0.1).mean(1).tolist()


@pytest.mark.parametrize("config", [TINY, VIDEO])
def test_a_mean_is_no_number_where_any_pixel_is_none_and_only_of_its_own_sample(config, monkeypatch):
    model = Nowcaster(config, {})
    media = shower(8, config.height) / 12
    media[:, 5:, :6] = np.nan  # where no radar looks
    batch = model.collate([sample_of(media, config)] * 2)
    whole = model.predict(batch, NowcasterDecoding())
    assert np.isfinite([row["mean"] for row in whole]).all()
    given = model.net.forward

    def damaged(*arguments):
        frames, logits = given(*arguments)
        frames[1, 0, 6, 0] = torch.nan  # not covered
        return frames, logits

    monkeypatch.setattr(model.net, "forward", damaged)
    good, bad = model.predict(batch, NowcasterDecoding())
    assert good == whole[0]
    assert np.isnan(bad["mean"]).tolist() == [True] + [False] * (len(bad["mean"]) - 1)


def test_nowcasts_take_frames_that_have_the_models_channels():
    grey, coloured = np.zeros((4, 9, 7), np.float32), np.zeros((4, 9, 7, 3), np.float32)
    assert Nowcaster(COLOUR, {}).nowcast(coloured, 2, 1).shape == (2, 9, 7, 3)
    for config, past, wanted in ((COLOUR, grey, r"\[time, H, W, 3\]"), (VIDEO, coloured, r"\[time, H, W\]")):
        with pytest.raises(UsageError, match=wanted):
            Nowcaster(config, {}).nowcast(past, 2, 1)


def test_nowcast_takes_the_newest_frames_of_any_grid():
    model = Nowcaster(TINY, {})
    past = np.pad(shower(6), ((0, 0), (0, 5), (0, 9)), constant_values=np.nan)
    forecast = model.nowcast(past, 3, 5)
    assert forecast.shape == (3, 37, 41)
    assert np.isfinite(forecast).all()
    np.testing.assert_array_equal(forecast, model.nowcast(past[3:], 3, 5))
    assert np.isfinite(model.nowcast(past[:, :8, :1], 3, 5)).all()
    with pytest.raises(UsageError, match="at least 3 frames"):
        model.nowcast(past[:2], 3, 5)
    past[4, 3, 2] = -1
    with pytest.raises(UsageError, match="past holds -1: values are 0 or more, and NaN where"):
        model.nowcast(past, 3, 5)


def test_prediction_leaves_the_model_in_training_mode_without_gradients():
    model = Nowcaster(TINY, {}).train()
    model.predict(model.collate([sample_of(shower(7))]), NowcasterDecoding())
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())


def test_probabilities_fall_with_the_threshold_and_follow_the_forecast():
    model = Nowcaster(TINY, {})
    sample = sample_of(shower(7))
    row = model.predict(model.collate([sample]), NowcasterDecoding())[0]
    assert row["thresholds_mm_h"] == [0.5, 1, 2, 5, 10]
    percents = np.frombuffer(row["probability"], np.uint8).reshape(4, 5, 32, 32)
    assert (np.diff(percents.astype(int), axis=1) <= 0).all()
    frames = np.frombuffer(row["frames"], "<f2").reshape(4, 32, 32).astype(np.float32)
    # untrained: a logistic curve of slope 20 in the logarithm of rain, even odds at the threshold
    scaled = np.log1p(frames / 0.1) / np.log1p(1000)
    level = np.log1p(2 / 0.1) / np.log1p(1000)
    np.testing.assert_allclose(percents[0, 2] / 100, 1 / (1 + np.exp(-20 * (scaled[0] - level))), atol=0.03)


def test_video_has_no_probabilities():
    model = Nowcaster(VIDEO, {})
    row = model.predict(model.collate([sample_of(np.zeros((8, 16, 16), np.uint8), VIDEO)]), NowcasterDecoding())[0]
    assert (row["thresholds_mm_h"], row["probability"]) == ([], None)


# ---- judgement -----------------------------------------------------------------------------------------------------
def test_summaries_verify_against_persistence_and_extrapolation():
    model = Nowcaster(TINY, {})
    samples = [sample_of(shower(7, start=start)) for start in (6.0, 9.0)]
    outputs = model.predict(model.collate(samples), NowcasterDecoding())
    summary = model.summarise([model.record(*pair) for pair in zip(samples, outputs, strict=True)])
    baselines = summary["details"]["baselines"]
    assert list(baselines) == ["persistence", "extrapolation"]
    for forecaster, scores in (("model", summary["metrics"]), ("persistence", baselines["persistence"]["metrics"])):
        sums = {"hits": 0, "misses": 0, "false_alarms": 0}
        for sample, output in zip(samples, outputs, strict=True):
            frames = np.frombuffer(output["frames"], "<f2").reshape(output["frames_shape"])
            frames = frames if forecaster == "model" else np.repeat(sample["past"][-1:], 4, axis=0)
            for name, counts in contingency(frames, sample["future"], (1,)).items():
                sums[name] = sums[name] + counts
        assert scores["csi_1"] == pytest.approx(csi(sums).mean())
    assert summary["baseline"] == {"name": "extrapolation", **baselines["extrapolation"]["metrics"]}
    for name in ("csi_1", "csi_5", "mse"):  # untrained, it follows the motion
        assert summary["metrics"][name] == pytest.approx(summary["baseline"][name], rel=0.05)
    assert summary["baseline"]["csi_1"] > 1.4 * baselines["persistence"]["metrics"]["csi_1"]
    assert set(Nowcaster.metrics) - {"ssim"} <= set(summary["metrics"])
    assert summary["details"]["samples"] == 2
    assert [found["lead_minutes"] for found in baselines.values()] == 2 * [[5, 10, 15, 20]]


def test_video_is_judged_by_its_errors_on_the_scale_of_0_to_1():
    media = np.zeros((8, 16, 16), np.uint8)
    media[4:, 0, 0] = 255
    model = Nowcaster(VIDEO, {})
    sample = sample_of(media, VIDEO)
    output = model.predict(model.collate([sample]), NowcasterDecoding())[0]
    frames = np.frombuffer(output["frames"], "<f2").reshape(4, 16, 16).astype(np.float64)
    summary = model.summarise([model.record(sample, output)])
    errors = frames - sample["future"]
    assert summary["metrics"] == {
        "mse": pytest.approx(np.square(errors).mean()),
        "mae": pytest.approx(np.abs(errors).mean()),
        "frame_mse": pytest.approx(np.square(errors).sum((1, 2)).mean()),
        "ssim": pytest.approx(ssim(frames, sample["future"]).mean()),
    }
    dark = ssim(np.zeros((1, 16, 16)), media[4:5] / 255)
    assert summary["baseline"] == {
        "name": "persistence", "mse": 1 / 256, "mae": 1 / 256, "frame_mse": 1.0, "ssim": pytest.approx(dark[0]),
    }  # fmt: skip


# ---- learning ------------------------------------------------------------------------------------------------------
def train(model, batch, steps, lr):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    first = None
    for _ in range(steps):
        loss = model(batch)
        mean = loss.total / loss.terms
        first = first if first is not None else mean.item()
        optimizer.zero_grad()
        mean.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return first, mean.item()


def test_a_tiny_model_learns_that_showers_grow():
    torch.manual_seed(0)
    model = Nowcaster(TINY, {})
    batch = model.collate([sample_of(shower(7, growth=1.15, start=start)) for start in (6.0, 10.0)])
    before, after = train(model, batch, 40, 1e-2)
    assert after < 0.5 * before


def weather(rng, frames=7, size=32):
    """Rain that drifts right, in mm/h: large areas stay, small showers are forgotten within a few frames."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])

    def noise(width):
        smooth = np.exp(-2 * (np.pi * width * frequency) ** 2)
        field = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(size, size))) * smooth)
        return field / field.std()

    large, small, rain = noise(4), noise(1.2), []
    for t in range(frames):
        rain.append(np.exp(1.2 * np.roll(large + small, t, axis=1)))
        small = 0.7 * small + (1 - 0.7**2) ** 0.5 * noise(1.2)
    return np.where(np.array(rain) < 0.5, 0, rain).clip(0, 90).round(2).astype(np.float32)


def test_a_trained_model_beats_its_baselines_in_weather_that_it_has_not_seen():
    torch.manual_seed(0)
    rng, model = np.random.default_rng(0), Nowcaster(TINY, {})
    seen, unseen = ([sample_of(weather(rng)) for _ in range(count)] for count in (32, 16))
    crps = []
    for trained in (False, True):
        if trained:
            train(model, model.collate(seen), 50, 1e-2)
        outputs = model.predict(model.collate(unseen), NowcasterDecoding())
        summary = model.summarise([model.record(*pair) for pair in zip(unseen, outputs, strict=True)])
        crps.append(summary["metrics"]["crps"])
    assert crps[1] < 0.85 * crps[0], "training is what makes it so sure"
    persistence = summary["details"]["baselines"]["persistence"]["metrics"]
    for score, margin in (("csi_1", 0.03), ("csi_5", 0.05), ("csi_10", 0.05)):
        assert summary["metrics"][score] > persistence[score] + margin, score
    assert summary["metrics"]["csi_10"] > summary["baseline"]["csi_10"] + 0.005
    assert summary["metrics"]["mae"] < summary["baseline"]["mae"]
    assert summary["metrics"]["crps"] < 0.7 * summary["baseline"]["crps"]


def moving_square(step):
    """uint8 `[8, 16, 16]`: a bright square that moves right where `step` is positive, else left."""
    media = np.zeros((8, 16, 16), np.uint8)
    for t in range(8):
        column = 4 + t if step > 0 else 9 - t
        media[t, 5:9, column : column + 3] = 255
    return media


def test_a_tiny_model_overfits_a_moving_square():
    torch.manual_seed(0)
    model = Nowcaster(VIDEO, {})
    batch = model.collate([sample_of(moving_square(step), VIDEO) for step in (1, -1)])
    before, after = train(model, batch, 150, 1e-2)
    assert after < 0.1 * before


def test_a_tiny_model_overfits_a_square_that_moves_as_its_colour_tells():
    """Of two squares in one place the colour alone tells that the red one moves right and the blue one left."""
    torch.manual_seed(0)
    config = replace(COLOUR, past_frames=1, horizon_minutes=2)
    red, blue = np.zeros((2, 3, 16, 16, 3), np.uint8)
    red[..., 0], blue[..., 2] = moving_square(1)[:3], moving_square(-1)[5:]
    model = Nowcaster(config, {})
    before, after = train(model, model.collate([sample_of(media, config) for media in (red, blue)]), 150, 1e-2)
    assert after < 0.1 * before


def test_a_tiny_model_learns_how_sure_it_can_be():
    """Showers that grow or vanish by the toss of a coin: even odds are the truth, and cost less than certainty."""
    torch.manual_seed(0)
    model = Nowcaster(TINY, {})
    samples = [sample_of(np.concatenate([shower(3), shower(7)[3:] * factor])) for factor in (1.0, 0.0)]
    train(model, model.collate(samples), 60, 2e-2)
    outputs = model.predict(model.collate(samples), NowcasterDecoding())
    summary = model.summarise([model.record(*pair) for pair in zip(samples, outputs, strict=True)])
    inside = samples[0]["future"][0] >= 2
    percents = np.frombuffer(outputs[0]["probability"], np.uint8).reshape(4, 5, 32, 32)
    assert 35 < percents[0, 1][inside].mean() < 65
    assert summary["metrics"]["crps"] < 0.8 * summary["baseline"]["crps"]


def test_parts_of_a_test_set_are_events():
    assert Nowcaster.part("s3://lake/radar/test/knmi_2010.nc", {}) == "knmi_2010.nc"
    assert Nowcaster.part("s3://lake/radar/test/KNMI.NC", {}) == "KNMI.NC"
    assert Nowcaster.part("s3://lake/digits/test/part-00000.tar", {}) is None


def test_a_forecast_shows_what_came():
    hybrid = tiny.nowcaster()
    frames = np.random.default_rng(0).gamma(1.0, 2.0, (5, 32, 32)).astype(np.float32)
    preprocess = hybrid.preprocess(hybrid.config, {})
    for with_target in (True, False):
        sample = preprocess(Inputs(frames, {"step_minutes": 5}), with_target)
        (shown,) = hybrid.explain([sample], NowcasterDecoding())
        assert (list(shown.lead_minutes), shown.unit) == ([5.0, 10.0], "mm/h")
        np.testing.assert_allclose(shown.past, frames[:3], rtol=1e-3)
        near = np.isclose(shown.nowcast, hybrid.nowcast(frames[:3], 2, 5), rtol=1e-2, atol=1e-2)
        assert near.mean() > 0.99, "bf16 rounds differently by batch, and few values change places"
        row = hybrid.predict(hybrid.collate([sample]), NowcasterDecoding())[0]
        percents = np.frombuffer(row["probability"], np.uint8).reshape(2, 5, 32, 32)
        np.testing.assert_allclose(shown.chance, percents[:, 1] / 100)
        if with_target:
            np.testing.assert_allclose(shown.observed, frames[3:], rtol=1e-3)
        else:
            assert shown.observed is None
