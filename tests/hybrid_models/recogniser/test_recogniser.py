"""The recogniser: learning, prediction, judgement."""

import numpy as np
import pytest
import timm
import torch

from hybrid_models.errors import BadSample, UsageError
from hybrid_models.inputs import Inputs
from hybrid_models.recogniser.config import RecogniserConfig
from hybrid_models.recogniser.preprocess import LABELS
from hybrid_models.recogniser.recogniser import Recogniser, RecogniserDecoding

SIZE = 64
TINY = {
    "encoder": "test_resnet",
    "image_size": SIZE,
    "frames": 4,
    "hidden_size": 32,
    "dropout": 0.0,
    "label_smoothing": 0.0,
}
TRAINED = {"encoder_weights": "none", "freeze_encoder": False}


def build(seed=0, **changes):
    config = RecogniserConfig(**{**TINY, **changes})
    torch.manual_seed(seed)
    return Recogniser(config, Recogniser.learn_assets(config, ["moves left", "moves right", "stays"]))


def clip(label, frames=4):
    """A bar that is on one side first, then on the other, or stays in the middle."""
    place = {"moves left": (32, 0), "moves right": (0, 32), "stays": (16, 16)}[label]
    picture = np.full((frames, SIZE, SIZE, 3), 255, dtype=np.uint8)
    for t in range(frames):
        left = place[2 * t // frames]
        picture[t, :, left : left + 32] = (220, 30, 30)
    return picture


LABELLED = ["moves left", "moves right", "stays"]


def samples_of(model, with_target=True, frames=4):
    preprocess = model.preprocess(model.config, model.assets)
    return [preprocess(Inputs(clip(label, frames), {"label": label}), with_target) for label in LABELLED]


def fit(model, batch, steps):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        loss = model(batch)
        (loss.total / loss.terms).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return float(loss.total.detach() / loss.terms)


@pytest.mark.parametrize("changes", [{"cell": "lstm"}, {"cell": "gru"}, TRAINED])
def test_learns_its_batch_by_heart(changes):
    model = build(**changes)
    assert fit(model, model.collate(model.featurize(samples_of(model))), 60) < 0.05
    if model.config.freeze_encoder:
        assert model.recognise([clip(label) for label in LABELLED]) == LABELLED


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_features_stand_for_frames_and_padding_changes_nothing(cell):
    model = build(cell=cell).eval()
    samples = [*samples_of(model), *samples_of(model, frames=2)]
    featurized = model.featurize(samples)
    assert all(
        s["course"].shape == (len(r["frames"]), 4 * model.encoder.channels)
        for s, r in zip(featurized, samples, strict=True)
    )
    from_frames, from_features = (model(model.collate(form)) for form in (samples, featurized))
    assert int(from_frames.terms) == 6
    torch.testing.assert_close(from_frames.total, from_features.total, rtol=2e-3, atol=1e-3)
    alone = sum(float(model(model.collate([sample])).total) for sample in samples)
    assert float(from_frames.total) == pytest.approx(alone, rel=2e-2)


def test_a_prediction_tells_the_likeliest_labels_first():
    model = build().eval()
    (row,) = model.predict(model.collate(samples_of(model, with_target=False)[:1]), RecogniserDecoding())
    shares = [told["score"] for told in row["scores"]]
    assert shares == sorted(shares, reverse=True)
    assert sorted(told["label"] for told in row["scores"]) == LABELLED
    assert sum(told["score"] for told in row["scores"]) == pytest.approx(1, abs=1e-4)
    assert (row["label"], row["score"], row["frames"]) == (*row["scores"][0].values(), 4)
    (row,) = model.predict(model.collate(samples_of(model)[:1]), RecogniserDecoding(top=2))
    assert len(row["scores"]) == 2
    assert set(row) == set(Recogniser.payload_schema.names)
    with pytest.raises(UsageError, match="top is 0"):
        RecogniserDecoding(top=0)


def test_what_is_judged_is_accuracy_beside_the_most_frequent_label():
    said = ["a", "a", "b", "b", "c"]
    records = [{"label": s, "true": t} for s, t in zip(said, ["a", "a", "b", "a", "b"], strict=True)]
    found = Recogniser.summarise(records)
    assert found["metrics"]["accuracy"] == 0.6
    assert found["baseline"] == {"name": "most frequent label", "accuracy": 0.6, "macro_f1": pytest.approx(0.375)}
    assert found["details"]["confusion"] == {"labels": ["a", "b", "c"], "counts": [[2, 1, 0], [0, 1, 1], [0, 0, 0]]}
    assert {name: tally.total for name, tally in Recogniser.tallies(records).items()} == found["metrics"]
    assert set(found["metrics"]) == set(Recogniser.metrics)
    model = build().eval()
    sample = samples_of(model)[1]
    assert model.record(sample, {"label": "stays"}) == {"label": "stays", "true": "moves right"}


def test_what_was_seen_is_shown_with_what_was_said():
    model = build().eval()
    samples = samples_of(model, with_target=False)
    for sample, shown in zip(samples, model.explain(samples, RecogniserDecoding()), strict=True):
        np.testing.assert_array_equal(shown.frames, sample["frames"])
        assert shown.said.rsplit(" (", 1)[0] in LABELLED


def test_pretrained_weights_and_odd_media():
    model = build()
    assert model.pretrained() == {"encoder": "hub"}
    assert build(**TRAINED).pretrained() == {}
    weights = timm.create_model("test_resnet", pretrained=False, num_classes=10).state_dict()
    model.load_pretrained("encoder", weights)
    torch.testing.assert_close(model.encoder.cnn.state_dict()["conv1.0.weight"], weights["conv1.0.weight"])
    with pytest.raises(UsageError, match="no pretrained part 'decoder'"):
        model.load_pretrained("decoder", weights)
    with pytest.raises(BadSample, match="MediaShape"):
        model.recognise([np.zeros((3, 3), np.uint8)])
    with pytest.raises(UsageError, match=r"labels\.json"):
        Recogniser(model.config, {LABELS: "[]"})
