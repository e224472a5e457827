"""For models that were registered by version 0.1, see `pipelines.artifacts`."""

from __future__ import annotations

from pipelines.cluster.resources import Compute
from pipelines.staging.actors import Lineage, Predictor

__all__ = ["Compute", "Lineage", "Predictor"]
