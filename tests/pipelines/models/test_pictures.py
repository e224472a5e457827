import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from hybrid_models.captioner.captioner import CaptionerDecoding
from hybrid_models.explanations import Alignment, Forecast, Gaze
from hybrid_models.nowcaster.nowcaster import NowcasterDecoding
from hybrid_models.translator.translator import TranslatorDecoding
from pipelines import storage
from pipelines.models import pictures
from pipelines.models.session import Session
from pipelines.reading.limits import Limits
from pipelines.reading.shards import list_shards
from tests import tiny
from tests.pipelines.reading.media.test_radar import event_bytes

SUFFIXES = ("png", "gif")
COLOURS = ("#c02040", "#2060f0", "#20a030")


def share(content: bytes, colour: str) -> float:
    """How much of a picture has a colour, within rounding."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    return float((np.abs(pixels - ImageColor.getrgb(colour)).max(-1) <= 3).mean())


def forecast(past: float, nowcast: float, observed: float | None, unit: str = "mm/h") -> Forecast:
    """Even fields."""
    future = None if observed is None else np.full((6, 8, 8), observed, np.float32)
    leads = [5.0 * i for i in range(1, 7)]
    return Forecast(np.full((3, 8, 8), past, np.float32), np.full((6, 8, 8), nowcast, np.float32), future, leads, unit)


@pytest.mark.parametrize(
    ("rain", "colour"),
    [(0.05, "#ffffff"), (0.3, "#c6dbef"), (3.0, "#41ab5d"), (300.0, "#7a0177")],
)
def test_rain_has_the_colour_of_its_rate(rain: float, colour: str) -> None:
    other, drawn = (pictures._panels(forecast(value, value, value)) for value in (7, rain))
    assert share(drawn, colour) > share(other, colour) + 0.25


def test_where_nothing_was_measured_is_grey() -> None:
    assert share(pictures._panels(forecast(np.nan, 3, np.nan)), pictures.NO_COVERAGE) > 0.25
    assert share(pictures._panels(forecast(3, 3, 3)), pictures.NO_COVERAGE) < 0.01


@pytest.mark.parametrize("observed", [0.5, None])
def test_an_animation_goes_from_the_past_to_the_last_lead(observed: float | None) -> None:
    files = pictures.draw(forecast(0.2, 0.8, observed, "intensity"))
    assert set(files) == {"png", "gif"}
    animation = Image.open(io.BytesIO(files["gif"]))
    assert animation.n_frames == 3 + 6
    assert animation.info["duration"] == pictures.FRAME_MS
    pages = []
    for number in (0, 8):
        animation.seek(number)
        pages.append(np.asarray(animation.convert("L")).astype(int))
    assert np.abs(pages[0] - pages[1]).mean() > 5, "it moves"


def in_colour(past: str, nowcast: str, observed: str | None, holes: bool = False) -> Forecast:
    """Even frames of these colours; with holes half of what was observed is missing, a channel of it or all."""
    seen, foretold, came = (
        None if name is None else np.full((count, 8, 8, 3), np.array(ImageColor.getrgb(name)) / 255, np.float32)
        for name, count in ((past, 3), (nowcast, 6), (observed, 6))
    )
    assert seen is not None
    assert foretold is not None
    if holes and came is not None:
        came[:, :2, :, 1] = came[:, 2:4] = np.nan
    return Forecast(seen, foretold, came, [float(i) for i in range(1, 7)], "intensity")


def test_video_in_colour_is_shown_in_colour() -> None:
    drawn = pictures._panels(in_colour(*COLOURS))
    assert 0.02 < share(drawn, "#c02040") < 0.1, "now"
    assert share(drawn, "#2060f0") > 0.15
    assert share(drawn, "#20a030") > 0.15
    assert share(pictures._panels(in_colour("#c02040", "#2060f0", None)), "#2060f0") > 0.3
    animation = Image.open(io.BytesIO(pictures._animation(in_colour(*COLOURS))))
    found = []
    for page in range(animation.n_frames):
        animation.seek(page)
        pixels = np.asarray(animation.convert("RGB")).astype(int)
        found.append(
            [bool((np.abs(pixels - ImageColor.getrgb(colour)).max(-1) <= 9).mean() > 0.1) for colour in COLOURS]
        )
    assert found == [[True, False, False]] * 3 + [[False, True, True]] * 6


def test_errors_in_colour_are_the_mean_of_the_channels_and_do_not_cancel() -> None:
    same, other = (pictures._panels(in_colour("#000000", "#ff0000", colour)) for colour in ("#ff0000", "#0000ff"))
    assert share(same, "#fff5f0") > 0.15 > share(other, "#fff5f0"), "no error is the lightest red"
    assert share(other, "#e32f27") > 0.15 > share(same, "#e32f27"), "two of three channels are all wrong"


def test_what_is_missing_in_colour_is_grey() -> None:
    assert share(pictures._panels(in_colour(*COLOURS, holes=True)), pictures.NO_COVERAGE) > 0.15
    assert share(pictures._panels(in_colour(*COLOURS)), pictures.NO_COVERAGE) < 0.01


def test_side_by_side_shows_colours_as_they_are() -> None:
    animation = Image.open(io.BytesIO(pictures.side_by_side(in_colour("#c02040", "#2060f0", None), width=120)))
    assert (animation.n_frames, animation.size) == (6, (248, 138))
    pixels = np.asarray(animation.convert("RGB")).astype(int)
    for left, colour in ((0, "#c02040"), (128, "#2060f0")):
        assert (np.abs(pixels[18:, left : left + 120] - ImageColor.getrgb(colour)) <= 9).all()


def test_an_alignment_is_dark_where_the_translator_looked() -> None:
    weights = np.eye(3, 5, dtype=np.float32)
    words = ["$x^2", "·</b>", "ü", "␣", "</s>"]
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
    for without in (Gaze(frames, "red", ["red"], None), Gaze(frames, "red", ["red"], np.ones((1, 2, 2), np.float32))):
        assert set(pictures.draw(without)) == {"png"}
    assert pictures.strip(frames).shape == (32, 3 * 32 + 2, 3)


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
    rain = np.random.default_rng(0).integers(0, 500, (8, 32, 32)).astype(np.uint16)
    for name in ("a", "b"):
        event = event_bytes([5 * t for t in range(8)], rain=rain)
        storage.write_bytes(str(tmp_path / f"radar/{name}.nc"), event)
    for hybrid, decoding, folder, count, names in (
        (tiny.translator(), TranslatorDecoding(max_length=9), "text", 2, ["example-1.png", "example-2.png"]),
        (tiny.captioner(), CaptionerDecoding(max_length=5), "photos", 9, [f"example-{i}.png" for i in (1, 2, 3)]),
        (tiny.nowcaster(), NowcasterDecoding(), "radar", 2, [f"example-{i}.{s}" for i in (1, 2) for s in SUFFIXES]),
    ):  # fmt: skip
        files = pictures.examples(Session(hybrid, decoding, Limits()), list_shards(str(tmp_path / folder)), count)
        assert sorted(files) == sorted(names)
        for content in files.values():
            Image.open(io.BytesIO(content)).load()


def test_positions_are_evenly_spread() -> None:
    assert pictures.evenly(12, 4) == [1, 4, 7, 10]
    assert pictures.evenly(3, 4) == [0, 1, 2]
    assert pictures.evenly(10, 1) == [5]


def test_a_likely_hour_is_darker_than_an_unlikely_one() -> None:
    frames = np.zeros((5, 16, 16), np.float32)
    drawn = {
        chance: pictures.draw(Forecast(frames, frames, None, [5.0 * i for i in range(1, 6)], "mm/h", frames + chance))
        for chance in (0.0, 1.0)
    }
    dark = {chance: share(files["png"], "#3f007d") for chance, files in drawn.items()}
    assert dark[1.0] > 0.2 > dark[0.0]


def test_what_no_font_has_is_replaced() -> None:
    assert pictures.printable("a\x00b\x1fc\ud800 ü\n日本") == "a\ufffdb\ufffdc\ufffd ü\n日本"
