"""For models that were registered by version 0.1, see `pipelines.artifacts`."""

from __future__ import annotations

from pipelines.staging.engine import decode_step

__all__ = ["decode_step"]
