"""How a tagger predicts. Free of torch, so that a help text needs none."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_models.interface import DecodingConfig


@dataclass(frozen=True)
class TaggerDecoding(DecodingConfig):
    """How tags are chosen."""

    least_probability: float = 0.0
    """A less likely tag is left out: the row has none."""
