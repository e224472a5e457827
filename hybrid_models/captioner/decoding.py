"""How a captioner's captions are searched for. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_models.errors import UsageError
from hybrid_models.interface import DecodingConfig
from hybrid_models.search.options import MOST_TOKENS, SearchOptions
from hybrid_models.text import BOS, EOS, PAD, UNK


@dataclass(frozen=True)
class CaptionerDecoding(DecodingConfig):
    """How captions are searched for.

    Raises:
        UsageError: an option is out of its range.
    """

    beam_size: int = 3
    """Hypotheses kept per sample; 1 is greedy search."""
    length_penalty: float = 1.0
    """0 ranks by probability, which favours short captions; larger values favour longer ones."""
    min_length: int = 1
    """Fewest tokens of a caption."""
    no_repeat: int = 2
    """No sequence of so many tokens comes twice in a caption ("a man and a man"); 0 allows any."""
    max_length: int = 40
    """Most tokens of a caption."""

    def __post_init__(self) -> None:
        self.search_options()
        if not 1 <= self.max_length <= MOST_TOKENS:
            raise UsageError(f"max_length is {self.max_length}: it must be from 1 to {MOST_TOKENS}")

    def search_options(self) -> SearchOptions:
        """These options for `search`."""
        return SearchOptions(
            BOS, EOS, self.beam_size, self.length_penalty, self.min_length, (PAD, UNK, BOS), self.no_repeat
        )
