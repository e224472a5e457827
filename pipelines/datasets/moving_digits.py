"""Moving digits: the synthetic sequences of Srivastava, Mansimov, Salakhutdinov 2015 (arXiv:1502.04681, section 4.1).

Digits start at random places, move at constant speed in random directions, and bounce off the edges; where they overlap
the brighter pixel wins.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.datasets.writer import TarRow
from pipelines.reading.formats.entry import npy_bytes
from pipelines.reading.limits import DEFAULT_LIMITS, check_size

STEP = 0.1
"""Distance per frame, as a share of the room that a digit has."""


def trajectory(frames: int, room: int, rng: np.random.Generator) -> np.ndarray:
    """Top left corners of a digit: int64 `[frames, 2]` (y, x), each between 0 and `room` pixels."""
    position = rng.random(2)
    angle = rng.random() * 2 * np.pi
    velocity = STEP * np.array([np.sin(angle), np.cos(angle)])
    corners = np.empty((frames, 2))
    for frame in range(frames):
        position = position + velocity
        outside = (position <= 0) | (position >= 1)
        velocity = np.where(outside, -velocity, velocity)
        position = position.clip(0, 1)
        corners[frame] = position
    return (corners * room).astype(np.int64)


def moving_sequence(digits: np.ndarray, frames: int, canvas: int, rng: np.random.Generator) -> np.ndarray:
    """One sequence: digits uint8 `[count, size, size]` moving on a black canvas → uint8 `[frames, canvas, canvas]`."""
    size = digits.shape[-1]
    sequence = np.zeros((frames, canvas, canvas), np.uint8)
    for digit in digits:
        for frame, (y, x) in enumerate(trajectory(frames, canvas - size, rng)):
            patch = sequence[frame, y : y + size, x : x + size]
            np.maximum(patch, digit, out=patch)
    return sequence


def sequence_rows(
    name: str, digits: np.ndarray, count: int, frames: int, canvas: int, rng: np.random.Generator
) -> Iterator[TarRow]:
    """`count` sequences of two different random digits each, as `.npy` members."""
    for number in range(count):
        chosen = digits[rng.choice(len(digits), size=2, replace=False)]
        yield f"{name}-{number:06d}", {"npy": npy_bytes(moving_sequence(chosen, frames, canvas, rng))}


def read_idx_images(uri: str) -> np.ndarray:
    """Images of an IDX file (http://yann.lecun.com/exdb/mnist/), gzipped or not: uint8 `[count, height, width]`.

    Raises:
        UsageError: it is not an IDX file of images, or not all of it is there.
    """
    data = storage.read_bytes(uri)
    try:
        plain = _unpacked(data) if data[:2] == b"\x1f\x8b" else data
        magic, count, height, width = struct.unpack(">4i", plain[:16])
        images = np.frombuffer(plain, np.uint8, offset=16).reshape(count, height, width)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise UsageError(f"{uri} is not a whole IDX file of images: {error}") from error
    if magic != 0x803:
        raise UsageError(f"{uri} is not an IDX file of images: it begins with {magic:#010x}, not 0x00000803")
    return images


def _unpacked(data: bytes) -> bytes:
    """Raises `BadSample` (`MediaTooLarge`) where few bytes are more than can be kept."""
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
        plain = stream.read(DEFAULT_LIMITS.max_bytes + 1)
    check_size(plain, DEFAULT_LIMITS)
    return plain
