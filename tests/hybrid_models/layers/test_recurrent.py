import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from hybrid_models.layers.recurrent import (
    GATES,
    STATES,
    BidirectionalRNN,
    RepeatedProduct,
    initial_state,
    kept_step,
    read,
    step_back,
)

E, D, B = 5, 6, 2


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_repeated_product_gradients(shape):
    torch.manual_seed(0)
    matrix = torch.randn(*shape, dtype=torch.double, requires_grad=True)
    xs = [torch.randn(2, 5, 3, dtype=torch.double)[: shape[0] if len(shape) == 3 else None] for _ in range(3)]
    xs = xs if len(shape) == 3 else [x[0] for x in xs]

    def chain(times):
        product, y = times(matrix), 0.0
        for x in xs:
            y = torch.tanh(product(x + y if torch.is_tensor(y) else x))[..., :3]
        return y.pow(2).sum()

    expected = torch.autograd.grad(chain(lambda m: lambda x: x @ m), matrix)[0]
    found = torch.autograd.grad(chain(lambda m: RepeatedProduct(m, len(xs))), matrix)[0]
    torch.testing.assert_close(found, expected)


def test_initial_state():
    layer = nn.Linear(3, 2 * D)
    state = initial_state(torch.ones(B, 3), "lstm", layer)
    expected = torch.tanh(layer(torch.ones(B, 3)))
    torch.testing.assert_close(torch.cat([state["hidden"], state["cell"]], dim=1), expected)
    assert all(part.is_contiguous() for part in state.values()), "cuDNN refuses others"
    assert list(initial_state(torch.ones(B, 3), "gru", nn.Linear(3, D))) == ["hidden"]


@pytest.mark.parametrize(("cell", "kind"), [("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_a_text_is_read_as_torch_does(cell, kind):
    torch.manual_seed(3)
    rnn, inputs = kind(E, D, batch_first=True), torch.randn(B, 4, E)
    state = initial_state(torch.randn(B, 3), cell, nn.Linear(3, STATES[cell] * D))
    states, last = read(rnn, inputs, state)
    given = tuple(part.unsqueeze(0) for part in state.values())
    expected, ends = rnn(inputs, given if cell == "lstm" else given[0])
    torch.testing.assert_close(states, expected)
    ends = ends if cell == "lstm" else (ends,)
    assert list(last) == list(state)
    torch.testing.assert_close(torch.stack(list(last.values())), torch.cat(ends))
    torch.testing.assert_close(read(rnn, inputs)[0], rnn(inputs)[0])


@pytest.mark.parametrize(("cell", "kind"), [("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_a_bidirectional_rnn_is_that_of_torch_over_packed_sequences(cell, kind):
    torch.manual_seed(2)
    layer, packed = BidirectionalRNN(E, D, cell), kind(E, D, batch_first=True, bidirectional=True)
    weights = dict(layer.forwards.named_parameters())
    weights |= {f"{name}_reverse": value for name, value in layer.backwards.named_parameters()}
    packed.load_state_dict({name: value.detach() for name, value in weights.items()})
    inputs, lengths = torch.randn(4, 5, E), torch.tensor([3, 5, 1, 4])
    states, last = layer(inputs, lengths)
    outputs, ends = packed(pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False))
    ends = ends if cell == "gru" else ends[0]  # the hidden states alone
    expected, _ = pad_packed_sequence(outputs, batch_first=True)
    real = torch.arange(5) < lengths.unsqueeze(1)
    torch.testing.assert_close(states[real], expected[real])
    torch.testing.assert_close(last, torch.cat([ends[0], ends[1]], dim=1))
    found = torch.autograd.grad(states[real].square().sum() + last.sum(), list(weights.values()))
    wanted = torch.autograd.grad(expected[real].square().sum() + ends.sum(), list(packed.parameters()))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_step_back_is_what_autograd_makes_of_a_step(cell, kind):
    """Of gates in half precision as near to what they are in float32."""
    torch.manual_seed(5)
    names = ("hidden", "cell")[: STATES[cell]]
    state = {name: torch.randn(3, 4, requires_grad=True) for name in names}
    halves = [torch.randn(3, GATES[cell] * 4).to(kind).requires_grad_() for _ in range(2)]
    made, kept = kept_step(state, *halves)
    grads = [torch.randn_like(tensor) for tensor in made.values()]
    expected = torch.autograd.grad(list(made.values()), [*halves, *state.values()], grads, materialize_grads=True)
    *found, states = step_back(kept, grads)
    for own, other in zip([*found, *states], expected, strict=True):
        exact = {"atol": 1e-6, "rtol": 1e-5} if kind is torch.float32 else {"atol": 0.02, "rtol": 0.02}
        torch.testing.assert_close(own, other, check_dtype=False, **exact)
