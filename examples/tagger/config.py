"""A tagger's configuration: architecture and preprocessing. Free of torch and of arrays, as help texts show it."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_models.interface import HybridConfig


@dataclass(frozen=True)
class TaggerConfig(HybridConfig):
    """Architecture and preprocessing of a tagger."""

    tags: tuple[str, ...] = ("de", "en")
    """What a sentence can be."""
    hidden_size: int = 32
    """Size of a byte's vector and of the GRU's state."""
    max_characters: int = 1000
    """A longer text is a bad sample."""
