"""Recurrent cells: their sizes and first states, a step of one, both directions of a text, products that repeat."""

# ruff: noqa: N806 - shape suffixes, see contract.py

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hybrid_models.search.beam import State

Cell = Literal["gru", "lstm"]
GATES: dict[Cell, int] = {"gru": 3, "lstm": 4}
RNNS: dict[Cell, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}
STATES: dict[Cell, int] = {"gru": 1, "lstm": 2}
"""How many vectors a cell's state is."""

sigmoid_backward = torch.ops.aten.sigmoid_backward.default
"""Of a gradient and of the function's value: one pass over them, of either precision."""
tanh_backward = torch.ops.aten.tanh_backward.default
"""The same."""


class BidirectionalRNN(nn.Module):
    """A GRU or LSTM over a text and another one over it from its end (Schuster & Paliwal 1997).

    The same as `nn.GRU(bidirectional=True)` over a packed sequence, which is slower on CPUs: each step's gradient
    touches all steps' tensors. At padding the states mean nothing.

    Args:
        input_size: size I of an input vector.
        hidden_size: size D of each state.
        cell: which of them.
    """

    def __init__(self, input_size: int, hidden_size: int, cell: Cell = "gru") -> None:
        super().__init__()
        kind = RNNS[cell]
        self.forwards = kind(input_size, hidden_size, batch_first=True)
        self.backwards = kind(input_size, hidden_size, batch_first=True)

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """inputs [B,S,I] padded at the end, lengths [B] of at least 1 → states [B,S,2D], the last ones [B,2D]."""
        place_S = torch.arange(inputs.shape[1], device=inputs.device)
        mirrored_BS = lengths.unsqueeze(1) - 1 - place_S
        mirrored_BS = torch.where(mirrored_BS >= 0, mirrored_BS, place_S)  # padding stays where it is
        row_B1 = torch.arange(len(inputs), device=inputs.device).unsqueeze(1)
        forwards_BSD, _ = read(self.forwards, inputs)
        backwards_BSD, _ = read(self.backwards, inputs[row_B1, mirrored_BS])
        states_BSK = torch.cat([forwards_BSD, backwards_BSD[row_B1, mirrored_BS]], dim=2)
        row_B, end_B = row_B1.squeeze(1), lengths - 1
        return states_BSK, torch.cat([forwards_BSD[row_B, end_B], backwards_BSD[row_B, end_B]], dim=1)


