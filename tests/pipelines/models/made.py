"""What is in a picture."""

import io

import numpy as np
from PIL import Image, ImageColor


def share(content: bytes, colour: str) -> float:
    """How much of a picture has a colour, within rounding."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    return float((np.abs(pixels - ImageColor.getrgb(colour)).max(-1) <= 3).mean())
