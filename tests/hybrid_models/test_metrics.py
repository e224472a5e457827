"""Scores equal those of the public reference implementations and of plain loops."""

import math

import numpy as np
import pytest
import xarray as xr
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from scores.categorical import BinaryContingencyManager
from scores.spatial import fss_2d

from hybrid_models.errors import UsageError
from hybrid_models.metrics import (
    RAIN_THRESHOLDS,
    bleu,
    bleu_tally,
    caption_bleu4,
    caption_bleu4_tally,
    caption_tokens,
    chrf,
    chrf_tally,
    cider_d,
    cider_d_tally,
    contingency,
    csi,
    error_sums,
    far,
    fss,
    fss_sums,
    pod,
)

WORDS = "a dog man runs jumps over the grass red ball water boy in with two street".split()  # noqa: SIM905


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def random_captions(rng, samples=60):
    """Hypotheses that share n-grams with 1 to 5 references each."""
    hypotheses, references = [], []
    for _ in range(samples):
        words = list(rng.choice(WORDS, rng.integers(6, 14)))
        refs = []
        for _ in range(rng.integers(1, 6)):
            cut = rng.integers(2, len(words))
            refs.append(" ".join([*words[:cut], *rng.choice(WORDS, rng.integers(1, 6))]))
        hypotheses.append(" ".join([*words[: rng.integers(4, len(words))], *rng.choice(WORDS, rng.integers(0, 3))]))
        references.append(refs)
    return hypotheses, references


# ---- text ----------------------------------------------------------------------------------------------------------
def test_bleu_of_one_pair_is_the_formula():
    # 13a tokens: "the cat sat on the mat ." / "the cat sat on a mat .": precisions 6/7, 4/6, 2/5, 1/4, equal lengths
    score, signature = bleu(["The cat sat on the mat."], [["The cat sat on a mat."]])
    assert score == pytest.approx(100 * (6 / 7 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25)
    assert "tok:13a" in signature
    assert "case:mixed" in signature


def test_bleu_is_cased_and_takes_different_numbers_of_references():
    hypotheses = ["A man rides a red bike today.", "Two dogs run on the beach."]
    references = [["A man rides a red bike today."], ["Two dogs play in the snow.", "Two dogs run on the beach."]]
    score, signature = bleu(hypotheses, references)
    assert score == pytest.approx(100)
    assert "nrefs:var" in signature
    assert bleu([text.lower() for text in hypotheses], references)[0] < 100


def test_chrf_is_100_for_a_copy_and_less_otherwise():
    assert chrf(["Ein Hund läuft."], [["Ein Hund läuft."]])[0] == pytest.approx(100)
    score, signature = chrf(["Ein Hund rennt."], [["Ein Hund läuft."]])
    assert 20 < score < 90
    assert "nc:6" in signature


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        (["a"], [["a"], ["b"]], "1 hypotheses"),
        ([], [], "no hypotheses"),
        (["a", "b"], [["a"], []], r"references\[1\]"),
        (["a"], ["a"], r"references\[0\]"),
    ],
)
def test_impossible_pairs_are_named(hypotheses, references, message):
    for metric in (bleu, chrf, caption_bleu4, cider_d):
        with pytest.raises(UsageError, match=message):
            metric(hypotheses, references)


def test_caption_tokens_split_like_the_penn_treebank_without_punctuation():
    text = "A man's T-shirt, \"it's red\"; he doesn't (cannot) see Mr. Smith at 3:30 in the U.S. -- no..."
    tokens = "a man 's t-shirt it 's red he does n't can not see mr. smith at 3:30 in the u.s. no"
    assert " ".join(caption_tokens(text)) == tokens
    assert caption_tokens(" .,;!? ") == []


def test_caption_bleu4_equals_coco_caption(rng):
    hypotheses, references = random_captions(rng)
    theirs, _ = Bleu(4).compute_score(dict(enumerate(references)), {i: [h] for i, h in enumerate(hypotheses)}, 0)
    assert 10 < 100 * theirs[3] < 90
    assert caption_bleu4(hypotheses, references) == pytest.approx(100 * theirs[3], abs=1e-4)


def test_caption_bleu4_ignores_case_and_punctuation():
    assert caption_bleu4(["A dog runs in the park"], [["a dog runs, in the Park."]]) == pytest.approx(100)


def test_cider_d_equals_coco_caption(rng):
    hypotheses, references = random_captions(rng)
    hypotheses[3] = "dog dog dog dog dog"  # clipping
    hypotheses[4] = ""
    hypotheses[5] = "never seen words"
    theirs, _ = Cider().compute_score(dict(enumerate(references)), {i: [h] for i, h in enumerate(hypotheses)})
    assert theirs > 0.5
    assert cider_d(hypotheses, references) == pytest.approx(theirs, rel=1e-9)


def test_cider_d_of_copies_is_10_and_of_one_sample_0():
    texts = ["a dog runs over the grass", "two boys play with water", "the man sits in a street"]
    assert cider_d(texts, [[text] for text in texts]) == pytest.approx(10)
    assert cider_d(texts[:1], [texts[:1]]) == 0


