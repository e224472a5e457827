"""The paired bootstrap, against sacrebleu's own and against what theory says."""

import numpy as np
import pytest
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from hybrid_models.errors import UsageError
from hybrid_models.scores.significance import Difference, consecutive, paired_bootstrap
from hybrid_models.scores.texts import Tally, bleu
from tests import tiny


def means(values):
    """A mean as a tally."""
    return Tally(np.stack([values, np.ones(len(values))], axis=1), lambda total: float(total[0] / total[1]))


def test_the_interval_is_that_of_a_mean():
    rng = np.random.default_rng(1)
    first = rng.normal(size=400)
    second = first + rng.normal(0.1, 0.5, size=400)
    found = paired_bootstrap(means(first), means(second), range(400), resamples=4000)
    gains = second - first
    error = gains.std() / 20
    assert found.difference == pytest.approx(gains.mean())
    assert (found.first, found.second) == pytest.approx((first.mean(), second.mean()))
    assert found.low == pytest.approx(gains.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(gains.mean() + 1.96 * error, abs=0.1 * error)
    assert found.p < 0.01


def test_equal_models_do_not_differ():
    values = means(np.arange(20.0))
    assert paired_bootstrap(values, values, range(20)) == Difference(9.5, 9.5, 0.0, 0.0, 0.0, 1.0)


def test_what_depends_on_each_other_is_drawn_together():
    """Ten copies of each of twenty values are worth twenty, not two hundred."""
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=20).repeat(10), rng.normal(size=20).repeat(10)
    alone = paired_bootstrap(means(first), means(second), range(200), resamples=4000)
    together = paired_bootstrap(means(first), means(second), np.arange(20).repeat(10), resamples=4000)
    assert together.high - together.low == pytest.approx((alone.high - alone.low) * 10**0.5, rel=0.1)


def test_bleu_differs_as_in_sacrebleus_test():
    references = tiny.sentences(60, seed=1)
    rng = np.random.default_rng(3)
    systems = [
        [" ".join(word if rng.random() > share else "und" for word in text.split()) for text in references]
        for share in (0.5, 0.2)
    ]
    named = [("first", systems[0]), ("second", systems[1])]
    _, peer = PairedTest(named, {"BLEU": BLEU()}, [references], test_type="bs", n_samples=2000)()
    lists = [[text] for text in references]
    found = paired_bootstrap(*(bleu(texts, lists) for texts in systems), range(60), resamples=2000)
    assert (found.first, found.second) == pytest.approx(tuple(result.score for result in peer["BLEU"]))
    assert found.low < found.difference < found.high
    assert found.low > 0
    assert found.p < 0.05
    assert peer["BLEU"][1].p_value < 0.05


def test_blocks_are_neighbours_of_one_shard():
    keys = [("a", 0), ("a", 1), ("a", 2), ("a", 5), ("b", 0), ("b", 1), ("a", 3)]
    assert consecutive(keys, lambda shard: 2) == [0, 0, 1, 2, 3, 3, 1]
    assert consecutive(keys, lambda shard: 1) == list(range(7))
    assert consecutive(keys, lambda shard: {"a": 1, "b": 2}[shard]) == [0, 1, 2, 3, 4, 4, 5]


@pytest.mark.parametrize(("first", "second", "blocks"), [(4, 3, 4), (4, 4, 3), (0, 0, 0)])
def test_other_samples_and_none_are_refused(first, second, blocks):
    with pytest.raises(UsageError, match="both models must have the same, and some"):
        paired_bootstrap(means(np.ones(first)), means(np.ones(second)), range(blocks))


def test_one_block_has_no_interval():
    found = paired_bootstrap(means(np.ones(3)), means(np.full(3, 1.5)), [7] * 3)
    assert found == Difference(1.0, 1.5, 0.5, None, None, None)
