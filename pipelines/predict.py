"""For models that were registered by version 0.1, see `pipelines.artifacts`."""

from __future__ import annotations

from hybrid_models.interface import DecodingConfig
from pipelines.cluster.resources import Compute
from pipelines.models.artifacts import Artifact
from pipelines.models.session import Inference
from pipelines.staging import actors
from pipelines.staging.pieces import Lineage

__all__ = ["Compute", "Lineage", "Predictor"]


class Predictor(actors.Predictor):
    """As it was made then."""

    def __init__(self, artifact: Artifact, decoding: DecodingConfig, compute: Compute, lineage: Lineage) -> None:
        super().__init__(Inference(artifact, decoding), compute, lineage)
