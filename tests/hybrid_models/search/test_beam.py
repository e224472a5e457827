"""Beam search against brute force over every possible output."""

import math

import pytest
import torch
from torch import nn

from hybrid_models import shapes
from hybrid_models.search import beam
from hybrid_models.search.beam import Hypothesis, inference, length_penalty, search
from hybrid_models.search.options import SearchOptions
from tests.hybrid_models.search.made import END, START, TableModel, repeats
from tests.waits import Waits


def run(model, sources, limits, **options):
    state, memory = model.initial(sources)
    return search(model.step, state, memory, limits, SearchOptions(START, END, **options))


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("min_length", [0, 2])
def test_a_wide_beam_is_the_exact_argmax(alpha, min_length):
    model = TableModel(6)
    found = run(model, list(range(6)), [5] * 6, beam_size=64, length_penalty=alpha, min_length=min_length)
    for source, hypothesis in enumerate(found):
        expected = model.best(source, min_length, 5, alpha)
        assert hypothesis.tokens == expected.tokens
        assert hypothesis.score == pytest.approx(expected.score, abs=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_sequence_is_written_twice_and_the_best_of_the_rest_wins(n):
    model = TableModel(12, end_bias=-1.0)
    found = run(model, list(range(12)), [6] * 12, beam_size=128, no_repeat=n)
    for source, hypothesis in enumerate(found):
        expected = model.best(source, 0, 6, 1.0, no_repeat=n)
        assert hypothesis.tokens == expected.tokens
        assert hypothesis.score == pytest.approx(expected.score, abs=1e-5)
    free = run(model, list(range(12)), [6] * 12, beam_size=128)
    assert any(repeats(tuple(hypothesis.tokens), n) for hypothesis in free)


def test_what_is_longer_than_any_text_repeats_in_none():
    model = TableModel(12, end_bias=-1.0)
    free = run(model, list(range(12)), [6] * 12, beam_size=8)
    for n in (7, 8, 9, 10**12):
        assert run(model, list(range(12)), [6] * 12, beam_size=8, no_repeat=n) == free


@pytest.mark.parametrize("seed", range(5))
def test_beam_one_is_greedy(seed):
    model = TableModel(8, seed)
    found = run(model, list(range(8)), [7] * 8, beam_size=1)
    assert [hypothesis.tokens for hypothesis in found] == [model.greedy(source, 7) for source in range(8)]


def test_a_score_is_the_normalised_log_probability_of_its_tokens():
    model = TableModel(8)
    for source, hypothesis in enumerate(run(model, list(range(8)), [9] * 8, beam_size=3, length_penalty=0.6)):
        tokens = tuple(hypothesis.tokens)
        expected = model.log_prob(source, tokens) / ((5 + len(tokens) + 1) / 6) ** 0.6
        assert hypothesis.score == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shaped", [False, True])
@pytest.mark.parametrize("alpha", [0.6, 2.0])
def test_what_comes_after_a_source_is_done_does_not_count(monkeypatch, shaped, alpha):
    """It stays in the batch for a while: alone, and looked at after each step, it would have left at once."""
    model, options = TableModel(60, seed=3), {"beam_size": 4, "length_penalty": alpha, "min_length": 1}
    alone = [run(model, [source], [9], **options)[0] for source in range(60)]
    monkeypatch.setattr(shapes, "has_shapes", lambda device: shaped)
    together = run(model, list(range(60)), [9] * 60, **options)
    assert [found.tokens for found in together] == [found.tokens for found in alone]


def test_a_likely_long_text_is_not_left_for_short_ones_that_have_ended():
    """A net that has learned by heart: the words of the right text are nearly sure, the end after each is not."""
    length, sure = 9, math.log(0.99)

    def step(tokens, state, memory):
        written = state["written"] + 1
        log_probs = torch.full((len(tokens), 4), -50.0)
        right = (written <= length).squeeze(1)
        log_probs[:, 2] = torch.where(right, sure, -50.0)
        log_probs[:, END] = torch.where(right, math.log(0.005), sure)
        log_probs[:, 3] = math.log(0.004)
        return log_probs, {"written": written}

    state = {"written": torch.zeros(1, 1)}
    for beam_size in (1, 2, 5):
        options = SearchOptions(START, END, beam_size)
        (found,) = search(step, state, {"keys": torch.zeros(1, 1)}, [20], options)
        assert found.tokens == [2] * length
        assert found.score == pytest.approx((length + 1) * sure / length_penalty(length + 1, 1.0), abs=1e-5)


@pytest.mark.parametrize("beam_size", [1, 2, 5])
def test_a_batch_of_different_sources_equals_each_alone(beam_size):
    model, limits = TableModel(10, end_bias=0.5), [9, 3, 1, 0, 5, 9, 9, 2, 7, 4]
    together = run(model, list(range(10)), limits, beam_size=beam_size)
    alone = [run(model, [source], [limits[source]], beam_size=beam_size)[0] for source in range(10)]
    assert together == alone
    assert together == run(model, list(range(10)), limits, beam_size=beam_size)
    assert all(len(hypothesis.tokens) <= limit for hypothesis, limit in zip(together, limits, strict=True))


def test_a_wider_beam_finds_what_a_narrow_one_misses():
    model = TableModel(30)
    narrow = run(model, list(range(30)), [6] * 30, beam_size=1, length_penalty=0.0)
    wide = run(model, list(range(30)), [6] * 30, beam_size=64, length_penalty=0.0)
    better = [w.score - n.score for n, w in zip(narrow, wide, strict=True)]
    assert min(better) > -1e-5
    assert max(better) > 0.1


def test_length_penalty_favours_longer_outputs():
    model = TableModel(30)
    lengths = [
        sum(len(h.tokens) for h in run(model, list(range(30)), [8] * 30, beam_size=64, length_penalty=alpha))
        for alpha in (0.0, 1.0, 3.0)
    ]
    assert lengths[0] < lengths[1] < lengths[2]
    assert length_penalty(7, 1.0) == 2.0
    assert length_penalty(100, 0.0) == 1.0


def test_length_limits_hold_and_the_maximum_wins():
    model = TableModel(12, end_bias=5.0)
    assert all(len(h.tokens) == 0 for h in run(model, list(range(12)), [6] * 12, beam_size=3))
    assert all(len(h.tokens) >= 3 for h in run(model, list(range(12)), [6] * 12, beam_size=3, min_length=3))
    assert all(len(h.tokens) == 2 for h in run(model, list(range(12)), [2] * 12, beam_size=3, min_length=5))
    never_ends = TableModel(12, end_bias=-50.0)
    found = run(never_ends, list(range(12)), [6] * 12, beam_size=3)
    assert all(len(h.tokens) == 6 and math.isfinite(h.score) for h in found)


def test_finished_sources_leave_the_batch():
    model = TableModel(8, end_bias=-50.0)
    run(model, list(range(8)), [1, 1, 1, 1, 1, 1, 1, 6], beam_size=2)
    assert model.rows_seen == [16, 16, 2, 2, 2, 2, 2]


def test_where_shapes_count_there_are_few(monkeypatch):
    """A batch's size has three binary digits, and so has that of those that go on after eight steps."""
    model, limits = TableModel(44, end_bias=-50.0), [3] * 35 + [11] * 9
    expected = run(model, list(range(44)), limits, beam_size=2)
    model.rows_seen.clear()
    monkeypatch.setattr(shapes, "has_shapes", lambda device: True)
    assert run(model, list(range(44)), limits, beam_size=2) == expected
    assert model.rows_seen == [96] * 8 + [20] * 4


def test_memory_gets_places_that_are_masked_where_shapes_count(monkeypatch):
    memory = {"keys": torch.ones(2, 5, 3), "mask": torch.ones(2, 5, dtype=torch.bool)}
    assert beam.in_places(memory) is memory
    monkeypatch.setattr(shapes, "has_shapes", lambda device: True)
    more = beam.in_places(memory)
    assert {name: tensor.shape for name, tensor in more.items()} == {"keys": (2, 8, 3), "mask": (2, 8)}
    assert more["mask"].tolist() == [[True] * 5 + [False] * 3] * 2
    assert torch.equal(more["keys"][:, :5], memory["keys"])
    assert not more["keys"][:, 5:].any()
    assert beam.in_places(more) is more


def test_few_that_are_finished_stay_since_the_others_would_be_copied():
    model = TableModel(16, end_bias=-50.0)
    run(model, list(range(16)), [1, *[3] * 13, 6, 6], beam_size=2)
    assert model.rows_seen == [32, 32, 32, 32, 4, 4, 4]


def test_impossible_continuations_give_no_nan():
    model = TableModel(4)
    model.table[..., 2:] = float("-inf")
    model.table[..., END] = 0.0
    found = run(model, [0, 1, 2, 3], [5] * 4, beam_size=4)
    assert found == [Hypothesis([], 0.0)] * 4


def test_forbidden_tokens_are_never_written():
    found = run(TableModel(10), list(range(10)), [6] * 10, beam_size=3, min_length=3, never=(START, 2))
    assert {token for hypothesis in found for token in hypothesis.tokens} == {3}


def test_no_sources():
    assert run(TableModel(1), [], []) == []


def test_inference_restores_the_mode():
    net = nn.Dropout().train()

    def fail():
        with inference(net):
            assert not net.training
            assert torch.is_inference_mode_enabled()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert net.training
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("vocabulary", [5, 127, 128, 300, 1000])
@pytest.mark.parametrize("count", [1, 2, 10])
def test_the_best_continuations_are_those_of_a_whole_vocabulary(vocabulary, count):
    generator = torch.Generator().manual_seed(vocabulary)
    log_probs = torch.randn(3 * 4, vocabulary, generator=generator)
    log_probs[1, 7:] = log_probs[4:8] = float("-inf")
    held = torch.randn(3, 4, generator=generator)
    held[2, 1:] = float("-inf")
    total, choice = beam._continuations(held, log_probs, count)
    every = (held.unsqueeze(2) + log_probs.view(3, 4, -1)).flatten(1)
    best = every.topk(count, dim=1).values
    assert torch.equal(total, best)
    assert torch.equal(every.gather(1, choice), best), "and they are where it says"
    assert all(
        len(set(row)) == count for row, value in zip(choice.tolist(), best, strict=True) if value.isfinite().all()
    )


@pytest.mark.parametrize("shaped", [False, True])
@pytest.mark.parametrize("most", [4, 7, 8, 12, 39])
def test_a_search_waits_for_its_device_every_few_steps_only(monkeypatch, most, shaped):
    """And after the last one, for all that it has found."""
    waits = Waits()

    class Model(TableModel):
        def step(self, tokens, state, memory):
            with waits.ignored():
                return super().step(tokens, state, memory)

    model, limits = Model(10, end_bias=-50.0), [most] * 9 + [3]
    model.table = model.table.repeat(1, 4, 1, 1, 1)
    options = {"beam_size": 3, "no_repeat": 9, "min_length": 2, "never": (START,)}
    expected = run(model, list(range(10)), limits, **options)
    monkeypatch.setattr(shapes, "has_shapes", lambda device: shaped)
    state, memory = model.initial(list(range(10)))
    with waits:
        found = search(model.step, state, memory, limits, SearchOptions(START, END, **options))
    assert found == expected
    steps = max(len(hypothesis.tokens) for hypothesis in found) + 1
    assert steps == most + 1
    assert waits.count == ({5: 1, 8: 1, 9: 1, 13: 2, 40: 5}[steps] if shaped else steps)
    assert not shaped or waits.count <= 0.2 * steps
