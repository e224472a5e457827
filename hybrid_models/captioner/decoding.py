"""How a captioner's captions are searched for. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hybrid_models.errors import UsageError
from hybrid_models.search.options import MOST_TOKENS, SearchOptions, TextDecoding


@dataclass(frozen=True)
class CaptionerDecoding(TextDecoding):
    """How captions are searched for.

    Raises:
        UsageError: an option is out of its range.
    """

    beam_size: int = 3
    """Hypotheses kept per sample; 1 is greedy search."""
    no_repeat: int = 2
    """No sequence of so many tokens comes twice in a caption ("a man and a man"); 0 allows any."""
    max_length: int = 40
    """Most tokens of a caption."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.max_length <= MOST_TOKENS:
            raise UsageError(f"max_length is {self.max_length}: it must be from 1 to {MOST_TOKENS}")

    def search_options(self) -> SearchOptions:
        """These options for `search`."""
        return replace(super().search_options(), no_repeat=self.no_repeat)
