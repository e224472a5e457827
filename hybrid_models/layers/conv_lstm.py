"""Convolutional LSTM: an LSTM whose states are maps and whose products with weights are convolutions.

Shi et al. 2015, "Convolutional LSTM Network: A Machine Learning Approach for Precipitation Nowcasting", equations 3,
without the peephole connections from the cell to the gates (as most later work, and PyTorch's own LSTM).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hybrid_models.errors import UsageError
from hybrid_models.layers.conv_lstm_walk import conv_lstm_walk

State = tuple[Tensor, Tensor]
"""Hidden and cell state `(h, c)`, each `[B, D, H, W]`."""


class ConvLSTMCell(nn.Module):
    """One step of a convolutional LSTM; one convolution over `[x, h]` computes all gates.

    With `f, i, g, o = split(conv([x, h]))`:
    `c' = σ(f) ∘ c + σ(i) ∘ tanh(g)` and `h' = σ(o) ∘ tanh(c')`.

    Args:
        input_dim: channels of the input.
        hidden_dim: channels D of the states.
        kernel_size: width of the square kernel; odd, so that padding keeps height and width.

    Raises:
        UsageError: the kernel size is even or not positive.
    """

    def __init__(self, input_dim: int, hidden_dim: int, kernel_size: int) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise UsageError(f"kernel_size must be odd and positive to keep the grid, got {kernel_size}")
        self.hidden_dim = hidden_dim
        self.gates = nn.Conv2d(input_dim + hidden_dim, 4 * hidden_dim, kernel_size, padding=kernel_size // 2)
        with torch.no_grad():  # remember by default (Jozefowicz et al. 2015)
            nn.init.zeros_(self.gates.bias)  # type: ignore[arg-type]
            self.gates.bias[:hidden_dim] = 1.0  # type: ignore[index]

    def forward(self, x_t: Tensor, state: State) -> State:
        """`x_t` `[B, C, H, W]` and the state `(h, c)` before it → the state after it, each `[B, D, H, W]`."""
        h, c = state
        f, i, g, o = self.gates(torch.cat((x_t, h), dim=1)).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, c

    def initial_state(
        self,
        batch: int,
        height: int,
        width: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """Zeros for `h` and `c`, on the weights' device and in their dtype unless others are named."""
        weight = self.gates.weight
        shape = batch, height, width, self.hidden_dim
        zeros = torch.zeros(shape, device=device or weight.device, dtype=dtype or weight.dtype).movedim(-1, -3)
        return zeros, zeros.clone()


class ConvLSTM(nn.Module):
    """A stack of `ConvLSTMCell`s over a sequence; each layer reads the hidden states of the one below.

    Args:
        input_dim: channels of the input frames.
        hidden_dims: channels of each layer's states, bottom first.
        kernel_size: of all layers; odd.

    Raises:
        UsageError: no layer, or an even kernel size.
    """

    def __init__(self, input_dim: int, hidden_dims: Sequence[int], kernel_size: int) -> None:
        super().__init__()
        if not hidden_dims:
            raise UsageError("hidden_dims must name at least one layer's channels, got none")
        input_dims = (input_dim, *hidden_dims[:-1])
        self.cells = nn.ModuleList(
            ConvLSTMCell(inputs, hidden, kernel_size) for inputs, hidden in zip(input_dims, hidden_dims, strict=True)
        )

    def step(self, x_t: Tensor, states: Sequence[State]) -> list[State]:
        """One step of all layers: `x_t` `[B, C, H, W]` and a state per layer → the states after it."""
        after: list[State] = []
        for cell, state in zip(self.cells, states, strict=True):
            state = cell(x_t, state)
            x_t = state[0]
            after.append(state)
        return after

    def forward(self, frames: Tensor, states: Sequence[State] | None = None) -> tuple[Tensor, list[State]]:
        """Runs over a sequence, layer after layer.

        Args:
            frames: `[B, T, C, H, W]`.
            states: a state per layer to start from; zeros by default.

        Returns:
            The hidden states of the top layer, `[B, T, D, H, W]`, in autocast's type where that is on, and every
            layer's last state.
        """
        batch, _, _, height, width = frames.shape
        before = states if states is not None else self.initial_states(batch, height, width)
        sequence, after = frames.transpose(0, 1), []
        for cell, (h, c) in zip(self.cells, before, strict=True):
            sequence, h, c = conv_lstm_walk(sequence, h, c, cell.gates.weight, cell.gates.bias)  # type: ignore[union-attr, arg-type]
            after.append((h, c))
        return sequence.transpose(0, 1), after

    def initial_states(self, batch: int, height: int, width: int) -> list[State]:
        """Zero states for every layer."""
        return [cell.initial_state(batch, height, width) for cell in self.cells]  # type: ignore[operator]
