"""THE batch-inference loop, top to bottom: shards in object storage → one atomically committed night of a table."""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import ray
from deltalake.exceptions import DeltaError

from hybrid_models.errors import UsageError
from hybrid_models.inputs import DecodingConfig
from pipelines import storage, tables
from pipelines.artifacts import Artifact
from pipelines.cluster import Resources
from pipelines.datasource import ShardDatasource
from pipelines.limits import MAX_BAD_SHARE, Limits
from pipelines.predict import Lineage, Predictor
from pipelines.samples import SAMPLE_SCHEMA, Decode
from pipelines.shards import ReadOptions, Shard
from pipelines.tables import Piece, StageSink
from pipelines.tracking import Tracker

log = logging.getLogger(__name__)
DECODE_CPUS = 0.5
WRITE_CPUS = 0.1


class RefusedError(RuntimeError):
    """Too many samples were bad, or a model was worse than the one in use: nothing was changed."""


@dataclass(frozen=True)
class Night:
    """One night of one table: everything that decides it.

    Args:
        shards: the input.
        tables: URI of the folder of tables.
        ds: logical date, `YYYY-MM-DD`.
        artifact: the model.
        decoding: how to decode.
        limits: bounds on one row.
        max_error_fraction: with more error rows than this share, nothing is committed.
        retain_hours: how long files that no current version needs are kept.
    """

    shards: Sequence[Shard]
    tables: str
    ds: str
    artifact: Artifact
    decoding: DecodingConfig
    limits: Limits = field(default_factory=Limits)
    max_error_fraction: float = MAX_BAD_SHARE
    retain_hours: int = 168

    @property
    def table(self) -> str:
        """URI of the table."""
        return storage.join(storage.absolute(self.tables), self.artifact.table)

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides an output."""
        return self.artifact.fingerprint(self.decoding, self.limits)

    @property
    def folder(self) -> str:
        """Where this night's files are staged."""
        return storage.join(self.table, f"ds={self.ds}", self.fingerprint[:12])

    @property
    def schema(self) -> pa.Schema:
        """The table's columns."""
        return tables.table_schema(self.artifact.hybrid_class.payload_schema)


def infer(night: Night, resources: Resources, tracker: Tracker) -> dict[str, Any]:
    """Runs one night: list, skip what is complete, compute the rest, verify, commit, tidy.

    Returns:
        The summary: rows, errors by reason, what was computed and reused, seconds by stage, `model_busy` (the share of
        the time that the model processes, or GPUs, computed), the table's version.

    Raises:
        RefusedError: too many samples were bad.
        RuntimeError: infrastructure failed; start again, finished shards are kept.
    """
    started = time.perf_counter()
    run_id = tracker.run_id or uuid.uuid4().hex
    lineage = Lineage(night.artifact.model, night.artifact.version, night.fingerprint, run_id)
    todo = incomplete(night.shards, night.folder)
    log.info("%s ds=%s: %d of %d shards to compute", night.table, night.ds, len(todo), len(night.shards))
    written: dict[str, float] = {}
    if todo:
        actor = Actor(Predictor, (ray.put(night.artifact), night.decoding), (lineage,))
        decode = decode_step(night.artifact, night.limits)
        written = stage(todo, night.folder, night.schema, decode, actor, resources, night.artifact.table)
    staged = time.perf_counter()
    pieces = verify(night.shards, night.folder)
    errors = tables.count_errors(pieces)
    rows = sum(piece.rows for piece in pieces)
    check_errors(errors, rows, night.max_error_fraction)
    lineage_note = {key: str(value) for key, value in asdict(lineage).items()}
    version = tables.commit_night(night.table, night.ds, pieces, night.schema, lineage_note)
    committed = time.perf_counter()
    removed = _tidy(night)
    computed = written.get("rows", 0)
    busy = written.get("predict_seconds", 0.0) / (written.get("actors", 1) * (staged - started))
    seconds = {
        "decode": written.get("decode_seconds", 0.0),
        "predict": written.get("predict_seconds", 0.0),
        "write": written.get("write_seconds", 0.0),
        "stage_wall": staged - started,
        "commit_wall": committed - staged,
        "total_wall": time.perf_counter() - started,
    }
    return {
        "table": night.table,
        "ds": night.ds,
        "version": version,
        "changed": version is not None,
        "rows": rows,
        "ok": rows - sum(errors.values()),
        "errors": dict(errors.most_common()),
        "shards": len(night.shards),
        "shards_computed": len(todo),
        "rows_computed": int(computed),
        "rows_per_second": round(computed / (staged - started), 2),
        "model_busy": round(busy, 4),
        "input_bytes": sum(shard.size for shard in night.shards),
        "staged_bytes": int(written.get("bytes", 0)),
        "files_removed": len(removed),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        **asdict(lineage),
    }


