"""What a recogniser reads: labels and frames."""

import json

import numpy as np
import pytest
from PIL import Image

from hybrid_models.errors import BadSample, UsageError
from hybrid_models.inputs import Inputs
from hybrid_models.recogniser.config import RecogniserConfig
from hybrid_models.recogniser.interface import RecogniserInterface
from hybrid_models.recogniser.preprocess import (
    LABELS,
    MAX_LABELS,
    RecogniserPreprocess,
    label_of,
    learn_labels,
    read_labels,
)
from pipelines.staging.actors import digest

CONFIG = RecogniserConfig(image_size=32, frames=3)
ASSETS = {LABELS: '["jump", "run"]'}


def test_labels_are_learned_in_order_once():
    assert learn_labels(iter(["run", "jump", "run"])) == ASSETS[LABELS]
    assert read_labels(ASSETS) == ["jump", "run"]
    with pytest.raises(UsageError, match=r"1 different labels in the training data: `model\.label` names their field"):
        learn_labels(["run", "run"])
    with pytest.raises(UsageError, match=f"more than {MAX_LABELS} different labels"):
        learn_labels(map(str, range(MAX_LABELS + 1)))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '["a"]', '["a", "a"]', '["a", 1]', '{"a": 1}', json.dumps([str(i) for i in range(1001)])]
)
def test_damaged_labels_are_refused(text):
    with pytest.raises(UsageError, match=r"labels\.json"):
        read_labels({LABELS: text})
    with pytest.raises(UsageError, match=r"labels\.json"):
        read_labels({})


def test_a_label_is_a_text_or_a_whole_number():
    assert [label_of(CONFIG, {"label": value}) for value in (" run ", 7, 0)] == ["run", "7", "0"]
    for bad in (
        {},
        {"label": ""},
        {"label": " "},
        {"label": None},
        {"label": True},
        {"label": 1.5},
        {"label": ["run"]},
    ):
        with pytest.raises(BadSample, match="LabelMissing: field 'label' holds no text or whole number"):
            label_of(CONFIG, bad)
        assert CONFIG.training_texts(bad) == []
    with pytest.raises(BadSample, match="LabelTooLong: 201 characters"):
        label_of(CONFIG, {"label": "x" * 201})
    assert RecogniserConfig(label="action").training_texts({"action": "run"}) == ["run"]


def test_clips_are_samples_with_the_number_of_their_label():
    preprocess = RecogniserPreprocess(CONFIG, ASSETS)
    clip = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3)).astype(np.uint8)
    sample = preprocess(Inputs(clip, {"label": "run"}), with_target=True)
    assert {name: int(sample[name]) for name in ("frame_count", "length", "label")} == {
        "frame_count": 2, "length": 2, "label": 1,
    }  # fmt: skip
    np.testing.assert_array_equal(sample["frames"], clip)
    assert not {"label", "reference"} & preprocess(Inputs(clip, {}), with_target=False).keys()
    more = RecogniserPreprocess(CONFIG, {LABELS: '["clap", "jump", "run"]'})
    other = more(Inputs(clip, {"label": "run"}), with_target=True)
    assert int(other["label"]) == 2
    assert digest(other, RecogniserInterface.truth) == digest(sample, RecogniserInterface.truth), "beside a champion"
    jump = more(Inputs(clip, {"label": "jump"}), with_target=True)
    assert digest(jump, RecogniserInterface.truth) != digest(sample, RecogniserInterface.truth)
    with pytest.raises(BadSample, match="UnknownLabel: 'swim' is none of jump, run"):
        preprocess(Inputs(clip, {"label": "swim"}), with_target=True)


def test_grey_arrays_are_resized_at_the_wanted_frames():
    grey = np.random.default_rng(0).integers(0, 255, (9, 20, 24)).astype(np.uint8)
    frames = RecogniserPreprocess(CONFIG, ASSETS)(Inputs(grey, {}), with_target=False)["frames"]
    assert frames.shape == (3, 32, 32, 3)
    for frame, index in zip(frames, (1, 4, 7), strict=True):  # the middles of three equal parts
        expected = np.asarray(Image.fromarray(grey[index]).resize((32, 32), Image.Resampling.BICUBIC))
        for channel in range(3):
            np.testing.assert_array_equal(frame[..., channel], expected)


@pytest.mark.parametrize(
    "media",
    [None, np.zeros((2, 32, 32, 3), np.float32), np.zeros((2, 16, 32, 3), np.uint8), np.zeros((4, 8, 8), np.float32)],
)
def test_what_is_no_clip_is_a_bad_sample(media):
    with pytest.raises(BadSample, match=r"Media(Missing|Shape)"):
        RecogniserPreprocess(CONFIG, ASSETS)(Inputs(media, {}), with_target=False)
