"""The cell equals its equations, computed independently in numpy; the stack equals a loop of cells."""

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

from hybrid_models.errors import UsageError
from hybrid_models.layers.conv_lstm import ConvLSTM, ConvLSTMCell


def numpy_conv(x, weight, bias):
    """`[C, H, W]` with zero padding → `[D, H, W]`, as a sum over explicit windows."""
    k = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    windows = sliding_window_view(padded, (k, k), axis=(1, 2))
    return np.einsum("chwij,dcij->dhw", windows, weight) + bias[:, None, None]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_cell_equals_the_equations(kernel_size):
    torch.manual_seed(0)
    cell = ConvLSTMCell(2, 3, kernel_size).double()
    x, h, c = (torch.randn(2, channels, 6, 7, dtype=torch.float64) for channels in (2, 3, 3))
    h_next, c_next = cell(x, (h, c))

    weight, bias = (p.detach().numpy() for p in (cell.gates.weight, cell.gates.bias))
    for b in range(2):
        # one convolution per gate and per operand: W_x* x + W_h* h + b
        f, i, g, o = (
            numpy_conv(x[b].numpy(), weight[rows, :2], bias[rows])
            + numpy_conv(h[b].numpy(), weight[rows, 2:], 0 * bias[rows])
            for rows in (slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 12))
        )
        c_expected = sigmoid(f) * c[b].numpy() + sigmoid(i) * np.tanh(g)
        np.testing.assert_allclose(c_next[b].detach().numpy(), c_expected, atol=1e-12)
        np.testing.assert_allclose(h_next[b].detach().numpy(), sigmoid(o) * np.tanh(c_expected), atol=1e-12)


def test_on_a_single_pixel_it_is_an_ordinary_lstm():
    torch.manual_seed(1)
    cell, lstm = ConvLSTMCell(4, 5, 1), nn.LSTMCell(4, 5)
    order = [5, 0, 10, 15]  # our f, i, g, o are rows of PyTorch's i, f, g, o
    rows = torch.cat([torch.arange(start, start + 5) for start in order])
    with torch.no_grad():
        cell.gates.weight.copy_(torch.cat((lstm.weight_ih, lstm.weight_hh), 1)[rows][..., None, None])
        cell.gates.bias.copy_((lstm.bias_ih + lstm.bias_hh)[rows])
    x, h, c = torch.randn(3, 4), torch.randn(3, 5), torch.randn(3, 5)
    expected = lstm(x, (h, c))
    got = cell(x[..., None, None], (h[..., None, None], c[..., None, None]))
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours[..., 0, 0], theirs)


def test_initial_state_is_zero_and_not_shared():
    h, c = ConvLSTMCell(1, 2, 3).initial_state(4, 5, 6, dtype=torch.float64)
    assert h.shape == c.shape == (4, 2, 5, 6)
    assert h.dtype == torch.float64
    assert not h.any()
    h += 1
    assert not c.any()


@pytest.mark.parametrize("kernel_size", [0, 2, -1])
def test_even_kernels_are_refused(kernel_size):
    with pytest.raises(UsageError, match=f"odd.*{kernel_size}"):
        ConvLSTMCell(1, 1, kernel_size)


def test_a_stack_without_layers_is_refused():
    with pytest.raises(UsageError, match="at least one layer"):
        ConvLSTM(1, (), 3)


def test_stack_equals_a_loop_of_cells_and_can_be_continued():
    torch.manual_seed(2)
    stack = ConvLSTM(2, (3, 4), 3)
    frames = torch.randn(2, 5, 2, 6, 6)
    outputs, states = stack(frames)
    assert outputs.shape == (2, 5, 4, 6, 6)

    lower, upper = stack.cells
    low, up = lower.initial_state(2, 6, 6), upper.initial_state(2, 6, 6)
    for t in range(5):
        low = lower(frames[:, t], low)
        up = upper(low[0], up)
        torch.testing.assert_close(outputs[:, t], up[0])
    torch.testing.assert_close(states, [low, up])

    first, middle = stack(frames[:, :2])
    rest, _ = stack(frames[:, 2:], middle)
    torch.testing.assert_close(torch.cat((first, rest), 1), outputs)


def test_gradients_equal_finite_differences():
    torch.manual_seed(3)
    cell = ConvLSTMCell(1, 2, 3).double()
    x, h, c = (torch.randn(1, channels, 3, 3, dtype=torch.float64, requires_grad=True) for channels in (1, 2, 2))
    assert torch.autograd.gradcheck(lambda *a: cell(a[0], a[1:]), (x, h, c))
