"""Scores equal those of the public reference implementations and of plain loops."""

import numpy as np
import pytest
import sacrebleu
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

from hybrid_models.errors import UsageError
from hybrid_models.scores.texts import bleu, caption_bleu4, caption_tokens, chrf, cider_d

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
    found = bleu(["The cat sat on the mat."], [["The cat sat on a mat."]])
    assert found.total == pytest.approx(100 * (6 / 7 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25)
    assert "tok:13a" in found.signature
    assert "case:mixed" in found.signature


def test_bleu_is_cased_and_takes_different_numbers_of_references():
    hypotheses = ["A man rides a red bike today.", "Two dogs run on the beach."]
    references = [["A man rides a red bike today."], ["Two dogs play in the snow.", "Two dogs run on the beach."]]
    found = bleu(hypotheses, references)
    assert found.total == pytest.approx(100)
    assert "nrefs:var" in found.signature
    assert bleu([text.lower() for text in hypotheses], references).total < 100


def test_chrf_is_100_for_a_copy_and_less_otherwise():
    assert chrf(["Ein Hund läuft."], [["Ein Hund läuft."]]).total == pytest.approx(100)
    found = chrf(["Ein Hund rennt."], [["Ein Hund läuft."]])
    assert 20 < found.total < 90
    assert "nc:6" in found.signature


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
    assert caption_tokens("हिन्दी में, رَجُلٌ") == ["हिन्दी", "में", "رَجُلٌ"]
    assert caption_tokens("a ❤️dog: ½ m²") == ["a", "❤️", "dog", "½", "m²"]


def test_caption_bleu4_equals_coco_caption(rng):
    hypotheses, references = random_captions(rng)
    theirs, _ = Bleu(4).compute_score(dict(enumerate(references)), {i: [h] for i, h in enumerate(hypotheses)}, 0)
    assert 10 < 100 * theirs[3] < 90
    assert caption_bleu4(hypotheses, references).total == pytest.approx(100 * theirs[3], abs=1e-4)


def test_caption_bleu4_ignores_case_and_punctuation():
    assert caption_bleu4(["A dog runs in the park"], [["a dog runs, in the Park."]]).total == pytest.approx(100)


def test_cider_d_equals_coco_caption(rng):
    hypotheses, references = random_captions(rng)
    hypotheses[3] = "dog dog dog dog dog"  # clipping
    hypotheses[4] = ""
    hypotheses[5] = "never seen words"
    theirs, _ = Cider().compute_score(dict(enumerate(references)), {i: [h] for i, h in enumerate(hypotheses)})
    assert theirs > 0.5
    assert cider_d(hypotheses, references).total == pytest.approx(theirs, rel=1e-9)


def test_cider_d_of_copies_is_10_and_of_one_sample_0():
    texts = ["a dog runs over the grass", "two boys play with water", "the man sits in a street"]
    assert cider_d(texts, [[text] for text in texts]).total == pytest.approx(10)
    assert cider_d(texts[:1], [texts[:1]]).total == 0


@pytest.mark.parametrize("metric", [bleu, chrf, caption_bleu4])
def test_sums_over_a_part_of_the_samples_give_the_score_of_that_part(metric, rng):
    hypotheses, references = random_captions(rng)
    tally = metric(hypotheses, references)
    assert len(tally.parts) == len(hypotheses)
    part = metric(hypotheses[:30], references[:30])
    assert tally.score(tally.parts[:30].sum(0)) == pytest.approx(part.total)
    assert part.total != pytest.approx(tally.total)


def test_cider_d_of_a_part_keeps_the_document_frequencies_of_all_samples(rng):
    hypotheses, references = random_captions(rng)
    tally = cider_d(hypotheses, references)
    alone = [tally.score(row) for row in tally.parts]
    part = tally.score(tally.parts[:30].sum(0))
    assert part == pytest.approx(np.mean(alone[:30]))
    assert part != pytest.approx(cider_d(hypotheses[:30], references[:30]).total)


@pytest.mark.parametrize(("metric", "theirs"), [(bleu, sacrebleu.corpus_bleu), (chrf, sacrebleu.corpus_chrf)])
def test_scores_of_translations_are_sacrebleus(metric, theirs, rng):
    hypotheses, references = random_captions(rng)
    first = [texts[0] for texts in references]
    found = metric(hypotheses, [[text] for text in first]).total
    assert found == pytest.approx(theirs(hypotheses, [first]).score)
