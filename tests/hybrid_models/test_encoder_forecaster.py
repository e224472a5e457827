"""Untrained it is persistence, along the motion for rain; its parts keep what they promise."""

import numpy as np
import pytest
import torch

from hybrid_models.advection import move
from hybrid_models.encoder_forecaster import EncoderForecaster, _rain_error, align, extrapolate, scales, to_scale


def moving_shower(frames, speed=2.0, size=64):
    """One shower that moves right by `speed` pixels a frame, `[1, frames, size, size]` mm/h."""
    y, x = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    centre = 16 + speed * torch.arange(float(frames))
    return 20 * torch.exp(-((x - centre[:, None, None]) ** 2 + (y - 32) ** 2) / (2 * 5.0**2))[None]


def test_scale_of_rain_is_logarithmic_and_ends_at_a_cloudburst():
    rain = torch.tensor([0.0, 0.1, 1.0, 100.0, 500.0])
    expected = np.log([1, 2, 11, 1001, 1001]) / np.log(1001)
    np.testing.assert_allclose(to_scale(rain), expected, rtol=1e-6)


def test_untrained_it_moves_rain_along():
    frames = moving_shower(10)
    net = EncoderForecaster(8, (8,), 3, 1.0)
    with torch.no_grad():
        forecast = net(frames[:, :5], torch.tensor([5.0]), 5).frames
    truth, persistence = frames[:, 5:], frames[:, 4:5]
    assert (forecast - truth).abs().mean() < 0.15 * (persistence - truth).abs().mean()
    torch.testing.assert_close(extrapolate(frames[:, :5], 5), forecast, atol=1e-4, rtol=1e-4)


def test_extrapolation_takes_what_is_missing_for_dry():
    frames = moving_shower(5)
    frames[..., :20] = torch.nan
    forecast = extrapolate(frames, 4)
    assert torch.isfinite(forecast).all()
    assert (forecast[..., :20] < 0.1).all()


def test_any_grid_and_missing_pixels_give_finite_forecasts():
    frames = torch.rand(1, 3, 21, 35)
    frames[..., :9] = torch.nan
    with torch.no_grad():
        forecast, logits = EncoderForecaster(8, (4,), 3, 1.0)(frames, torch.tensor([10.0]), 2)
    assert torch.isfinite(logits).all()
    assert forecast.shape == (1, 2, 21, 35)
    assert torch.isfinite(forecast).all()
    assert (forecast >= 0).all()


def test_samples_of_a_batch_do_not_mix():
    torch.manual_seed(0)
    net = EncoderForecaster(8, (8,), 3, 1.0)
    torch.nn.init.normal_(net.head.weight, std=0.1)
    frames = torch.cat((moving_shower(4), moving_shower(4, -1.0).flip(2)))
    steps = torch.tensor([5.0, 10.0])
    with torch.no_grad():
        together = net(frames, steps, 3)
        alone = [net(frames[i : i + 1], steps[i : i + 1], 3) for i in range(2)]
    for found, parts in zip(together, zip(*alone, strict=True), strict=True):
        # bf16 rounds differently by batch size
        torch.testing.assert_close(found, torch.cat(parts), atol=0.05, rtol=0.02)


def test_align_brings_all_frames_to_the_newest_frames_place():
    frames = moving_shower(5)
    motion = torch.zeros(1, 2, 64, 64)
    motion[:, 0] = 2
    aligned, covered = align(frames, torch.ones_like(frames), motion)
    torch.testing.assert_close(aligned, frames[:, -1:].expand_as(frames) * covered, atol=1e-3, rtol=0)
    # the oldest frame moved right by 8 pixels: what entered on its left is unknown
    assert covered[0, 0, 0].tolist() == [0.0] * 8 + [1.0] * 56
    assert covered[0, -1].all()


def test_scales_sum_to_the_frame_and_separate_fine_from_coarse():
    torch.manual_seed(0)
    frame = torch.rand(2, 64, 96)
    parts = scales(frame)
    torch.testing.assert_close(parts.sum(1), frame)
    constant = scales(torch.full((1, 32, 32), 3.0))
    torch.testing.assert_close(constant[:, -1], torch.full((1, 32, 32), 3.0))
    assert constant[:, :-1].abs().max() < 1e-5
    waves = [torch.sin(2 * torch.pi * torch.arange(64.0) / length).expand(64, 64) for length in (3, 32)]
    strongest = [scales(wave[None])[0].std((1, 2)).argmax().item() for wave in waves]
    assert strongest[0] < strongest[1]


def test_gradients_reach_every_weight():
    net = EncoderForecaster(8, (4, 6), 3, 1.0)
    torch.nn.init.normal_(net.head.weight, std=0.1)
    forecast, logits = net(moving_shower(6)[:, :4], torch.tensor([5.0]), 2)
    ((forecast - moving_shower(6)[:, 4:]).abs().mean() + logits.square().mean()).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in net.parameters())


def test_probabilities_move_along_and_teach_the_forecast_nothing():
    net = EncoderForecaster(8, (4,), 3, 1.0)
    forecast, logits = net(moving_shower(6)[:, :4], torch.tensor([5.0]), 2)
    assert logits.shape == (1, 2, 5, 64, 64)
    # untrained, odds are even where the forecast is at the threshold
    for k, threshold in enumerate((0.5, 1, 2, 5, 10)):
        clear = (to_scale(forecast) - to_scale(torch.tensor(float(threshold)))).abs() > 0.02
        assert ((logits[:, :, k] > 0) == (forecast >= threshold))[clear].all()
    logits.sum().backward()
    changes, rest = net.head.weight.grad.split((6, 10))
    assert rest.any()
    assert not changes.any()


def test_change_of_the_smooth_rest_is_growth():
    """A head that adds 0.5 to every weight makes 1.5 times the rain, moved along."""
    net = EncoderForecaster(8, (4,), 3, 1.0)
    frames = moving_shower(4)
    with torch.no_grad():
        before = net(frames, torch.tensor([5.0]), 2).frames
        torch.nn.init.constant_(net.head.bias, 0.5)
        after = net(frames, torch.tensor([5.0]), 2).frames
    torch.testing.assert_close(after, 1.5 * before, atol=1e-3, rtol=1e-3)
    assert move(frames[:, -1:], torch.zeros(1, 2, 64, 64)).max() == pytest.approx(20, rel=1e-3)


def test_missed_events_cost_more_than_false_alarms():
    """At 5 mm/h, where chances of 18 % shall do for a warning, a miss costs 0.82 / 0.18 of a false alarm."""
    dry, wet = torch.tensor([0.0]), torch.tensor([100.0])
    plain = [_rain_error(*pair, event_weight=0.0) for pair in ((dry, wet), (wet, dry))]
    assert [error.item() for error in plain] == pytest.approx([1, 1])
    miss, alarm = (_rain_error(*pair, event_weight=1.0).item() - 1 for pair in ((dry, wet), (wet, dry)))
    costs = {0.5: (0.37, 0.2), 1: (0.33, 0.3), 2: (0.28, 0.5), 5: (0.18, 1.3), 10: (0.10, 2.6)}
    assert miss == pytest.approx(sum(weight * (1 - cost) for cost, weight in costs.values()), rel=0.01)
    assert alarm == pytest.approx(sum(weight * cost for cost, weight in costs.values()), rel=0.01)
