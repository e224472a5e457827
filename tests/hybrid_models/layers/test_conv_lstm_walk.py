"""A layer's walk over a sequence against a loop of cells, whose gradients autograd has step by step."""

import pytest
import torch
from torch.autograd import gradcheck

from hybrid_models.layers import conv_lstm_walk as module
from hybrid_models.layers.conv_lstm import ConvLSTMCell
from hybrid_models.layers.conv_lstm_walk import channels_last, conv_lstm_walk

STEPS, BATCH, CHANNELS, HIDDEN, GRID = 4, 2, 3, 5, (6, 7)


def given(dtype=torch.float32):
    """A cell of kernels of 3, frames and a state that is not zero."""
    torch.manual_seed(0)
    cell = ConvLSTMCell(CHANNELS, HIDDEN, 3).to(dtype)
    shapes = (STEPS, BATCH, CHANNELS, *GRID), (BATCH, HIDDEN, *GRID), (BATCH, HIDDEN, *GRID)
    return cell, *(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)


def looped(cell, frames, h, c):
    """What `walked` has, a cell's step at a time."""
    hiddens = []
    for frame in frames:
        h, c = cell(frame, (h, c))
        hiddens.append(h)
    return torch.stack(hiddens), h, c


def walked(cell, frames, h, c):
    return conv_lstm_walk(frames, h, c, cell.gates.weight, cell.gates.bias)


def learned(run, bf16=False):
    """All gradients of a loss of which every result has a share of its own."""
    cell, *tensors = given()
    with torch.autocast("cpu", torch.bfloat16, bf16):
        hiddens, h, c = run(cell, *tensors)
    (hiddens.float().square().sum() + h.float().exp().sum() + (c.float() ** 3).sum()).backward()
    return {**{name: p.grad for name, p in cell.named_parameters()}, **dict(enumerate(t.grad for t in tensors))}


def test_a_walk_equals_a_loop_of_cells():
    cell, *tensors = given()
    torch.testing.assert_close(walked(cell, *tensors), looped(cell, *tensors))


def test_a_walk_learns_what_autograd_does_step_by_step():
    torch.testing.assert_close(learned(walked), learned(looped), atol=1e-5, rtol=1e-4)


def test_gradients_equal_finite_differences():
    cell, *tensors = given(torch.float64)
    small = [tensor[..., :3, :3].detach().requires_grad_() for tensor in tensors]
    assert gradcheck(conv_lstm_walk, (*small, cell.gates.weight, cell.gates.bias))


def test_a_walk_in_bfloat16_is_as_near_to_float32_as_autograd_is():
    exact, walk, steps = (
        torch.cat([grad.flatten() for grad in learned(run, bf16).values()])
        for run, bf16 in ((looped, False), (walked, True), (looped, True))
    )
    assert (walk - exact).norm() < 1.2 * (steps - exact).norm() < 0.05 * exact.norm()


def test_the_cell_keeps_its_type_in_bfloat16():
    cell, *tensors = given()
    with torch.autocast("cpu", torch.bfloat16):
        hiddens, h, c = walked(cell, *tensors)
    assert (hiddens.dtype, h.dtype, c.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("places", [1, 3 * BATCH * GRID[0] * GRID[1], 1 << 14])
def test_without_gradients_it_is_the_same_however_many_steps_are_multiplied_at_once(monkeypatch, places):
    cell, *tensors = given()
    expected = walked(cell, *tensors)
    monkeypatch.setattr(module, "_PLACES", places)
    asked = []
    own = torch.nn.functional.conv2d
    monkeypatch.setattr(module.F, "conv2d", lambda x, *rest, **how: asked.append(len(x)) or own(x, *rest, **how))
    with torch.inference_mode():
        torch.testing.assert_close(walked(cell, *tensors), expected)
    blocks = [size // BATCH for size in asked if size > BATCH]
    assert blocks == ([] if places == 1 else [3] if places < 1 << 14 else [STEPS])


def test_channels_last_changes_the_layout_of_maps_alone():
    maps = torch.randn(STEPS, BATCH, CHANNELS, *GRID)
    laid = channels_last(maps)
    assert torch.equal(laid, maps)
    assert laid.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert channels_last(laid).data_ptr() == laid.data_ptr()


def test_every_convolution_reads_maps_that_are_channels_last_there_and_back(monkeypatch):
    laid = []

    def watched(convolve):
        def run(*given, **options):
            maps = [tensor for tensor in given if torch.is_tensor(tensor) and tensor.dim() == 4]
            laid.extend(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in maps)
            return convolve(*given, **options)

        return run

    monkeypatch.setattr(module.F, "conv2d", watched(torch.nn.functional.conv2d))
    monkeypatch.setattr(module, "_gradients", watched(module._gradients))
    cell, *tensors = given()
    hiddens, _, c = walked(cell, *tensors)
    torch.autograd.backward((hiddens, c), (torch.ones(hiddens.shape), torch.ones(c.shape)))
    assert len(laid) == 2 * (1 + STEPS) + 3 * (STEPS + 2)
    assert all(laid)


def test_frames_that_do_not_learn_get_no_gradient():
    cell, frames, h, c = given()
    frames.requires_grad_(False)
    walked(cell, frames, h, c)[0].sum().backward()
    assert frames.grad is None
    assert h.grad is not None
    assert cell.gates.weight.grad is not None
