from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hybrid_models.errors import UsageError
from pipelines.cluster.resources import Resources
from pipelines.judging import evaluate, promotion
from pipelines.judging.evaluate import Evaluation, Judged
from pipelines.judging.promotion import Verdict
from pipelines.models import artifacts
from pipelines.models.session import Inference
from pipelines.reading.shards import list_shards
from tests import tiny

TIE = Verdict("new", "old", "bleu", True, 0.0, 30.0, 30.0, 100, -1.0, 1.0, 0.9)


@pytest.mark.parametrize(
    ("change", "passed"),
    [
        ({}, True),
        ({"candidate_value": 30.1}, True),
        ({"candidate_value": 29.9}, False),
        ({"candidate_value": 29.9, "margin": 0.2}, True),
        ({"candidate_value": 29.7, "margin": 0.2}, False),
        ({"candidate_value": 29.9, "higher_is_better": False}, True),
        ({"candidate_value": 30.1, "higher_is_better": False}, False),
        ({"candidate_value": float("nan"), "margin": 100.0}, False),
        ({"unanswered": 5}, True),
        ({"unanswered": 6}, False),
    ],
)
def test_a_candidate_passes_if_it_is_not_worse_beyond_the_margin(change: dict[str, Any], passed: bool) -> None:
    assert replace(TIE, **change).passed is passed


def test_a_verdict_says_what_was_compared() -> None:
    assert str(TIE) == "bleu of new is 30, of old 30 (100 samples, difference -1 to +1, margin 0)"
    assert str(replace(TIE, unanswered=6)).endswith("margin 0); 6 more that it could not predict")
    assert str(replace(TIE, low=None)) == "bleu of new is 30, of old 30 (100 samples, margin 0)"


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Evaluation, Evaluation]:
    """A candidate that copies its source, and a champion that drops each third word; both are right in parts."""
    tiny.write_pairs(str(tmp_path / "test"), 1, seed=3)
    shards = list_shards(str(tmp_path / "test"))
    candidate, champion = (
        Evaluation(shards, str(tmp_path), Inference.of(read))
        for read in (artifacts.read(tiny.write_translator(str(tmp_path / str(seed)), seed)) for seed in (0, 1))
    )
    sentences = tiny.sentences(50, seed=1)

    def judge(job: Evaluation, resources: Resources) -> Judged:
        copies = job is candidate
        records = {
            ("x", i): {
                "hypothesis": text if copies else " ".join(w for n, w in enumerate(text.split()) if n % 3 != 2),
                "references": [text],
                "source": text.upper(),
                "truth": text,
            }
            for i, text in enumerate(sentences)
            if copies or i != 7
        }
        return Judged(records, Counter())

    monkeypatch.setattr(evaluate, "judge", judge)
    return candidate, champion


def test_a_candidate_is_weighed_beside_the_champion(jobs: tuple[Evaluation, Evaluation]) -> None:
    candidate, champion = jobs
    verdict = promotion.weigh(candidate, champion, "", 0.5, Resources())
    assert (verdict.metric, verdict.samples) == ("bleu", 49)
    assert verdict.candidate_value == pytest.approx(100)
    assert (verdict.candidate, verdict.rival) == (candidate.artifact.model, champion.artifact.model)
    assert verdict.rival_value < 80
    assert verdict.low is not None
    assert verdict.high is not None
    assert verdict.low < 100 - verdict.rival_value < verdict.high
    assert (verdict.passed, verdict.unanswered) == (True, 0)
    assert promotion.weigh(champion, candidate, "", 0.5, Resources()).unanswered == 1
    assert not promotion.weigh(champion, candidate, "chrf", 0.5, Resources()).passed


def test_without_a_champion_the_baseline_is_the_rival(jobs: tuple[Evaluation, Evaluation]) -> None:
    verdict = promotion.weigh(jobs[0], None, "chrf", 0.0, Resources())
    assert (verdict.rival, verdict.candidate_value, verdict.low, verdict.samples) == (
        "the baseline 'copy the source'", pytest.approx(100), None, 50,
    )  # fmt: skip
    assert verdict.passed


def test_a_first_champion_must_predict_most_of_what_it_is_given(
    jobs: tuple[Evaluation, Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = evaluate.judge(jobs[0], Resources())
    for wrong, passed in ((2, True), (3, False)):
        monkeypatch.setattr(evaluate, "judge", lambda *_, n=wrong: replace(judged, errors=Counter(GridError=n)))
        verdict = promotion.weigh(jobs[0], None, "", 0.0, Resources())
        assert (verdict.samples, verdict.unanswered, verdict.passed) == (50, wrong, passed)


def test_no_common_sample_is_refused(jobs: tuple[Evaluation, Evaluation], monkeypatch: pytest.MonkeyPatch) -> None:
    known = evaluate.judge(jobs[0], Resources()).records

    def judge(job: Evaluation, resources: Resources) -> Judged:
        half = {key: record for key, record in known.items() if (key[1] < 20) == (job is jobs[0])}
        return Judged(half, Counter())

    monkeypatch.setattr(evaluate, "judge", judge)
    with pytest.raises(UsageError, match=r"do not compare: no sample suits both$"):
        promotion.weigh(*jobs, "", 0.0, Resources())


@pytest.mark.parametrize("champion", [True, False])
def test_an_unknown_metric_is_refused(champion: bool, jobs: tuple[Evaluation, Evaluation]) -> None:
    with pytest.raises(UsageError) as caught:
        promotion.weigh(jobs[0], jobs[1] if champion else None, "csi_1", 0.0, Resources())
    assert str(caught.value) == "`metric` 'csi_1' is unknown here: use bleu, chrf"
