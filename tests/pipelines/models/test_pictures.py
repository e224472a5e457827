import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybrid_models.captioner.captioner import CaptionerDecoding
from hybrid_models.explanations import Alignment, Gaze
from hybrid_models.nowcaster.decoding import NowcasterDecoding
from hybrid_models.recogniser.recogniser import RecogniserDecoding
from hybrid_models.translator.translator import TranslatorDecoding
from pipelines import storage
from pipelines.models import pictures
from pipelines.models.session import Session
from pipelines.reading.limits import Limits
from pipelines.reading.shards import list_shards
from tests import tiny
from tests.integration.test_kinds import clip
from tests.pipelines.models.made import share
from tests.pipelines.reading.media.test_radar import event_bytes

SUFFIXES = ("png", "gif")


def test_an_alignment_is_dark_where_the_translator_looked() -> None:
    weights = np.eye(3, 5, dtype=np.float32)
    words = ["$x^2", "·</b>", "ü", "␣", "(end)"]
    drawn = {}
    for name, turned in (("diagonal", weights), ("mirrored", weights[:, ::-1])):
        content = pictures.draw(Alignment(words, words[:3], turned))["png"]
        drawn[name] = np.asarray(Image.open(io.BytesIO(content)).convert("L")).astype(int)
    height, width = drawn["diagonal"].shape
    corner = (slice(height // 2, height - 20), slice(width // 3, width // 2))
    assert not np.array_equal(drawn["diagonal"][corner], drawn["mirrored"][corner])
    dark = np.argwhere(drawn["diagonal"] < 80)
    assert len(dark) > 0.05 * drawn["diagonal"].size


def test_without_attention_the_words_stand_alone() -> None:
    drawn = pictures.draw(Alignment(["ein", "Hund"], ["a", "dog"], None))["png"]
    looked = pictures.draw(Alignment(["ein", "Hund"], ["a", "dog"], np.eye(2, dtype=np.float32)))["png"]
    assert share(drawn, "#08306b") < 0.001 < share(looked, "#08306b")


def test_an_empty_translation_is_drawn() -> None:
    drawn = pictures.draw(Alignment(["ein", "(end)"], [], np.zeros((0, 2), np.float32)))["png"]
    assert drawn.startswith(b"\x89PNG")


def test_a_gaze_is_bright_where_the_captioner_looked() -> None:
    image = np.full((32, 32, 3), 250, np.uint8)
    weights = np.zeros((1, 2, 2), np.float32)
    weights[0, 0, 0] = 1
    content = pictures.draw(Gaze(image[None], "dog", ["dog"], weights))["png"]
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("L")).astype(int)
    second = pixels[-140:-10, pixels.shape[1] // 2 + 10 : -10]
    assert second[:20, :20].mean() > second[-20:, -20:].mean() + 100
    plain = pictures.draw(Gaze(image[None], "a dog", ["a", "dog"], None))["png"]
    assert share(plain, "#fafafa") > 0.7, "the photograph alone"


def test_a_gaze_on_a_clip_is_bright_at_the_frame_of_each_word() -> None:
    frames = np.full((3, 32, 32, 3), 250, np.uint8)
    shares = np.eye(2, 3, dtype=np.float32)
    gaze = Gaze(frames, "red moves", ["red", "moves"], np.zeros((2, 1, 1), np.float32), shares)
    pixels = np.asarray(Image.open(io.BytesIO(pictures.draw(gaze)["png"])).convert("L")).astype(int)
    height, width = pixels.shape[0] / 3, pixels.shape[1] / 3
    for word, row in enumerate(shares):
        for frame, share_ in enumerate(row):
            middle = pixels[int((word + 1.6) * height) - 5 :, int((frame + 0.5) * width) - 5 :][:10, :10].mean()
            assert (middle > 200) == (share_ == 1), (word, frame, middle)
    assert pictures.strip(frames).shape == (32, 3 * 32 + 2, 3)


def test_a_clip_whose_frames_are_averaged_stands_above_its_middle_frame_lit_by_word() -> None:
    frames = np.full((3, 32, 32, 3), 250, np.uint8)
    frames[1] = 120
    weights = np.zeros((2, 2, 2), np.float32)
    weights[0, 0, 0] = weights[1, 1, 1] = 1
    gaze = Gaze(frames, "red moves", ["red", "moves"], weights, None, np.array([0.0, 0.5, 1.0]))
    pixels = np.asarray(Image.open(io.BytesIO(pictures.draw(gaze)["png"])).convert("L")).astype(int)
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 3
    tiles = [[pixels[row * height :, column * width :][:height, :width] for column in range(3)] for row in range(2)]
    middles = [np.median(tile[-height // 2 :]) for tile in tiles[0]]
    assert middles == pytest.approx([250, 120, 250], abs=3), "each frame, in order"
    corners = [(tile[height // 3, width // 5], tile[-height // 8, -width // 5]) for tile in tiles[1][:2]]
    assert corners[0][0] > corners[0][1] + 40
    assert corners[1][1] > corners[1][0] + 40
    plain = pictures.draw(Gaze(frames, "moves left", [], None, None, np.array([0.0, 0.5, 1.0])))["png"]
    assert share(plain, "#787878") > 0.15 < share(plain, "#fafafa"), "a strip alone"


def test_times_are_written_as_people_do() -> None:
    assert [pictures.clock(seconds) for seconds in (0.0, 7.54, 59.96, 60.0, 127.5, 7384.25)] == [
        "0.0 s", "7.5 s", "1:00.0", "1:00.0", "2:07.5", "123:04.2",
    ]  # fmt: skip


def test_what_nobody_can_draw_is_an_error() -> None:
    with pytest.raises(TypeError, match="cannot draw int"):
        pictures.draw(3)


def test_examples_of_each_hybrid(tmp_path: Path) -> None:
    tiny.write_pairs(str(tmp_path / "text/one"), 5, seed=1)
    photos = [(f"{i}.jpg", tiny.jpeg(i)) for i in range(3)] + [(f"{i}.json", b'{"captions": ["a"]}') for i in range(3)]
    photos.append(("torn.jpg", tiny.jpeg(0)[:100]))
    storage.write_bytes(str(tmp_path / "photos/x.tar"), tiny.tar(sorted(photos)))
    clips = [(f"{name}.mp4", clip("mp4", "libx264")) for name in "ab"] + [("torn.mp4", clip("mp4", "libx264")[:500])]
    clips += [(f"{name}.json", b'{"captions": ["a"], "label": "runs"}') for name in ("a", "b", "torn")]
    storage.write_bytes(str(tmp_path / "clips/x.tar"), tiny.tar(sorted(clips)))
    rain = np.random.default_rng(0).integers(0, 500, (8, 32, 32)).astype(np.uint16)
    for name in ("a", "b"):
        event = event_bytes([5 * t for t in range(8)], rain=rain)
        storage.write_bytes(str(tmp_path / f"radar/{name}.nc"), event)
    for hybrid, decoding, folder, count, names in (
        (tiny.translator(), TranslatorDecoding(max_length=9), "text", 2, ["example-1.png", "example-2.png"]),
        (tiny.captioner(), CaptionerDecoding(max_length=5), "photos", 9, [f"example-{i}.png" for i in (1, 2, 3)]),
        (tiny.captioner(), CaptionerDecoding(max_length=5), "clips", 4, [f"example-{i}.png" for i in (1, 2)]),
        (tiny.recogniser(), RecogniserDecoding(top=2), "clips", 4, [f"example-{i}.png" for i in (1, 2)]),
        (tiny.nowcaster(), NowcasterDecoding(), "radar", 2, [f"example-{i}.{s}" for i in (1, 2) for s in SUFFIXES]),
    ):  # fmt: skip
        files = pictures.examples(Session(hybrid, decoding, Limits()), list_shards(str(tmp_path / folder)), count)
        assert sorted(files) == sorted(names)
        for content in files.values():
            Image.open(io.BytesIO(content)).load()


def test_what_no_font_has_is_replaced() -> None:
    assert pictures.printable("a\x00b\x1fc\ud800 ü\n日本") == "a\ufffdb\ufffdc\ufffd ü\n日本"
