"""For models that were registered by version 0.1, see `pipelines.artifacts`."""

from __future__ import annotations

from pipelines.reading.limits import Limits

__all__ = ["Limits"]
