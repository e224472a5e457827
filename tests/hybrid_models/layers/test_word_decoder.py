"""Word decoders against torch's own cells and against step-by-step computation."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hybrid_models.layers.recurrent import RepeatedProduct
from hybrid_models.layers.word_decoder import AttentionDecoder, PlainDecoder
from hybrid_models.search.beam import in_places, search
from hybrid_models.search.options import SearchOptions
from hybrid_models.symbols import BOS, EOS, PAD
from hybrid_models.text import written_places

V, E, D, K, A, B, R, S = 11, 5, 6, 7, 4, 2, 3, 4
TARGETS = torch.tensor(
    [
        [BOS, 5, 6, EOS],
        [BOS, 7, EOS, PAD],
        [PAD, PAD, PAD, PAD],
        [BOS, 4, 4, EOS],
        [BOS, EOS, PAD, PAD],
        [BOS, 9, 8, EOS],
    ]
)


def asked(targets):
    """Targets, and where their tokens are."""
    return targets, torch.from_numpy(written_places(targets.numpy()))


WRITTEN = asked(TARGETS)[1]
OPTIONS = SearchOptions(BOS, EOS, beam_size=R)


def make(kind, cell, tie=True, dropout=0.0):
    torch.manual_seed(1)
    if kind == "plain":
        decoder = PlainDecoder(V, E, D, cell, dropout, tie)
    else:
        decoder = AttentionDecoder(V, E, D, K, A, cell, dropout, tie)
    nn.init.normal_(decoder.output_bias)
    state = {name: torch.randn(B * R, D) for name in (("hidden",) if cell == "gru" else ("hidden", "cell"))}
    mask = torch.arange(S) < torch.tensor([[4], [2]])
    return decoder, state, {"keys": torch.randn(B, S, K, requires_grad=True), "mask": mask}


def torch_cell(decoder, cell):
    """The attention decoder's weights in torch's own cell, whose input is [embedding; context]."""
    reference = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}[cell](E + K, D)
    weights = {
        "weight_ih": torch.cat([decoder.word_gates.weight, decoder.context_gates.weight], dim=1),
        "weight_hh": decoder.hidden_gates.weight,
        "bias_ih": decoder.word_gates.bias,
        "bias_hh": decoder.hidden_gates.bias,
    }
    reference.load_state_dict({name: value.detach() for name, value in weights.items()})
    return reference


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_attention_unroll_equals_torch_cells_step_by_step(cell):
    decoder, state, memory = make("attention", cell)
    embedded = torch.randn(B * R, 5, E)
    features, last = decoder.unroll(embedded, state, decoder.prepare(memory))
    reference = torch_cell(decoder, cell)
    keys, mask = (memory[name].repeat_interleave(R, dim=0) for name in ("keys", "mask"))
    hidden, memory_cell = state["hidden"], state.get("cell")
    context = torch.zeros(B * R, K)
    for t in range(5):
        inputs = torch.cat([embedded[:, t], context], dim=1)
        if cell == "gru":
            hidden = reference(inputs, hidden)
        else:
            hidden, memory_cell = reference(inputs, (hidden, memory_cell))
        context, _ = decoder.attention(hidden, keys, mask)
        torch.testing.assert_close(features[:, t], torch.cat([hidden, context], dim=1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last["hidden"], hidden, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last["context"], context, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("kind", ["plain", "attention"])
def test_loss_is_the_sum_of_the_steps_log_probabilities(kind, cell, tie):
    decoder, state, memory = make(kind, cell, tie)
    memory = decoder.prepare(memory)
    loss = decoder.loss(TARGETS, WRITTEN, state, memory, label_smoothing=0.0)
    total, count = 0.0, 0
    for t in range(3):
        log_probs, state = decoder.step(TARGETS[:, t], state, memory)
        assert log_probs.exp().sum(1).tolist() == pytest.approx([1.0] * (B * R), abs=1e-5)
        for n in range(B * R):
            if TARGETS[n, t + 1] != PAD:
                # a search never writes padding, so its distribution has no mass there; training's has
                total -= log_probs[n, TARGETS[n, t + 1]].item()
                count += 1
    assert int(loss.terms) == count == 12
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-5)


def test_a_loss_weighted_by_text_is_the_weighted_sum_of_the_texts_losses():
    decoder, state, memory = make("attention", "gru")
    memory = decoder.prepare(memory)
    weights = torch.tensor([0.5, -1.0, 3.0, 0.0, 2.0, 1.0])
    loss = decoder.loss(TARGETS, WRITTEN, state, memory, 0.0, weights)
    only = [decoder.loss(TARGETS, WRITTEN, state, memory, 0.0, row).total for row in torch.eye(B * R)]
    assert float(loss.total.detach()) == pytest.approx(float(torch.stack(only).detach() @ weights), rel=1e-5)
    assert int(loss.terms) == 12


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_gradients_equal_those_of_plain_autograd(cell, monkeypatch):
    def gradients():
        decoder, state, memory = make("attention", cell)
        state = {name: tensor.requires_grad_() for name, tensor in state.items()}
        decoder.loss(TARGETS, WRITTEN, state, decoder.prepare(memory), 0.1).total.backward()
        leaves = {**dict(decoder.named_parameters()), **state, "keys": memory["keys"]}
        return {name: leaf.grad for name, leaf in leaves.items()}

    collected = gradients()
    monkeypatch.setattr(RepeatedProduct, "__call__", lambda self, x: x @ self.matrix)
    torch.testing.assert_close(collected, gradients(), atol=1e-5, rtol=1e-4)


def test_a_shared_memory_is_that_of_a_loss():
    decoder, state, memory = make("attention", "lstm")
    plain = decoder.prepare(memory)
    shared = decoder.share(plain, words=6)
    assert set(shared) == {"mask", "projected", "gates", "readout"}
    assert decoder.share(plain, words=5) is plain, "two thirds of the places"
    assert decoder.share(shared, words=5) is shared
    torch.testing.assert_close(
        decoder.loss(TARGETS, WRITTEN, state, shared, 0.1), decoder.loss(TARGETS, WRITTEN, state, plain, 0.1)
    )


@pytest.mark.parametrize("kind", ["plain", "attention"])
def test_label_smoothing_mixes_in_the_uniform_distribution(kind):
    decoder, state, memory = make(kind, "gru")
    memory = decoder.prepare(memory)
    sharp, smooth, uniform = (
        float(decoder.loss(TARGETS, WRITTEN, state, memory, s).total.detach()) for s in (0.0, 0.2, 1.0)
    )
    assert smooth == pytest.approx(0.8 * sharp + 0.2 * uniform, rel=1e-5)


def test_weights_of_texts():
    decoder, state, memory = make("attention", "gru")
    memory, weights = decoder.prepare(memory), torch.tensor([1.0, -2.0, 0.0, 0.5, 0.0, 3.0])
    loss = decoder.loss(TARGETS, WRITTEN, state, memory, 0.0, weights)
    parts = [
        decoder.loss(*asked(torch.where(torch.arange(6).unsqueeze(1) == row, TARGETS, PAD)), state, memory, 0.0).total
        for row in range(6)
    ]
    assert loss.total.item() == pytest.approx(sum(w * p.item() for w, p in zip(weights.tolist(), parts, strict=True)))
    assert loss.terms == decoder.loss(TARGETS, WRITTEN, state, memory, 0.0).terms


def test_padding_rows_and_columns_cost_nothing():
    decoder, state, memory = make("attention", "lstm")
    memory = decoder.prepare(memory)
    loss = decoder.loss(TARGETS, WRITTEN, state, memory, 0.0)
    wider = decoder.loss(*asked(F.pad(TARGETS, (0, 3), value=PAD)), state, memory, 0.0)
    torch.testing.assert_close(wider, loss)


def test_tied_weights_are_held_once():
    assert "output_weight" not in make("plain", "gru")[0].state_dict()
    assert make("plain", "gru", tie=False)[0].output_weight.shape == (V, E)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_attend_gives_the_weights_of_every_step(cell):
    decoder, state, memory = make("attention", cell)
    texts = [[5, 6], [7], [], [4, 9], [5], [6, 7]]
    prepared = decoder.prepare(memory)
    found = decoder.attend(texts, state, prepared)
    assert [weights.shape for weights in found] == [(len(text) + 1, S) for text in texts]
    keys, mask = (memory[name].repeat_interleave(R, dim=0) for name in ("keys", "mask"))
    for t in range(3):
        words = torch.tensor([[BOS, *text, PAD, PAD][t] for text in texts])
        _, state = decoder.unroll(decoder.embedding(words.unsqueeze(1)), state, prepared)
        _, expected = decoder.attention(state["hidden"], keys, mask)
        for text, weights, row in zip(texts, found, expected, strict=True):
            if t <= len(text):
                torch.testing.assert_close(torch.from_numpy(weights[t]), row)
    plain, state, memory = make("plain", cell)
    assert plain.attend(texts, state, memory) is None


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("tie", [True, False])
def test_a_search_with_multiplied_keys_steps_as_one_with_contexts(cell, tie):
    decoder, state, memory = make("attention", cell, tie)
    decoder.eval()
    plain = decoder.prepare(memory)
    looked_up = decoder.look_up(plain, [9, 9], OPTIONS)
    assert set(looked_up) == {"mask", "projected", "gates", "readout"}
    assert decoder.look_up(plain, [1, 2], OPTIONS) is plain, "few words are written, so contexts are multiplied"
    other = state
    for tokens in (torch.full((B * R,), BOS), torch.arange(4, 4 + B * R), torch.full((B * R,), 7)):
        expected, state = decoder.step(tokens, state, plain)
        found, other = decoder.step(tokens, other, looked_up)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(other["hidden"], state["hidden"])


@pytest.mark.parametrize("kind", ["plain", "attention", "multiplied"])
def test_a_step_compiles_as_one_graph(kind):
    """Without attention the weights are those of torch's own RNN, a module that it takes only if told to."""
    decoder, state, memory = make("plain" if kind == "plain" else "attention", "lstm")
    decoder.eval()
    words = torch.arange(4, 4 + B * R)
    with torch.no_grad(), torch._dynamo.config.patch(allow_rnn=True):
        memory = decoder.prepare(memory)
        if kind == "multiplied":
            memory = decoder.look_up(memory, [9, 9], OPTIONS)
        compiled = torch.compile(decoder.step, fullgraph=True, backend="eager")
        other = state
        for tokens in (torch.full((B * R,), BOS), words):  # a first step has looked nowhere yet
            expected, state = decoder.step(tokens, state, memory)
            found, other = compiled(tokens, other, memory)
            assert torch.equal(found, expected)
            assert other.keys() == state.keys()
            assert all(torch.equal(other[name], state[name]) for name in state)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("kind", ["plain", "attention", "multiplied"])
