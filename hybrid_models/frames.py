"""What Python programs hand over as frames: pictures and arrays, made as a hybrid sees them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from hybrid_models.errors import BadSample, UsageError
from hybrid_models.inputs import Visual

SAME_FRAME = 1e-6
"""Times that are apart by less than so much of a frame are one."""


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
