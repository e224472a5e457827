"""Judging a model on held-out shards: the inference loop with records instead of predictions, then one summary."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq
import ray

from hybrid_models.inputs import DecodingConfig
from pipelines import artifacts, infer, storage, tables
from pipelines.artifacts import Artifact
from pipelines.cluster import Resources
from pipelines.limits import Limits
from pipelines.predict import RECORD_SCHEMA, Lineage, Predictor
from pipelines.shards import Shard
from pipelines.tables import Piece


@dataclass(frozen=True)
class Evaluation:
    """One judgement: everything that decides it.

    Args:
        shards: held-out shards with references.
        storage: URI below which records are staged, so that an interrupted evaluation goes on.
        artifact: the model.
        decoding: how to decode.
        stride: every n-th issue time of a radar event is a sample.
        limits: bounds on one row.
    """

    shards: Sequence[Shard]
    storage: str
    artifact: Artifact
    decoding: DecodingConfig
    stride: int = 1
    limits: Limits = field(default_factory=Limits)

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides a record."""
        model = self.artifact.fingerprint(self.decoding, self.limits)
        return artifacts.fingerprint({"model": model, "stride": self.stride})

    @property
    def folder(self) -> str:
        """Where the records are staged."""
        return storage.join(storage.absolute(self.storage), "evaluations", self.fingerprint[:12])


def evaluate(job: Evaluation, resources: Resources) -> dict[str, Any]:
    """Predicts what is not staged yet and summarises all records.

    Returns:
        `metrics`, `baseline`, `details` of the hybrid's `summarise`, with `samples` and `errors` by reason.

    Raises:
        RuntimeError: no sample could be judged, or infrastructure failed.
    """
    artifact = job.artifact
    todo = infer.incomplete(job.shards, job.folder)
    if todo:
        lineage = Lineage(artifact.model, artifact.version, job.fingerprint, "")
        actor = infer.Actor(Predictor, (ray.put(artifact), job.decoding), (lineage, True))
        decode = infer.decode_step(artifact, job.limits, with_target=True)
        infer.stage(todo, job.folder, tables.table_schema(RECORD_SCHEMA), decode, actor, resources, job.stride)
    pieces = infer.verify(job.shards, job.folder)
    errors: Counter[str] = tables.count_errors(pieces)
    records = list(_records(pieces))
    if not records:
        raise RuntimeError(f"no sample could be judged: {dict(errors)}")
    summary = artifact.hybrid_class.summarise(records)
    return {"samples": len(records), "errors": dict(errors.most_common()), **summary}


def _records(pieces: Sequence[Piece]) -> Iterator[dict[str, Any]]:
    for piece in pieces:
        with storage.open_input(piece.file.uri) as stream:
            column = pq.read_table(stream, columns=["record"])["record"]
        yield from (json.loads(text) for text in column.drop_null().to_pylist())
