"""How a translator's translations are searched for. Free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hybrid_models.errors import UsageError
from hybrid_models.search.options import MOST_TOKENS, TextDecoding


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
        if not 0 <= self.max_length_ratio < math.inf or self.max_length_extra < 0 or self.max_length < 1:
            raise UsageError("max_length_ratio and max_length_extra must be 0 or more, max_length at least 1")
        if self.max_length > MOST_TOKENS:
            raise UsageError(f"max_length is {self.max_length}: it must be at most {MOST_TOKENS}")

    def limit(self, source_length: int) -> int:
        """Most target tokens of a source with so many tokens."""
        return max(1, min(int(source_length * self.max_length_ratio) + self.max_length_extra, self.max_length))
