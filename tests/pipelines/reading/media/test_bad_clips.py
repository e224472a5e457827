"""Clips as strangers send them, in every container, under every sampling, whole and in windows: each is rows whose
frames are those of a decoder of everything, or an error row that names what is wrong."""

from __future__ import annotations

import io
import itertools
import math
import re
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
from PIL import Image

from hybrid_models.inputs import Cut, Visual
from pipelines import storage
from pipelines.reading.limits import DEFAULT_LIMITS, Limits
from pipelines.reading.media.clip import CLIP_FORMATS, Clip
from pipelines.reading.media.video import cut_clip, is_cut
from pipelines.reading.rows import read_blocks
from pipelines.reading.samples import Decode, unpack
from pipelines.reading.sandbox import guard
from pipelines.reading.sandbox.guard import guarded
from pipelines.reading.shards import list_shards
from tests import tiny
from tests.pipelines.hostile import AsSeen
from tests.pipelines.reading.media.test_decode import CLIPS, image_bytes, png_chunk
from tests.pipelines.reading.media.test_video import RATE, cut, picture, same, seen_at

POLICIES = {
    "uniform": Visual(24, 32, 4),
    "fps": Visual(24, 32, 16, "fps", 2.0),
    "keyframes": Visual(24, 32, 4, "keyframes"),
}
CUTS = {
    "whole": None,
    "windows": Cut(1.0, 1.0),
    "a window longer than the clip": Cut(100.0, 100.0),
    "a stride longer than the clip": Cut(1.0, 100.0),
}
SOUND = {"mp4": "aac", "mov": "aac", "mkv": "aac", "webm": "libopus", "avi": "mp2"}
COUNT = 110
"""Frames of a clip, 4.4 seconds."""
MILLION = 1_000_000
MANY = DEFAULT_LIMITS.max_frames + 1
HUGE = 16_000
"""Pixels of a side, four times as many pixels as are allowed."""
B_FRAMES = {"x264-params": "b-adapt=0:b-pyramid=normal:scenecut=0", "bf": "3"}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}


# ---- clips are made -------------------------------------------------------------------------------------------------
class Stored(NamedTuple):
    """A frame as an encoder stores it; its times are in frames."""

    data: bytes
    pts: int
    dts: int
    key: bool


class Reference(NamedTuple):
    """What a decoder of everything shows."""

    times: list[float]
    frames: list[np.ndarray]
    keys: list[float]
    """Times of the frames that were stored whole."""


