"""What a night would do, without doing it: what is computed, what is there already, on what, and about how long."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from hybrid_models.errors import UsageError
from pipelines.cluster import connection
from pipelines.cluster.resources import Resources
from pipelines.models import server
from pipelines.nights.infer import Night
from pipelines.secrets import shown
from pipelines.staging.checks import incomplete, reused

log = logging.getLogger(__name__)
NIGHTS_LOOKED_AT = 200
"""Newest runs, of all tables, among which one is looked for that computed something."""


@dataclass(frozen=True)
class Pace:
    """How fast a night before was."""

    bytes_per_second: float
    """Of its input, while it was computed."""
    run_id: str


@dataclass(frozen=True)
class Preview:
    """What a night would do."""

    table: str
    """URI of the table."""
    ds: str
    shards: int
    shards_computed: int
    """The others are complete, and so are those that small ones share a unit with."""
    input_bytes: int
    bytes_computed: int
    """Of the shards that are computed, the larger ones perhaps in part."""
    files_there: int
    """Pieces that are reused; what is computed becomes one more for each unit at least."""
    rows_there: int
    """In these pieces."""
    processes: int | None
    """That would hold the model; None if none is needed."""
    processes_most: int | None
    """To how many they may grow."""
    threads: int | None
    """Of each."""
    gpu: bool | None
    """Whether each takes one."""
    seconds: float | None
    """How long it would compute at the pace of an earlier night; None if there is none."""
    pace_of_run: str | None
    """That night's run in MLflow; it may have had another model, and more or fewer processes."""


def preview(night: Night, resources: Resources, tracking_uri: str) -> Preview:
    """Looks at input, table and cluster; writes nothing.

    Raises:
        UsageError: the cluster has not what is asked for.
        StorageError: the store kept failing.
    """
    todo = incomplete(night.shards, night.folder)
    size = sum(part.shard.size for part in todo)
    pieces = reused(night.shards, night.folder)
    pace = pace_before(night, tracking_uri) if todo else None
    plan = None
    if todo:
        connection.start()
        plan = resources.plan(len(todo), size)
    return Preview(
        **asdict(night.partition),
        shards=len(night.shards),
        shards_computed=len(todo),
        input_bytes=sum(shard.size for shard in night.shards),
        bytes_computed=size,
        files_there=len(pieces),
        rows_there=sum(piece.rows for piece in pieces),
        processes=plan.actors if plan else None,
        processes_most=plan.most if plan else None,
        threads=plan.compute.threads if plan else None,
        gpu=plan.compute.gpu if plan else None,
        seconds=round(size / pace.bytes_per_second, 1) if pace else None,
        pace_of_run=pace.run_id if pace else None,
    )


def pace_before(night: Night, tracking_uri: str) -> Pace | None:
    """That of the newest night of this table that was computed as a whole; None if MLflow has none, or is away."""
    try:
        server.check_there(tracking_uri)
    except UsageError:
        return None
    table = shown(night.partition.tables), night.partition.name
    try:
        client = server.client(tracking_uri)
        runs = client.search_runs(
            [experiment.experiment_id for experiment in client.search_experiments()],
            'tags."hybrid.job" = "infer" AND attributes.status = "FINISHED"',
            max_results=NIGHTS_LOOKED_AT,
            order_by=["attributes.start_time DESC"],
        )
    except server.unreachable() as error:
        log.warning("cannot ask MLflow for earlier nights: %s", server.first_line(error))
        return None
    for run in runs:
        own = (run.data.params.get("tables"), (run.info.run_name or "").rpartition(" ")[0]) == table
        if own and (speed := speed_of(run.data.metrics)):
            return Pace(speed, run.info.run_id)
    return None


def speed_of(metrics: Mapping[str, float]) -> float:
    """Bytes of input a second of a night's metrics; 0 where it was not computed as a whole."""
    shards, seconds = metrics.get("shards", 0.0), metrics.get("seconds/stage_wall", 0.0)
    if not shards or metrics.get("shards_computed") != shards or seconds <= 0:
        return 0.0
    return metrics.get("input_bytes", 0.0) / seconds
