"""What a hybrid is given: how a row of a shard becomes a preprocessed sample. Free of torch, like decoding itself."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

from hybrid_models.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

Sample: TypeAlias = dict[str, "np.ndarray"]
"""One preprocessed sample: named arrays without a batch axis. Always has `length`, an int64 scalar: its cost in steps
(tokens, frames), by which training groups samples of similar size."""


Sampling = Literal["uniform", "fps", "keyframes"]


@dataclass(frozen=True)
class Visual:
    """How media are decoded for a hybrid: images and clips become uint8 `[frames, height, width, 3]` RGB.

    Args:
        height: pixels.
        width: pixels.
        frames: how many frames of a clip are looked at, at most; an image is one frame.
        sampling: which ones. `uniform`: those that are shown in the middle of `frames` equal parts of its time, where
            a clip with fewer repeats some; `fps`: so many a second, if those are not more than `frames`, else as
            `uniform`; `keyframes`: those that were stored whole, of which a camera or an encoder makes one where the
            picture changes, evenly chosen; `first`: its first ones.
        fps: frames a second.
    """

    height: int
    width: int
    frames: int
    sampling: Sampling | Literal["first"] = "uniform"
    fps: float = 2.0

    def __post_init__(self) -> None:
        known = (*get_args(Sampling), "first")
        if self.sampling not in known:
            raise UsageError(f"sampling is '{self.sampling}': it must be one of {', '.join(known[:-1])}")
        if not 0 < self.fps < math.inf:
            raise UsageError(f"fps is {self.fps:g}: it must be more than 0 frames a second")

    def positions(self, count: int) -> Sequence[int]:
        """Which of `count` frames that have no times are looked at: those of `uniform`, or the first ones."""
        if self.sampling == "first":
            return range(min(count, self.frames))
        return [min(count - 1, (2 * i + 1) * count // (2 * self.frames)) for i in range(self.frames)]

    def times(self, start: float, end: float, frames: Sequence[float], keyframes: Sequence[float]) -> Sequence[float]:
        """The times, in order, at which a clip is looked at from `start` to `end` (seconds).

        Args:
            start: of the clip, or of a window of it.
            end: after its last frame.
            frames: when each of its frames is shown, in order.
            keyframes: of them, those that were stored whole.
        """
        if self.sampling == "first":
            return frames[: self.frames]
        if self.sampling == "keyframes" and keyframes:
            few = min(len(keyframes), self.frames)
            return [keyframes[(2 * i + 1) * len(keyframes) // (2 * few)] for i in range(few)]
        count = self.frames
        if self.sampling == "fps":
            count = min(count, max(1, math.ceil((end - start) * self.fps - 0.5)))
        return [start + (end - start) * (2 * i + 1) / (2 * count) for i in range(count)]


@dataclass(frozen=True)
class Window:
    """How a radar event is cut into samples: every issue time with `past_frames` frames up to it is one sample."""

    past_frames: int
    horizon_minutes: int


@dataclass(frozen=True)
class Cut:
    """How a long clip becomes windows, one sample each: from its first frame on, the last one ends with the clip."""

    version: ClassVar[int] = 2  # the rest of a clip that is given up are windows, too
    """Raised whenever the same clip has other windows: samples and nights of older ones are not met again."""
    window_seconds: float
    stride_seconds: float

    def __post_init__(self) -> None:
        for name in ("window_seconds", "stride_seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"`{name}` is {value:g}: it must be more than 0 seconds")

    @property
    def decisive(self) -> dict[str, float]:
        """All that decides which windows a clip has."""
        return {**asdict(self), "version": self.version}

    def start(self, number: int) -> float:
        """Seconds from the clip's first frame."""
        return number * self.stride_seconds


@dataclass(frozen=True)
class Inputs:
    """One row of a shard, decoded: what `Preprocess` gets."""

    media: np.ndarray | None
    """Image, clip or array in colour: uint8 `[frames, height, width, 3]`; other array or radar window: `[time, height,
    width]`; text: None."""
    fields: Mapping[str, Any]
    """The row's other members: text, captions, step_minutes, issue_time …"""
    times: np.ndarray | None = None
    """Of a clip's frames, where they are known: float32 `[frames]`, seconds from its first one."""


class Preprocess(abc.ABC):
    """Turns `Inputs` into a `Sample`: pure, picklable, without weights, so that it runs on any CPU of the cluster."""

    visual: Visual | None = None
    window: Window | None = None

    @abc.abstractmethod
    def __call__(self, inputs: Inputs, with_target: bool) -> Sample:
        """Returns the sample, with its training target if asked.

        Raises:
            BadSample: the row cannot be used; says why.
        """

    def output_bytes(self, sample: Sample) -> int:
        """How large the prediction of this sample will be, where that depends on what the row says."""
        return 0
