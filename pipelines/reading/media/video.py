"""Clips → frames, and windows of long ones, from memory or by ranges of an object.

A video of hours needs the memory of a few seconds of it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from hybrid_models.errors import BadSample
from hybrid_models.inputs import Cut, Visual
from pipelines.reading.limits import DEFAULT_LIMITS, Limits, bad_sample
from pipelines.reading.media.clip import CLIP_FORMATS, Clip, Frames

MAX_WINDOWS = 100_000
"""Of one clip: more than a day of windows of a second."""
MAX_STILL = 1000
"""Windows that one frame may fill: the next one may say that it is shown in a thousand years."""

MAX_FAILED = 20
"""Windows one after another that cannot be decoded: each may take its seconds to say so, and there may be many."""


@dataclass(frozen=True)
class ClipWindow:
    """A window of a clip.

    Args:
        number: from 0.
        start: seconds from the clip's first frame.
        end: seconds; the clip's own in its last window. None where it cannot be read.
        frames: None where it was not to be decoded, or could not be.
        error: why it could not; the clip's last, if its packets cannot be read.
    """

    number: int
    start: float
    end: float | None
    frames: Frames | None = None
    error: BadSample | None = None


def decode_clip(media: bytes, media_type: str, visual: Visual, limits: Limits = DEFAULT_LIMITS) -> Frames:
    """A whole clip → the frames that `visual` wants.

    Raises:
        BadSample: `VideoDecodeError` or `VideoTooLarge`.
    """
    with bad_sample("VideoDecodeError"), Clip(io.BytesIO(media), media_type, limits) as clip:
        clip.read()
        if clip.empty:
            raise BadSample("VideoDecodeError", "there are no frames in it")
        return clip.sample(visual, clip.start, clip.end)


def is_cut(media_type: str | None) -> bool:
    """Whether media of this type become windows: clips, but for those that are photographs as a rule."""
    return media_type in CLIP_FORMATS and media_type != "gif"


def cut_clip(
    stream: BinaryIO,
    media_type: str,
    visual: Visual,
    cut: Cut,
    limits: Limits = DEFAULT_LIMITS,
    first: int = 0,
    wanted: Callable[[int], bool] = lambda number: True,
) -> Iterator[ClipWindow]:
    """The windows of a clip, one after another, at least one. What one of them costs is limited as a clip is.

    How many there are is told by its packets alone, so that rows after it have the same numbers wherever reading began:
    after `MAX_FAILED` that could not be decoded it is given up, and its others come with that error.

    Memory: the packets of a window and of what leads to it from a frame that was stored whole, and its frames.

    Args:
        stream: the clip, seekable.
        media_type: its suffix, such as `mp4`.
        visual: which frames of a window, and their size.
        cut: which windows.
        limits: what one may cost.
        first: windows before this one are not needed.
        wanted: is asked before a window is decoded; others come without frames.
    """
    number = first
    try:
        with bad_sample("VideoDecodeError"), Clip(stream, media_type, limits, timed=True) as clip:
            number, failed, given_up = 0, 0, None
            if first and clip.seek(cut.start(first)):
                number = min(first, int(clip.start / cut.stride_seconds))
            while True:
                start, stop = cut.start(number), cut.start(number) + cut.window_seconds
                clip.read(stop)
                if number > first and clip.ended and clip.end <= start + clip.tolerance:
                    return  # packets that were to be decoded late are shown early
                if clip.empty:
                    raise BadSample("VideoDecodeError", f"there are no frames from {start:g} s on")
                end = clip.end if clip.ended and clip.end < stop - clip.rounding else stop
                window = ClipWindow(number, start, end)
                needed = given_up is None and number >= first and wanted(number)
                if needed or clip.crowded:  # what was decoded can be let go of, however far a whole frame is behind
                    decoded = _decoded(clip, visual, window)
                    window = decoded if needed else window
                if number >= first:
                    failed = 0 if window.error is None else failed + 1
                    yield window if given_up is None else replace(window, error=given_up)
                following = cut.start(number + 1)
                number += 1
                clip.read(following)
                if clip.ended and clip.end <= max(stop, following) + clip.tolerance:
                    return
                if failed == MAX_FAILED:
                    given_up = BadSample(
                        "VideoDecodeError", f"given up after {failed} windows that could not be decoded"
                    )
                if number == MAX_WINDOWS:
                    raise BadSample("VideoTooLarge", f"it has more than {MAX_WINDOWS:,} windows")
                if clip.still_until(following) > following + MAX_STILL * cut.stride_seconds:
                    until = clip.still_until(following)
                    raise BadSample("VideoDecodeError", f"no new frame is shown from {following:g} to {until:g} s")
                clip.forget(following)
    except BadSample as bad:
        number = max(number, first)
        yield ClipWindow(number, cut.start(number), None, error=bad)


def _decoded(clip: Clip, visual: Visual, window: ClipWindow) -> ClipWindow:
    """With its frames; where they are damaged, the windows after it may not be."""
    end = clip.end if window.end is None else window.end
    try:
        with bad_sample("VideoDecodeError"):
            return replace(window, frames=clip.sample(visual, window.start, end))
    except BadSample as bad:
        clip.start_anew()
        return replace(window, error=bad)
