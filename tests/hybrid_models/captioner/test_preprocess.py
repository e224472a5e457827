import pickle

import numpy as np
import pytest

from hybrid_models.captioner.captioner import Captioner
from hybrid_models.captioner.preprocess import TOKENIZER, plain_caption
from hybrid_models.errors import BadSample
from hybrid_models.inputs import Inputs
from hybrid_models.symbols import BOS, EOS
from hybrid_models.text import Tokenizer, unpack_json
from tests.hybrid_models.captioner.test_captioner import CAPTIONS, SIZE, build, image, samples_of


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("A man 's dog , running .", "a man s dog running"),
        ('The man\'s T-shirt says "Stop!"', "the man's t-shirt says stop"),
        (" - Äpfel -- 'und' Birnen…\n", "äpfel und birnen"),
        ("एक आदमी घोड़े पर, हिन्दी।", "एक आदमी घोड़े पर हिन्दी"),
        ("ผู้ชายขี่ม้า", "ผู้ชายขี่ม้า"),
        ("رَجُلٌ", "رَجُلٌ"),
        ("İstanbul'da bir kedi", "i̇stanbul'da bir kedi"),
        ("می‌رود", "می‌رود"),
        ("I ❤️ it, 👨‍👩‍👧 'too'", "i it too"),
        ("½ cup, 5 m² (③)", "½ cup 5 m² ③"),
    ],
)
def test_plain_caption(raw, plain):
    assert plain_caption(raw, 100) == plain


def test_sample():
    model = build()
    sample = samples_of(model)[0]
    tokenizer = Tokenizer(model.assets[TOKENIZER])
    assert {name: array.dtype for name, array in sample.items()} == {
        "frames": np.uint8,
        "frame_count": np.int64,
        "length": np.int64,
        "captions": np.int32,
        "references": np.uint8,
    }
    assert [tokenizer.decode(row) for row in sample["captions"]] == ["a red square", "the whole image is red"]
    assert (sample["captions"][:, 0] == BOS).all()
    assert ((sample["captions"] == EOS).sum(1) == 1).all()
    assert unpack_json(sample["references"]) == CAPTIONS["red"]
    assert sample["length"] == sample["captions"].shape[1]
    assert set(samples_of(model, with_target=False)[0]) == {"frames", "frame_count", "length"}


def test_preprocess_is_picklable_and_knows_its_visual():
    model = build()
    preprocess = pickle.loads(pickle.dumps(Captioner.preprocess(model.config, model.assets)))
    assert (preprocess.visual.height, preprocess.visual.width, preprocess.visual.frames) == (SIZE, SIZE, 4)
    assert preprocess(Inputs(image("red"), {}), False)["frames"].shape == (1, SIZE, SIZE, 3)


@pytest.mark.parametrize(
    "fields", [{"captions": ["a red square"]}, {"caption": "a red square"}, {"text": "A red square.\n"}]
)
def test_where_captions_come_from(fields):
    model = build()
    sample = Captioner.preprocess(model.config, model.assets)(Inputs(image("red"), fields), True)
    assert Tokenizer(model.assets[TOKENIZER]).decode(sample["captions"][0]) == "a red square"


def test_unusable_captions_are_left_out_and_many_are_cut():
    model = build(max_captions=2, max_caption_tokens=12, max_characters=200)
    preprocess = Captioner.preprocess(model.config, model.assets)
    fields = {"captions": ["x" * 201, "...", "a red square", None, "qwertz uiopü asdfg hjkl", "red", "blue"]}
    sample = preprocess(Inputs(image("red"), fields), True)
    tokenizer = Tokenizer(model.assets[TOKENIZER])
    assert [tokenizer.decode(row) for row in sample["captions"]] == ["a red square", "red"]
    references = [text for text in fields["captions"] if text not in (None, "...")]
    assert unpack_json(sample["references"]) == references, "judged by all that have a word"


@pytest.mark.parametrize(
    ("media", "fields", "message"),
    [
        (None, {}, "MediaMissing"),
        (np.zeros((1, SIZE, SIZE + 1, 3), np.uint8), {}, "MediaShape: media is uint8"),
        (np.zeros((1, SIZE, SIZE, 3), np.float32), {}, "MediaShape: media is float32"),
        (np.zeros((0, SIZE, SIZE, 3), np.uint8), {}, "MediaShape"),
        (image("red"), {}, "CaptionsMissing"),
        (image("red"), {"captions": []}, "CaptionsMissing"),
        (image("red"), {"captions": ["", "!"]}, "EmptyText: caption has no word"),
        *((image("red"), {"captions": [text]}, "EmptyText: caption has no word") for text in ("_", "%", "&", "'%'")),
        (image("red"), {"captions": ["red " * 100]}, "TextTooLong: caption has 100 tokens"),
    ],
)
def test_bad_rows(media, fields, message):
    model = build()
    with pytest.raises(BadSample, match=message):
        Captioner.preprocess(model.config, model.assets)(Inputs(media, fields), True)
