"""The translator: preprocessing, padding, learning, decoding and judgement."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from hybrid_models import shapes
from hybrid_models.errors import UsageError
from hybrid_models.inputs import Inputs
from hybrid_models.symbols import BOS, EOS, PAD
from hybrid_models.text import Tokenizer, written_places
from hybrid_models.translator.config import TranslatorConfig
from hybrid_models.translator.translator import TOKENIZER, Translator, TranslatorDecoding
from tests import tiny
from tests.hybrid_models.search.captured import captured_losses, captured_steps
from tests.waits import Waits

PAIRS = {
    "a dog runs": "ein Hund rennt",
    "a red dog runs over the street": "ein roter Hund rennt über die Straße",
    "two men sit": "zwei Männer sitzen",
    "the woman sees two dogs in a park": "die Frau sieht zwei Hunde in einem Park",
    "a child": "ein Kind",
    "the child sees a dog": "das Kind sieht einen Hund",
}
ROWS = [{"en": source, "de": target} for source, target in PAIRS.items()]
TINY = TranslatorConfig(
    vocab_size=330, embedding_size=32, hidden_size=48, attention_size=24, dropout=0.0, label_smoothing=0.0
)


def build(config=TINY, seed=0):
    texts = [text for row in ROWS for text in config.training_texts(row)]
    torch.manual_seed(seed)
    return Translator(config, Translator.learn_assets(config, texts))


def samples_of(model, with_target=True):
    preprocess = Translator.preprocess(model.config, model.assets)
    return [preprocess(Inputs(None, row), with_target) for row in ROWS]


def fit(model, steps, learning_rate=5e-3):
    batch = model.collate(samples_of(model))
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    model.train()
    for _ in range(steps):
        loss = model(batch)
        (loss.total / loss.terms).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return float(loss.total.detach() / loss.terms)


@pytest.fixture(scope="module")
def model():
    return build().eval()


def learned(**changes):
    """Learned by heart, in more steps on one processor than on another."""
    model = build(replace(TINY, **changes))
    for _ in range(15):
        loss = fit(model, 100)
        found = [model.translate(list(PAIRS), beam_size=size) for size in (1, 5)]
        if loss < 0.05 and found == 2 * [list(PAIRS.values())]:
            return model
    raise AssertionError("15 times 100 steps do not do")


@pytest.fixture(scope="module")
def fitted():
    return learned()


# ---- preprocessing ----


def test_bad_rows_teach_nothing():
    assert TINY.training_texts({"en": "a", "de": ""}) == []
    assert TINY.training_texts({"text": "a", "de": "b\tc"}) == ["source\ta", "target\tb c"]


# ---- the net ----
def test_collate(model):
    batch = model.collate(samples_of(model))
    assert batch["source_length"].tolist() == (batch["source"] != PAD).sum(1).tolist()
    assert (batch["target"][:, 0] == BOS).all()
    assert ((batch["target"] == EOS).sum(1) == 1).all()
    assert "target" not in model.collate(samples_of(model, with_target=False))


def test_padding_changes_neither_state_nor_memory(model):
    samples = samples_of(model)
    state, memory = model.encode(model.collate(samples))
    for i, sample in enumerate(samples):
        alone_state, alone = model.encode(model.collate([sample]))
        length = len(sample["source"])
        torch.testing.assert_close(state["hidden"][i], alone_state["hidden"][0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(memory["keys"][i, :length], alone["keys"][0], atol=1e-6, rtol=1e-5)
        assert memory["mask"][i].tolist() == [True] * length + [False] * (memory["mask"].shape[1] - length)


def test_loss_of_a_batch_is_the_sum_of_its_samples(model, monkeypatch):
    monkeypatch.setattr("hybrid_models.contract.bf16_is_fast", lambda device: False)
    samples = samples_of(model)
    together = model(model.collate(samples))
    alone = [model(model.collate([sample])) for sample in samples]
    assert int(together.terms) == sum(int(loss.terms) for loss in alone)
    assert int(together.terms) == sum(len(sample["target"]) + 1 for sample in samples)
    torch.testing.assert_close(together.total, torch.stack([loss.total for loss in alone]).sum())


def test_untrained_loss_is_that_of_guessing(model):
    loss = model(model.collate(samples_of(model)))
    vocabulary = len(Tokenizer(model.assets[TOKENIZER]))
    assert float(loss.total.detach() / loss.terms) == pytest.approx(np.log(vocabulary), rel=0.1)


def test_label_smoothing_is_for_training_only():
    smoothed = build(TranslatorConfig(**{**vars(TINY), "label_smoothing": 0.5}))
    plain = build()
    smoothed.load_state_dict(plain.state_dict())
    batch = plain.collate(samples_of(plain))
    assert smoothed.eval()(batch).total.item() == plain.eval()(batch).total.item()
    assert smoothed.train()(batch).total.item() != plain.train()(batch).total.item()


def test_state_dict_shares_no_tensors_and_restores():
    model, other = build(), build(seed=1)
    pointers = [tensor.data_ptr() for tensor in model.state_dict().values()]
    assert len(pointers) == len(set(pointers))
    other.load_state_dict(model.state_dict())
    batch = model.collate(samples_of(model))
    assert other.eval()(batch).total.item() == model.eval()(batch).total.item()


# ---- prediction ----
@pytest.mark.parametrize("beam_size", [1, 5])
def test_learns_its_batch_by_heart(fitted, beam_size):
    assert fitted.translate(list(PAIRS), beam_size=beam_size) == list(PAIRS.values())


@pytest.mark.parametrize(
    "changes", [{"cell": "lstm"}, {"attention": False}, {"cell": "lstm", "attention": False, "encoder_layers": 2}]
)
def test_every_cell_learns_with_and_without_attention(changes):
    model = learned(**changes)
    assert model.translate(list(PAIRS), beam_size=1) == list(PAIRS.values())
    (shown, *_) = model.explain(samples_of(model, with_target=False), TranslatorDecoding())
    assert shown.target
    assert (shown.weights is None) == ("attention" in changes)


def test_without_attention_the_source_is_in_the_first_state_alone():
    model = build(replace(TINY, attention=False)).eval()
    batch = model.collate(samples_of(model)[:2])
    state, memory = model.encode(batch)
    targets = batch["target"][:1]
    written = torch.from_numpy(written_places(targets.numpy()))
    first, second = ({name: value[i : i + 1] for name, value in state.items()} for i in (0, 1))
    own, other = ({name: value[i : i + 1] for name, value in memory.items()} for i in (0, 1))
    loss = model.decoder.loss(targets, written, first, own, 0.0).total.item()
    assert model.decoder.loss(targets, written, first, other, 0.0).total.item() == loss
    assert model.decoder.loss(targets, written, second, own, 0.0).total.item() != loss


def test_rows_fit_the_schema_in_order(fitted):
    rows = fitted.predict(fitted.collate(samples_of(fitted)), TranslatorDecoding())
    table = pa.Table.from_pylist(rows, schema=Translator.payload_schema)
    assert table["source"].to_pylist() == list(PAIRS)
    assert table["translation"].to_pylist() == list(PAIRS.values())
    assert table["source_tokens"].to_pylist() == [len(sample["source"]) - 1 for sample in samples_of(fitted)]
    assert table["target_tokens"].to_pylist() == [len(sample["target"]) for sample in samples_of(fitted)]
    assert all(-1 < score <= 0 for score in table["score"].to_pylist())  # 0 in float32 where it is sure


def test_translate_in_small_batches_and_without_sentences(fitted):
    assert fitted.translate(list(PAIRS), batch_size=2) == list(PAIRS.values())
    assert fitted.translate([]) == []


def test_predict_leaves_mode_and_gradients_as_they_were():
    model = build().train()
    rows = model.predict(model.collate(samples_of(model)), TranslatorDecoding(max_length=3))
    assert model.training
    assert all(row["target_tokens"] <= 3 for row in rows)
    loss = model(model.collate(samples_of(model)))
    loss.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("most", [4, 12, 40])
def test_a_search_waits_for_its_device_every_eighth_step_and_at_its_end(monkeypatch, most):
    model = tiny.translator()
    preprocess = model.preprocess(model.config, model.assets)
    batch = model.collate([preprocess(Inputs(None, {"en": text}), False) for text in tiny.sentences(6)])
    decoding = TranslatorDecoding(min_length=most, max_length=most, max_length_extra=most)
    expected = model.predict(batch, decoding)
    monkeypatch.setattr(shapes, "has_shapes", lambda device: True)
    assert model.predict(batch, decoding) == expected
    with Waits() as waits:
        rows = model.predict(batch, decoding)
    assert [row["target_tokens"] for row in rows] == [most] * 6
    steps = most + 1
    assert waits.count == {5: 1, 13: 2, 41: 5}[steps]
    assert waits.count <= 0.2 * steps


def test_steps_of_a_search_are_captured_in_few_shapes():
    """Nine and ten texts of a length in those of ten, sources padded to a multiple of eight tokens."""
    model, decoding = tiny.translator(), TranslatorDecoding(max_length=40)
    preprocess, texts = model.preprocess(model.config, model.assets), tiny.sentences(40)

    def found(some):
        return model.predict(model.collate([preprocess(Inputs(None, {"en": text}), False) for text in some]), decoding)

    batches = [texts[:1] * 10, texts[20:26], texts[11:12]]
    expected = [found(some) for some in batches]
    with captured_steps() as graphs:
        counts = []
        for some, rows in zip(batches, expected, strict=True):
            assert found(some) == rows
            counts.append(graphs.frame_count)
        assert 2 <= counts[0] < counts[1] < counts[2], "other shapes are others"
        assert found(texts[:1] * 9) == expected[0][:9]
        assert [found(some) for some in batches] == expected
        assert graphs.frame_count == counts[2], "no shape is new"


def test_losses_of_texts_are_captured_with_their_gradients_in_few_shapes():
    """Of pairs whose lengths in tokens are multiples of eight, and so many tokens as have three binary digits."""
    model = tiny.translator()
    preprocess = model.preprocess(model.config, model.assets)
    samples = [
        [preprocess(Inputs(None, {"en": "a" * length, "de": "a" * length}), True) for length in lengths]
        for lengths in [(1, 2, 3, 4), (2, 2, 4, 5), (3, 3, 3, 5), (9, 10, 11, 12), (9, 10, 11, 13)]
    ]

    def learned(batches):
        model.zero_grad()
        losses = [model(batch) for batch in batches]
        sum(loss.total for loss in losses).backward()
        return losses, [parameter.grad for parameter in model.parameters()]

    def shapes_of(batches):
        return {tuple(batch[name].shape for name in ("source", "target", "written")) for batch in batches}

    plain = [model.collate(some) for some in samples]
    expected = learned(plain)
    with captured_losses() as graphs:
        batches = [model.collate(some) for some in samples]
        torch.testing.assert_close(learned(batches), expected, atol=1e-4, rtol=1e-4)
        count = graphs.frame_count
        learned(batches)
    assert count == len(shapes_of(batches)) < len(shapes_of(plain))
    assert graphs.frame_count == count, "no shape is new"


def test_length_limits():
    decoding = TranslatorDecoding(max_length_ratio=1.5, max_length_extra=2, max_length=20)
    assert list(map(decoding.limit, [1, 4, 100])) == [3, 8, 20]
    assert TranslatorDecoding(max_length_ratio=0.0, max_length_extra=0).limit(7) == 1


# ---- judgement and configuration ----
def test_record_and_summary(fitted):
    samples = samples_of(fitted)
    rows = fitted.predict(fitted.collate(samples), TranslatorDecoding())
    records = [fitted.record(sample, row) for sample, row in zip(samples, rows, strict=True)]
    assert records[0] == {"hypothesis": "ein Hund rennt", "references": ["ein Hund rennt"], "source": "a dog runs"}
    summary = Translator.summarise(records)
    assert summary["metrics"] == pytest.approx({"bleu": 100.0, "chrf": 100.0})
    assert set(summary["metrics"]) == set(Translator.metrics)
    assert summary["baseline"]["name"] == "copy the source"
    assert 0 <= summary["baseline"]["bleu"] < 20
    assert "tok:13a" in summary["details"]["bleu_signature"]
    assert summary["details"]["samples"] == len(ROWS)


@pytest.mark.parametrize(
    "wrong", [{"beam_size": 0}, {"length_penalty": -1.0}, {"max_length": 0}, {"max_length_ratio": -1.0}]
)
def test_wrong_decoding(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        TranslatorDecoding(**wrong)


def test_missing_tokenizer():
    with pytest.raises(UsageError, match=r"translator has no tokenizer\.json"):
        Translator(TINY, {})


@pytest.mark.parametrize(
    ("words", "part"),
    [(0, "1-10 words"), (1, "1-10 words"), (10, "1-10 words"), (11, "11-20 words"), (45, "41-50 words")],
)
def test_parts_of_a_test_set_are_lengths(words, part):
    assert Translator.part("x", {"source": " ".join(["a"] * words)}) == part


def test_an_alignment_belongs_to_the_translation():
    hybrid = tiny.translator()
    preprocess = hybrid.preprocess(hybrid.config, hybrid.assets)
    texts = ["der Hund läuft", "ein rot Kind spielt und schläft im Park"]
    samples = [preprocess(Inputs(None, {"en": text}), with_target=False) for text in texts]
    decoding = TranslatorDecoding(beam_size=2, max_length=8)
    translations = hybrid.translate(texts, beam_size=2, max_length=8)
    for text, translation, shown in zip(texts, translations, hybrid.explain(samples, decoding), strict=True):
        assert shown.weights.shape == (len(shown.target), len(shown.source))
        np.testing.assert_allclose(shown.weights.sum(1), 1, rtol=1e-2)
        assert shown.source == [*text.split(), "(end)"]
        assert " ".join(shown.target).replace("␣", "").split() == translation.split()
