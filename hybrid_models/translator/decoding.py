"""How a translator's translations are searched for. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hybrid_models.errors import UsageError
from hybrid_models.interface import DecodingConfig
from hybrid_models.search.options import MOST_TOKENS, SearchOptions
from hybrid_models.text import BOS, EOS, PAD, UNK

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TranslatorDecoding(DecodingConfig):
    """How translations are searched for.

    Raises:
        UsageError: an option is out of its range.
    """

    beam_size: int = 5
    """Hypotheses kept per sentence; 1 is greedy search."""
    length_penalty: float = 1.0
    """0 ranks by probability, which favours short translations; larger values favour longer ones."""
    min_length: int = 1
    """Fewest tokens of a translation."""
    max_length_ratio: float = 2.0
    """Most tokens of a translation per source token, beyond `max_length_extra`."""
    max_length_extra: int = 10
    """Tokens allowed on top of the ratio."""
    max_length: int = 256
    """Most tokens of any translation."""

    def __post_init__(self) -> None:
        self.search_options()
        if self.max_length_ratio < 0 or self.max_length_extra < 0 or self.max_length < 1:
            raise UsageError("max_length_ratio and max_length_extra must be 0 or more, max_length at least 1")
        if self.max_length > MOST_TOKENS:
            raise UsageError(f"max_length is {self.max_length}: it must be at most {MOST_TOKENS}")

    def search_options(self) -> SearchOptions:
        """These options for `search`."""
        return SearchOptions(BOS, EOS, self.beam_size, self.length_penalty, self.min_length, (PAD, UNK, BOS))

    def limits(self, source_length: Tensor) -> Tensor:
        """Most target tokens [B] of sources with so many tokens [B]."""
        relative = (source_length * self.max_length_ratio).long() + self.max_length_extra
        return relative.clamp(min=1, max=self.max_length)
