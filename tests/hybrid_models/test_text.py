"""Cleaning, limits, and a tokenizer that gives texts back."""

import json
import time
import unicodedata

import numpy as np
import pytest

from hybrid_models.errors import BadSample, UsageError
from hybrid_models.symbols import BOS, EOS, MIN_VOCABULARY, PAD, SPECIALS, UNK
from hybrid_models.text import (
    Tokenizer,
    clean_text,
    pack_json,
    pad_rows,
    rows_of_words,
    unpack_json,
    written_places,
)

TEXTS = [
    "a man rides a red bicycle",
    "a woman rides a horse",
    "Ein Mann fährt Fahrrad, schnell.",
    "the man's red hat",
] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(iter(TEXTS), 300)


@pytest.mark.parametrize(
    "text",
    [
        "a man rides a red bicycle",
        "Äpfel & Birnen: 3,50 €!",
        "日本語の文 и русский",
        "emoji 🙂👩‍👩‍👧 end",
        "he said </s> and <pad> aloud <s>",
        "isn't it — 'quoted' \"twice\"...",
        unicodedata.normalize("NFD", "fährt über"),
    ],
)
def test_round_trip_up_to_nfc(tokenizer, text):
    ids = tokenizer.encode(text, 500)
    assert ids.dtype == np.int32
    assert not set(ids.tolist()) & {PAD, UNK, BOS, EOS}
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_learns_frequent_words_and_is_deterministic(tokenizer):
    assert len(tokenizer.encode("a man rides", 10)) == 3
    assert len(tokenizer) == 300
    again = Tokenizer.train(reversed(TEXTS), 300)
    assert again.to_json() == tokenizer.to_json()


def test_json_round_trip(tokenizer):
    restored = Tokenizer(tokenizer.to_json())
    for text in (*TEXTS, "never seen </s> é"):
        assert restored.encode(text, 100).tolist() == tokenizer.encode(text, 100).tolist()
    assert len(restored) == len(tokenizer)


def test_decode_leaves_special_symbols_out(tokenizer):
    ids = [BOS, *tokenizer.encode("a man", 9).tolist(), EOS, PAD, PAD]
    assert tokenizer.decode(ids) == "a man"
    assert tokenizer.decode([]) == ""


def test_small_texts_give_a_small_vocabulary_without_fault():
    assert MIN_VOCABULARY <= len(Tokenizer.train(["hello"], 5000)) < 300


def test_training_errors():
    with pytest.raises(UsageError, match="vocab_size is 100"):
        Tokenizer.train(TEXTS, 100)
    with pytest.raises(UsageError, match="no training texts"):
        Tokenizer.train([], 300)


@pytest.mark.parametrize(
    "wrong", ["", "{", "{}", '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}']
)
def test_not_a_tokenizer(wrong):
    with pytest.raises(UsageError, match=r"tokenizer\.json"):
        Tokenizer(wrong)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),  # the library panics
        ("normalizer", None),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a*)*b"}, "behavior": "Isolated", "invert": False}),
        ("post_processor", {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}),
        ("truncation", {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 5}),
        ("padding", {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                     "pad_type_id": 0, "pad_token": "x"}),
        ("model", {"type": "Unigram", "unk_id": 0, "vocab": [[name, 0.0] for name in SPECIALS]}),
        ("model", {"type": "Magic"}),
        ("model", 7),
        ("decoder", []),
    ],
)  # fmt: skip
def test_tokenizers_of_other_parts_are_refused(tokenizer, part, value):
    changed = {**json.loads(tokenizer.to_json()), part: value}
    with pytest.raises(UsageError, match=r"^tokenizer\.json (has|is not) .*(made by something else|restore the file)$"):
        Tokenizer(json.dumps(changed))


@pytest.mark.parametrize(
    ("option", "value"),
    [("continuing_subword_prefix", "##"), ("end_of_word_suffix", "é"), ("unk_token", "x"), ("ignore_merges", True)],
)
def test_tokenizers_with_other_options_are_refused(tokenizer, option, value, capfd):
    """A prefix of subwords makes the library panic, and print a page of Rust about it."""
    content = json.loads(tokenizer.to_json())
    content["model"][option] = value
    with pytest.raises(UsageError, match=rf"^tokenizer\.json has .* {option}, not .*: it was made by something else$"):
        Tokenizer(json.dumps(content))
    assert capfd.readouterr() == ("", "")


