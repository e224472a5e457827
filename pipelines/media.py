"""For models that were registered by version 0.1, see `pipelines.artifacts`."""

from __future__ import annotations

from pipelines.reading.media.decode import sniff_media_type

__all__ = ["sniff_media_type"]
