"""For models that were registered by version 0.1, see `pipelines.artifacts`."""

from __future__ import annotations

from pipelines.staging.actors import Compute, Lineage, Predictor

__all__ = ["Compute", "Lineage", "Predictor"]
