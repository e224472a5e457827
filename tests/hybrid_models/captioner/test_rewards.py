"""Advantages against CIDEr-D computed one caption at a time."""

import numpy as np
import pytest

from hybrid_models.captioner.rewards import advantages, whole
from hybrid_models.errors import UsageError
from hybrid_models.scores.texts import cider_d

REFERENCES = [
    ["a dog runs on grass", "the brown dog runs"],
    ["two men on a red bus", "men sit in a bus"],
    ["a cat sleeps"],
]
DRAWN = [
    ["a dog runs", "a cat sleeps", "a dog runs on"],
    ["a red bus", "two men", "dog"],
    ["a cat", "a cat sleeps", "a"],
]


def test_an_advantage_is_over_the_mean_of_the_others_of_its_image():
    found = advantages(DRAWN, REFERENCES)
    assert found.shape == (3, 3)
    scores = [cider_d([texts[k] for texts in DRAWN], REFERENCES).parts[:, 0] for k in range(3)]
    for column in range(3):
        others = [scores[k] for k in range(3) if k != column]
        np.testing.assert_allclose(found[:, column], scores[column] - np.mean(others, axis=0))
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-9)


def test_what_matches_is_better_than_what_does_not():
    found = advantages(DRAWN, REFERENCES)
    assert found[0].argmin() == 1
    assert found[1].argmin() == 2
    assert found[2].argmax() == 1


def test_breaking_off_does_not_pay():
    """Texts that say where they end lose more by breaking off than CIDEr-D alone says."""
    references = [["a dog runs on the grass"], ["a cat sleeps"]]
    drawn = [["a dog runs on the grass", "a dog runs on the"], ["a cat", "a cat"]]
    plain = np.diff(advantages(drawn, references)[0])
    ending = [[whole(text) for text in texts] for texts in references]
    ended = np.diff(advantages([[whole(text) for text in texts] for texts in drawn], ending)[0])
    cut = np.diff(advantages([[whole(drawn[0][0]), drawn[0][1]], drawn[1]], ending)[0])
    assert ended < 1.5 * plain < 0
    assert cut < 1.5 * plain


def test_one_image_teaches_nothing():
    with pytest.raises(UsageError, match=r"raise train\.batch_size"):
        advantages([["a cat", "a dog"]], [["a cat"]])
