"""It reads frames and then its own predictions, on any grid, and learns where things go."""

import pytest
import torch
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from hybrid_models.contract import autocast
from hybrid_models.nowcaster.frame_predictor import FramePredictor

MINUTES = torch.tensor([1.0])
SHAPES = {
    "stack.cells.0.gates.weight": (24, 22, 3, 3),
    "stack.cells.0.gates.bias": (24,),
    "stack.cells.1.gates.weight": (20, 11, 3, 3),
    "stack.cells.1.gates.bias": (20,),
    "head.weight": (16, 5, 1, 1),
    "head.bias": (16,),
}


def eager(net):
    """The same net, whose predictions depend strongly on what it reads."""
    with torch.no_grad():
        net.head.weight *= 20
    return net


def moving_square(frames, start=2, speed=1, size=16):
    """`[1, frames, size, size]`: a bright square that moves right."""
    video = torch.zeros(1, frames, size, size)
    for t in range(frames):
        video[0, t, 5:9, start + speed * t : start + speed * t + 3] = 1
    return video


def test_the_last_prediction_is_that_of_a_stack_that_has_read_all_frames(monkeypatch):
    monkeypatch.setattr("hybrid_models.contract.bf16_is_fast", lambda device: False)
    torch.manual_seed(0)
    net, frames = eager(FramePredictor(4, (6, 5), 3)), torch.rand(2, 3, 16, 24)
    with torch.no_grad(), autocast(frames.device):
        states, _ = net.stack(pixel_unshuffle(frames.unsqueeze(2), 4))
        expected = pixel_shuffle(net.head(states[:, -1]).float(), 4).sigmoid()
        forecast, probability = net(frames, MINUTES, 1)
        older, _ = net(frames[:, 1:], MINUTES, 1)
    assert probability is None
    torch.testing.assert_close(forecast, expected)
    assert (older - expected).abs().max() > 0.01, "all frames count"


def test_a_cell_in_colour_holds_its_pixels_channel_by_channel(monkeypatch):
    monkeypatch.setattr("hybrid_models.contract.bf16_is_fast", lambda device: False)
    torch.manual_seed(0)
    net, frames = eager(FramePredictor(4, (6, 5), 3, channels=3)), torch.rand(2, 3, 13, 22, 3)
    with torch.no_grad(), autocast(frames.device):
        padded = torch.zeros(2, 3, 16, 24, 3)
        padded[:, :, :13, :22] = frames
        cells = torch.cat([pixel_unshuffle(padded[:, :, None, ..., i], 4) for i in range(3)], dim=2)
        assert cells.shape == (2, 3, 48, 4, 6)
        states, _ = net.stack(cells)
        logits = net.head(states[:, -1]).float().split(16, dim=1)
        expected = torch.stack([pixel_shuffle(channel, 4)[:, :, :13, :22] for channel in logits], dim=-1).sigmoid()
        forecast, _ = net(frames, MINUTES, 1)
        further, _ = net(frames, MINUTES, 3)
        swapped, _ = net(frames.flip(-1), MINUTES, 1)
        again, _ = net(torch.cat((frames, further[:, :2]), dim=1), MINUTES, 1)
    torch.testing.assert_close(forecast, expected)
    torch.testing.assert_close(further[:, :1], forecast)
    torch.testing.assert_close(again, further[:, 2:], msg="after the last frame it reads its own")
    assert (swapped.flip(-1) - forecast).abs().max() > 0.01, "red is not blue"


def test_grey_weights_have_the_names_and_shapes_that_artifacts_have():
    shapes = {name: tuple(weight.shape) for name, weight in FramePredictor(4, (6, 5), 3).state_dict().items()}
    assert shapes == SHAPES


def test_after_the_last_frame_it_reads_its_own():
    torch.manual_seed(0)
    net, past = eager(FramePredictor(4, (6,), 3)), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        together = net(past, MINUTES, 3)[0]
        for lead in range(3):
            found = net(torch.cat((past, together[:, :lead]), dim=1), MINUTES, 1)[0]
            torch.testing.assert_close(found[:, 0], together[:, lead])


