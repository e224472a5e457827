"""Drawing against exact probabilities."""

import itertools
import math

import pytest
import torch

from hybrid_models import shapes
from hybrid_models.search.options import SearchOptions
from hybrid_models.search.sampling import sample_words
from hybrid_models.symbols import PAD
from tests.hybrid_models.search.made import END, START, TableModel, V
from tests.waits import Waits


def texts_of(drawn, count):
    """Lists of tokens, as many of each source."""
    texts = [[token for token in row if token != PAD] for row in drawn.tolist()]
    return [texts[first : first + count] for first in range(0, len(texts), count)]


def test_outputs_are_drawn_as_often_as_they_are_likely():
    model, count = TableModel(2, end_bias=1.0), 4000
    torch.manual_seed(0)
    state, memory = model.initial([0, 1])
    options = SearchOptions(START, END, never=(PAD,))
    drawn = texts_of(sample_words(model.step, state, memory, 8, options, count), count)
    assert [len(outputs) for outputs in drawn] == [count, count]
    for source, outputs in enumerate(drawn):
        likely = sorted(
            (tokens for length in range(3) for tokens in itertools.product(range(2, V), repeat=length)),
            key=lambda tokens: -model.log_prob(source, tokens),
        )
        for tokens in likely[:3]:
            share = sum(output == [*tokens, END] for output in outputs) / count
            assert share == pytest.approx(math.exp(model.log_prob(source, tokens)), abs=0.03)


def test_drawn_outputs_keep_to_their_length_and_words():
    model = TableModel(3, end_bias=-50.0)
    state, memory = model.initial([0, 1, 2])
    options = SearchOptions(START, END, never=(START, 2))
    assert texts_of(sample_words(model.step, state, memory, 4, options, 2), 2) == [[[3] * 4] * 2] * 3


def test_drawing_ends_with_the_last_output_and_waits_for_no_device(monkeypatch):
    waits, options = Waits(), SearchOptions(START, END, never=(PAD,))

    class Model(TableModel):
        def step(self, tokens, state, memory):
            with waits.ignored():
                return super().step(tokens, state, memory)

    def drawn():
        model = Model(3, end_bias=1.0)
        torch.manual_seed(2)
        return sample_words(model.step, *model.initial([0, 1, 2]), 12, options, 4)

    expected = drawn()
    lengths = [len(text) for group in texts_of(expected, 4) for text in group]
    assert min(lengths) < max(lengths) == expected.shape[1] < 12
    monkeypatch.setattr(shapes, "has_shapes", lambda device: True)
    with waits:
        found = drawn()
    assert waits.count == 0
    assert found.shape == (12, 12)
    assert texts_of(found, 4) == texts_of(expected, 4)


@pytest.mark.parametrize(("uniform", "output"), [(0.0, [END]), (1 - 2**-24, [2, 2, 2])])
def test_a_word_without_probability_is_not_drawn_by_the_outermost_numbers(uniform, output, monkeypatch):
    monkeypatch.setattr(torch, "rand_like", lambda like: torch.full_like(like, uniform))
    model = TableModel(2)
    options = SearchOptions(START, END, never=(START, V - 1))
    assert texts_of(sample_words(model.step, *model.initial([0, 1]), 3, options, 2), 2) == [[output] * 2] * 2