def encoded(codec: str, count: int = COUNT, size: tuple[int, int] = (64, 48), **options: str) -> list[Stored]:
    encoder = av.CodecContext.create(codec, "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height = size
    encoder.pix_fmt, encoder.gop_size, encoder.thread_count, encoder.options = "yuv420p", 12, 1, options
    encoder.time_base, encoder.framerate = Fraction(1, RATE), Fraction(RATE)
    packets = []
    for number in range(count):
        frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
        frame = frame.reformat(*size, format="yuv420p")
        frame.pts, frame.time_base = number, encoder.time_base
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    return [Stored(bytes(packet), packet.pts or 0, packet.dts or 0, packet.is_keyframe) for packet in packets]


def muxed(
    kind: str, codec: str, packets: list[Stored], size: tuple[int, int] = (64, 48), sound: bool = False, **options: str
) -> bytes:
    """A clip of these packets, or without any, and of a second of silence."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=CLIPS[kind][0], options=options) as output:
        stream = output.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *size, "gray" if codec == "png" else "yuv420p"
        stream.time_base = Fraction(1, RATE)
        silence = output.add_stream(SOUND[kind], rate=48_000, layout="mono") if sound else None
        output.start_encoding()
        for stored in packets:
            packet = av.Packet(stored.data)
            packet.pts, packet.dts, packet.is_keyframe = stored.pts, stored.dts, stored.key
            packet.duration, packet.time_base, packet.stream = 1, Fraction(1, RATE), stream
            output.mux(packet)
        if silence is not None:
            fill(output, silence)
    return buffer.getvalue()


def fill(output: av.container.OutputContainer, silence: av.AudioStream) -> None:
    """Writes a second of silence."""
    resampler = av.AudioResampler(silence.codec_context.format.name, "mono", 48_000, silence.frame_size)
    quiet = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.float32), format="fltp", layout="mono")
    quiet.sample_rate = 48_000
    for frame in resampler.resample(quiet):
        output.mux(silence.encode(frame))
    output.mux(silence.encode())


def audio_only(kind: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=CLIPS[kind][0]) as output:
        fill(output, output.add_stream(SOUND[kind], rate=48_000, layout="mono"))
    return buffer.getvalue()


@cache
def stored(codec: str, **options: str) -> list[Stored]:
    return encoded(codec, **options)


@cache
def good(kind: str) -> bytes:
    if kind == "gif":
        frames = [Image.fromarray(picture(number)) for number in range(COUNT)]
        return image_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=40)
    return muxed(kind, CLIPS[kind][1], stored(CLIPS[kind][1]))


@cache
def reference(media: bytes, kind: str) -> Reference:
    """Of all frames in the order in which a decoder gives them, at a steady rate."""
    visual = POLICIES["uniform"]
    frames, keys = [], []
    with av.open(io.BytesIO(media), "r", CLIP_FORMATS[kind]) as container:
        for number, frame in enumerate(container.decode(video=0)):
            small = frame.reformat(visual.width, visual.height, "rgb24", interpolation="BICUBIC")
            frames.append(small.to_ndarray())
            keys += [number / RATE] if frame.key_frame else []
    return Reference([number / RATE for number in range(len(frames))], frames, keys)


# ---- clips are read -------------------------------------------------------------------------------------------------
def step(policy: str, cut: Cut | None, limits: Limits) -> Decode:
    return Decode(AsSeen(POLICIES[policy]), limits, cut=cut)


def read(
    folder: Path,
    name: str,
    media: bytes,
    policy: str,
    cut: Cut | None = None,
    limits: Limits = DEFAULT_LIMITS,
    child: bool = False,
) -> list[dict[str, Any]]:
    """The rows of a clip that lies in a folder, as a night has them; `child`: in a process of its own."""
    storage.write_bytes(str(folder / name), media, storage.anything)
    (shard,) = list_shards(str(folder / name), cut=cut is not None)
    decode = step(policy, cut, limits)
    blocks = guarded(shard, decode.options(), decode) if child else map(decode, read_blocks(shard, decode.options()))
    rows = [row for block in blocks for row in block.to_pylist()]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    assert [row["last"] for row in rows] == [False] * (len(rows) - 1) + [True]
    assert all((row["sample"] is None) == (row["error"] is not None) for row in rows)
    return rows


def check_windows(rows: list[dict[str, Any]], policy: str, shown: Reference, ends: list[tuple[float, float]]) -> None:
    """That these rows are good and of these spans, and have the frames that a decoder of everything shows then."""
    assert [row["error"] for row in rows] == [None] * len(ends)
    for row, (start, end) in zip(rows, ends, strict=True):
        sample = unpack(row["sample"])
        inside = [time for time in shown.times if start - 1e-6 <= time < end - 1e-6]
        keys = [time for time in shown.keys if start - 1e-6 <= time < end - 1e-6]
        wanted = list(POLICIES[policy].times(start, end, inside, keys))
        np.testing.assert_allclose(sample["times"], wanted, atol=2e-3)
        np.testing.assert_array_equal(sample["frames"], seen_at(shown.times, shown.frames, wanted))


def spans(shown: Reference, cut: Cut | None) -> list[tuple[float, float]]:
    """Of the windows of a clip."""
    end = len(shown.frames) / RATE
    if cut is None:
        return [(0.0, end)]
    count = 1 + max(0, math.ceil((end - max(cut.window_seconds, cut.stride_seconds)) / cut.stride_seconds - 1e-6))
    return [(cut.start(number), min(cut.start(number) + cut.window_seconds, end)) for number in range(count)]


@pytest.fixture
def child() -> Iterator[None]:
    yield
    while guard._idle:
        guard._idle.pop().kill()


# ---- clips whose frames are right -----------------------------------------------------------------------------------
class Readable(NamedTuple):
    """A clip that can be read, and what is in it."""

    media: bytes
    shown: Reference


def as_it_is(kind: str) -> Readable:
    return Readable(good(kind), reference(good(kind), kind))


def under_a_name_of_its_family(kind: str) -> Readable:
    other = {"mp4": "mov", "mov": "mp4", "mkv": "webm", "webm": "mkv"}[kind]
    return Readable(good(other), reference(good(other), other))


def before_zero(kind: str) -> Readable:
    """Two seconds of it are: MP4 leaves them out by an edit list, the others have no such times and begin later."""
    codec = CLIPS[kind][1]
    early = [packet._replace(pts=packet.pts - 2 * RATE, dts=packet.dts - 2 * RATE) for packet in stored(codec)]
    media = muxed(kind, codec, early)
    shown = reference(media, kind)
    assert len(shown.frames) == (COUNT - 2 * RATE if kind in ("mp4", "mov") else COUNT)
    return Readable(media, shown)


def without_times(kind: str) -> Readable:
    """An AVI has no times, and H.264 in it is stored in another order than it is shown in; of a Matroska file those
    before zero are none."""
    if kind == "avi":
        packets = stored("libx264", **B_FRAMES)
        assert [packet.pts for packet in packets] != sorted(packet.pts for packet in packets)
        return Readable(muxed(kind, "libx264", packets), reference(muxed("mkv", "libx264", packets), "mkv"))
    early = [packet._replace(pts=packet.pts - 2 * RATE, dts=packet.dts - 2 * RATE) for packet in stored("libx264")]
    media = muxed(kind, "libx264", early, avoid_negative_ts="disabled")
    with av.open(io.BytesIO(media), "r", CLIP_FORMATS[kind]) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert times[: 2 * RATE] == [None] * (2 * RATE)
    assert None not in times[2 * RATE :]
    return Readable(media, reference(media, kind))


READABLE: list[tuple[Callable[[str], Readable], tuple[str, ...]]] = [
    (as_it_is, (*CLIPS, "gif")),
    (under_a_name_of_its_family, ("mp4", "mov", "mkv", "webm")),
    (before_zero, tuple(CLIPS)),
    (without_times, ("avi", "mkv")),
]


@pytest.mark.parametrize("length", CUTS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("made", "kind"), [(made, kind) for made, kinds in READABLE for kind in kinds])
def test_frames_are_those_of_a_decoder_of_everything(
    tmp_path: Path, made: Callable[[str], Readable], kind: str, policy: str, length: str
) -> None:
    media, shown = made(kind)
    rows = read(tmp_path, f"a.{kind}", media, policy, CUTS[length])
    check_windows(rows, policy, shown, spans(shown, CUTS[length] if is_cut(kind) else None))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("made", "kind"), [(made, kind) for made, kinds in READABLE for kind in kinds if kind != "gif"]
)
def test_reading_goes_on_at_any_window_as_if_it_had_never_stopped(
    made: Callable[[str], Readable], kind: str, policy: str
) -> None:
    media, _ = made(kind)
    whole = cut(media, kind, 1.0, 0.7, visual=POLICIES[policy])
    for first in range(1, len(whole)):
        assert same(cut(media, kind, 1.0, 0.7, visual=POLICIES[policy], first=first), whole[first:]), first


# ---- clips that are none, or no more than half ----------------------------------------------------------------------
def half(kind: str) -> bytes:
    return good(kind)[: len(good(kind)) // 2]


def in_the_name_of(other: str) -> Callable[[str], bytes]:
    def made(kind: str) -> bytes:
        return tiny.jpeg(1) if other == "jpg" else good(other)

    made.__name__ = f"{other}_inside"
    return made


def empty(kind: str) -> bytes:
    return b""


def no_frames(kind: str) -> bytes:
    return muxed(kind, CLIPS[kind][1], [], **(FRAGMENTS if kind in ("mp4", "mov") else {}))


def sound_without_frames(kind: str) -> bytes:
    return muxed(kind, CLIPS[kind][1], [], sound=True, **(FRAGMENTS if kind in ("mp4", "mov") else {}))


def png(width: int, height: int) -> bytes:
    """A picture in black, of a bit for a pixel."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width // 8 + 1) * height))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def huge(kind: str) -> bytes:
    """Its header says so."""
    return huge_frames(kind, (HUGE, HUGE))


def huge_inside(kind: str) -> bytes:
    """Its header says 64 x 48, its frames are huge."""
    return huge_frames(kind, (64, 48))


def huge_frames(kind: str, size: tuple[int, int]) -> bytes:
    if kind == "gif":
        return good("gif")[:6] + struct.pack("<HH", HUGE, HUGE) + good("gif")[10:]
    if kind in ("mkv", "webm"):  # RFC 6386, 9.1: the size of a whole frame is at its bytes 6 to 9
        small = bytearray(stored("libvpx")[0].data)
        small[6:10] = struct.pack("<HH", HUGE, HUGE)
        return matroska_of_size(muxed(kind, "libvpx", three(bytes(small)), (256, 256)), size)
    media = muxed(kind, "png", three(png(HUGE, HUGE)), size)
    assert len(media) < 1 << 20
    return media


def three(data: bytes) -> list[Stored]:
    return [Stored(data, number, number, True) for number in range(3)]


def matroska_of_size(media: bytes, size: tuple[int, int]) -> bytes:
    """PixelWidth and PixelHeight of 256, two bytes each, are written anew (RFC 9559, 5.1.4.1.28): an encoder that was
    opened for a huge size would take its time."""
    for name, side in zip((b"\xb0", b"\xba"), size, strict=True):
        assert media.count(name + b"\x82\x01\x00") == 1
        media = media.replace(name + b"\x82\x01\x00", name + b"\x82" + side.to_bytes(2, "big"))
    return media


VIDEO = "VideoDecodeError: "
IMAGE = "ImageDecodeError: "
CUT_OFF = VIDEO + "the file is cut off: [0-9,]+ of [0-9,]+ bytes are there"
TOO_LARGE = r"VideoTooLarge: (16000 x 16000 pixels are more than|a frame has more pixels than) max_pixels=64,000,000"
MP4, MATROSKA = ("mp4", "mov"), ("mkv", "webm")
CLIPS_NAMED = tuple(CLIPS)
BAD: list[tuple[Callable[[str], bytes], tuple[str, ...], str]] = [
    (half, MP4, CUT_OFF),
    (half, ("gif",), VIDEO + "the file is cut off in frame 5[0-9]"),
    (empty, CLIPS_NAMED, VIDEO + "the file is empty"),
    (empty, ("gif", "jpg"), IMAGE + "the file is empty"),
    (in_the_name_of("mp4"), (*MATROSKA, "avi"), VIDEO + "by its name it is (mkv|webm|avi), by its first bytes mp4"),
    (in_the_name_of("mkv"), (*MP4, "avi"), VIDEO + "by its name it is (mp4|mov|avi), by its first bytes mkv"),
    (in_the_name_of("avi"), (*MP4, *MATROSKA), VIDEO + "by its name it is (mp4|mov|mkv|webm), by its first bytes avi"),
    (in_the_name_of("gif"), CLIPS_NAMED, VIDEO + "by its name it is (mp4|mov|mkv|webm|avi), by its first bytes gif"),
    (in_the_name_of("jpg"), CLIPS_NAMED, VIDEO + "by its name it is (mp4|mov|mkv|webm|avi), by its first bytes jpg"),
    (in_the_name_of("mp4"), ("jpg", "gif"), IMAGE + "by its name it is a photograph, by its first bytes mp4"),
    (in_the_name_of("avi"), ("jpg", "gif"), IMAGE + "by its name it is a photograph, by its first bytes avi"),
    (audio_only, CLIPS_NAMED, VIDEO + "there is no video stream in it"),
    (no_frames, CLIPS_NAMED, VIDEO + "there are no frames (in it|from 0 s on)"),
    (sound_without_frames, CLIPS_NAMED, VIDEO + "there are no frames (in it|from 0 s on)"),
    (huge, (*CLIPS_NAMED, "gif"), TOO_LARGE),
    (huge_inside, CLIPS_NAMED, TOO_LARGE),
]


@pytest.mark.parametrize("length", ["whole", "windows"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("made", "kind", "error"), [(made, kind, error) for made, kinds, error in BAD for kind in kinds]
)
def test_what_is_wrong_is_said_in_one_row(
    tmp_path: Path, made: Callable[[str], bytes], kind: str, error: str, policy: str, length: str
) -> None:
    (row,) = read(tmp_path, f"a.{kind}", made(kind), policy, CUTS[length])
    assert re.match(error, row["error"]), row["error"]


# ---- clips whose beginning is good ----------------------------------------------------------------------------------
def going_back(kind: str) -> bytes:
    """After two seconds its times begin again."""
    packets = stored(CLIPS[kind][1])
    again = [packet._replace(pts=packet.pts - 2 * RATE, dts=packet.dts - 2 * RATE) for packet in packets]
    return muxed(kind, CLIPS[kind][1], again, avoid_negative_ts="disabled")


PARTLY: list[tuple[Callable[[str], bytes], tuple[str, ...], int, str]] = [
    (half, ("mkv",), 1, CUT_OFF),
    (half, ("webm",), 2, CUT_OFF),
    (half, ("avi",), 1, VIDEO + "the file is cut off or damaged at frame [0-9]+"),
    (going_back, ("webm",), 1, VIDEO + "times go back by 1.96 s at frame 51"),
]
"""File, kinds, how many windows of a second can be read, what is said then."""


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("made", "kind", "count", "error"),
    [(made, kind, count, error) for made, kinds, count, error in PARTLY for kind in kinds],
)
def test_windows_before_the_trouble_are_good(
    tmp_path: Path, made: Callable[[str], bytes], kind: str, count: int, error: str, policy: str
) -> None:
    media, shown = made(kind), reference(good(kind), kind)
    *rows, last = read(tmp_path, f"a.{kind}", media, policy, CUTS["windows"])
    check_windows(rows, policy, shown, [(float(number), number + 1.0) for number in range(count)])
    assert re.match(error, last["error"]), last["error"]
    assert last["start_seconds"] == (count or None)
    (row,) = read(tmp_path, f"a.{kind}", media, policy)
    assert re.match(error, row["error"]), row["error"]


# ---- floods ---------------------------------------------------------------------------------------------------------
def many(kind: str, count: int, side: int) -> bytes:
    """Very many small frames, each stored whole."""
    if kind == "gif":
        return many_of_gif(count)
    codec = {"webm": "libvpx"}.get(kind, "mpeg4")
    one = encoded(codec, 1, (side, side))[0].data
    return muxed(kind, codec, [Stored(one, number, number, True) for number in range(count)], (side, side))


def many_of_gif(count: int) -> bytes:
    """Of 2 x 2, in black."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 2, 2, 0x80, 0, 0) + bytes(6)
    shown = b"\x21\xf9\x04\0" + struct.pack("<HBB", 100 // RATE, 0, 0)
    pixels = (4 | 4 << 9 | 5 << 18).to_bytes(3, "little")  # codes of three bits: clear, 0, 0, clear, 0, 0, end
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 2, 2, 0) + b"\x02\x03" + pixels + b"\0"
    return screen + (shown + frame) * count + b"\x3b"


@cache
def flood(kind: str, count: int) -> bytes:
    return many(kind, count, 16)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Times of the frames that come out of a decoder."""
    times: list[float] = []
    whole = Clip._frame_time

    def told(self: Clip, frame: av.VideoFrame) -> float:
        times.append(whole(self, frame))
        return times[-1]

    monkeypatch.setattr(Clip, "_frame_time", told)
    return times


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", CLIPS)
def test_a_flood_of_frames_is_refused_before_any_is_decoded(
    tmp_path: Path, decoded: list[float], kind: str, policy: str
) -> None:
    for windows in (None, Cut(2000.0, 2000.0)):
        (row,) = read(tmp_path, f"a.{kind}", flood(kind, MANY), policy, windows)
        assert row["error"] == "VideoTooLarge: more than max_frames=20,000 frames"
        assert row["decode_seconds"] < 10
    assert decoded == []


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", CLIPS)
def test_of_a_flood_that_is_allowed_only_what_is_wanted_is_decoded(
    tmp_path: Path, decoded: list[float], kind: str, policy: str
) -> None:
    wanted = {"uniform": 4, "fps": 16, "keyframes": 4}[policy]
    (row,) = read(tmp_path, f"a.{kind}", flood(kind, MANY - 1), policy)
    assert (row["error"], row["length"]) == (None, wanted)
    assert len(decoded) == wanted
    rows = read(tmp_path, f"a.{kind}", flood(kind, MANY), policy, Cut(100.0, 100.0))
    assert [row["error"] for row in rows] == [None] * 9
    assert [row["length"] for row in rows[:8]] == [wanted] * 8
    assert len(decoded) <= wanted * 10


@pytest.mark.long
@pytest.mark.parametrize("kind", [*CLIPS, "gif"])
def test_a_million_frames_of_two_by_two(tmp_path: Path, decoded: list[float], kind: str) -> None:
    """Whole they are refused; of the windows, some at the start and some at the end are read."""
    media = many(kind, MILLION, 2)
    for policy in ("uniform", "keyframes"):
        for windows in (None, Cut(1000.0, 1000.0)):
            (row,) = read(tmp_path, f"a.{kind}", media, policy, windows)
            assert row["error"] == "VideoTooLarge: more than max_frames=20,000 frames"
            assert row["decode_seconds"] < 10
    assert decoded == []
    if not is_cut(kind):
        return
    count, some = MILLION // RATE, 1000
    for policy in ("uniform", "keyframes"):
        for first in (0, count - some):
            started = time.process_time()
            windows = cut_clip(io.BytesIO(media), kind, POLICIES[policy], Cut(1.0, 1.0), first=first)
            found = list(itertools.islice(windows, some))
            if first:
                assert next(windows, None) is None
            assert time.process_time() - started < 30, "no window costs more than the one before"
            assert [(window.number, window.error) for window in found] == [(first + n, None) for n in range(some)]
            for window in (found[0], found[-1]):
                times = [window.number + n / RATE for n in range(RATE)]
                wanted = POLICIES[policy].times(window.start, window.number + 1.0, times, times)
                np.testing.assert_allclose([] if window.frames is None else window.frames.times, wanted, atol=1e-2)
            assert len(decoded) <= 4 * some
            decoded.clear()


# ---- in a process of its own ----------------------------------------------------------------------------------------
@pytest.mark.usefixtures("child")
def test_what_is_huge_is_refused_before_so_much_memory_is_taken(tmp_path: Path) -> None:
    limits = Limits(max_memory=96 << 20)
    assert limits.max_memory < HUGE * HUGE * 3 // 2
    for made in (huge, huge_inside):
        for kind in CLIPS:
            for windows in (None, CUTS["windows"]):
                (row,) = read(tmp_path, f"a.{kind}", made(kind), "uniform", windows, limits, child=True)
                assert re.match(TOO_LARGE, row["error"]), (made, kind, row["error"])


@pytest.mark.usefixtures("child")
def test_a_child_says_the_same(tmp_path: Path) -> None:
    told = [
        (made(kind), kind) for made in (half, empty, audio_only, no_frames, in_the_name_of("jpg")) for kind in CLIPS
    ]
    told += [(media, kind) for media, kind in ((flood("avi", MANY), "avi"), (before_zero("mp4").media, "mp4"))]
    told += [(without_times("avi").media, "avi")]
    for media, kind in told:
        for windows in (None, CUTS["windows"]):
            here, there = (
                read(tmp_path, f"a.{kind}", media, "uniform", windows, child=child) for child in (False, True)
            )
            for row in (*here, *there):
                row.pop("decode_seconds")
            assert here == there