def _tidy(night: Night) -> list[str]:
    """The night is committed: files that cannot be removed now are only worth a warning, the next night tries again."""
    try:
        return tables.tidy(night.table, night.retain_hours)
    except (DeltaError, storage.StorageError) as error:
        log.warning("%s: cannot remove old files: %s", night.table, error)
        return []


def incomplete(shards: Sequence[Shard], folder: str) -> list[Shard]:
    """The shards whose staged pieces do not tile them. Nothing is skipped because a job said that it finished."""
    pieces = tables.list_pieces(folder)
    return [shard for shard in shards if tables.tiling(pieces.get(tables.shard_key(shard), [])) is None]


def verify(shards: Sequence[Shard], folder: str) -> list[Piece]:
    """The files that make up these shards exactly.

    Raises:
        RuntimeError: a shard is incomplete, although the computation ended without an error.
    """
    staged = tables.list_pieces(folder)
    chosen: list[Piece] = []
    for shard in shards:
        tiles = tables.tiling(staged.get(tables.shard_key(shard), []))
        if tiles is None:
            raise RuntimeError(
                f"{shard.uri} is incomplete in {folder}: start the job again, it computes what is missing"
            )
        chosen += tiles
    return chosen


def check_errors(
    errors: Counter[str],
    rows: int,
    max_fraction: float,
    limit: str = "--max-error-fraction",
    advice: str = "nothing was committed; mend the input or raise the limit",
) -> None:
    """Refuses too many bad samples; `limit` is how the message calls `max_fraction`, `advice` says the way out.

    Raises:
        RefusedError: names the commonest reason and the way out.
    """
    bad = sum(errors.values())
    if bad > max_fraction * rows:
        kind, count = errors.most_common(1)[0]
        raise RefusedError(
            f"{bad} of {rows} samples are bad (most: {count} x {kind}), more than {limit} {max_fraction}: {advice}"
        )


# ---- the streaming computation, shared by batch inference, evaluation and cached features ------------------------
@dataclass(frozen=True)
class Actor:
    """A class that holds a model, and its constructor's arguments before and after `Compute`."""

    kind: type
    before: tuple[Any, ...]
    after: tuple[Any, ...] = ()


def decode_step(artifact: Artifact, limits: Limits, with_target: bool = False) -> Decode:
    """The decoding that belongs to a model."""
    return Decode(artifact.hybrid_class.preprocess(artifact.config, artifact.assets), limits, with_target)


def stage(
    shards: Sequence[Shard],
    folder: str,
    schema: pa.Schema,
    decode: Decode,
    actor: Actor | None,
    resources: Resources,
    name: str,
    stride: int = 1,
) -> dict[str, float]:
    """Read → decode (CPU) → model (actors) → staged Parquet; returns rows, bytes, seconds by stage, actors.

    Args:
        shards: what to compute; each becomes one or more pieces in `folder`.
        folder: URI of the staging folder.
        schema: columns of the staged files.
        decode: raw rows → samples.
        actor: samples → output rows; None keeps the samples.
        resources: how much of the cluster to take.
        name: how Ray's metrics call it.
        stride: every n-th issue time of a radar event is a sample.
    """
    count, compute, asks = resources.plan(len(shards))
    options = ReadOptions(decode.preprocess.window, decode.with_target, stride, decode.limits)
    # With as many CPUs as an actor of one thread asks for, Ray fuses reading into it: samples are not copied.
    dataset = ray.data.read_datasource(
        ShardDatasource(list(shards), options, decode, SAMPLE_SCHEMA),
        override_num_blocks=len(shards),
        num_cpus=DECODE_CPUS,
    )
    if actor is not None:
        dataset = dataset.map_batches(
            actor.kind,
            fn_constructor_args=(*actor.before, compute, *actor.after),
            compute=ray.data.ActorPoolStrategy(size=count),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            **asks,
        )
    sink = StageSink(folder, shards, schema, name)
    # As many writers as models: Ray would start a process for each waiting block, which costs more than writing it.
    dataset.write_datasink(sink, ray_remote_args={"num_cpus": WRITE_CPUS}, concurrency=count)
    return {**sink.written, "actors": count}


def check_table(night: Night) -> None:
    """Refuses a table whose columns are not this version's, before any work is done.

    Raises:
        UsageError: names the first column that differs.
    """
    table = tables.open_table(night.table)
    if table is None:
        return
    have = [field.name for field in table.schema().fields]
    want = [*night.schema.names, "ds"]
    if have != want:
        different = next(iter(set(have) ^ set(want)), "their order")
        raise UsageError(
            f"{night.table} has other columns than this version writes ({different}): use another --tables"
        )
