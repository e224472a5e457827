"""For models that were registered by version 0.1, see `pipelines.artifacts`."""

from __future__ import annotations

from pipelines.models.artifacts import Artifact
from pipelines.models.session import Inference
from pipelines.reading.limits import Limits
from pipelines.reading.samples import Decode


def decode_step(artifact: Artifact, limits: Limits) -> Decode:
    """The decoding that belongs to a model."""
    return Inference.of(artifact, limits).decode()
