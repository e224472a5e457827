"""A layer's whole walk over a sequence as one function with gradients: what a stack of ConvLSTMs unrolls.

The products of the frames with the weights don't wait for each other: they are one convolution over all steps. So are
the gradients of the weights on the way back, where autograd would make, round and add up those of each step.
"""

# ruff: noqa: N803, N806 - shape suffixes: T steps, B sequences, C channels, D of a state, G of gates, Y and X the grid

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812 - torch's own convention

_PLACES = 1 << 14
"""Places of the grid, of all steps and sequences, that are multiplied at once where no gradients are wanted: few places
are slow one step at a time; of many, the gates of all steps need not be held at once."""


def channels_last(maps: Tensor) -> Tensor:
    """Maps `[…, C, H, W]` in the layout whose convolutions need no reordering: all channels of a place side by side."""
    return maps.movedim(-3, -1).contiguous().movedim(-1, -3)


def conv_lstm_walk(
    frames: Tensor, hidden: Tensor, cell: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`f, i, g, o = split(weight ∗ [x_t, h_{t-1}] + bias)`, `c_t = σ(f) ∘ c_{t-1} + σ(i) ∘ tanh(g)`,
    `h_t = σ(o) ∘ tanh(c_t)`.

    Args:
        frames: x, `[T, B, C, H, W]`.
        hidden: h before the first step, `[B, D, H, W]`.
        cell: c before the first step, `[B, D, H, W]`. It stays as exact as it is; all else is computed in autocast's
            type, or else in the weights'.
        weight: `[4 D, C + D, K, K]`, K odd.
        bias: `[4 D]`.

    Returns:
        The hidden states `[T, B, D, H, W]`, and the last ones of h, a view of these, and c.
    """
    device = frames.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    given = frames.to(dtype), hidden.to(dtype), cell, weight.to(dtype), bias.to(dtype)
    hiddens, last = _Walk.apply(torch.is_grad_enabled(), *given)  # type: ignore[no-untyped-call]
    return hiddens, hiddens[-1], last


class _Walk(torch.autograd.Function):
    """See `conv_lstm_walk`. Gradients have no gradients."""

    @staticmethod
    def forward(
        ctx: Any, recorded: bool, x_TBCYX: Tensor, h_BDYX: Tensor, c_BDYX: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        steps, batch, channels, *grid = x_TBCYX.shape
        x_TBCYX = channels_last(x_TBCYX)
        of_x, of_h = channels_last(weight[:, :channels]), channels_last(weight[:, channels:])
        h_TBDYX = x_TBCYX.new_empty(steps + 1, batch, *grid, h_BDYX.shape[1]).movedim(-1, -3)
        h_TBDYX[0] = h_BDYX
        cells = [channels_last(c_BDYX)]
        together = steps if recorded else max(1, _PLACES // max(1, batch * grid[0] * grid[1]))
        with torch.autocast(x_TBCYX.device.type, enabled=False):
            for begin in range(0, steps, together):
                block = x_TBCYX[begin : begin + together]
                gates_TBGYX = F.conv2d(block.flatten(0, 1), of_x, bias, padding="same").unflatten(0, (-1, batch))
                for t, gates_BGYX in enumerate(gates_TBGYX.unbind(0), begin):
                    gates_BGYX += F.conv2d(h_TBDYX[t], of_h, padding="same")
                    # All at once, g for nothing: the channels of a gate alone are short runs, slow one after another.
                    squashed = gates_BGYX.chunk(4, dim=1)[2].tanh()
                    f, i, g, o = gates_BGYX.sigmoid_().chunk(4, dim=1)
                    g.copy_(squashed)
                    cell = torch.addcmul(i * g, f, cells[-1])
                    h_TBDYX[t + 1] = o * torch.tanh(cell)
                    cells = [*cells, cell] if recorded else [cell]
        if recorded:
            ctx.save_for_backward(x_TBCYX, h_TBDYX, gates_TBGYX, of_x, of_h, *cells)
        return h_TBDYX[1:], cells[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h_TBDYX: Tensor, grad_c_BDYX: Tensor) -> tuple[Tensor | None, ...]:
        x_TBCYX, h_TBDYX, gates_TBGYX, of_x, of_h, *cells = ctx.saved_tensors
        batch = h_TBDYX.shape[1]
        grad_h_TBDYX, grad_c_BDYX = channels_last(grad_h_TBDYX), channels_last(grad_c_BDYX)
        grad_TBGYX = torch.empty_like(gates_TBGYX)
        grad_h_BDYX = torch.zeros_like(h_TBDYX[0])
        for t in reversed(range(len(gates_TBGYX))):
            f, i, g, o = gates_TBGYX[t].chunk(4, dim=1)
            squashed = torch.tanh(cells[t + 1]).to(o.dtype)
            of_hidden = grad_h_TBDYX[t] + grad_h_BDYX
            grad_c_BDYX = grad_c_BDYX + torch.ops.aten.tanh_backward(of_hidden * o, squashed)
            grad = grad_c_BDYX.to(o.dtype)
            of_f, of_i, of_g, of_o = grad_TBGYX[t].chunk(4, dim=1)
            torch.ops.aten.sigmoid_backward.grad_input(grad * cells[t].to(o.dtype), f, grad_input=of_f)
            torch.ops.aten.sigmoid_backward.grad_input(grad * g, i, grad_input=of_i)
            torch.ops.aten.tanh_backward.grad_input(grad * i, g, grad_input=of_g)
            torch.ops.aten.sigmoid_backward.grad_input(of_hidden * squashed, o, grad_input=of_o)
            grad_c_BDYX = grad_c_BDYX * f
            grad_h_BDYX, _ = _gradients(grad_TBGYX[t], h_TBDYX[t], of_h, of_input=True, of_weight=False)
        # What all steps share: all steps side by side.
        grad_NGYX = grad_TBGYX.flatten(0, 1)
        grad_x, grad_of_x = _gradients(grad_NGYX, x_TBCYX.flatten(0, 1), of_x, ctx.needs_input_grad[1], of_weight=True)
        _, grad_of_h = _gradients(grad_NGYX, h_TBDYX[:-1].flatten(0, 1), of_h, of_input=False, of_weight=True)
        grad_weight = torch.cat((grad_of_x, grad_of_h), dim=1)
        grad_bias = grad_NGYX.sum(dim=(0, 2, 3), dtype=cells[0].dtype).to(of_x.dtype)
        grad_x = None if grad_x is None else grad_x.unflatten(0, (-1, batch))
        return None, grad_x, grad_h_BDYX, grad_c_BDYX, grad_weight, grad_bias


def _gradients(grad: Tensor, given: Tensor, weight: Tensor, of_input: bool, of_weight: bool) -> tuple[Any, Any]:
    """Of a convolution that keeps the grid's size: of its input and of its weight, None where it is not asked for."""
    padding = weight.shape[-1] // 2
    found = torch.ops.aten.convolution_backward(
        grad, given, weight, None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], 1, [of_input, of_weight, False]
    )
    return found[0], found[1]
