"""The captioner: preprocessing, the frozen and the trained encoder, learning, decoding and judgement."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import timm
import torch
from PIL import Image

from hybrid_models import shapes
from hybrid_models.captioner.captioner import Captioner, CaptionerDecoding
from hybrid_models.captioner.config import CaptionerConfig
from hybrid_models.errors import BadSample, UsageError
from hybrid_models.inputs import Inputs
from hybrid_models.symbols import PAD
from tests import tiny
from tests.hybrid_models.search.captured import captured_losses, captured_steps
from tests.waits import Waits

SIZE, ENCODER = 32, "test_resnet"
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 60, 220)}
CAPTIONS = {colour: [f"A {colour} square.", f"the whole image is {colour}!"] for colour in COLOURS}
TINY = {
    "encoder": ENCODER,
    "image_size": SIZE,
    "frames": 4,
    "embedding_size": 24,
    "hidden_size": 32,
    "attention_size": 16,
    "dropout": 0.0,
    "label_smoothing": 0.0,
    "vocab_size": 320,
}
TRAINED = {"encoder_weights": "none", "freeze_encoder": False}


def build(seed=0, **changes):
    config = CaptionerConfig(**{**TINY, **changes})
    texts = [text for captions in CAPTIONS.values() for text in config.training_texts({"captions": captions})]
    torch.manual_seed(seed)
    return Captioner(config, Captioner.learn_assets(config, texts))


def image(colour, frames=1):
    return np.broadcast_to(np.array(COLOURS[colour], dtype=np.uint8), (frames, SIZE, SIZE, 3)).copy()


def samples_of(model, with_target=True, frames=1):
    preprocess = Captioner.preprocess(model.config, model.assets)
    return [preprocess(Inputs(image(c, frames), {"captions": CAPTIONS[c]}), with_target) for c in COLOURS]


def fit(model, batch, steps, learning_rate=1e-2):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    model.train()
    for _ in range(steps):
        loss = model(batch)
        (loss.total / loss.terms).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return float(loss.total.detach() / loss.terms)


# ---- the encoder ----
def test_pretrained_weights_are_loaded_strictly_without_their_classifier():
    model = build()
    assert model.pretrained() == {"encoder": "hub"}
    assert build(**TRAINED).pretrained() == {}
    torch.manual_seed(7)
    weights = timm.create_model(ENCODER, pretrained=False, num_classes=10).state_dict()
    model.load_pretrained("encoder", weights)
    torch.testing.assert_close(model.encoder.cnn.state_dict()["conv1.0.weight"], weights["conv1.0.weight"])
    head = [key for key in weights if key.startswith("fc.")]
    assert head
    without = {key: value for key, value in weights.items() if key not in head and "num_batches_tracked" not in key}
    model.load_pretrained("encoder", without)

    with pytest.raises(UsageError, match=r"conv1\.0\.weight is missing"):
        model.load_pretrained("encoder", {key: value for key, value in weights.items() if key != "conv1.0.weight"})
    with pytest.raises(UsageError, match="strange is unknown"):
        model.load_pretrained("encoder", {**weights, "strange": torch.zeros(1)})
    with pytest.raises(UsageError, match=r"conv1\.0\.weight is \[2\]"):
        model.load_pretrained("encoder", {**weights, "conv1.0.weight": torch.zeros(2)})
    with pytest.raises(UsageError, match="no pretrained part 'decoder'"):
        model.load_pretrained("decoder", weights)


def test_a_hub_out_of_reach_is_explained(monkeypatch):
    model = build()

    def unreachable(*args, pretrained, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(UsageError, match=r"could not be fetched \(no network\)"):
        model.load_pretrained("encoder", None)


def test_the_constructor_never_fetches_weights(monkeypatch):
    asked = []
    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: (asked.append(k["pretrained"]), original(*a, **k))[1])
    build(encoder_weights="hub")
    assert set(asked) == {False}


def test_a_frozen_encoder_stays_as_it_is():
    model = build().train()
    before = {key: value.clone() for key, value in model.encoder.state_dict().items()}
    assert not model.encoder.training
    assert model.decoder.training
    fit(model, model.collate(samples_of(model)), 2)
    torch.testing.assert_close(model.encoder.state_dict(), before, rtol=0, atol=0)
    assert build(**TRAINED).train().encoder.training


# ---- features ----
@pytest.mark.parametrize("temporal", ["mean", "lstm"])
@pytest.mark.parametrize("attention", [True, False])
def test_features_stand_for_frames(attention, temporal):
    model = build(attention=attention, temporal=temporal).eval()
    samples = [*samples_of(model), *samples_of(model, frames=3)]
    featurized = model.featurize(samples)
    assert model.has_frozen_features
    cells = (SIZE // 32) ** 2 if attention else 1
    assert all(sample["features"].dtype == np.float16 for sample in featurized)
    assert all(sample["features"].shape == (cells, model.encoder.channels) for sample in featurized)
    assert all(
        "frames" not in sample and sample["frame_count"] == (1, 3)[i // 3] for i, sample in enumerate(featurized)
    )
    from_frames, from_features = (model(model.collate(form)) for form in (samples, featurized))
    assert int(from_frames.terms) == int(from_features.terms)
    torch.testing.assert_close(from_frames.total, from_features.total, rtol=2e-3, atol=1e-3)


def test_half_of_the_samples_are_mirrored_in_training():
    """Raw and featurized samples alike, and neither in validation nor where there are no captions to learn from."""
    model = build(mirror=True, temporal="lstm").eval()
    raw = [sample for sample in samples_of(model) for _ in range(20)]
    for sample in raw:
        sample["frames"] = sample["frames"].copy()
        sample["frames"][:, :, : SIZE // 2] = 0  # now the mirror image differs
    frames = model.collate(raw, np.random.default_rng(3))["frames"].numpy()
    turned = [not np.array_equal(row, sample["frames"]) for row, sample in zip(frames, raw, strict=True)]
    assert 0.3 * len(raw) < sum(turned) < 0.7 * len(raw)
    for row, sample, mirror in zip(frames, raw, turned, strict=True):
        np.testing.assert_array_equal(row, sample["frames"][:, :, ::-1] if mirror else sample["frames"])
    batch, straight = (model.collate(model.featurize(raw), rng) for rng in (np.random.default_rng(3), None))
    seen = model._look(model.collate([{**s, "frames": f} for s, f in zip(raw, frames, strict=True)]))
    assert set(seen) == {"features", "course"}
    for name, expected in seen.items():
        torch.testing.assert_close(batch[name].float(), expected, atol=5e-2, rtol=5e-2)
        assert not torch.equal(batch[name], straight[name])
    bare = [{name: sample[name] for name in ("frames", "frame_count")} for sample in raw]
    for featurized in (model.featurize(bare)[0], build(mirror=False).eval().featurize(raw)[0]):
        assert not any(name.startswith("mirrored") for name in featurized)


def test_padding_of_a_batch_changes_no_features():
    model = build().eval()
    red, green = samples_of(model, frames=2)[0], samples_of(model, frames=4)[1]
    with torch.inference_mode():
        together = model._look(model.collate([red, green]))["features"]
        alone = [model._look(model.collate([sample]))["features"] for sample in (red, green)]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-2, rtol=2e-2)


# ---- the order of frames ----
def moving(first, frames=4, size=SIZE):
    """A red bar that is on one side in the first half of the clip, and on the other one in the second."""
    sides = {"left": slice(0, size // 2), "right": slice(size // 2, size)}
    clip = np.full((frames, size, size, 3), 255, dtype=np.uint8)
    order = [first, *(side for side in sides if side != first)]
    for t in range(frames):
        clip[t, :, sides[order[2 * t // frames]]] = COLOURS["red"]
    return clip


def told(model, *clips):
    """What it makes of raw clips: initial state and memory of each, as one vector."""
    preprocess = Captioner.preprocess(model.config, model.assets)
    found = []
    for clip in clips:
        with torch.inference_mode():
            state, memory = model._start(model.collate([preprocess(Inputs(clip, {}), with_target=False)]))
        found.append(torch.cat([state["hidden"].flatten(), memory["keys"].float().flatten()]))
    return found


@pytest.mark.parametrize("attention", [True, False])
def test_a_clip_from_its_end_is_another_one_for_an_rnn_over_frames_alone(attention):
    clip = moving("left")
    for temporal, alike in (("mean", True), ("lstm", False), ("gru", False)):
        forth, back = told(build(temporal=temporal, attention=attention, **TRAINED).eval(), clip, clip[::-1].copy())
        assert torch.allclose(forth, back, atol=1e-3) == alike, temporal


def test_a_clip_is_the_same_beside_a_longer_one():
    model = build(temporal="lstm").eval()
    preprocess = Captioner.preprocess(model.config, model.assets)
    short, long = (preprocess(Inputs(moving("left", count), {}), with_target=False) for count in (1, 4))
    for form in (lambda samples: samples, model.featurize):
        with torch.inference_mode():
            state, memory = model._start(model.collate(form([short, long])))
            alone, own = model._start(model.collate(form([short])))
        torch.testing.assert_close(state["hidden"][:1], alone["hidden"], atol=2e-2, rtol=2e-2)
        cells = model.encoder.cells
        assert memory["mask"].tolist() == [[True, False, False, False] + [True] * cells, [True] * (4 + cells)]
        kept = memory["keys"][0][memory["mask"][0]]
        torch.testing.assert_close(kept, own["keys"][0], atol=2e-2, rtol=2e-2)
    assert model.caption([moving("left", 4)[0], moving("left", 4)]), "a photograph beside a clip"


def test_an_rnn_over_frames_learns_which_way_something_moves():
    captions = {"left": "a red bar moves right", "right": "a red bar moves left"}
    for temporal, knows in (("mean", False), ("lstm", True)):
        config = CaptionerConfig(**{**TINY, "temporal": temporal, "image_size": 64})
        torch.manual_seed(0)
        model = Captioner(config, Captioner.learn_assets(config, list(captions.values()) * 20))
        preprocess = Captioner.preprocess(model.config, model.assets)
        shown = {text: moving(side, size=64) for side, text in captions.items()}
        clips = [preprocess(Inputs(clip, {"captions": [text]}), True) for text, clip in shown.items()]
        fit(model, model.collate(model.featurize(clips)), 200)
        said = model.caption(list(shown.values()))
        assert (said == list(shown)) == knows, (temporal, said)


def test_which_frame_each_word_looked_at_is_shown():
    model = build(temporal="gru", image_size=64).eval()
    preprocess = Captioner.preprocess(model.config, model.assets)
    frames = [np.zeros((count, 64, 64, 3), np.uint8) for count in (3, 1)]
    shown = model.explain([preprocess(Inputs(clip, {}), False) for clip in frames], CaptionerDecoding(max_length=5))
    for gaze, count in zip(shown, (3, 1), strict=True):
        assert gaze.frames.shape == (count, 64, 64, 3)
        assert gaze.weights.shape == (len(gaze.words), 2, 2)
        if count == 1:
            assert gaze.frame_weights is None, "each word looked at the one there is"
            continue
        assert gaze.frame_weights.shape == (len(gaze.words), count)
        total = gaze.frame_weights.sum(axis=1) + gaze.weights.sum(axis=(1, 2))
        np.testing.assert_allclose(total, 1, atol=1e-3)


def test_a_trained_encoder_has_no_frozen_features():
    model = build(**TRAINED)
    samples = samples_of(model)
    assert not model.has_frozen_features
    assert all("frames" in sample for sample in model.featurize(samples))


# ---- learning and prediction ----
def test_captions_that_a_sample_lacks_cost_nothing():
    model = build().eval()
    samples = model.featurize(samples_of(model))
    one = {**samples[0], "captions": samples[0]["captions"][:1]}
    together = model(model.collate([one, samples[1]]))
    alone = [model(model.collate([sample])) for sample in (one, samples[1])]
    assert int(together.terms) == int(alone[0].terms + alone[1].terms)
    torch.testing.assert_close(together.total, alone[0].total + alone[1].total, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": True, "cell": "lstm"},
        {"attention": True, "cell": "gru"},
        {"attention": False, "cell": "lstm"},
        {"attention": False, "cell": "gru"},
        {"attention": True, "cell": "lstm", **TRAINED},
        {"attention": True, "cell": "lstm", "temporal": "gru"},
        {"attention": False, "cell": "gru", "temporal": "lstm"},
    ],
)
def test_learns_its_batch_by_heart(changes):
    model = build(**changes)
    samples = [
        {**sample, "captions": sample["captions"][:1]} for sample in samples_of(model)
    ]  # one caption each, or there is no single right answer
    assert fit(model, model.collate(model.featurize(samples)), 150) < 0.1
    if model.config.freeze_encoder:  # with so few images, batch norm's running means are not those of the batch
        assert model.caption([image(colour)[0] for colour in COLOURS]) == [f"a {colour} square" for colour in COLOURS]


def test_rewards_teach_what_is_said_about_an_image_not_what_is_said_of_others():
    """From a model that knows the sentences but not the colours, rewards alone teach the colours."""
    model = build(**TRAINED, reward_share=0.5)
    samples = samples_of(model)
    every = np.concatenate([sample["captions"] for sample in samples])
    model.start_epoch(0, 2)
    fit(model, model.collate([{**sample, "captions": every} for sample in samples]), 40)

    def named():
        rows = model.predict(model.collate(samples), CaptionerDecoding(beam_size=1))
        return [[colour for colour in COLOURS if colour in row["caption"]] for row in rows]

    assert named() != [[colour] for colour in COLOURS]
    torch.manual_seed(0)
    model.start_epoch(1, 2)
    fit(model, model.collate(samples), 150, learning_rate=2e-3)
    assert named() == [[colour] for colour in COLOURS]


@pytest.mark.parametrize("changes", [{"attention": False}, {"cell": "gru"}])
def test_captions_that_a_sample_lacks_earn_nothing(changes):
    """Padding is no reference."""
    model = build(reward_share=0.5, **changes)
    samples = samples_of(model)
    model.start_epoch(0, 2)
    fit(model, model.collate(samples), 20)
    model.start_epoch(1, 2)
    short = [{**sample, "captions": sample["captions"][:1]} for sample in samples]
    losses = []
    for batch in (model.collate(short), model.collate(short)):
        if losses:
            batch["captions"] = torch.nn.functional.pad(batch["captions"], (0, 0, 0, 3), value=PAD)
        torch.manual_seed(0)
        losses.append(model.train()(batch).total.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) != 0


def test_rewards_are_for_the_last_epochs_of_training():
    model = build(**TRAINED, reward_share=0.5)
    batch = model.collate(samples_of(model))
    likelihood = model.eval()(batch).total.item()
    for epoch, epochs, rewarded in (
        (1, 4, False),
        (2, 4, True),
        (0, 1, False),
        (1, 2, True),
        (2, 5, False),
        (3, 5, True),
    ):
        model.start_epoch(epoch, epochs)
        assert (model.train()(batch).total.item() < 0.5 * likelihood) == rewarded
        assert model.eval()(batch).total.item() == pytest.approx(likelihood, rel=0.02)  # batch norm has moved


def test_rows_fit_the_schema_in_order():
    model = build()
    fit(model, model.collate(model.featurize(samples_of(model))), 60)
    samples = [*samples_of(model), *samples_of(model, frames=3)]
    rows = model.predict(model.collate(samples), CaptionerDecoding(beam_size=2))
    table = pa.Table.from_pylist(rows, schema=Captioner.payload_schema)
    assert table["frames"].to_pylist() == [1, 1, 1, 3, 3, 3]
    assert all(colour in caption for colour, caption in zip([*COLOURS] * 2, table["caption"].to_pylist(), strict=True))
    assert all(score < 0 for score in table["score"].to_pylist())
    assert all(0 < tokens <= 40 for tokens in table["caption_tokens"].to_pylist())


@pytest.mark.parametrize("most", [4, 12, 40])
def test_a_search_waits_for_its_device_every_eighth_step_and_at_its_end(monkeypatch, most):
    model = tiny.captioner()
    batch = model.collate(samples_of(model, with_target=False, frames=2))
    decoding = CaptionerDecoding(min_length=most, max_length=most)
    expected = model.predict(batch, decoding)
    monkeypatch.setattr(shapes, "has_shapes", lambda device: True)
    with Waits() as waits:
        rows = model.predict(batch, decoding)
    for row, other in zip(rows, expected, strict=True):
        assert row == {**other, "score": pytest.approx(other["score"], rel=1e-3)}, (
            "with more places, bfloat16 rounds otherwise"
        )
    assert [row["caption_tokens"] for row in rows] == [most] * 3
    steps = most + 1
    assert waits.count == {5: 1, 13: 2, 41: 5}[steps]
    assert waits.count <= 0.2 * steps


@pytest.mark.parametrize("attention", [True, False])
def test_steps_of_a_search_are_captured_in_few_shapes(attention):
    """Nine and ten captions in those of ten."""
    model, decoding = build(attention=attention, freeze_encoder=False), CaptionerDecoding(min_length=3)
    samples = samples_of(model, with_target=False) * 4
    batches = [model.collate(samples[:count]) for count in (10, 4, 9)]
    expected = [model.predict(batch, decoding) for batch in batches]
    with captured_steps() as graphs:
        found, counts = [], []
        for batch in batches:
            found.append(model.predict(batch, decoding))
            counts.append(graphs.frame_count)
        assert [model.predict(batch, decoding) for batch in batches] == found
    said = [[[row["caption"] for row in rows] for rows in parts] for parts in (found, expected)]
    assert said[0] == said[1]
    assert 2 <= counts[0] < counts[1] == counts[2] == graphs.frame_count, "no shape is new"


@pytest.mark.parametrize("rewarded", [False, True])
@pytest.mark.parametrize("attention", [True, False])
def test_losses_of_captions_are_captured_with_their_gradients(attention, rewarded, monkeypatch):
    """Of references, and of what is drawn, which has as many words as the longest reference, and all places."""
    monkeypatch.setattr(shapes, "has_shapes", lambda device: True)
    model = build(attention=attention, temporal="lstm", reward_share=0.5)
    samples = model.featurize(samples_of(model, frames=3))
    model.start_epoch(0, 2)
    fit(model, model.collate(samples), 20)  # or nothing that is drawn earns anything
    model.train().start_epoch(int(rewarded), 2)

    def learned():
        model.zero_grad()
        torch.manual_seed(0)
        loss = model(model.collate(samples))
        loss.total.backward()
        return loss, [p.grad for p in model.parameters() if p.requires_grad]

    expected = learned()
    assert all(grad.abs().max() > 0 for grad in expected[1])
    with captured_losses() as graphs:
        found = [learned() for _ in range(2)]
    for one in found:
        torch.testing.assert_close(one, expected, atol=2e-3, rtol=1e-3)
    assert graphs.frame_count == 1


def test_caption_takes_images_arrays_and_clips_of_any_size():
    model = build()
    media = [
        Image.new("L", (50, 20), 200),
        Image.new("RGBA", (20, 50)),
        np.zeros((70, 40, 3), np.uint8),
        np.zeros((9, 40, 70, 3), np.uint8),
    ]
    captions = model.caption(media, batch_size=3, beam_size=1, max_length=5)
    assert len(captions) == 4
    assert captions[2] == captions[3]
    with pytest.raises(BadSample, match="no uint8 image"):
        model.caption([np.zeros((4, 4), np.uint8)])


def test_a_clip_is_sampled_uniformly():
    model = build()
    clip = np.stack([image("red")[0], *[image("green")[0]] * 4, image("blue")[0]] * 1)
    seen = []
    original = model.collate
    model.collate = lambda samples: (seen.extend(samples), original(samples))[1]
    model.caption([clip], beam_size=1, max_length=2)
    assert seen[0]["frames"][:, 0, 0].tolist() == [list(COLOURS[c]) for c in ("red", "green", "green", "blue")]


# ---- judgement and configuration ----
def test_record_and_summary():
    model = build()
    sample = samples_of(model)[0]
    record = model.record(sample, {"caption": "a red square"})
    assert record == {"hypothesis": "a red square", "references": CAPTIONS["red"]}
    records = [
        {
            "hypothesis": f"a {colour} square on the grey ground",
            "references": [f"A {colour} square on the grey ground."],
        }
        for colour in COLOURS
    ] + [{"hypothesis": "a red square on the grey ground", "references": ["A red square on the grey ground."]}]
    summary = Captioner.summarise(records)
    assert set(summary["metrics"]) == set(Captioner.metrics)
    assert summary["metrics"]["bleu4"] == pytest.approx(100.0)
    assert summary["baseline"]["name"] == "most frequent caption"
    assert summary["details"]["baseline_caption"] == "a red square on the grey ground"
    assert summary["baseline"]["bleu4"] < summary["metrics"]["bleu4"]
    assert summary["baseline"]["cider_d"] < summary["metrics"]["cider_d"]
    assert summary["details"]["different_captions"] == 3


@pytest.mark.parametrize("wrong", [{"beam_size": 0}, {"max_length": 0}, {"no_repeat": -1}])
def test_wrong_decoding(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        CaptionerDecoding(**wrong)


def test_missing_tokenizer():
    with pytest.raises(UsageError, match=r"captioner has no tokenizer\.json"):
        Captioner(CaptionerConfig(**TINY), {})


@pytest.mark.parametrize("attention", [True, False])
def test_a_gaze_belongs_to_the_caption(attention):
    hybrid = tiny.captioner()
    if not attention:
        torch.manual_seed(0)
        hybrid = Captioner(replace(hybrid.config, attention=False), hybrid.assets).eval()
    frames = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3)).astype(np.uint8)
    sample = hybrid.preprocess(hybrid.config, hybrid.assets)(Inputs(frames, {}), with_target=False)
    (shown,) = hybrid.explain([sample], CaptionerDecoding(beam_size=2, max_length=6))
    np.testing.assert_array_equal(shown.frames, frames)
    (caption,) = hybrid.caption([frames], beam_size=2, max_length=6)
    assert " ".join(shown.words).replace("␣", "").split() == caption.split()
    if attention:
        assert shown.weights.shape[0] == len(shown.words)
        np.testing.assert_allclose(shown.weights.sum((1, 2)), 1, rtol=1e-2)
    else:
        assert shown.weights is None


@pytest.mark.parametrize("temporal", ["mean", "lstm"])
def test_what_is_said_and_where_it_looked_are_searched_for_in_half_precision(monkeypatch, temporal):
    """Where the hardware computes in it, as `contract.autocast` tells."""
    hybrid, decoding = build(temporal=temporal).eval(), CaptionerDecoding(beam_size=2, max_length=6)
    sample = samples_of(hybrid, with_target=False, frames=2)[0]
    halves, step = [], hybrid.decoder.step

    def seen(*given):
        halves.append(torch.is_autocast_enabled("cpu"))
        return step(*given)

    monkeypatch.setattr(hybrid.decoder, "step", seen)
    for half in (False, True):
        chosen = torch.autocast("cpu", torch.bfloat16, half)
        monkeypatch.setattr("hybrid_models.captioner.captioner.autocast", lambda _, chosen=chosen: chosen)
        (row,), (shown,) = hybrid.predict(hybrid.collate([sample]), decoding), hybrid.explain([sample], decoding)
        assert set(halves) == {half}
        assert row["caption"] == shown.said
        assert row["score"] < 0
        halves.clear()
