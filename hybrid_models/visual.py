"""What hybrids of photographs and clips share: how they see, and what Python programs hand over as frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from hybrid_models.errors import BadSample, UsageError
from hybrid_models.inputs import Sampling, Visual
from hybrid_models.interface import HybridConfig

SAME_FRAME = 1e-6
"""Times that are apart by less than so much of a frame are one."""


@dataclass(frozen=True)
class VisualConfig(HybridConfig):
    """What a hybrid sees, and with which eye."""

    encoder: str = "tf_efficientnet_lite0"
    """A convolutional net of the timm library."""
    encoder_weights: str = "hub"
    """Weights the encoder starts from: `hub` (timm's own), `none` (random) or the URI of a safetensors file."""
    freeze_encoder: bool = True
    """Keep the encoder as it is: its features are then computed once per sample."""
    image_size: int = 224
    """Height and width (pixels) to which frames are resized."""
    frames: int = 8
    """Most frames looked at in a clip."""
    sampling: Sampling = "uniform"
    """Which ones: `uniform`, those in the middle of equal parts of its time; `fps`, so many a second; `keyframes`,
    those that were stored whole."""
    fps: float = 2.0
    """Frames a second of sampling `fps`, as long as `frames` are enough."""

    @property
    def visual(self) -> Visual:
        """What is seen of a clip."""
        return Visual(self.image_size, self.image_size, self.frames, self.sampling, self.fps)

    @property
    def weights_read(self) -> tuple[str, ...]:
        """The file of the encoder's weights, if there is one."""
        return () if self.encoder_weights in ("hub", "none") else (self.encoder_weights,)

    def check(self, positive: Sequence[str], shares: Sequence[str], choices: Mapping[str, Sequence[str]]) -> None:
        """Checks how it sees, and a hybrid's own fields.

        Args:
            positive: fields that must be at least 1.
            shares: fields that are a share of something.
            choices: fields that are one of some words.

        Raises:
            UsageError: names the first field that is out of its range.
        """
        self.check_ranges(("image_size", "frames", *positive), shares)
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise UsageError(f"{name} is '{value}': it must be one of {', '.join(known)}")
        if self.freeze_encoder and self.encoder_weights == "none":
            raise UsageError("freeze_encoder with encoder_weights 'none' would keep a random net: change one of them")
        _ = self.visual


def frames_of(image: Any, visual: Visual, frame_rate: float | None = None) -> np.ndarray:
    """A PIL image, image array [H,W,3] or clip array [T,H,W,3] as uint8 [T,H,W,3] of the wanted size; of a clip the
    wanted frames.

    Args:
        image: any of these.
        visual: what is wanted.
        frame_rate: frames a second of a clip; without it they have no times, and are chosen as `uniform` does. That is
            so with `keyframes`, too, of which an array has none.

    Raises:
        BadSample: it is none of these.
        UsageError: a frame rate that is none.
    """
    if frame_rate is not None and not 0 < frame_rate < math.inf:
        raise UsageError(f"frame_rate is {frame_rate:g}: it must be more than 0 frames a second")
    array = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    is_clip = array.ndim == 4
    array = array if is_clip else array[None]
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or array.size == 0:
        raise BadSample("MediaShape", f"{array.dtype} {list(array.shape)} is no uint8 image [H,W,3] or clip [T,H,W,3]")
    chosen = _chosen(visual, len(array), frame_rate) if is_clip else [0]
    size = (visual.width, visual.height)
    return np.stack([np.asarray(Image.fromarray(array[i]).resize(size, Image.Resampling.BICUBIC)) for i in chosen])


def _chosen(visual: Visual, count: int, frame_rate: float | None) -> Sequence[int]:
    """Which of so many frames are looked at."""
    if frame_rate is None:
        return visual.positions(count)
    wanted = visual.times(0.0, count / frame_rate, [number / frame_rate for number in range(count)], [])
    return [min(count - 1, int(time * frame_rate + SAME_FRAME)) for time in wanted]
