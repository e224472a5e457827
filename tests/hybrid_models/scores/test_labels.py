"""Scores of labels against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from hybrid_models.scores.labels import accuracy, confusion, macro_f1


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    true = [str(label) for label in rng.choice(list("abcd"), 50, p=[0.6, 0.2, 0.15, 0.05])]
    said = [label if rng.random() < 0.7 else str(rng.choice(list("abcxy"))) for label in true]
    assert accuracy(true, said).total == pytest.approx(accuracy_score(true, said))
    assert macro_f1(true, said).total == pytest.approx(f1_score(true, said, average="macro", zero_division=0))
    found = confusion(true, said)
    assert found["counts"] == confusion_matrix(true, said, labels=found["labels"]).tolist()
    drawn = rng.integers(0, 50, 50)  # resampled, as significance tests do
    again = [[labels[i] for i in drawn] for labels in (true, said)]
    for score in (accuracy, macro_f1):
        assert score(true, said).score(score(true, said).parts[drawn].sum(0)) == pytest.approx(score(*again).total)


def test_a_perfect_score_is_one_and_a_constant_answer_is_not():
    true = ["a"] * 9 + ["b"]
    assert (accuracy(true, true).total, macro_f1(true, true).total) == (1, 1)
    assert accuracy(true, ["a"] * 10).total == 0.9
    assert macro_f1(true, ["a"] * 10).total == pytest.approx((18 / 19 + 0) / 2)
