import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from hybrid_models.explanations import Forecast
from pipelines.models import forecasts, pictures
from tests.pipelines.models.made import share

COLOURS = ("#c02040", "#2060f0", "#20a030")


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
    other, drawn = (forecasts.panels(forecast(value, value, value)) for value in (7, rain))
    assert share(drawn, colour) > share(other, colour) + 0.25


def test_where_nothing_was_measured_is_grey() -> None:
    assert share(forecasts.panels(forecast(np.nan, 3, np.nan)), forecasts.NO_COVERAGE) > 0.25
    assert share(forecasts.panels(forecast(3, 3, 3)), forecasts.NO_COVERAGE) < 0.01


@pytest.mark.parametrize("observed", [0.5, None])
def test_an_animation_goes_from_the_past_to_the_last_lead(observed: float | None) -> None:
    files = pictures.draw(forecast(0.2, 0.8, observed, "intensity"))
    assert set(files) == {"png", "gif"}
    animation = Image.open(io.BytesIO(files["gif"]))
    assert animation.n_frames == 3 + 6
    assert animation.info["duration"] == forecasts.FRAME_MS
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
    drawn = forecasts.panels(in_colour(*COLOURS))
    assert 0.02 < share(drawn, "#c02040") < 0.1, "now"
    assert share(drawn, "#2060f0") > 0.15
    assert share(drawn, "#20a030") > 0.15
    assert share(forecasts.panels(in_colour("#c02040", "#2060f0", None)), "#2060f0") > 0.3
    animation = Image.open(io.BytesIO(forecasts.animation(in_colour(*COLOURS))))
    found = []
    for page in range(animation.n_frames):
        animation.seek(page)
        pixels = np.asarray(animation.convert("RGB")).astype(int)
        found.append(
            [bool((np.abs(pixels - ImageColor.getrgb(colour)).max(-1) <= 9).mean() > 0.1) for colour in COLOURS]
        )
    assert found == [[True, False, False]] * 3 + [[False, True, True]] * 6


def test_errors_in_colour_are_the_mean_of_the_channels_and_do_not_cancel() -> None:
    same, other = (forecasts.panels(in_colour("#000000", "#ff0000", colour)) for colour in ("#ff0000", "#0000ff"))
    assert share(same, "#fff5f0") > 0.15 > share(other, "#fff5f0"), "no error is the lightest red"
    assert share(other, "#e32f27") > 0.15 > share(same, "#e32f27"), "two of three channels are all wrong"


def test_what_is_missing_in_colour_is_grey() -> None:
    assert share(forecasts.panels(in_colour(*COLOURS, holes=True)), forecasts.NO_COVERAGE) > 0.15
    assert share(forecasts.panels(in_colour(*COLOURS)), forecasts.NO_COVERAGE) < 0.01


def test_side_by_side_shows_colours_as_they_are() -> None:
    animation = Image.open(io.BytesIO(forecasts.side_by_side(in_colour("#c02040", "#2060f0", None), width=120)))
    assert (animation.n_frames, animation.size) == (6, (248, 138))
    pixels = np.asarray(animation.convert("RGB")).astype(int)
    for left, colour in ((0, "#c02040"), (128, "#2060f0")):
        assert (np.abs(pixels[18:, left : left + 120] - ImageColor.getrgb(colour)) <= 9).all()


def test_positions_are_evenly_spread() -> None:
    assert forecasts.evenly(12, 4) == [1, 4, 7, 10]
    assert forecasts.evenly(3, 4) == [0, 1, 2]
    assert forecasts.evenly(10, 1) == [5]


def test_a_likely_hour_is_darker_than_an_unlikely_one() -> None:
    frames = np.zeros((5, 16, 16), np.float32)
    drawn = {
        chance: pictures.draw(Forecast(frames, frames, None, [5.0 * i for i in range(1, 6)], "mm/h", frames + chance))
        for chance in (0.0, 1.0)
    }
    dark = {chance: share(files["png"], "#3f007d") for chance, files in drawn.items()}
    assert dark[1.0] > 0.2 > dark[0.0]
