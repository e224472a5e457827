"""Judging a model on held-out shards: the inference loop with records instead of predictions, then one summary."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from hybrid_models.errors import UsageError
from hybrid_models.scores import significance
from hybrid_models.scores.significance import Difference
from pipelines import storage
from pipelines.cluster.resources import Resources
from pipelines.models import artifacts
from pipelines.models.artifacts import Artifact
from pipelines.models.session import Inference
from pipelines.reading.readers import is_event
from pipelines.reading.shards import Shard
from pipelines.reading.units import Part
from pipelines.staging import checks, contents, uses
from pipelines.staging.contents import Staged
from pipelines.staging.pieces import Lineage, Piece, table_schema

if TYPE_CHECKING:
    from hybrid_models.contract import Hybrid

RECORDS_VERSION = 6
"""Raised whenever a hybrid's `record` keeps something else, so that older records are not taken for new ones."""

DEPENDENT_TIMES = 12
"""So many neighbouring issue times of a radar event depend on each other: an hour of frames every five minutes. Of
windows of a clip as many are taken to."""


@dataclass(frozen=True)
class Evaluation:
    """One judgement: everything that decides it.

    Args:
        shards: held-out shards with references.
        storage: URI below which records are staged, so that an interrupted evaluation goes on.
        inference: the model, how it decodes, what a row may cost.
        stride: every n-th issue time of a radar event is a sample.
    """

    shards: Sequence[Shard]
    storage: str
    inference: Inference
    stride: int = 1

    @property
    def artifact(self) -> Artifact:
        """The model."""
        return self.inference.artifact

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides a record."""
        return artifacts.fingerprint(
            {"model": self.inference.fingerprint, "stride": self.stride, "records": RECORDS_VERSION}
        )

    @property
    def folder(self) -> str:
        """Where the records are staged."""
        return storage.join(storage.absolute(self.storage), "evaluations", self.fingerprint[:12])


@dataclass(frozen=True)
class Judged:
    """What became of held-out shards.

    Args:
        records: by shard and position, what is kept of each prediction and its reference, and a hash of the latter,
            `truth`.
        errors: samples that could not be judged, by reason.
    """

    records: dict[tuple[str, int], dict[str, Any]]
    errors: Counter[str]


def judge(job: Evaluation, resources: Resources) -> Judged:
    """Predicts what is not staged yet.

    Raises:
        RuntimeError: no sample could be judged, or infrastructure failed.
    """
    artifact = job.artifact
    uses.mark(job.folder, uses.MODEL, artifact.model)
    todo = checks.incomplete(job.shards, job.folder)
    written = _compute(job, todo, resources) if todo else Staged()
    pieces = checks.verify(job.shards, job.folder)
    judged = Judged(dict(_records(pieces)), contents.total(pieces, written.contents).errors)
    if not judged.records:
        raise RuntimeError(f"no sample could be judged: {dict(judged.errors)}")
    return judged


def _compute(job: Evaluation, todo: Sequence[Part], resources: Resources) -> Staged:
    from pipelines.staging import engine  # with Ray, which takes longer to load than records that are there
    from pipelines.staging.actors import RECORD_SCHEMA, Predictor

    lineage = Lineage(job.artifact.model, job.artifact.version, job.fingerprint, "")
    actor = engine.Actor(Predictor, (job.inference,), (lineage, True, "evaluations"))
    decode, schema = job.inference.decode(with_target=True), table_schema(RECORD_SCHEMA)
    return engine.stage(todo, job.folder, schema, decode, actor, resources, "evaluations", job.stride)


def _records(pieces: Sequence[Piece]) -> Iterator[tuple[tuple[str, int], dict[str, Any]]]:
    for piece in pieces:
        with storage.open_input(piece.file.uri) as stream:
            rows = pq.read_table(stream, columns=["shard", "index", "record"]).to_pylist()
        yield from (((row["shard"], row["index"]), json.loads(row["record"])) for row in rows if row["record"])


@dataclass(frozen=True)
class Evaluated:
    """How a model did."""

    samples: int
    errors: dict[str, int]
    """Samples that could not be judged, by reason."""
    metrics: dict[str, float]
    baseline: dict[str, Any]
    """Its `name`, and the same metrics."""
    details: dict[str, Any]
    """Curves and tables of the hybrid's `summarise`, such as scores by lead time."""
    parts: dict[str, dict[str, float]]
    """Metrics and `samples` of parts of the test set: by event, by length of sentence."""


@dataclass(frozen=True)
class Compared:
    """How a second model differs from a first one, on the samples that both could predict."""

    samples: int
    only_first: int
    """Samples beside them that only the first one could predict."""
    only_second: int
    metrics: dict[str, Difference]


def evaluate(job: Evaluation, resources: Resources) -> Evaluated:
    """Judges one model.

    Raises:
        RuntimeError: see `judge`.
    """
    judged, hybrid = judge(job, resources), job.artifact.hybrid_class
    parts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for (shard, _), record in judged.records.items():
        if (part := hybrid.part(shard, record)) is not None:
            parts[part].append(record)
    return Evaluated(
        samples=len(judged.records),
        errors=dict(judged.errors.most_common()),
        **hybrid.summarise(list(judged.records.values())),
        parts={name: _part(hybrid, parts[name]) for name in sorted(parts)},
    )


def _part(hybrid: type[Hybrid], records: list[dict[str, Any]]) -> dict[str, float]:
    return {"samples": len(records)} | {name: tally.total for name, tally in hybrid.tallies(records).items()}


def compare(first: Evaluation, second: Evaluation, resources: Resources) -> Compared:
    """Judges two models of one kind on the samples that both could predict.

    Raises:
        UsageError: no sample suits both models, or they are judged against different things.
        RuntimeError: see `judge`.
    """
    hybrid = first.artifact.hybrid_class
    judged = [judge(job, resources).records for job in (first, second)]
    keys = [key for key in judged[0] if key in judged[1]]
    if other := [key for key in keys if judged[0][key]["truth"] != judged[1][key]["truth"]]:
        shard, index = other[0]
        raise UsageError(
            f"{first.artifact.model} and {second.artifact.model} do not compare: for {len(other)} of {len(keys)} "
            f"samples, such as row {index} of {shard}, they are judged against different things, since their "
            "configurations differ (languages, lead times, past frames …)"
        )
    if not keys:
        raise UsageError(f"{first.artifact.model} and {second.artifact.model} do not compare: no sample suits both")
    tallies = [hybrid.tallies([records[key] for key in keys]) for records in judged]
    blocks = _blocks(first, keys)
    differences = {
        name: significance.paired_bootstrap(tally, tallies[1][name], blocks) for name, tally in tallies[0].items()
    }
    only_first, only_second = (len(records) - len(keys) for records in judged)
    return Compared(len(keys), only_first, only_second, differences)


def _blocks(job: Evaluation, keys: Sequence[tuple[str, int]]) -> list[int]:
    """Which samples depend on each other: neighbouring issue times of a radar event, which share frames, and
    neighbouring windows."""
    times, windows = -(-DEPENDENT_TIMES // job.stride), 1 if job.inference.cut is None else DEPENDENT_TIMES
    return significance.consecutive(keys, lambda shard: times if is_event(shard) else windows)
