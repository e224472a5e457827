"""What a night would do, without doing it: what is computed, what is there already, on what, and about how long."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from hybrid_models.errors import UsageError
from pipelines.cluster import connection, words
from pipelines.cluster.resources import Resources
from pipelines.models import server
from pipelines.nights.infer import Night
from pipelines.reading.units import Part
from pipelines.secrets import shown
from pipelines.staging.checks import incomplete, reused
from pipelines.staging.joining import LEAST_FILES, small_units
from pipelines.staging.pieces import Piece, unit_of

log = logging.getLogger(__name__)
NIGHTS_LOOKED_AT = 200
"""Newest runs, of all tables, among which one is looked for that computed about as much."""
ALIKE = 10
"""So many times as much, or as little, at the most: of a small night most of the time is that in which it starts."""


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
    units_computed: int
    """Units that these shards make up."""
    input_bytes: int
    bytes_computed: int
    """Of the shards that are computed, the larger ones perhaps in part."""
    files_there: int
    """Files with rows that are reused."""
    files_at_least: int
    """Of how many the night will consist before it packs small ones: those of them that are not put together with what
    is computed, and one for each unit of this; more where the samples of a large one fill more than one of Ray's
    blocks."""
    rows_there: int
    """In the pieces that are reused."""
    processes: int | None
    """That would hold the model; None if none is needed."""
    processes_most: int | None
    """To how many they may grow."""
    threads: int | None
    """Of each."""
    gpus_each: float | None
    """What each asks of the cluster: GPUs, or a part of one,"""
    cpus_each: float | None
    """CPUs, of which reading and writing take others,"""
    memory_each: int | None
    """and bytes; 0 asks for none."""
    seconds: float | None
    """How long it would compute at the pace of an earlier night; None if there is none. A cluster that starts and the
    commit are not in it, and waiting for nodes as far as that night waited."""
    pace_of_run: str | None
    """That night's run in MLflow; it may have had another model, and more or fewer processes."""


def preview(night: Night, resources: Resources, tracking_uri: str) -> Preview:
    """Looks at input, table and cluster, and logs what it finds; writes nothing.

    Raises:
        UsageError: the cluster has not what is asked for.
        StorageError: the store kept failing.
    """
    todo = incomplete(night.shards, night.folder)
    size = sum(part.shard.size for part in todo)
    pieces = reused(night.shards, night.folder, todo)
    pace = pace_before(night, size, tracking_uri) if todo else None
    plan = None
    if todo:
        connection.start()
        plan = resources.plan(len(todo), size)
    found = Preview(
        **asdict(night.partition),
        shards=len(night.shards),
        shards_computed=len(todo),
        units_computed=len({part.unit for part in todo}),
        input_bytes=sum(shard.size for shard in night.shards),
        bytes_computed=size,
        files_there=len({piece.file.uri for piece in pieces}),
        files_at_least=_files(pieces, todo),
        rows_there=sum(piece.rows for piece in pieces),
        processes=plan.actors if plan else None,
        processes_most=plan.most if plan else None,
        threads=plan.compute.threads if plan else None,
        gpus_each=plan.asks.get("num_gpus", 0) if plan else None,
        cpus_each=plan.asks.get("num_cpus", 0) if plan else None,
        memory_each=int(plan.asks.get("memory", 0)) if plan else None,
        seconds=round(size / pace.bytes_per_second, 1) if pace else None,
        pace_of_run=pace.run_id if pace else None,
    )
    for line in told(found):
        log.info("%s: %s", night.partition, line)
    return found


def _files(there: Sequence[Piece], todo: Sequence[Part]) -> int:
    """Of how many a night will consist, at the least, that has these pieces and computes these parts."""
    joined = small_units(todo)
    stay = {piece.file.uri for piece in there if unit_of(piece.name) not in joined}
    return len(stay) + len({part.unit for part in todo})


def told(found: Preview) -> list[str]:
    """The same for people, in a few lines."""
    there = f"{words.count(found.files_there, 'file')} of {words.count(found.rows_there, 'row')}"
    if found.processes is None:
        return [f"nothing to compute: all is there, in {there}"]
    computed = f"{found.shards_computed:,} of {words.count(found.shards, 'shard')}"
    sizes = f"{words.size(found.bytes_computed)} of {words.size(found.input_bytes)}"
    packed = ", of which it may pack small ones" if found.files_at_least >= LEAST_FILES else ""
    return [
        f"to compute: {computed}, {sizes}, in {words.count(found.units_computed, 'unit')}; there already: {there}",
        f"the night would have {words.count(found.files_at_least, 'file')} or more{packed}",
        f"on {_processes(found)}",
        _time(found),
    ]


def _processes(found: Preview) -> str:
    assert found.processes is not None
    assert found.threads is not None
    grow = f", or up to {found.processes_most:,}," if found.processes_most != found.processes else ""
    asks = {"GPUs": found.gpus_each, "CPUs": found.cpus_each}
    each = [f"{words.number(amount)} {what}" for what, amount in asks.items() if amount]
    each += [words.size(found.memory_each)] if found.memory_each else []
    return (
        f"{words.count(found.processes, 'process')}{grow} of {words.count(found.threads, 'thread')}; "
        f"each asks for {' and '.join(each)}"
    )


def _time(found: Preview) -> str:
    if found.seconds is None:
        return (
            "how long is not known: MLflow has no night of this table that computed all of its input, and about as much"
        )
    return (
        f"about {words.duration(found.seconds)} at the pace of the night of run {found.pace_of_run}; a cluster that "
        "starts, packing small files and the commit are not counted"
    )


def pace_before(night: Night, size: int, tracking_uri: str) -> Pace | None:
    """That of the night of this table that was computed as a whole and is nearest to so many bytes, the newest of
    several; None if MLflow has none that is `ALIKE`, or is away."""
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
    nights = [
        (abs(math.log(max(1, size) / run.data.metrics["input_bytes"])), Pace(speed, run.info.run_id))
        for run in runs
        if (run.data.params.get("tables"), (run.info.run_name or "").rpartition(" ")[0]) == table
        and (speed := speed_of(run.data.metrics))
    ]
    away, pace = min(nights, key=lambda night: night[0], default=(math.inf, None))
    return pace if away <= math.log(ALIKE) else None


def speed_of(metrics: Mapping[str, float]) -> float:
    """Bytes of input a second of a night's metrics; 0 where it was not computed as a whole."""
    shards, seconds = metrics.get("shards", 0.0), metrics.get("seconds/stage_wall", 0.0)
    if not shards or metrics.get("shards_computed") != shards or seconds <= 0:
        return 0.0
    return metrics.get("input_bytes", 0.0) / seconds
