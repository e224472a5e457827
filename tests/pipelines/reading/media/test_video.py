"""Frames of clips and windows of long ones, against a decoder that reads everything from the start."""

from __future__ import annotations

import io
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest

from hybrid_models.errors import BadSample, UsageError
from hybrid_models.inputs import Cut, Visual
from pipelines.reading.limits import Limits
from pipelines.reading.media import video
from pipelines.reading.media.clip import CLIP_FORMATS, Clip, Frames
from pipelines.reading.media.video import ClipWindow, cut_clip, decode_clip, is_cut
from tests.pipelines.reading.media.test_decode import CLIPS

VISUAL = Visual(24, 32, 4)
RATE = 25


def film(kind: str, times: list[float], gop: int = 12, cover: bool = False, **options: str) -> bytes:
    """A clip whose frames differ, shown at these times (seconds)."""
    container, codec = CLIPS[kind]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", gop
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if kind == "avi":
            stream.codec_context.time_base = Fraction(1, RATE)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(time / stream.codec_context.time_base), stream.codec_context.time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def picture(number: int) -> np.ndarray:
    """A bar that wanders, on a ground that changes: no two of the first thousand are alike."""
    pixels = np.full((48, 64, 3), 30 + number * 37 % 160, np.uint8)
    pixels[:, number % 60 : number % 60 + 4] = 250
    pixels[number // 60 * 4 : number // 60 * 4 + 4] = 5
    return pixels


def steady(count: int) -> list[float]:
    return [number / RATE for number in range(count)]


def everything(media: bytes, kind: str, visual: Visual = VISUAL) -> tuple[list[float], list[np.ndarray]]:
    """Times of all frames from the first one on, and their pixels, by decoding all of it."""
    times, frames = [], []
    with av.open(io.BytesIO(media), "r", CLIP_FORMATS[kind]) as container:
        stream = container.streams.video[0]
        for number, frame in enumerate(container.decode(stream)):
            ticks = frame.pts if frame.pts is not None else number
            times.append(float(ticks * (frame.time_base or stream.time_base)))
            small = frame.reformat(width=visual.width, height=visual.height, format="rgb24", interpolation="BICUBIC")
            frames.append(small.to_ndarray())
    return [time - times[0] for time in times], frames


def seen_at(times: list[float], frames: list[np.ndarray], wanted: list[float]) -> np.ndarray:
    """What is shown at these times, whose frames are 1 / RATE apart at least."""
    places = [max(0, int(np.searchsorted(times, time + 0.05 / RATE, "right")) - 1) for time in wanted]
    return np.stack([frames[place] for place in places])


def middles(start: float, end: float, count: int = 4) -> list[float]:
    return [start + (end - start) * (2 * i + 1) / (2 * count) for i in range(count)]


def cut(media: bytes, kind: str, seconds: float, stride: float = 0.0, **options: Any) -> list[ClipWindow]:
    visual = options.pop("visual", VISUAL)
    return list(cut_clip(io.BytesIO(media), kind, visual, Cut(seconds, stride or seconds), **options))


def pixels(window: ClipWindow) -> np.ndarray:
    return np.zeros(0) if window.frames is None else window.frames.pixels


def same(one: list[ClipWindow], other: list[ClipWindow]) -> bool:
    return len(one) == len(other) and all(
        (a.number, a.start, a.end, str(a.error)) == (b.number, b.start, b.end, str(b.error))
        and np.array_equal(pixels(a), pixels(b))
        for a, b in zip(one, other, strict=True)
    )


# ---- which frames ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", CLIPS)
@pytest.mark.parametrize("gop", [1, 12, 1000])
def test_the_frames_of_a_clip_are_those_that_a_decoder_of_everything_shows(kind: str, gop: int) -> None:
    media = film(kind, steady(75), gop)
    times, frames = everything(media, kind)
    assert len(frames) == 75
    np.testing.assert_array_equal(decode_clip(media, kind, VISUAL).pixels, seen_at(times, frames, middles(0, 3)))


def test_a_clip_of_varying_rate_is_sampled_by_its_time() -> None:
    times = [0.0, 0.04, 0.08, 0.12, 0.16, 3.0, 3.04]  # of four parts three show the frame that stands still
    media = film("mkv", times, gop=3)
    shown, frames = everything(media, "mkv")
    np.testing.assert_allclose(shown, times, atol=1e-3)
    expected = [frames[4], frames[4], frames[4], frames[4]]
    np.testing.assert_array_equal(decode_clip(media, "mkv", VISUAL).pixels, np.stack(expected))


def test_frames_a_second() -> None:
    media = film("mp4", steady(50))
    times, frames = everything(media, "mp4")
    few = decode_clip(media, "mp4", Visual(24, 32, 16, "fps", 2.0))
    np.testing.assert_array_equal(few.pixels, seen_at(times, frames, [0.25, 0.75, 1.25, 1.75]))
    np.testing.assert_allclose(few.times, [0.25, 0.75, 1.25, 1.75])
    many = decode_clip(media, "mp4", Visual(24, 32, 4, "fps", 25.0))
    np.testing.assert_array_equal(many.pixels, seen_at(times, frames, middles(0, 2)))
    assert len(decode_clip(film("mp4", steady(1)), "mp4", Visual(24, 32, 4, "fps", 2.0)).pixels) == 1


def test_keyframes() -> None:
    media = film("mp4", steady(50), gop=10, sc_threshold="0")
    _, frames = everything(media, "mp4")
    found = decode_clip(media, "mp4", Visual(24, 32, 8, "keyframes"))
    np.testing.assert_array_equal(found.pixels, np.stack([frames[number] for number in (0, 10, 20, 30, 40)]))
    np.testing.assert_allclose(found.times, [0, 0.4, 0.8, 1.2, 1.6], atol=1e-3)
    found = decode_clip(media, "mp4", Visual(24, 32, 2, "keyframes"))
    np.testing.assert_array_equal(found.pixels, np.stack([frames[number] for number in (10, 30)]))


SPANS = [(1.0, 1.0), (1.0, 0.4), (0.4, 1.0), (0.06, 0.5), (0.1, 0.33), (30.0, 30.0)]


# ---- windows --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", CLIPS)
@pytest.mark.parametrize("gop", [1, 12, 1000])
@pytest.mark.parametrize(("seconds", "stride"), SPANS)
def test_windows_are_what_a_decoder_of_everything_shows(kind: str, gop: int, seconds: float, stride: float) -> None:
    media = film(kind, steady(110), gop)
    times, frames = everything(media, kind)
    found = cut(media, kind, seconds, stride)
    ends = [min(window.start + seconds, 4.4) for window in found]
    assert [window.number for window in found] == list(range(len(found)))
    np.testing.assert_allclose([window.start for window in found], [stride * number for number in range(len(found))])
    np.testing.assert_allclose([window.end for window in found], ends, atol=2e-3)  # type: ignore[arg-type]
    assert found[-1].start + max(seconds, stride) >= 4.4 - 1e-3, "nothing is left"
    assert all(window.start + max(seconds, stride) < 4.4 - 1e-3 for window in found[:-1]), "nothing comes twice"
    for window, end in zip(found, ends, strict=True):
        assert window.error is None
        expected = seen_at(times, frames, middles(window.start, end))
        assert window.frames is not None
        np.testing.assert_array_equal(window.frames.pixels, expected)
        np.testing.assert_allclose(window.frames.times, middles(window.start, end), atol=2e-3)


@pytest.mark.parametrize("kind", CLIPS)
@pytest.mark.parametrize("gop", [1, 12, 1000])
@pytest.mark.parametrize("stride", [1.0, 0.4, 1.73])
def test_reading_goes_on_at_any_window_as_if_it_had_never_stopped(kind: str, gop: int, stride: float) -> None:
    media = film(kind, steady(130), gop)
    whole = cut(media, kind, 1.0, stride)
    for first in range(1, len(whole)):
        assert same(cut(media, kind, 1.0, stride, first=first), whole[first:]), first


@pytest.mark.parametrize("kind", CLIPS)
def test_a_whole_frame_may_be_further_behind_than_may_be_held(kind: str) -> None:
    """An hour of a screen may have one, at its start: going on at a window, or wanting a late one alone, decodes what
    is between, and lets go of it."""
    once = {"x264-params": "keyint=infinite:scenecut=0"} if CLIPS[kind][1] == "libx264" else {}
    media = film(kind, steady(300), gop=1000, **once)
    limits = Limits(max_frames=80)
    whole = cut(media, kind, 1.0, limits=limits)
    assert [window.error for window in whole] == [None] * 12
    for first in range(1, 12):
        assert same(cut(media, kind, 1.0, limits=limits, first=first), whole[first:]), first
    (*others, last) = cut(media, kind, 1.0, limits=limits, wanted=lambda number: number == 11)
    assert same([last], whole[11:])
    assert [(window.frames, window.error) for window in others] == [(None, None)] * 11


def test_a_window_that_is_not_wanted_is_not_decoded_and_the_others_are_as_ever() -> None:
    media = film("mp4", steady(100))
    whole = cut(media, "mp4", 1.0)
    some = cut(media, "mp4", 1.0, wanted=lambda number: number in (1, 3))
    assert [window.frames is None for window in some] == [True, False, True, False]
    assert same([some[1], some[3]], [whole[1], whole[3]])
    assert [(window.start, window.end) for window in some] == [(window.start, window.end) for window in whole]


def test_a_picture_that_stands_still_is_seen_in_every_window() -> None:
    media = film("mkv", [0.0, 0.04, 6.5, 6.54], gop=1)
    windows = cut(media, "mkv", 1.0)
    _, frames = everything(media, "mkv")
    assert len(windows) == 7
    for number in range(1, 6):
        np.testing.assert_array_equal(pixels(windows[number]), np.stack([frames[1]] * 4))
    np.testing.assert_array_equal(pixels(windows[6])[3], frames[2])
    for first in range(1, 7):
        assert same(cut(media, "mkv", 1.0, first=first), windows[first:])


def test_times_may_begin_anywhere() -> None:
    late = cut(film("mkv", [time + 100 for time in steady(50)]), "mkv", 1.0)
    usual = cut(film("mkv", steady(50)), "mkv", 1.0)
    assert same(late, usual)


def test_the_first_frames_of_each_window() -> None:
    media = film("mp4", steady(60))
    _, frames = everything(media, "mp4")
    windows = cut(media, "mp4", 1.0, visual=Visual(24, 32, 10, "first"))
    np.testing.assert_array_equal(pixels(windows[1]), np.stack(frames[25:35]))
    assert [len(pixels(window)) for window in windows] == [10, 10, 10]


def test_a_long_video_needs_the_memory_of_a_window(tmp_path: Path) -> None:
    path, rng = tmp_path / "long.mkv", np.random.default_rng(1)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mjpeg", rate=RATE, options={"qmin": "1", "qmax": "1"})
        stream.width, stream.height, stream.pix_fmt = 192, 192, "yuvj420p"
        for _ in range(2000):
            noise = av.VideoFrame.from_ndarray(rng.integers(0, 256, (288, 192), np.uint8), format="yuvj420p")
            output.mux(stream.encode(noise))
        output.mux(stream.encode())
    assert path.stat().st_size > 60 << 20
    with path.open("rb") as opened:
        windows = cut_clip(opened, "mkv", VISUAL, Cut(1.0, 1.0))
        next(windows)
        before = psutil.Process().memory_info().rss
        assert sum(window.error is None for window in windows) == 79
    assert psutil.Process().memory_info().rss - before < 20 << 20


# ---- bad clips ------------------------------------------------------------------------------------------------------
def test_a_video_that_is_cut_off_gives_the_windows_before_that(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as output:
        stream = output.add_stream("libx264", rate=RATE, options={"qp": "10"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 12
        for number in range(200):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            output.mux(stream.encode(frame.reformat(format="yuv420p")))
        output.mux(stream.encode())
    whole = path.read_bytes()
    windows = cut(whole, "mp4", 1.0)
    assert len(windows) == 8
    broken = cut(whole[: len(whole) * 6 // 10], "mp4", 1.0)
    assert 3 <= len(broken) < 7
    assert same(broken[:-1], windows[: len(broken) - 1])
    assert (broken[-1].frames, broken[-1].end) == (None, None)
    assert broken[-1].error is not None
    assert broken[-1].error.kind == "VideoDecodeError"
    assert broken[-1].number == len(broken) - 1


def test_damage_costs_windows_never_more() -> None:
    rng = np.random.default_rng(5)
    for kind in CLIPS:
        whole = film(kind, steady(100))
        for _ in range(12):
            damaged = bytearray(whole)
            for position in rng.integers(0, len(whole), 6):
                damaged[position] ^= 1 << rng.integers(8)
            found = cut(bytes(damaged), kind, 1.0)
            assert [window.number for window in found] == list(range(len(found)))
            assert all((window.frames is None) == (window.error is not None) for window in found)
            assert all(window.end is not None for window in found[:-1])


@pytest.mark.parametrize("media", [b"", b"abc", bytes(10_000)])
@pytest.mark.parametrize("kind", CLIPS)
def test_what_is_no_clip_is_one_window_with_an_error(media: bytes, kind: str) -> None:
    (window,) = cut(media, kind, 1.0)
    assert (window.number, window.start, window.end, window.frames) == (0, 0.0, None, None)
    assert window.error is not None
    assert window.error.kind == "VideoDecodeError"


def test_a_frame_in_a_thousand_years_does_not_make_windows_up_to_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_STILL", 50)
    windows = cut(film("mkv", [0.0, 0.04, 40.0, 3600.0]), "mkv", 1.0)
    assert len(windows) == 42, "what stands still for forty seconds may be a slide"
    assert str(windows[-1].error) == "VideoDecodeError: no new frame is shown from 41 to 3600 s"
    assert [window.error for window in windows[:-1]] == [None] * 41
    monkeypatch.setattr(video, "MAX_WINDOWS", 30)
    windows = cut(film("mkv", [0.0, 0.04, 40.0, 41.0]), "mkv", 1.0)
    assert len(windows) == 31
    assert str(windows[-1].error) == "VideoTooLarge: it has more than 30 windows"


def test_a_clip_that_fails_window_after_window_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may take a minute to fail, and a small file may have a hundred thousand of them."""
    whole, calls = Clip.sample, []

    def bad(self: Clip, visual: Visual, start: float, end: float) -> Frames:
        calls.append(start)
        if start == 3.0:
            return whole(self, visual, start, end)
        raise BadSample("VideoDecodeError", "damaged")

    monkeypatch.setattr(Clip, "sample", bad)
    monkeypatch.setattr(video, "MAX_FAILED", 5)
    windows = cut(film("mp4", steady(600)), "mp4", 1.0)
    assert [window.number for window in windows] == list(range(24)), "as many as there are"
    assert [window.number for window in windows if window.error is None] == [3]
    assert len(calls) == 9, "three, a good one, five"
    said = "VideoDecodeError: given up after 5 windows that could not be decoded"
    assert [str(window.error) for window in windows[9:]] == [said] * 15
    assert [window.end for window in windows] == [float(number) for number in range(1, 25)]


def test_limits_are_those_of_a_window() -> None:
    media = film("mp4", steady(200), gop=25)
    assert all(window.error is None for window in cut(media, "mp4", 1.0, limits=Limits(max_frames=80)))
    (window,) = cut(media, "mp4", 4.0, limits=Limits(max_frames=80))
    assert str(window.error) == "VideoTooLarge: more than max_frames=80 frames"
    (window,) = cut(media, "mp4", 4.0, limits=Limits(max_bytes=100))
    assert str(window.error) == "VideoTooLarge: more than max_bytes=100 bytes"
    (window,) = cut(media, "mp4", 4.0, limits=Limits(max_pixels=3000))
    assert window.error is not None
    assert window.error.kind == "VideoTooLarge"


def test_a_million_tiny_frames_are_too_many() -> None:
    one = film("avi", steady(3))
    with pytest.raises(BadSample, match="more than max_frames=2 frames"):
        decode_clip(one, "avi", VISUAL, Limits(max_frames=2))


@pytest.mark.parametrize(("seconds", "stride"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (math.nan, 1.0), (1.0, math.inf)])
def test_windows_without_length_are_refused(seconds: float, stride: float) -> None:
    with pytest.raises(UsageError, match="it must be more than 0 seconds"):
        Cut(seconds, stride)


def test_what_is_cut() -> None:
    assert [is_cut(kind) for kind in ("mp4", "mov", "mkv", "webm", "avi")] == [True] * 5
    assert [is_cut(kind) for kind in ("gif", "jpg", "npy", None)] == [False] * 4
