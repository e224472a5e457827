"""Advantages against CIDEr-D computed one caption at a time."""

import numpy as np
import pytest

from hybrid_models import metrics
from hybrid_models.self_critical import advantages

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
    for column in range(3):
        scores = [
            metrics.cider_d_tally(
                [f"{texts[k]} endofcaption" for texts in DRAWN],
                [[f"{text} endofcaption" for text in texts] for texts in REFERENCES],
            ).parts[:, 0]
            for k in range(3)
        ]
        others = [scores[k] for k in range(3) if k != column]
        np.testing.assert_allclose(found[:, column], scores[column] - np.mean(others, axis=0))
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-9)


def test_what_matches_is_better_than_what_does_not():
    found = advantages(DRAWN, REFERENCES)
    assert found[0].argmin() == 1
    assert found[1].argmin() == 2
    assert found[2].argmax() == 1


def test_breaking_off_does_not_pay():
    """The end counts as a word: to leave it out costs more than CIDEr-D alone says."""
    references = [["a dog runs on the grass"], ["a cat sleeps"]]
    drawn = [["a dog runs on the grass", "a dog runs on the"], ["a cat", "a cat"]]
    whole, broken = advantages(drawn, references)[0]
    plain = [metrics.cider_d_tally([texts[k] for texts in drawn], references).parts[0, 0] for k in range(2)]
    assert whole - broken > 3 * (plain[0] - plain[1]) > 0
    assert advantages([["a cat"] * 2] * 2, references) == pytest.approx(np.zeros((2, 2)))
