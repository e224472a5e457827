"""For models that were registered by version 0.1, see `pipelines.artifacts`."""

from __future__ import annotations

from pipelines.reading.formats.entry import npy_bytes
from pipelines.reading.raw import RAW_SCHEMA

__all__ = ["RAW_SCHEMA", "npy_bytes"]
