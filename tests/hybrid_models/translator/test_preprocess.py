import pickle

import numpy as np
import pytest

from hybrid_models.errors import BadSample, UsageError
from hybrid_models.inputs import Inputs
from hybrid_models.symbols import EOS
from hybrid_models.text import Tokenizer, unpack_json
from hybrid_models.translator.config import TranslatorConfig
from hybrid_models.translator.preprocess import SOURCE_TOKENIZER, TOKENIZER
from hybrid_models.translator.translator import Translator
from tests.hybrid_models.translator.test_translator import ROWS, TINY, build, samples_of


@pytest.fixture(scope="module")
def model():
    return build()


def test_sample(model):
    sample = samples_of(model)[1]
    tokenizer = Tokenizer(model.assets[TOKENIZER])
    assert {name: array.dtype for name, array in sample.items()} == {
        "source": np.int32,
        "target": np.int32,
        "length": np.int64,
        "reference": np.uint8,
    }
    assert sample["source"][-1] == EOS
    assert tokenizer.decode(sample["source"]) == ROWS[1]["en"]
    assert tokenizer.decode(sample["target"]) == ROWS[1]["de"]
    assert unpack_json(sample["reference"]) == ROWS[1]["de"]
    assert sample["length"] == len(sample["source"]) + len(sample["target"])
    assert set(samples_of(model, with_target=False)[0]) == {"source", "length"}


def test_source_falls_back_to_text(model):
    preprocess = Translator.preprocess(model.config, model.assets)
    named, fallen = (preprocess(Inputs(None, {key: "a dog"}), False)["source"] for key in ("en", "text"))
    assert named.tolist() == fallen.tolist()


def test_preprocess_is_picklable(model):
    preprocess = pickle.loads(pickle.dumps(Translator.preprocess(model.config, model.assets)))
    assert preprocess(Inputs(None, ROWS[0]), True)["source"].tolist() == samples_of(model)[0]["source"].tolist()


@pytest.mark.parametrize(
    ("fields", "with_target", "message"),
    [
        ({}, False, "TextMissing: field 'en'"),
        ({"en": " "}, False, "EmptyText: field 'en'"),
        ({"en": "x" * 4001}, False, "TextTooLong: field 'en' has 4001 characters"),
        ({"en": "ÿ" * 300}, False, r"TextTooLong: field 'en' has \d+ tokens, at most 256"),
        ({"en": "a dog"}, True, "TextMissing: field 'de'"),
        ({"en": "a dog", "text": "ein Hund"}, True, "TextMissing: field 'de'"),
    ],
)
def test_bad_rows(model, fields, with_target, message):
    with pytest.raises(BadSample, match=message):
        Translator.preprocess(model.config, model.assets)(Inputs(None, fields), with_target)


def test_separate_vocabularies():
    config = TranslatorConfig(**{**vars(TINY), "joint_vocabulary": False})
    model = build(config)
    source, target = Tokenizer(model.assets[SOURCE_TOKENIZER]), Tokenizer(model.assets[TOKENIZER])
    assert len(source.encode("child", 9)) < len(target.encode("child", 9))
    assert len(target.encode("Hund", 9)) < len(source.encode("Hund", 9))
    assert len(model.embedding.weight) == len(source)
    assert model.translate(["a dog"], beam_size=1)
    with pytest.raises(UsageError, match=r"no source_tokenizer\.json"):
        Translator(config, {TOKENIZER: model.assets[TOKENIZER]})
