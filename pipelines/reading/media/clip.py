"""One clip, read forwards: packets tell when each frame is shown, and only what leads to the wanted ones is decoded.

Nothing that a header says of its length is believed: the times of its frames are what counts.
"""

from __future__ import annotations

import heapq
import io
import itertools
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import av
import numpy as np

from hybrid_models.errors import BadSample
from hybrid_models.inputs import Visual
from pipelines.reading.limits import Limits, check_pixels
from pipelines.reading.media.container import check_gif_length, matroska_cut_off, why_unreadable

CLIP_FORMATS = {"mp4": "mp4", "mov": "mov", "mkv": "matroska", "webm": "webm", "avi": "avi", "gif": "gif"}
"""Media type → the demuxer that is forced: guessing would let a playlist in disguise read other files."""
READ_BYTES = 1 << 18
MOST_TOLERANCE = 0.25
REORDERED = 1.0
"""Seconds that a frame may be stored after one that is shown later, where packets do not tell."""
REORDERING = ("h264", "hevc")
"""Decoders of frames that may be stored in another order than they are shown in; an AVI has no times to tell it."""
MORE_PIXELS = 2, 1 << 16
"""A decoder counts whole blocks, so that its own limit is so many times ours, and so many more."""


class Frames(NamedTuple):
    """What is looked at of a clip, or of a window of it."""

    pixels: np.ndarray
    """uint8 `[frames, height, width, 3]` RGB."""
    times: np.ndarray
    """float32 `[frames]`, seconds from the clip's first frame."""


@dataclass(frozen=True)
class _Packet:
    """A stored frame: when it is shown, in seconds from the clip's first one, and whether it was stored whole."""

    time: float
    key: bool
    shown: bool
    """An edit list leaves frames out that others are made from."""
    packet: av.Packet[av.VideoStream]


