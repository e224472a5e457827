"""How a nowcaster predicts. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_models.interface import DecodingConfig


@dataclass(frozen=True)
class NowcasterDecoding(DecodingConfig):
    """A nowcast has no decoding options."""
