"""What a hybrid is given: how a row of a shard becomes a preprocessed sample. Free of torch, like decoding itself."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hybrid_models.errors import UsageError

Sample = dict[str, np.ndarray]
"""One preprocessed sample: named arrays without a batch axis. Always has `length`, an int64 scalar: its cost in steps
(tokens, frames), by which training groups samples of similar size."""

LATER = {b"hybrid.later": b"yes"}
"""Metadata of a table's column that an earlier schema version lacks: it is null there, and is added in place."""


@dataclass(frozen=True)
class Visual:
    """How media are decoded for a hybrid: images and clips become uint8 `[frames, height, width, 3]` RGB."""

    height: int
    width: int
    frames: int
    """Number of frames of a clip; an image is one frame."""
    spread: bool = True
    """The frames are spread over the whole clip, repeated where it is shorter; otherwise they are its first ones, fewer
    where it is shorter."""

    def positions(self, count: int) -> Sequence[int]:
        """Which of the `count` frames of a clip are looked at, in order: the middle ones of `frames` equal parts, where
        a clip that is shorter than that repeats some; or, without `spread`, its first ones.
        """
        if not self.spread:
            return range(min(count, self.frames))
        return [min(count - 1, (2 * i + 1) * count // (2 * self.frames)) for i in range(self.frames)]


@dataclass(frozen=True)
class Window:
    """How a radar event is cut into samples: every issue time with `past_frames` frames up to it is one sample."""

    past_frames: int
    horizon_minutes: int


@dataclass(frozen=True)
class Inputs:
    """One row of a shard, decoded: what `Preprocess` gets."""

    media: np.ndarray | None
    """Image or clip: uint8 `[frames, height, width, 3]`; array or radar window: `[time, height, width]`; text: None."""
    fields: Mapping[str, Any]
    """The row's other members: text, captions, step_minutes, issue_time …"""


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


@dataclass(frozen=True)
class HybridConfig:
    """Base of the hybrids' own configurations (architecture and preprocessing; saved as the artifact's config.json)."""

    learns_from_texts: ClassVar[bool] = False
    """Whether something is learned from texts before the net is built: a tokenizer."""
    not_in_samples: ClassVar[frozenset[str]] = frozenset()
    """Fields that no prepared sample depends on, given assets and frozen weights: where they change, it is kept."""

    @property
    def least_share(self) -> int:
        """Least samples of a batch that each worker needs in training."""
        return 1

    def training_texts(self, fields: Mapping[str, Any]) -> list[str]:
        """The texts of one training row to learn from; none by default, and none from a bad row."""
        return []

    def check_ranges(self, positive: Sequence[str], shares: Sequence[str] = ()) -> None:
        """Checks fields that must be at least 1, and fields that are a share of something.

        Raises:
            UsageError: names the first field that is out of its range.
        """
        for name in positive:
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in shares:
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be in [0, 1)")


@dataclass(frozen=True)
class DecodingConfig:
    """Base of the hybrids' decoding options (part of the fingerprint: changing one recomputes a night)."""