def test_a_step_in_half_precision_ends_in_float32(kind, cell):
    """A bfloat16 has 8 binary digits: of the words of a vocabulary many would be equally likely."""
    decoder, state, memory = make("plain" if kind == "plain" else "attention", cell)
    decoder.eval()
    nn.init.normal_(decoder.embedding.weight)
    for tokens in (torch.full((B * R,), BOS), torch.arange(4, 4 + B * R)):
        steps = []
        for half in (False, True):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, half):
                prepared = decoder.prepare(memory)
                if kind == "multiplied":
                    prepared = decoder.look_up(prepared, [9, 9], OPTIONS)
                steps.append(decoder.step(tokens, state, prepared))
        (expected, _), (found, after) = steps
        assert found.dtype == after["hidden"].dtype == torch.float32
        torch.testing.assert_close(found.exp().sum(dim=1), torch.ones(B * R))
        assert 0 < (found - expected).abs().max() < 0.05
        assert (found.bfloat16() != found).float().mean() > 0.9, "no number of 8 digits"


class Casts(TorchDispatchMode):
    """Counts how often each of some matrices is made another type's."""

    def __init__(self, matrices: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self._names = {matrix.data_ptr(): name for name, matrix in matrices.items()}
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        given = args[0] if args else None
        if isinstance(given, torch.Tensor) and isinstance(made, torch.Tensor) and made.dtype != given.dtype:
            self.counts[self._names.get(given.data_ptr(), "others")] += 1
        return made


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("kind", ["plain", "attention"])
def test_a_search_in_half_precision_casts_its_matrices_once(kind, cell):
    """And finds, to the last bit, what a search does that casts them at each step."""
    decoder, state, memory = make(kind, cell)
    decoder.eval()
    nn.init.normal_(decoder.embedding.weight)
    state = {name: values[:B] for name, values in state.items()}
    exact = ("embedding.weight", "output_weight")
    matrices = {name: one for name, one in decoder.named_parameters() if one.dim() > 1 and name not in exact}
    options = SearchOptions(BOS, EOS, beam_size=R, never=(PAD, BOS))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        memory = decoder.prepare(memory)
        with Casts(matrices) as once:
            found = decoder.search(state, memory, [9, 7], options)
        with Casts(matrices) as each:
            expected = search(decoder.step, state, decoder.look_up(in_places(memory), [9, 7], options), [9, 7], options)
    assert found == expected
    assert max(once.counts[name] for name in matrices) <= 2, "by itself, and where keys are multiplied"
    stepped = [name for name in matrices if "key" not in name and "context" not in name]
    assert len(stepped) > 2
    assert min(each.counts[name] for name in stepped) > 2
    assert decoder.cast_once() is decoder, "nothing is cast"
    assert {one.dtype for one in decoder.parameters()} == {torch.float32}


def test_a_search_with_multiplied_keys_finds_what_one_with_contexts_does():
    decoder, _, memory = make("attention", "gru")
    state, options = {"hidden": torch.randn(B, D)}, SearchOptions(BOS, EOS, beam_size=R, never=(PAD, BOS))
    with torch.inference_mode():
        memory = decoder.prepare(memory)
        assert decoder.look_up(memory, [9, 7], options) is not memory
        found = decoder.search(state, memory, [9, 7], options)
        expected = search(decoder.step, state, memory, [9, 7], options)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-5)
