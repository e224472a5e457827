import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
import torch
from PIL import Image

from hybrid_models.errors import UsageError
from hybrid_models.nowcaster.decoding import NowcasterDecoding
from hybrid_models.nowcaster.nowcaster import Nowcaster
from hybrid_models.translator.translator import TranslatorDecoding
from pipelines import storage
from pipelines.cluster.resources import Resources
from pipelines.judging import evaluate
from pipelines.judging.evaluate import Evaluation
from pipelines.models import artifacts
from pipelines.models.session import Inference
from pipelines.reading.limits import Limits
from pipelines.reading.shards import list_shards
from pipelines.staging import engine
from tests import tiny
from tests.pipelines.reading.media.test_radar import event_bytes

RESOURCES = Resources(batch_size=8)


@pytest.fixture
def job(tmp_path: Path) -> Evaluation:
    """A tiny translator and 21 pairs of which one has no reference."""
    tiny.write_pairs(str(tmp_path / "test"), 20, seed=3)
    storage.write_bytes(str(tmp_path / "test/more.jsonl"), b'{"id": "x", "en": "der Hund"}\n')
    artifact = artifacts.read(tiny.write_translator(str(tmp_path / "model")))
    return Evaluation(list_shards(str(tmp_path / "test")), str(tmp_path), Inference.of(artifact))


@pytest.mark.usefixtures("ray_cluster")
def test_the_judgement_is_that_of_all_good_samples(job: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    result = evaluate.evaluate(job, RESOURCES)
    assert result.samples == 20
    assert list(result.errors.values()) == [1]
    sources = tiny.sentences(20, seed=3)
    references = [" ".join(reversed(text.split())) for text in sources]
    hypotheses = tiny.translator().translate(sources, beam_size=1, max_length=12)
    assert result.metrics["bleu"] == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [references]).score)
    assert result.metrics["chrf"] == pytest.approx(sacrebleu.corpus_chrf(hypotheses, [references]).score)
    assert result.parts == {"1-10 words": {"samples": 20, **result.metrics}}
    assert result.baseline["name"] == "copy the source"
    assert result.baseline["bleu"] == pytest.approx(sacrebleu.corpus_bleu(sources, [references]).score)

    monkeypatch.setattr(engine, "stage", None)  # an interrupted evaluation goes on: nothing is left to compute
    assert evaluate.evaluate(job, RESOURCES) == result


@pytest.mark.usefixtures("ray_cluster")
def test_nothing_to_judge_is_an_error(job: Evaluation, tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "none/x.jsonl"), b'{"en": "der Hund"}\n')
    with pytest.raises(RuntimeError, match=r"no sample could be judged: \{'\w+': 1\}"):
        evaluate.evaluate(replace(job, shards=list_shards(str(tmp_path / "none"))), RESOURCES)