class RepeatedProduct:
    """`x @ matrix` at every step of a loop, with the matrix's gradient computed once after the loop.

    Plain autograd adds up one product per step; here the gradient is one product over all steps, Σ_t x_tᵀ g_t =
    [x_1; x_2; …]ᵀ [g_1; g_2; …]. To that end each step adds a zero, through which its gradient g_t is collected.

    Args:
        matrix: [I,O], or [B,I,O] for one matrix per source.
        steps: how often it is called at most.
    """

    def __init__(self, matrix: Tensor, steps: int) -> None:
        self.matrix = matrix
        self.steps = steps
        self._inputs: list[Tensor] = []
        self._zeros: tuple[Tensor, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """x [N,I] (or [B,R,I]) → [N,O] (or [B,R,O])."""
        x = x.to(self.matrix.dtype)
        product = x @ self.matrix.detach()
        if not (torch.is_grad_enabled() and self.matrix.requires_grad):
            return product
        if not self._zeros:
            collected = _Collect.apply(self.matrix, self._inputs, self.steps, product.shape)  # type: ignore[no-untyped-call]
            self._zeros = collected.unbind(0)
        self._inputs.append(x.detach())
        return product + self._zeros[len(self._inputs) - 1]


class _Collect(torch.autograd.Function):
    """Zeros [T, *shape] whose gradients, with the inputs listed meanwhile, make the gradient of a matrix."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, inputs: list[Tensor], steps: int, shape: torch.Size) -> Tensor:
        ctx.inputs = inputs
        return matrix.new_zeros(()).expand(steps, *shape)

    @staticmethod
    def backward(ctx: Any, grad_tno: Tensor) -> tuple[Tensor | None, ...]:
        x_tni = torch.stack(ctx.inputs)
        # rows of all steps side by side: [.., T·N, I] and [.., T·N, O]
        x_ni, grad_no = (tensor.movedim(0, -3).flatten(-3, -2) for tensor in (x_tni, grad_tno))
        return x_ni.transpose(-1, -2) @ grad_no, None, None, None


def advance(state: State, input_gates: Tensor, hidden_gates: Tensor) -> State:
    """One cell step from the gates' two halves [N,G·D], in the gate order of `nn.GRU` and `nn.LSTM`.

    The state stays float32 under autocast: many small changes are lost in bfloat16.
    """
    return kept_step(state, input_gates, hidden_gates)[0]


def kept_step(state: State, input_gates: Tensor, hidden_gates: Tensor) -> tuple[State, tuple[Tensor, ...]]:
    """`advance`, and what `step_back` wants to know of the step."""
    if "cell" not in state:
        hidden, size = state["hidden"], state["hidden"].shape[1]
        (input_ru, input_new), (hidden_ru, hidden_new) = (
            gates.split([2 * size, size], dim=1) for gates in (input_gates, hidden_gates)
        )
        gates_ru = torch.sigmoid(input_ru + hidden_ru)
        reset, update = gates_ru.chunk(2, dim=1)
        new = torch.tanh(input_new + reset * hidden_new).float()
        return {"hidden": torch.lerp(new, hidden, update.float())}, (gates_ru, new, hidden, hidden_new)
    into, forget, new, out = (input_gates + hidden_gates).chunk(4, dim=1)
    into, forget, new, out = torch.sigmoid(into), torch.sigmoid(forget), torch.tanh(new), torch.sigmoid(out)
    cell = forget * state["cell"] + into * new
    seen = torch.tanh(cell)
    return {"hidden": out * seen, "cell": cell}, (into, forget, new, out, state["cell"], seen)


def step_back(kept: tuple[Tensor, ...], grads: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients of both halves of the gates [N,G·D] and of the state, from those of the next state."""
    if len(grads) == 1:
        (grad_hidden,), (gates_ru, new, hidden, hidden_new) = grads, kept
        reset, update = gates_ru.chunk(2, dim=1)
        grad_kept = grad_hidden * update
        grad_new = tanh_backward(grad_hidden - grad_kept, new)
        grad_ru = sigmoid_backward(torch.cat([grad_new * hidden_new, grad_hidden * (hidden - new)], dim=1), gates_ru)
        return torch.cat([grad_ru, grad_new], dim=1), torch.cat([grad_ru, grad_new * reset], dim=1), [grad_kept]
    (grad_hidden, grad_cell), (into, forget, new, out, cell, seen) = grads, kept
    grad_cell = grad_cell + tanh_backward(grad_hidden * out, seen)
    parts = (
        sigmoid_backward(grad_cell * new, into),
        sigmoid_backward(grad_cell * cell, forget),
        tanh_backward(grad_cell * into, new),
        sigmoid_backward(grad_hidden * seen, out),
    )
    grad_gates = torch.cat(parts, dim=1)
    return grad_gates, grad_gates, [torch.zeros_like(grad_hidden), grad_cell * forget]


def initial_state(vector: Tensor, cell: Cell, layer: nn.Linear) -> State:
    """Initial state [N,D] of each tensor a cell has: tanh of a linear layer (D or, for an LSTM, 2·D outputs)."""
    values = torch.tanh(layer(vector)).float()
    if cell == "gru":
        return {"hidden": values}
    return {name: part.contiguous() for name, part in zip(("hidden", "cell"), values.chunk(2, dim=1), strict=True)}


def read(rnn: nn.GRU | nn.LSTM, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """What torch's own RNN makes of inputs [B,T,I], from a state [B,D] on or from zeros: states [B,T,D], the last one.

    On GPUs that compute in bfloat16 it is in float32 there: torch's autocast has RNNs compute in float16 whatever was
    asked for, and gradients of that vanish where nothing scales them.
    """
    names = ("hidden",) if isinstance(rnn, nn.GRU) else ("hidden", "cell")
    plain = inputs.device.type == "cuda" and torch.get_autocast_dtype("cuda") is torch.bfloat16
    with torch.autocast(inputs.device.type, enabled=False) if plain else nullcontext():
        inputs = inputs.float() if plain else inputs
        given = None if state is None else tuple(state[name].unsqueeze(0) for name in names)
        states_BTD, last = rnn(inputs, given[0] if given is not None and len(names) == 1 else given)
    last = (last,) if isinstance(last, Tensor) else last
    return states_BTD, {name: values[0] for name, values in zip(names, last, strict=True)}
