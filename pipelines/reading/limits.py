"""What one sample may cost, and how a decoder's complaints become a `BadSample`."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from hybrid_models.errors import BadSample, UsageError

FREE_ROWS, ROWS_PER_BYTE = 200_000, 16
"""Numbered addresses reach 11 rows per byte in Parquet, random labels 7, sentences 0.2; only equal rows reach more."""
FREE_BYTES, BYTES_PER_BYTE = 64 * 2**20, 200.0
"""Bytes that a shard may always decompress to: 100,000 equal sentences are stored 400:1, templates of JSON 76:1."""
FREE_SECONDS, BYTES_PER_SECOND = 3600, 4096
"""A photograph takes 0.04 s of CPU per MB, video of slides at 13 kbit/s and gzipped text, the slowest, 8."""
MAX_BAD_SHARE = 0.05
"""With more bad samples than this share, the fault lies with the whole of the data or with the model."""


@dataclass(frozen=True)
class Limits:
    """What one sample may cost; more makes it an error row."""

    max_bytes: int = 256 * 2**20
    """Bytes of one photograph, clip, array or radar file as stored."""
    max_pixels: int = 64_000_000
    """Pixels of one decoded image or video frame."""
    max_frames: int = 20_000
    """Frames of one clip (20,000 are eleven minutes at 30 frames a second)."""
    max_array_bytes: int = 2 * 2**30
    """Bytes of one array or of all frames of one radar event after decompression."""
    max_seconds: float = 60.0
    """Seconds of CPU that reading and decoding one row may take."""
    max_memory: int = 6 * 2**30
    """Bytes of memory that reading and decoding may take, in the process that does it."""
    max_output_bytes: int = 128 * 2**20
    """Bytes of one row's prediction: a nowcast of 1024 x 1024 has 88 million for twelve lead times."""
    max_shard_bytes: int = 64 * 2**30
    """Bytes of one compressed shard of text after decompression."""
    max_wasted_seconds: float = 600.0
    """Seconds that failing rows of one shard may take together; then its rest is not read."""
    max_shard_rows: int | None = None
    """Rows of one shard, beyond which it is, or ends with, one error row; None: 200,000 and 16 per stored byte."""
    max_shard_seconds: float | None = None
    """Seconds of CPU for one shard, after which its rest is not read; None: 3,600 and one per 4,096 stored bytes."""
    max_compression_ratio: float | None = None
    """Bytes of a compressed shard of text after decompression per stored byte; None: 200. 64 MiB are always free."""

    def __post_init__(self) -> None:
        check_positive(self)

    @property
    def decisive(self) -> dict[str, float]:
        """The limits that are set, for fingerprints: those that are derived change no earlier output."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def shard_bytes(self, stored: int) -> int:
        """Bytes that a compressed shard of so many bytes may decompress to."""
        return int(FREE_BYTES + (self.max_compression_ratio or BYTES_PER_BYTE) * stored)

    def shard_rows(self, stored: int) -> int:
        """Rows that a shard of so many bytes may have."""
        return self.max_shard_rows or FREE_ROWS + ROWS_PER_BYTE * stored

    def shard_seconds(self, stored: int) -> float:
        """Seconds of CPU that a shard of so many bytes may take."""
        return self.max_shard_seconds or FREE_SECONDS + stored / BYTES_PER_SECOND

    def check_rows(self, rows: int, stored: int) -> None:
        """Raises `BadSample` (`TooManyRows`) for more rows than a shard of so many bytes may have."""
        if rows > (most := self.shard_rows(stored)):
            default = f"by default {FREE_ROWS:,} and {ROWS_PER_BYTE} for each of its {stored:,} bytes"
            raise BadSample("TooManyRows", f"more than {most:,} rows ({default}); `limits.max_shard_rows` allows more")

    def too_long(self, stored: int) -> str:
        """Why the rest of a shard is not read."""
        default = f"by default {FREE_SECONDS:,} and one for each {BYTES_PER_SECOND:,} of its {stored:,} bytes"
        most = f"more than {self.shard_seconds(stored):,.1f} s of CPU ({default})"
        return f"ShardTakesTooLong: {most}; `limits.max_shard_seconds` allows more"


def check_positive(limits: object) -> None:
    """Refuses limits of which one is no number above zero, or has no end.

    Raises:
        UsageError: says which.
    """
    for name, value in vars(limits).items():
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"`limits.{name}` is {value}: it must be a number above 0")


DEFAULT_LIMITS = Limits()
NO_MEMORY = "this row needs more memory than max_memory allows"
_NO_MEMORY = (
    "bad_alloc",
    "cannot allocate memory",
    "can't allocate memory",
    "out of memory",
    "unable to allocate",
    "malloc of size",
)


def is_memory_error(error: BaseException) -> bool:
    """Whether there was not enough memory, in whatever words a library says so."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    text = str(error).lower()
    return any(words in text for words in _NO_MEMORY)


def check_size(media: bytes, limits: Limits) -> None:
    """Raises `BadSample` (`MediaTooLarge`) for more bytes than allowed."""
    if len(media) > limits.max_bytes:
        raise BadSample("MediaTooLarge", f"{len(media):,} bytes are more than max_bytes={limits.max_bytes:,}")


def check_pixels(width: int, height: int, kind: str, limits: Limits) -> None:
    """Raises `BadSample` of this kind for a larger image or frame than allowed."""
    if width * height > limits.max_pixels:
        raise BadSample(kind, f"{width} x {height} pixels are more than max_pixels={limits.max_pixels:,}")


@contextmanager
def bad_sample(kind: str) -> Iterator[None]:
    """Turns every exception inside into a `BadSample` of this kind.

    Decoders raise whatever they stumble over in broken bytes (OSError, SyntaxError, struct.error, MemoryError at an
    absurd length …), so no shorter list is safe. An ImportError is the machine's trouble; what needs more memory than
    there is becomes a `MemoryLimit`.
    """
    try:
        yield
    except (BadSample, ImportError):
        raise
    except Exception as error:
        if is_memory_error(error):
            raise BadSample("MemoryLimit", NO_MEMORY) from error
        lines = (getattr(error, "strerror", None) or str(error)).strip().splitlines()
        raise BadSample(kind, lines[0] if lines else type(error).__name__) from error