def test_the_fingerprint_decides_where_records_are_staged(job: Evaluation, tmp_path: Path) -> None:
    others = [
        replace(job, inference=Inference(job.artifact, TranslatorDecoding(beam_size=2))),
        replace(job, stride=2),
        replace(job, inference=Inference.of(job.artifact, Limits(max_bytes=7))),
    ]
    assert len({job.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert job.folder == f"{tmp_path}/evaluations/{job.fingerprint[:12]}"


@pytest.mark.usefixtures("ray_cluster")
def test_two_models_are_compared_on_the_same_samples(job: Evaluation, tmp_path: Path) -> None:
    other = artifacts.read(tiny.write_translator(str(tmp_path / "other"), seed=1))
    found = evaluate.compare(job, replace(job, inference=Inference.of(other)), RESOURCES)
    assert (found.samples, found.only_first, found.only_second) == (20, 0, 0)
    sources = tiny.sentences(20, seed=3)
    references = [" ".join(reversed(text.split())) for text in sources]
    scores = [
        sacrebleu.corpus_chrf(tiny.translator(seed).translate(sources, beam_size=1, max_length=12), [references]).score
        for seed in (0, 1)
    ]
    chrf = found.metrics["chrf"]
    assert (chrf.first, chrf.second) == pytest.approx(tuple(scores))
    assert chrf.difference == pytest.approx(scores[1] - scores[0])
    assert chrf.low < chrf.difference < chrf.high
    same = evaluate.compare(job, job, RESOURCES).metrics["chrf"]
    assert (same.low, same.high, same.p) == (0, 0, 1)


@pytest.mark.usefixtures("ray_cluster")
def test_models_of_two_directions_do_not_compare(job: Evaluation, tmp_path: Path) -> None:
    model = tiny.translator()
    model.config = replace(model.config, source="de", target="en")
    artifacts.write(artifacts.make(model, job.inference.decoding, {}, "Card.\n"), str(tmp_path / "back"))
    other = replace(job, inference=Inference.of(artifacts.read(str(tmp_path / "back"))))
    with pytest.raises(UsageError, match=r"do not compare: for 20 of 20 samples, such as row 0 of .*pairs\.jsonl"):
        evaluate.compare(job, other, RESOURCES)


@pytest.mark.usefixtures("ray_cluster")
def test_captioners_are_compared_by_photograph(tmp_path: Path) -> None:
    """The first model writes half of the references itself."""
    photos = [tiny.jpeg(row) for row in range(8)]
    images = [Image.open(io.BytesIO(photo)) for photo in photos[::2]]
    own = tiny.captioner().caption(images, beam_size=1, max_length=8)
    members = []
    for row, (photo, text) in enumerate(zip(photos, tiny.sentences(8, seed=3), strict=True)):
        captions = {"captions": [text, text if row % 2 else own[row // 2]]}
        members += [(f"{row}.jpg", photo), (f"{row}.json", json.dumps(captions).encode())]
    storage.write_bytes(str(tmp_path / "test/photos.tar"), tiny.tar(members))
    models = [artifacts.read(tiny.write_captioner(str(tmp_path / f"model-{seed}"), seed)) for seed in (0, 1)]
    shards = list_shards(str(tmp_path / "test"))
    first, second = (Evaluation(shards, str(tmp_path), Inference.of(artifact)) for artifact in models)
    judged = [evaluate.evaluate(job, RESOURCES).metrics for job in (first, second)]

    found = evaluate.compare(first, second, RESOURCES)
    assert (found.samples, found.only_first, found.only_second) == (8, 0, 0)
    assert set(found.metrics) == {"cider_d", "bleu4"}
    for name, both in found.metrics.items():
        assert (both.first, both.second) == pytest.approx((judged[0][name], judged[1][name]))
        assert both.low <= both.difference <= both.high
    cider_d = found.metrics["cider_d"]
    assert cider_d.first > 0.1, "it meets its own words"
    assert cider_d.low < cider_d.difference < cider_d.high <= 0


@pytest.mark.usefixtures("ray_cluster")
def test_nowcasts_are_judged_and_compared_by_event(tmp_path: Path) -> None:
    """Issue times of an event within an hour are drawn together: of one event there is no interval, of two there is."""
    for name, speed in (("slow", 1), ("fast", 3)):
        y, x = np.mgrid[0:32, 0:32]
        shower = 1500 * np.exp(-((x - 16) ** 2 + (y - 16) ** 2) / 40)
        rain = np.stack([np.roll(shower, speed * t, axis=1) for t in range(9)]).astype(np.uint16)
        storage.write_bytes(str(tmp_path / f"test/{name}.nc"), event_bytes([5 * t for t in range(9)], rain=rain))
    trained = tiny.nowcaster()
    with torch.no_grad():  # probabilities that know nothing of where it rains cost skill
        trained.net.get_submodule("head").get_parameter("bias")[:5] = -3.0
    first, second = (artifacts.read(tiny.write_nowcaster(str(tmp_path / "plain"))), _stored(trained, tmp_path))
    job = Evaluation(list_shards(str(tmp_path / "test")), str(tmp_path), Inference.of(first))

    judged = evaluate.evaluate(job, RESOURCES)
    assert {name: part["samples"] for name, part in judged.parts.items()} == {"fast.nc": 5, "slow.nc": 5}
    assert judged.parts["slow.nc"]["mse"] < judged.parts["fast.nc"]["mse"]
    pooled = (judged.parts["slow.nc"]["mse"] + judged.parts["fast.nc"]["mse"]) / 2
    assert judged.metrics["mse"] == pytest.approx(pooled)

    found = evaluate.compare(job, replace(job, inference=Inference.of(second)), RESOURCES)
    assert (found.samples, found.only_first, found.only_second) == (10, 0, 0)
    mse = found.metrics["mse"]
    assert mse.first == pytest.approx(judged.metrics["mse"])
    assert mse.low <= mse.difference <= mse.high
    assert found.metrics["crps"].difference > 0.1 * found.metrics["crps"].first
    one = [shard for shard in job.shards if shard.uri.endswith("slow.nc")]
    alone = evaluate.compare(
        replace(job, shards=one), replace(job, shards=one, inference=Inference.of(second)), RESOURCES
    )
    crps = alone.metrics["crps"]
    assert crps.difference == pytest.approx(crps.second - crps.first)
    assert crps.difference > 0
    assert (crps.low, crps.high, crps.p) == (None, None, None)
    thinned = replace(job, shards=one, stride=4)
    assert evaluate._blocks(thinned, [("slow.nc", index) for index in range(7)]) == [0, 0, 0, 1, 1, 1, 2]
    assert evaluate._blocks(thinned, [("SLOW.NC", index) for index in range(4)]) == [0, 0, 0, 1]
    assert evaluate._blocks(thinned, [("digits.tar", index) for index in range(7)]) == list(range(7))


def _stored(hybrid: Nowcaster, folder: Path) -> artifacts.Artifact:
    artifacts.write(artifacts.make(hybrid, NowcasterDecoding(), {}, "Card.\n"), str(folder / "changed"))
    return artifacts.read(str(folder / "changed"))
