"""Untrained it is what the past frames tell of each scale, along the motion; its parts keep what they promise."""

import numpy as np
import pytest
import torch

from hybrid_models.layers.advection import move, trajectories
from hybrid_models.nowcaster import encoder_forecaster
from hybrid_models.nowcaster.encoder_forecaster import (
    RAIN_THRESHOLDS,
    SCALES,
    EncoderForecaster,
    align,
    chances,
    expected_rain,
    extrapolate,
    match,
    persistences,
    scales,
    to_scale,
)


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
    net = EncoderForecaster(8, (8,), 3)
    with torch.no_grad():
        forecast = net(frames[:, :5], torch.tensor([5.0]), 5).frames
    truth, persistence = frames[:, 5:], frames[:, 4:5]
    assert (forecast - truth).abs().mean() < 0.15 * (persistence - truth).abs().mean()
    assert (extrapolate(frames[:, :5], 5) - truth).abs().mean() < 0.15 * (persistence - truth).abs().mean()


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
        forecast, logits = EncoderForecaster(8, (4,), 3)(frames, torch.tensor([10.0]), 2)
    assert torch.isfinite(logits).all()
    assert forecast.shape == (1, 2, 21, 35)
    assert torch.isfinite(forecast).all()
    assert (forecast >= 0).all()


def test_samples_of_a_batch_do_not_mix():
    torch.manual_seed(0)
    net = EncoderForecaster(8, (8,), 3)
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
    aligned, covered = align(frames, torch.ones_like(frames), trajectories(motion, 4))
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
    net = EncoderForecaster(8, (4, 6), 3)
    torch.nn.init.normal_(net.head.weight, std=0.1)
    frames = moving_shower(6)
    net.loss(frames[:, :4], torch.tensor([5.0]), frames[:, 4:]).total.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in net.parameters())


def test_scales_are_as_persistent_as_the_frames_are_alike():
    generator = torch.Generator().manual_seed(0)
    still = torch.rand(1, 64, 64, generator=generator)
    coarse = scales(still)[:, 3:].sum(1)
    frames = torch.stack([coarse + scales(torch.rand(1, 64, 64, generator=generator))[:, 0] for _ in range(5)], dim=1)
    seen = torch.ones_like(frames)
    kept = persistences(frames, seen)
    assert kept.shape == (1, SCALES + 1, 1, 1)
    assert kept[0, 0] < 0.2  # the finest is drawn anew in each frame
    assert kept[0, 3:].min() > 0.9
    torch.testing.assert_close(persistences(still[:, None].repeat(1, 4, 1, 1), seen[:, :4]), torch.ones_like(kept))
    half = seen.clone()
    half[..., :32] = 0
    torch.testing.assert_close(persistences(frames * half, half)[0, 3:], kept[0, 3:], atol=0.1, rtol=0)


def test_pairs_of_frames_that_tell_nothing_do_not_count():
    frames = moving_shower(1).repeat(1, 6, 1, 1)
    alone, dry, missing = torch.ones_like(frames), frames.clone(), torch.ones_like(frames)
    dry[:, 1:3] = 0
    missing[:, 3] = 0
    same = torch.ones(1, SCALES + 1, 1, 1)
    torch.testing.assert_close(persistences(dry, alone), same)
    torch.testing.assert_close(persistences(frames * missing, missing), same)
    torch.testing.assert_close(persistences(torch.zeros_like(frames), alone), same)


def test_one_missing_frame_or_a_pixel_of_clutter_hardly_changes_the_forecast():
    frames = moving_shower(8)
    net, step, future = EncoderForecaster(8, (4,), 3), torch.tensor([5.0]), frames[:, 6:]
    missing, clutter = frames[:, :6].clone(), frames[:, :6].clone()
    missing[:, 2] = torch.nan
    clutter[:, 3, 50, 50] = 1500
    with torch.no_grad():
        whole, one_less, one_wrong = (net.loss(past, step, future).total for past in (frames[:, :6], missing, clutter))
    assert one_less < 1.1 * whole
    assert one_wrong < 1.5 * whole


def test_rain_stays_where_radars_look():
    frames = moving_shower(6)
    frames[..., 40:] = torch.nan
    with torch.no_grad():
        forecast = EncoderForecaster(8, (4,), 3)(frames[:, :4], torch.tensor([5.0]), 2).frames
    still = extrapolate(frames[:, :4], 2)
    torch.testing.assert_close(forecast[..., :40].mean(), still[..., :40].mean(), rtol=0.02, atol=0)
    torch.testing.assert_close(forecast[..., 48:], still[..., 48:])


def test_expected_rain_is_that_of_the_layers_between_thresholds():
    chances = torch.tensor([0.9, 0.5, 0.6, 0.1, 0.0]).view(1, 1, 5, 1, 1)
    expected = 0.9 * 0.5 + 0.5 * 0.5 + 0.5 * 1 + 0.1 * 3  # at least 2 mm/h is no likelier than at least 1
    assert expected_rain(chances.logit(eps=1e-7)).item() == pytest.approx(expected, abs=1e-4)


