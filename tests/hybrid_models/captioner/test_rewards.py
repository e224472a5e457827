"""Advantages, and CIDEr-D of tokens on a device, against CIDEr-D of texts computed one caption at a time."""

import numpy as np
import pytest
import torch

from hybrid_models.captioner.rewards import advantages, cider_d_of_tokens, spelling_of
from hybrid_models.errors import UsageError
from hybrid_models.scores.texts import cider_d
from hybrid_models.symbols import BOS, EOS, MIN_VOCABULARY, PAD
from hybrid_models.text import Tokenizer, pad_rows

REFERENCES = [
    ["a dog runs on grass", "the brown dog runs"],
    ["two men on a red bus", "men sit in a bus", "a bus a bus a bus"],
    ["a cat sleeps"],
]
DRAWN = [
    ["a dog runs", "a cat sleeps", "a dog runs on"],
    ["a red bus", "a bus a bus", "dog"],
    ["a cat", "a cat sleeps", ""],
]
TOKENIZER = Tokenizer.train([text for texts in REFERENCES for text in texts] * 3, MIN_VOCABULARY + 40)
SPELLING = spelling_of(TOKENIZER.spelling(), torch.device("cpu"))


def row(text, start=(), end=(EOS,), tokenizer=TOKENIZER):
    return np.asarray([*start, *tokenizer.encode(text, 99), *end])


def padded(groups, start=(), end=(EOS,), tokenizer=TOKENIZER):
    """int64 [groups,most,longest]; texts that a group lacks are padding."""
    most = max(map(len, groups))
    rows = [row(text, start, end, tokenizer) for texts in groups for text in texts]
    found = np.full((len(groups), most, max(map(len, rows))), PAD)
    for i, texts in enumerate(groups):
        found[i, : len(texts)] = pad_rows([row(text, start, end, tokenizer) for text in texts], found.shape[2])
    return torch.from_numpy(found)


def whole(text):
    """With a word where it ends, as rewards see it."""
    return f"{text} endofcaption"


def scores(drawn, references):
    """CIDEr-D of each drawn text [images,captions]."""
    columns = [cider_d([texts[k] for texts in drawn], references).parts[:, 0] for k in range(len(drawn[0]))]
    return torch.from_numpy(np.stack(columns, axis=1)).float()


def test_tokens_score_as_their_texts_do():
    ended = [[whole(text) for text in texts] for texts in REFERENCES]
    found = cider_d_of_tokens(padded(DRAWN), padded(REFERENCES, [BOS]), SPELLING)
    torch.testing.assert_close(found, scores([[whole(text) for text in texts] for texts in DRAWN], ended))
    broken_off = cider_d_of_tokens(padded(DRAWN, end=()), padded(REFERENCES, [BOS]), SPELLING)
    torch.testing.assert_close(broken_off, scores(DRAWN, ended))


def test_many_random_texts_score_as_texts_do():
    """Of few words, so that n-grams come again, among a text's own and among images."""
    rng = np.random.default_rng(0)
    words = ["a", "dog", "cat", "runs", "réd", "dogs", "at", "adog"]

    def text(least):
        return " ".join(rng.choice(words, rng.integers(least, 12)))

    references = [[text(1) for _ in range(rng.integers(1, 5))] for _ in range(20)]
    drawn = [[text(0) for _ in range(5)] for _ in range(20)]
    found = cider_d_of_tokens(padded(drawn), padded(references, [BOS]), SPELLING)
    expected = scores([[whole(text) for text in texts] for texts in drawn], [list(map(whole, r)) for r in references])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.unique().numel() > 50


@pytest.mark.parametrize("extra", [[], ["Ġ"]])
def test_words_are_the_same_in_whatever_pieces_they_are_drawn(extra):
    """Letter by letter, and with spaces that are tokens of their own."""
    ids = {token: i for i, token in enumerate(TOKENIZER.spelling())}
    letters = [ids["", True], ids["a", False]]
    for word in ("dog", "runs"):
        letters += [ids["", True]] * (1 + len(extra)) + [ids[letter, False] for letter in word]
    canonical = row("a dog runs")
    assert TOKENIZER.decode(letters).split() == TOKENIZER.decode(canonical).split()
    drawn = torch.from_numpy(pad_rows([np.asarray([*letters, EOS]), canonical])).expand(3, -1, -1)
    found = cider_d_of_tokens(drawn, padded(REFERENCES, [BOS]), SPELLING)
    torch.testing.assert_close(found[:, 0], found[:, 1])
    assert found[0, 0] > 1


def test_an_advantage_is_over_the_mean_of_the_others_of_its_image():
    found = advantages(padded(DRAWN), padded(REFERENCES, [BOS]), SPELLING)
    rewards = scores([list(map(whole, texts)) for texts in DRAWN], [list(map(whole, texts)) for texts in REFERENCES])
    for column in range(3):
        others = [rewards[:, k] for k in range(3) if k != column]
        torch.testing.assert_close(
            found[:, column], rewards[:, column] - torch.stack(others).mean(dim=0), atol=1e-5, rtol=1e-5
        )
    torch.testing.assert_close(found.sum(dim=1), torch.zeros(3), atol=1e-5, rtol=0)


def test_what_matches_is_better_than_what_does_not():
    found = advantages(padded(DRAWN), padded(REFERENCES, [BOS]), SPELLING)
    assert found.argmin(dim=1).tolist() == [1, 2, 2]
    assert found[2].argmax() == 1


def test_breaking_off_does_not_pay():
    """Texts that say where they end lose more by breaking off than CIDEr-D alone says."""
    references = [["a dog runs on the grass"], ["a cat sleeps"]]
    drawn = [["a dog runs on the grass", "a dog runs on the"], ["a cat", "a cat"]]
    plain = scores(drawn, references)[0].diff()
    tokens = padded(drawn)
    ended = advantages(tokens, padded(references, [BOS]), SPELLING)[0].diff()
    tokens[0, 1][tokens[0, 1] == EOS] = PAD
    cut = advantages(tokens, padded(references, [BOS]), SPELLING)[0].diff()
    assert ended < 1.5 * plain < 0
    assert cut < 1.5 * plain


def test_one_image_teaches_nothing():
    with pytest.raises(UsageError, match=r"raise train\.batch_size"):
        advantages(padded([["a cat", "a dog"]]), padded([["a cat"]], [BOS]), SPELLING)


def test_what_cannot_be_scored_is_worth_nothing():
    """Captions without a word."""
    references = padded([["a cat"], ["a dog"]], [BOS])
    nothing = torch.full((2, 2, 3), PAD)
    assert cider_d_of_tokens(nothing, references, SPELLING).tolist() == [[0, 0], [0, 0]]
