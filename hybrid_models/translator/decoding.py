"""How a translator's translations are searched for. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hybrid_models.errors import UsageError
from hybrid_models.search.options import MOST_TOKENS, TextDecoding

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TranslatorDecoding(TextDecoding):
    """How translations are searched for.

    Raises:
        UsageError: an option is out of its range.
    """

    max_length_ratio: float = 2.0
    """Most tokens of a translation per source token, beyond `max_length_extra`."""
    max_length_extra: int = 10
    """Tokens allowed on top of the ratio."""
    max_length: int = 256
    """Most tokens of any translation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length_ratio < 0 or self.max_length_extra < 0 or self.max_length < 1:
            raise UsageError("max_length_ratio and max_length_extra must be 0 or more, max_length at least 1")
        if self.max_length > MOST_TOKENS:
            raise UsageError(f"max_length is {self.max_length}: it must be at most {MOST_TOKENS}")

    def limits(self, source_length: Tensor) -> Tensor:
        """Most target tokens [B] of sources with so many tokens [B]."""
        relative = (source_length * self.max_length_ratio).long() + self.max_length_extra
        return relative.clamp(min=1, max=self.max_length)