def test_matching_keeps_where_rain_is_expected_and_how_much_there_is():
    expected = torch.tensor([[[[0.0, 0.0, 0.5], [0.0, 3.0, 1.0]]]])
    like = torch.tensor([[[[4.0, 0.0, 2.0], [0.1, 0.0, 7.0]]]])
    seen = torch.ones_like(like, dtype=torch.bool)
    assert match(expected, like, seen).equal(torch.tensor([[[[0.1, 0.0, 2.0], [0.0, 7.0, 4.0]]]]))
    assert match(like, like, seen).equal(like)
    seen[..., 0] = False
    assert match(expected, like, seen).equal(torch.tensor([[[[4.0, 0.0, 0.0], [0.1, 7.0, 2.0]]]]))


def test_what_is_expected_and_no_number_stays_none():
    expected, like = torch.full((1, 2, 2, 2), 0.5), torch.tensor([[4.0, 0.0], [0.1, 7.0]]).expand(1, 2, 2, 2)
    expected[0, 0, 0] = torch.nan
    seen = torch.ones_like(like, dtype=torch.bool)
    seen[..., 0] = False
    wanted = torch.tensor([[[[True, True], [False, False]], [[False, False], [False, False]]]])
    assert match(expected, like, seen).isnan().equal(wanted), "seen or not"
    assert match(expected, torch.zeros_like(like), seen).isnan().equal(wanted), "dry or not"


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("by_numpy", [True, False], ids=["by NumPy", "by torch"])
def test_matching_puts_all_values_in_the_order_of_what_is_expected(share, by_numpy, monkeypatch):
    monkeypatch.setattr(encoder_forecaster, "_by_numpy", lambda rows: by_numpy)
    draw = np.random.default_rng(0)
    expected, like = draw.random((2, 2, 3, 20, 30), dtype=np.float32)
    like *= draw.random(like.shape) < share * draw.random((2, 3, 1, 1)) ** 0.1
    like[0, 0, :, :3] *= -0.0
    seen = draw.random(like.shape) < 0.9
    seen[0, 0, :5] = False
    wanted = like.copy()
    for frame in np.ndindex(2, 3):
        places = np.argsort(expected[frame][seen[frame]] + 1e-3 * like[frame][seen[frame]])
        put = np.empty(len(places), np.float32)
        put[places] = np.sort(like[frame][seen[frame]])
        wanted[frame][seen[frame]] = put
    found = match(*map(torch.from_numpy, (expected, like, seen)))
    np.testing.assert_array_equal(found.numpy(), wanted)


def test_a_forecast_has_gradients_where_they_are_wanted():
    """As a matched value is one of the newest frame, moved along."""
    frames = moving_shower(5).requires_grad_()
    forecast = EncoderForecaster(8, (8,), 3)(frames, torch.tensor([5.0]), 3).frames
    forecast.sum().backward()
    assert frames.grad[0, -1].abs().sum() > 0


def test_chances_never_rise_with_the_amount():
    logits = torch.randn(2, 3, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.stack(list(chances(logits)), dim=2).equal(logits.sigmoid().cummin(dim=2).values)


def test_a_forecast_has_the_rain_of_the_newest_frame_whatever_the_network_says():
    frames = moving_shower(10)
    net = EncoderForecaster(8, (8,), 3)
    with torch.no_grad():
        net.head.get_parameter("bias")[len(RAIN_THRESHOLDS) :] = 1.0  # offsets
        forecast, logits = net(frames[:, :5], torch.tensor([5.0]), 5)
        untrained = EncoderForecaster(8, (8,), 3)(frames[:, :5], torch.tensor([5.0]), 5).logits
    torch.testing.assert_close(forecast.mean((2, 3)), extrapolate(frames[:, :5], 5).mean((2, 3)))
    assert (logits > untrained).float().mean() > 0.99


def test_likely_rain_moves_along():
    frames = moving_shower(6)
    with torch.no_grad():
        logits = EncoderForecaster(8, (4,), 3)(frames[:, :4], torch.tensor([5.0]), 2).logits
    assert logits.shape == (1, 2, 5, 64, 64)
    for k, threshold in enumerate((0.5, 1, 2, 5, 10)):
        likely, rain = logits[:, :, k] > 0, frames[:, 4:] >= threshold
        assert ((likely & rain).sum() / (likely | rain).sum()) > 0.85
    assert move(frames[:, -1:], torch.zeros(1, 2, 64, 64)).max() == pytest.approx(20, rel=1e-3)


def test_the_loss_is_the_surprise_where_it_was_measured():
    frames = moving_shower(6)
    net, future = EncoderForecaster(8, (4,), 3), frames[:, 4:].clone()
    future[..., :8] = torch.nan
    with torch.no_grad():
        loss, chances = net.loss(frames[:, :4], torch.tensor([5.0]), future), net(frames[:, :4], torch.tensor([5.0]), 2)
    assert loss.terms == 2 * 64 * 56
    expected = 0.0
    for k, threshold in enumerate((0.5, 1, 2, 5, 10)):
        chance, rained = chances.logits[:, :, k].sigmoid().double(), future >= threshold
        surprise = -torch.where(rained, chance, 1 - chance).clamp(min=1e-300).log()
        expected += surprise[..., 8:].sum().item()
    assert loss.total.item() == pytest.approx(expected, rel=1e-3)
