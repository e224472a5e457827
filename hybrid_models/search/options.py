"""How to search for a text, as a user says it and as a search takes it. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hybrid_models.errors import UsageError
from hybrid_models.interface import DecodingConfig
from hybrid_models.symbols import BOS, EOS, PAD, UNK

MOST_BEAM = 256
MOST_PENALTY = 10.0
MOST_TOKENS = 10_000
"""The longest output that may be asked for."""


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Raises:
        UsageError: a beam below 1 or above `MOST_BEAM`, a length penalty that is negative or above `MOST_PENALTY`, or a
            negative minimum length or `no_repeat`.
    """

    start: int
    """The token from which every hypothesis starts."""
    end: int
    """The token that ends a hypothesis."""
    beam_size: int = 1
    """Hypotheses kept per source; 1 is greedy search."""
    length_penalty: float = 1.0
    """The exponent α: 0 ranks by probability (short outputs win), larger values favour longer outputs."""
    min_length: int = 0
    """No end symbol before so many tokens (never beyond a source's maximum)."""
    never: tuple[int, ...] = ()
    """Tokens that are not written at all (padding, start)."""
    no_repeat: int = 0
    """No sequence of so many tokens is written twice in one output; 0 allows any."""

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise UsageError(f"beam_size is {self.beam_size}: it must be at least 1 (1 is greedy search)")
        if self.beam_size > MOST_BEAM:
            raise UsageError(
                f"beam_size is {self.beam_size}: it must be at most {MOST_BEAM}; wider beams are no better"
            )
        if not 0 <= self.length_penalty <= MOST_PENALTY:
            raise UsageError(f"length_penalty is {self.length_penalty}: it must be from 0 (off) to {MOST_PENALTY}")
        if self.min_length < 0:
            raise UsageError(f"min_length is {self.min_length}: it must be 0 or more")
        if self.no_repeat < 0:
            raise UsageError(f"no_repeat is {self.no_repeat}: it must be 0 (any) or a number of tokens")

    def most_tokens(self, max_length: Sequence[int]) -> int:
        """Most tokens that a search writes in all its hypotheses, of sources with so many [B] at the most."""
        return self.beam_size * sum(max_length)


@dataclass(frozen=True)
class TextDecoding(DecodingConfig):
    """How the texts of a hybrid are searched for; each adds how long they may be.

    Raises:
        UsageError: an option is out of its range.
    """

    beam_size: int = 5
    """Hypotheses kept per sample; 1 is greedy search."""
    length_penalty: float = 1.0
    """0 ranks by probability, which favours short texts; larger values favour longer ones."""
    min_length: int = 1
    """Fewest tokens of a text."""

    def __post_init__(self) -> None:
        self.search_options()

    def search_options(self) -> SearchOptions:
        """These options for `search`."""
        return SearchOptions(BOS, EOS, self.beam_size, self.length_penalty, self.min_length, (PAD, UNK, BOS))