class Clip:
    """A clip that is read forwards: `read` up to a time, `sample` what was read, `forget` what lies behind.

    Args:
        stream: its bytes, seekable.
        media_type: its suffix.
        limits: what the packets that are held may be.
        timed: it is refused if nothing tells when its frames are shown.
    """

    def __init__(self, stream: BinaryIO, media_type: str, limits: Limits, timed: bool = False) -> None:
        self._bytes, self._type, self._limits, self._timed = stream, media_type, limits, timed
        if not stream.seek(0, io.SEEK_END):
            raise BadSample("VideoDecodeError", "the file is empty")
        self._cut_off: str | None = None
        """What is said at its end."""
        if CLIP_FORMATS[media_type] in ("matroska", "webm"):
            self._cut_off = matroska_cut_off(stream, media_type)
        if media_type == "gif":
            check_gif_length(stream)
        self._open()

    def _open(self) -> None:
        times, more = MORE_PIXELS
        most = {"max_pixels": str(min(times * self._limits.max_pixels + more, 2**31 - 1))}
        self._bytes.seek(0)
        try:
            # No protocol at all: a clip may name other files and addresses as parts of itself.
            self._container = av.open(
                self._bytes, "r", CLIP_FORMATS[self._type], {"protocol_whitelist": "none", **most},
                metadata_errors="ignore", buffer_size=READ_BYTES,
            )  # fmt: skip
        except av.EOFError as error:
            raise BadSample("VideoDecodeError", "there are no frames in it") from error
        except av.InvalidDataError as error:
            raise BadSample("VideoDecodeError", why_unreadable(self._bytes, self._type, str(error.strerror))) from error
        self._stream = _video_stream(self._container)
        codec = self._stream.codec_context
        if codec is None:
            raise BadSample("VideoDecodeError", "nothing here decodes its video stream")
        codec.thread_count = 1  # one CPU is what the scheduler gave this task
        codec.options = most
        self._by_order = self._type == "avi" and codec.name in REORDERING
        check_pixels(codec.width, codec.height, "VideoTooLarge", self._limits)
        rate = self._stream.average_rate or self._stream.guessed_rate
        self._step = 1 / float(rate) if rate else None
        self._base = float(self._stream.time_base or 1)
        self._packets: Iterator[av.Packet[av.VideoStream]] = iter(self._container.demux(self._stream))
        self._origin: int | None = None
        """Ticks of the first frame that is shown."""
        self._reset()

    def _reset(self) -> None:
        self._held: deque[_Packet] = deque()
        self._held_bytes = 0
        self._gone = 0
        """How many packets were there before those that are held."""
        self.ended = False
        self.end = 0.0
        """After the last frame, seconds."""
        self._latest = -math.inf
        self._last: tuple[float, np.ndarray] | None = None
        self.start_anew()

    def __enter__(self) -> Clip:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    @property
    def empty(self) -> bool:
        """Whether no packet of a frame that is shown is held."""
        return not any(packet.shown for packet in self._held)

    @property
    def crowded(self) -> bool:
        """Whether half of what may be held is."""
        frames, size = len(self._held), self._held_bytes
        return 2 * frames > self._limits.max_frames or 2 * size > self._limits.max_bytes

    @property
    def start(self) -> float:
        """When the first frame that is held is shown."""
        return min(packet.time for packet in self._held if packet.shown)

    @property
    def tolerance(self) -> float:
        """Half of what a frame is shown, seconds: a shorter window would be none."""
        return min(0.5 * (self._step or 0.0), MOST_TOLERANCE)

    @property
    def rounding(self) -> float:
        """By how many seconds times may be wrong, since containers round them."""
        return self.tolerance / 10

    # ---- packets ----------------------------------------------------------------------------------------------------
    def read(self, until: float = math.inf) -> None:
        """Holds the packets of all frames that are shown before a time."""
        while not self.ended and self._latest < until:
            self._read_packet()

    def _read_packet(self) -> None:
        packet = next(self._packets, None)
        if packet is None:
            if self._cut_off is not None:
                raise BadSample("VideoDecodeError", self._cut_off)
            self.ended = True
            return
        if packet.is_corrupt:
            raise BadSample("VideoDecodeError", f"the file is cut off or damaged at {self._place()}")
        if packet.size == 0:
            return
        if packet.is_discard and self._origin is None:
            self._origin = self._first_shown(packet)
        time = self._time_of(packet)
        self._held.append(_Packet(time, packet.is_keyframe, not packet.is_discard, packet))
        self._held_bytes += packet.size
        lasts = packet.duration * self._base if packet.duration else self._step or 0.0
        if not packet.is_discard:
            self.end = max(self.end, time + lasts)
            # What is stored later is shown no earlier than it is to be decoded.
            latest = time - REORDERED if packet.dts is None else self._seconds(packet.dts)
            if latest < self._latest - REORDERED:
                raise BadSample("VideoDecodeError", f"times go back by {self._latest - latest:g} s at {self._place()}")
            self._latest = latest
        if len(self._held) > self._limits.max_frames:
            raise BadSample("VideoTooLarge", f"more than max_frames={self._limits.max_frames:,} frames")
        if self._held_bytes > self._limits.max_bytes:
            raise BadSample("VideoTooLarge", f"more than max_bytes={self._limits.max_bytes:,} bytes")

    def _first_shown(self, packet: av.Packet[av.VideoStream]) -> int | None:
        """Ticks of the first frame that is shown, where an edit list leaves out those before it; None if none is."""
        ahead: list[av.Packet[av.VideoStream]] = []
        size, first = packet.size, None
        while len(ahead) < self._limits.max_frames and size <= self._limits.max_bytes:
            following = next(self._packets, None)
            if following is None:
                break
            ahead.append(following)
            size += following.size
            if not following.is_discard and following.pts is not None:
                first = following.pts if first is None else min(first, following.pts)
            # What is stored later is shown no earlier than it is to be decoded.
            if first is not None and (following.dts is None or following.dts >= first):
                break
        self._packets = itertools.chain(ahead, self._packets)
        return first

    def _place(self) -> str:
        return f"frame {self._gone + len(self._held)}"

    def _time_of(self, packet: av.Packet[av.VideoStream]) -> float:
        ticks = packet.pts if packet.pts is not None else packet.dts
        if ticks is not None:
            return self._seconds(ticks)
        if self._step is None and self._timed:
            raise BadSample("VideoDecodeError", "nothing in it tells when its frames are shown")
        return (self._gone + len(self._held)) * (self._step or 1.0)

    def _seconds(self, ticks: int) -> float:
        if self._origin is None:
            before = (self._gone + len(self._held)) * (self._step or 1.0)  # those that had no time
            self._origin = ticks - round(before / self._base)
        return (ticks - self._origin) * self._base

    def seek(self, time: float) -> bool:
        """Goes on from a frame that was stored whole, at or before a time; False if that cannot be found: from the
        clip's start, then."""
        self._read_packet()  # times count from the first frame
        if self._origin is not None:
            self._reset()
            try:
                ticks = self._origin + int(time / self._base)
                self._container.seek(ticks, stream=self._stream, backward=True)
                self._packets = iter(self._container.demux(self._stream))
                self._read_packet()
                if self._held and self._held[0].key and self._held[0].shown and self._held[0].time <= time:
                    return True
            except (av.FFmpegError, BadSample, OverflowError):
                pass  # an index that leads nowhere; the way from the start is left
        self._container.close()
        self._open()
        return False

    def forget(self, time: float) -> None:
        """Lets go of packets that are not needed for frames from a time on."""
        key = self._key_for(time)
        goes_on = self._frame is not None and self._frame[0] <= time
        keep = max(key, self._fed) if goes_on else key
        seen = max((packet.time for packet in self._held if packet.shown and packet.time <= time), default=time)
        later = next(
            (place for place, packet in enumerate(self._held) if packet.shown and packet.time >= seen), len(self._held)
        )
        keep = min(keep, self._gone + later)  # what is fed is not seen yet
        self._skipped.difference_update([skipped for skipped in self._skipped if skipped < seen])
        while self._held and self._gone < keep:
            self._held_bytes -= self._held.popleft().packet.size
            self._gone += 1

    def still_until(self, time: float) -> float:
        """When the first frame of those that are held is shown, from a time on; that time, if there is none."""
        return min((packet.time for packet in self._held if packet.shown and packet.time >= time), default=time)

    def _key_for(self, time: float) -> int:
        """The number of the packet from which decoding begins for the frame shown at a time."""
        shown = math.inf
        for place in range(len(self._held) - 1, -1, -1):
            packet = self._held[place]
            if packet.shown:
                shown = packet.time  # one that is not leads to it
            if packet.key and shown <= time:
                return self._gone + place
        return self._gone

    # ---- frames -----------------------------------------------------------------------------------------------------
    def sample(self, visual: Visual, start: float, end: float) -> Frames:
        """The frames wanted of a part of the clip; at each time that which is seen then, though it came before."""
        held = [packet for packet in self._held if packet.shown and start <= packet.time < end]
        shown, keys = sorted(packet.time for packet in held), sorted(packet.time for packet in held if packet.key)
        times = visual.times(start, end, shown, keys)
        known = sorted(
            {packet.time for packet in self._held if packet.shown} | ({self._last[0]} if self._last else set())
        )
        pixels: list[np.ndarray] = []
        for time in times:
            place = bisect_right(known, time + self.rounding) - 1
            taken = self._pixels_at(known[max(place, 0)], visual)
            if taken is not None:
                pixels.append(taken)
        if not pixels:
            raise BadSample("VideoDecodeError", "no frame could be decoded")
        if visual.sampling != "first":  # packets that only set up the decoder give no frame
            pixels += [pixels[-1]] * (len(times) - len(pixels))
        return Frames(np.stack(pixels), np.asarray(times[: len(pixels)], np.float32))

    def start_anew(self) -> None:
        """Forgets what was decoded."""
        self._stream.codec_context.flush_buffers()
        self._ready: deque[av.VideoFrame] = deque()
        self._fed = self._gone
        self._drained = False
        self._from = -math.inf
        self._passed = -math.inf
        self._skipped: set[float] = set()
        self._due: list[float] = []
        """A heap, where frames come by order: when those are shown that were fed and did not come yet."""
        self._frame: tuple[float, av.VideoFrame] | None = None

    def _pixels_at(self, time: float, visual: Visual) -> np.ndarray | None:
        """The frame that is shown from a time on, or the next one that there is."""
        if self._last is not None and self._last[0] == time:
            return self._last[1]
        key = self._key_for(time)
        behind = time < self._from or time <= self._passed or time in self._skipped
        if behind or key > self._fed or self._frame is None:
            self._begin_at(key)
        while self._frame is None or self._frame[0] < time:
            if self._frame is not None:
                self._passed = self._frame[0]
            following = self._next_frame(time)
            if following is None:
                return None
            self._frame = following
        self._last = (time, _frame_pixels(self._frame[1], visual))
        return self._last[1]

    def _begin_at(self, key: int) -> None:
        self.start_anew()
        self._fed = key
        self._from = self._held[key - self._gone].time

    def _next_frame(self, wanted: float) -> tuple[float, av.VideoFrame] | None:
        """The next one and its time, where those before the wanted one that no other is made from are left out."""
        while not self._ready:
            if self._fed < self._gone + len(self._held):
                self._feed(self._held[self._fed - self._gone], wanted)
            elif not self.ended:
                self._read_packet()  # a decoder may need some packets more
            elif not self._drained:
                self._drained = True
                self._ready.extend(self._stream.codec_context.decode(None))
            else:
                return None
        frame = self._ready.popleft()
        check_pixels(frame.width, frame.height, "VideoTooLarge", self._limits)
        time = self._frame_time(frame)
        if frame.is_corrupt and time >= self._from:  # earlier ones lack what they were made from
            raise BadSample("VideoDecodeError", f"the frame at {time:.3f} s is damaged")
        return time, frame

    def _feed(self, stored: _Packet, wanted: float) -> None:
        """Gives a packet to the decoder."""
        codec = self._stream.codec_context
        self._fed += 1
        counted = self._by_order or stored.packet.pts is None  # its frame's time is told by those before it
        leaves_out = stored.time < wanted and not counted
        if leaves_out and stored.shown:
            self._skipped.add(stored.time)
        if self._by_order:
            heapq.heappush(self._due, stored.time)
        codec.skip_frame = "NONREF" if leaves_out else "DEFAULT"
        try:
            self._ready.extend(codec.decode(stored.packet))
        except av.FFmpegError:
            if codec.width == 0:  # what a decoder says of a size that it refuses
                most = self._limits.max_pixels
                raise BadSample("VideoTooLarge", f"a frame has more pixels than max_pixels={most:,}, or none") from None
            raise

    def _frame_time(self, frame: av.VideoFrame) -> float:
        if self._due:
            return heapq.heappop(self._due)
        if frame.pts is None or self._origin is None:
            before = self._from if self._frame is None else self._frame[0] + (self._step or 1.0)
            return before if math.isfinite(before) else 0.0
        return self._seconds(frame.pts)


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The first that moves: a song's cover is a stream, too."""
    for stream in container.streams:
        stream.discard = av.stream.Discard.all
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            stream.discard = av.stream.Discard.default
            return stream
    raise BadSample("VideoDecodeError", "there is no video stream in it")


def _frame_pixels(frame: av.VideoFrame, visual: Visual) -> np.ndarray:
    """uint8 `[height, width, 3]`, turned as the camera says; whatever a pixel's shape is, the whole frame is seen."""
    quarter_turns = round(frame.rotation / 90)
    height, width = visual.height, visual.width
    if quarter_turns % 2:
        height, width = width, height
    small = frame.reformat(width=width, height=height, format="rgb24", interpolation="BICUBIC")
    return np.rot90(small.to_ndarray(), quarter_turns)
