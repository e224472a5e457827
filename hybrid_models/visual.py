"""What Python programs hand over — PIL images, arrays — as the frames that hybrids of photographs and clips read."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from hybrid_models.errors import BadSample
from hybrid_models.inputs import Visual


def frames_of(image: Any, visual: Visual) -> np.ndarray:
    """A PIL image, image array [H,W,3] or clip array [T,H,W,3] as uint8 [T,H,W,3] of the wanted size; of a clip the
    wanted frames.

    Raises:
        BadSample: it is none of these.
    """
    array = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    is_clip = array.ndim == 4
    array = array if is_clip else array[None]
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or array.size == 0:
        raise BadSample("MediaShape", f"{array.dtype} {list(array.shape)} is no uint8 image [H,W,3] or clip [T,H,W,3]")
    chosen = visual.positions(len(array)) if is_clip else [0]
    size = (visual.width, visual.height)
    return np.stack([np.asarray(Image.fromarray(array[i]).resize(size, Image.Resampling.BICUBIC)) for i in chosen])
