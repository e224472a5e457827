"""The walk of a whole text with attention against autograd, which goes step by step."""

import pytest
import torch
from torch.autograd.function import FunctionCtx

from hybrid_models.layers.word_decoder import AttentionDecoder, WordDecoder
from tests.hybrid_models.layers.test_word_decoder import TARGETS, WRITTEN, make


def reading(read, cell, bf16=False):
    """A loss and its gradients, of a decoder that reads its texts by `read`."""
    decoder, state, memory = make("attention", cell)
    state = {name: tensor.requires_grad_() for name, tensor in state.items()}
    decoder.read = read.__get__(decoder)
    with torch.autocast("cpu", torch.bfloat16, bf16):
        total = decoder.loss(TARGETS, WRITTEN, state, decoder.prepare(memory), 0.1).total
    total.backward()
    leaves = {**dict(decoder.named_parameters()), **state, "keys": memory["keys"]}
    return total.detach(), {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_walk_with_multiplied_keys_learns_what_autograd_does_step_by_step(cell):
    torch.testing.assert_close(
        reading(AttentionDecoder.read, cell), reading(WordDecoder.read, cell), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_walk_in_bfloat16_is_as_near_to_float32_as_autograd_is(cell):
    exact, walked, stepped = (
        torch.cat([grad.flatten() for grad in reading(read, cell, bf16)[1].values()])
        for read, bf16 in ((WordDecoder.read, False), (AttentionDecoder.read, True), (WordDecoder.read, True))
    )
    assert (walked - exact).norm() < 1.5 * (stepped - exact).norm() < 0.05 * exact.norm()


def test_a_walk_asks_for_its_gradients_once():
    decoder, state, memory = make("attention", "lstm")
    total = decoder.loss(TARGETS, WRITTEN, state, decoder.prepare(memory), 0.1).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be asked for once"):
        total.backward()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_walk_without_gradients_keeps_no_steps(mode, monkeypatch):
    kept = []
    monkeypatch.setattr(FunctionCtx, "save_for_backward", lambda ctx, *tensors: kept.append(len(ctx.kept)))
    decoder, state, memory = make("attention", "lstm")
    expected = decoder.loss(TARGETS, WRITTEN, state, decoder.prepare(memory), 0.0)
    assert kept == [3 * (1 + 6)]
    with mode():
        torch.testing.assert_close(decoder.loss(TARGETS, WRITTEN, state, decoder.prepare(memory), 0.0), expected)
    assert len(kept) == 1


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_walk_is_captured_whole_with_its_gradients(cell):
    """By torch's compiler, which what waits for the host, and what it does not know, would fail."""

    def read(decoder, *args):
        torch.compiler.reset()
        return torch.compile(AttentionDecoder.read, backend="aot_eager", fullgraph=True)(decoder, *args)

    torch.testing.assert_close(reading(read, cell), reading(AttentionDecoder.read, cell), atol=1e-6, rtol=1e-6)
    torch.compiler.reset()