@pytest.mark.parametrize(
    ("score", "tally"),
    [
        (lambda *texts: bleu(*texts)[0], bleu_tally),
        (lambda *texts: chrf(*texts)[0], chrf_tally),
        (caption_bleu4, caption_bleu4_tally),
        (cider_d, cider_d_tally),
    ],
)
def test_a_tally_has_the_score_of_all_samples_and_of_a_part(score, tally, rng):
    hypotheses, references = random_captions(rng)
    tallied = tally(hypotheses, references)
    assert len(tallied.parts) == len(hypotheses)
    assert tallied.total == pytest.approx(score(hypotheses, references))
    part = tallied.score(tallied.parts[:30].sum(0))
    if tally is cider_d_tally:  # its document frequencies stay those of all samples
        whole = [tallied.score(row) for row in tallied.parts]
        assert part == pytest.approx(np.mean(whole[:30]))
    else:
        assert part == pytest.approx(score(hypotheses[:30], references[:30]))


# ---- rain ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def rain(rng):
    observed = np.round(rng.gamma(0.5, 4, (3, 12, 9)), 2)
    forecast = np.round(observed * rng.uniform(0.3, 1.7, observed.shape), 2)
    observed[:, :2, :] = np.nan
    observed[1, 5, 5], forecast[1, 5, 5] = 2.0, 2.0  # exactly on a threshold: an event
    forecast[0, 4, 4], forecast[1, 4, 4], forecast[2, 4, 4] = np.nan, -3.0, np.inf
    observed[:, 4, 4] = 20.0
    return forecast, observed


def test_contingency_and_errors_equal_a_plain_loop(rain):
    forecast, observed = rain
    counts, errors = contingency(forecast, observed), error_sums(forecast, observed)
    for lead in range(3):
        for k, threshold in enumerate(RAIN_THRESHOLDS):
            hits = misses = false_alarms = 0
            for f, o in zip(forecast[lead].flat, observed[lead].flat, strict=True):
                if math.isnan(o):
                    continue
                event = math.isfinite(f) and f >= threshold
                hits += event and o >= threshold
                misses += not event and o >= threshold
                false_alarms += event and o < threshold
            assert counts["hits"][lead, k] == hits
            assert counts["misses"][lead, k] == misses
            assert counts["false_alarms"][lead, k] == false_alarms
        pairs = [
            (f if math.isfinite(f) and f > 0 else 0.0, o)
            for f, o in zip(forecast[lead].flat, observed[lead].flat, strict=True)
            if not math.isnan(o)
        ]
        assert errors["pixels"][lead] == len(pairs) == 90
        assert errors["abs_error"][lead] == pytest.approx(sum(abs(f - o) for f, o in pairs))
        assert errors["sq_error"][lead] == pytest.approx(sum((f - o) ** 2 for f, o in pairs))


def test_csi_far_and_pod_equal_the_scores_library(rain):
    forecast, observed = rain
    committed = np.where(np.isfinite(forecast) & (forecast > 0), forecast, 0)
    counts = contingency(forecast, observed)
    for k, threshold in enumerate(RAIN_THRESHOLDS):
        events = [
            xr.DataArray(np.where(np.isnan(observed), np.nan, field >= threshold), dims=("lead", "y", "x"))
            for field in (committed, observed)
        ]
        theirs = BinaryContingencyManager(*events).transform(preserve_dims="lead")
        np.testing.assert_allclose(csi(counts)[:, k], theirs.critical_success_index())
        np.testing.assert_allclose(far(counts)[:, k], theirs.false_alarm_ratio())
        np.testing.assert_allclose(pod(counts)[:, k], theirs.probability_of_detection())


@pytest.mark.parametrize("window", [1, 5, 12])
def test_fss_is_that_of_the_scores_library(window, rng):
    forecast, observed = (rng.gamma(0.3, 4.0, (3, 16, 12)) for _ in range(2))
    forecast[2] = observed[2]
    thresholds = (1.0, 5.0)
    found = fss(fss_sums(forecast, observed, thresholds, (window,)))
    fields = [xr.DataArray(field, dims=("lead", "y", "x")) for field in (forecast, observed)]
    for k, threshold in enumerate(thresholds):
        theirs = fss_2d(
            *fields, event_threshold=threshold, window_size=(window, window), spatial_dims=("y", "x"),
            preserve_dims="lead", threshold_operator=np.greater_equal,
        )  # fmt: skip
        np.testing.assert_allclose(found[:, k, 0], theirs)
    np.testing.assert_allclose(found[2], 1)


def test_fss_forgives_a_shift_that_csi_does_not():
    observed = np.zeros((1, 40, 40))
    observed[0, 18:22, 18:22] = 3
    shifted = np.roll(observed, 4, axis=2)
    assert csi(contingency(shifted, observed, (1,)))[0, 0] == 0
    near, far_off = (fss(fss_sums(np.roll(observed, by, axis=2), observed, (1,), (9,)))[0, 0, 0] for by in (4, 12))
    assert near > 0.5
    assert far_off == 0


def test_fss_of_windows_larger_than_the_grid_and_of_dry_fields_is_undefined():
    assert np.isnan(fss(fss_sums(np.ones((1, 8, 8)), np.ones((1, 8, 8)), (0.5,), (9,)))).all()
    assert np.isnan(fss(fss_sums(np.zeros((1, 8, 8)), np.zeros((1, 8, 8)), (0.5,), (3,)))).all()


def test_ratios_without_events_are_nan():
    dry = contingency(np.zeros((1, 4, 4)), np.zeros((1, 4, 4)), (1,))
    assert all(np.isnan(ratio(dry)).all() for ratio in (csi, far, pod))


def test_shapes_that_differ_are_refused():
    with pytest.raises(UsageError, match=r"\(1, 4, 4\).*\(2, 4, 4\)"):
        contingency(np.zeros((1, 4, 4)), np.zeros((2, 4, 4)))