def test_tokenizers_with_other_ids_are_refused(tokenizer):
    content = json.loads(tokenizer.to_json())
    content["model"]["vocab"]["far"] = 2**32 - 1
    with pytest.raises(UsageError, match=r"^tokenizer\.json leaves out or repeats token ids"):
        Tokenizer(json.dumps(content))


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"model":' * 100_000, '{"version": ' + "[" * 900 + "]" * 900 + "}"])
def test_deeply_nested_tokenizers_are_refused(deep):
    with pytest.raises(UsageError, match=r"^tokenizer\.json is not a tokenizer"):
        Tokenizer(deep)


def test_a_panic_of_the_library_is_a_usage_error(tokenizer, monkeypatch):
    """Even where the parts are ours."""
    monkeypatch.setattr("hybrid_models.text._check_parts", lambda serialised: None)
    panicking = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    changed = {**json.loads(tokenizer.to_json()), "normalizer": panicking}
    with pytest.raises(UsageError, match=r"^tokenizer\.json is not a tokenizer"):
        Tokenizer(json.dumps(changed))


def test_clean_text():
    assert clean_text("  two\t words\r\n and\x00NUL\x1b ", 100) == "two words and NUL"
    assert clean_text("fa\u0308hrt\u00a0los\u2028ja", 100) == "fährt los ja"
    assert clean_text("half \ud83d pair", 100) == "half \ufffd pair"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "EmptyText"),
        (" \t\n ", "EmptyText"),
        ("\x00\x01", "EmptyText"),
        ("x" * 101, "TextTooLong"),
        (None, "TextMissing"),
        (b"bytes", "TextMissing"),
        (7, "TextMissing"),
    ],
)
def test_bad_texts(text, kind):
    with pytest.raises(BadSample, match="field 'en'") as caught:
        clean_text(text, 100, "field 'en'")
    assert caught.value.kind == kind


def test_huge_text_fails_before_any_work():
    huge = "word " * 2_000_000
    start = time.perf_counter()
    with pytest.raises(BadSample, match="TextTooLong: text has 10000000 characters, at most 4000 are allowed"):
        clean_text(huge, 4000)
    assert time.perf_counter() - start < 0.1


def test_too_many_tokens(tokenizer):
    assert len(tokenizer.encode("a man rides", 3)) == 3
    with pytest.raises(BadSample, match="TextTooLong: caption has 4 tokens, at most 3 are allowed"):
        tokenizer.encode("a man rides a", 3, "caption")


def test_pack_json_round_trip():
    value = ["ein Käse", {"n": 1}]
    packed = pack_json(value)
    assert packed.dtype == np.uint8
    assert unpack_json(packed) == value


def test_written_places_are_those_of_what_is_asked_for():
    targets = np.array([[BOS, 5, EOS, PAD], [PAD, PAD, PAD, PAD], [BOS, 6, 7, EOS]])
    assert written_places(targets).tolist() == [0, 1, 6, 7, 8]
    assert written_places(targets[1:2]).tolist() == []


def test_pad_rows():
    rows = [np.array([5, 6, 7]), np.array([8])]
    assert pad_rows(rows).tolist() == [[5, 6, 7], [8, PAD, PAD]]
    assert pad_rows(rows, 4).tolist() == [[5, 6, 7, PAD], [8, PAD, PAD, PAD]]


def test_tokens_are_shown_as_words(tokenizer):
    text = "a bicycle, Übermut x"
    ids = tokenizer.encode(text, 50).tolist()
    words, starts = tokenizer.words([*ids, EOS])
    assert words == [*text.split(), "(end)"]
    assert len(ids) > len(text.split()), "some words have several tokens"
    assert (starts[0], starts[-1]) == (0, len(ids))
    for word, first, end in zip(words, starts, starts[1:], strict=False):
        assert tokenizer.decode(ids[first:end]) == word
    assert tokenizer.words([EOS])[0] == ["(end)"], "an empty text"


def test_the_weights_of_a_word_are_the_mean_of_its_tokens():
    weights = np.array([[1, 0], [0, 1], [0.5, 0.5], [0, 1]], np.float32)
    np.testing.assert_array_equal(rows_of_words(weights, np.array([0, 2, 3])), [[0.5, 0.5], [0.5, 0.5]])
    assert rows_of_words(weights[:1], np.array([0])).shape == (0, 2), "an empty text"
