"""One clip, read forwards."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from hybrid_models.errors import BadSample
from pipelines.reading.media.clip import Clip
from pipelines.reading.media.video import decode_clip
from tests.pipelines.reading.media.test_video import RATE, VISUAL, cut, everything, film, picture, same, steady


def test_only_what_leads_to_the_wanted_frames_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    media, counted = film("mp4", steady(750), gop=10, bf="0"), []
    monkeypatch.setattr(Clip, "_frame_time", _counting(counted))
    decode_clip(media, "mp4", VISUAL)
    assert len(counted) <= 4 * 11, "four frames, each at most ten after one that was stored whole"


def _counting(counted: list[Any]) -> Any:
    whole = Clip._frame_time

    def told(self: Clip, frame: av.VideoFrame) -> float:
        counted.append(frame)
        return whole(self, frame)

    return told


def test_a_frame_is_seen_whole_whatever_the_shape_of_its_pixels() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 1)
        output.mux(stream.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24").reformat(format="yuv420p")))
        output.mux(stream.encode())
    with av.open(io.BytesIO(buffer.getvalue())) as container:
        assert container.streams.video[0].sample_aspect_ratio == 4
    _, frames = everything(buffer.getvalue(), "mp4")
    np.testing.assert_array_equal(decode_clip(buffer.getvalue(), "mp4", VISUAL).pixels[0], frames[0])


def test_a_song_with_a_cover_is_no_clip() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        cover = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        sound = output.add_stream("aac", rate=16000, layout="mono")
        output.mux(cover.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24").reformat(format="yuvj420p")))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 16000
        output.mux(sound.encode(samples))
        output.mux(sound.encode())
    with pytest.raises(BadSample, match="there is no video stream in it"):
        decode_clip(buffer.getvalue(), "mp4", VISUAL)


def test_a_header_that_lies_about_its_length_is_not_believed() -> None:
    whole = film("mp4", steady(75))  # once: under load x264 makes other bytes of the same frames
    media = bytearray(whole)
    at = media.index(b"mvhd") + 4 + 16  # duration in units of the timescale, ISO 14496-12, 8.2.2
    media[at : at + 4] = struct.pack(">I", 4_000_000_000)
    at = media.index(b"mdhd") + 4 + 16
    media[at : at + 4] = struct.pack(">I", 7)
    assert same(cut(bytes(media), "mp4", 1.0), cut(whole, "mp4", 1.0))