def test_a_missing_pixel_is_read_as_predicted():
    torch.manual_seed(0)
    net, frames = eager(FramePredictor(4, (6,), 3)), torch.rand(1, 3, 16, 16)
    holed = frames.clone()
    holed[:, 1, :4] = torch.nan
    with torch.no_grad():
        frames[:, 1, :4] = net(frames[:, :1], MINUTES, 1)[0][:, 0, :4]
        torch.testing.assert_close(net(holed, MINUTES, 2)[0], net(frames, MINUTES, 2)[0])
        frames[:, 0, :4] = 0
        holed[:, 0, :4] = torch.nan
        torch.testing.assert_close(net(holed[:, :1], MINUTES, 1)[0], net(frames[:, :1], MINUTES, 1)[0])


def test_convolutions_read_maps_channels_last_and_gradients_lie_as_weights_do():
    net, past, future = FramePredictor(4, (6, 5), 3), torch.rand(2, 3, 16, 24), torch.rand(2, 2, 16, 24)
    read = []
    for cell in net.stack.cells:
        cell.gates.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    net.loss(past, MINUTES, future).total.backward()
    assert len(read) == 2 * 4  # layers, frames
    assert all(maps.is_contiguous(memory_format=torch.channels_last) for maps in read)
    assert [weight.grad.stride() for weight in net.parameters()] == [weight.stride() for weight in net.parameters()]


def test_any_grid_gives_intensities():
    frames = torch.rand(2, 3, 21, 35)
    frames[..., :9] = torch.nan
    with torch.no_grad():
        forecast, _ = FramePredictor(8, (4,), 3)(frames, MINUTES.expand(2), 2)
    assert forecast.shape == (2, 2, 21, 35)
    assert ((forecast > 0) & (forecast < 1)).all()


def test_loss_is_the_cross_entropy_of_all_frames_that_can_be_foreseen():
    torch.manual_seed(0)
    net, frames = eager(FramePredictor(4, (6,), 3)), torch.rand(1, 5, 16, 16)
    past, future = frames[:, :3], frames[:, 3:].clone()
    with torch.no_grad():
        predicted = torch.cat([net(past[:, :t], MINUTES, 1)[0] for t in (1, 2)] + [net(past, MINUTES, 2)[0]], dim=1)
        expected = -(frames[:, 1:] * predicted.log() + (1 - frames[:, 1:]) * (1 - predicted).log())
        whole = net.loss(past, MINUTES, future)
        future[:, 1] = torch.nan
        shorter = net.loss(past, MINUTES, future)
    assert (whole.terms, shorter.terms) == (4 * 256, 3 * 256)
    assert whole.total.item() == pytest.approx(expected.sum().item(), rel=1e-5)
    assert shorter.total.item() == pytest.approx(expected[:, :3].sum().item(), rel=1e-5)


def test_loss_in_colour_is_that_of_all_channels_that_are_known():
    torch.manual_seed(0)
    net, frames = eager(FramePredictor(4, (6,), 3, channels=3)), torch.rand(1, 4, 10, 12, 3)
    past, future = frames[:, :3], frames[:, 3:].clone()
    with torch.no_grad():
        predicted = torch.cat([net(past[:, :t], MINUTES, 1)[0] for t in (1, 2, 3)], dim=1)
        expected = -(frames[:, 1:] * predicted.log() + (1 - frames[:, 1:]) * (1 - predicted).log())
        whole = net.loss(past, MINUTES, future)
        future[..., 1] = torch.nan
        without_green = net.loss(past, MINUTES, future)
    assert (whole.terms, without_green.terms) == (9 * 120, 8 * 120)
    assert whole.total.item() == pytest.approx(expected.sum().item(), rel=1e-5)
    assert without_green.total.item() == pytest.approx((expected.sum() - expected[:, 2, ..., 1].sum()).item(), rel=1e-5)


def test_it_learns_where_a_square_goes():
    """Two squares that move apart are foreseen for four frames with a tenth of persistence's error."""
    torch.manual_seed(0)
    net = FramePredictor(4, (16,), 3)
    video = torch.cat((moving_square(8), moving_square(8, start=11, speed=-1)))
    past, future = video[:, :4], video[:, 4:]
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(120):
        loss = net.loss(past, MINUTES, future)
        optimizer.zero_grad()
        (loss.total / loss.terms).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    assert all(weight.grad is not None and weight.grad.any() for weight in net.parameters())
    with torch.no_grad():
        error = (net(past, MINUTES, 4)[0] - future).square().mean()
    persistence = (past[:, -1:] - future).square().mean()
    assert error < 0.1 * persistence
