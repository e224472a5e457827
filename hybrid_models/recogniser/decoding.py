"""What a recogniser tells. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_models.errors import UsageError
from hybrid_models.interface import DecodingConfig


@dataclass(frozen=True)
class RecogniserDecoding(DecodingConfig):
    """What is told of a clip.

    Raises:
        UsageError: an option is out of its range.
    """

    top: int = 5
    """So many labels are told with their scores, the likeliest first."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise UsageError(f"top is {self.top}: it must be at least 1")
