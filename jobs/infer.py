"""`hybrid infer TASK`: run a model over shards into one night of a table.

What reads, computes and writes is imported where it is used: a help text does not wait for it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tyro import MISSING

from hybrid_models import decoding_of
from hybrid_models.errors import UsageError
from hybrid_models.interface import DecodingConfig
from jobs.command import cli
from jobs.command.options import TASKS, Mlflow, MlflowOptions, Nightly, NightOptions, check_ds
from pipelines import places, storage
from pipelines.cluster import connection, logs
from pipelines.models import server
from pipelines.models.tracking import Tracker
from pipelines.reading.sandbox import jail
from pipelines.secrets import shown

if TYPE_CHECKING:
    from pipelines.models.artifacts import Artifact
    from pipelines.nights.commit import Partition
    from pipelines.nights.infer import NightSummary

NUMBERS = (
    "rows", "rows_lost", "ok", "shards", "shards_computed", "rows_computed", "rows_per_second", "model_busy",
    "input_bytes", "staged_bytes", "skipped",
)  # fmt: skip
"""Of a night's summary, what its MLflow run has as metrics."""


@dataclass(frozen=True)
class InferOptions:
    """What `hybrid infer` needs to know."""

    input: tuple[str, ...]
    """Shards, photographs, clips or arrays: folders, patterns or single objects, as s3://lake/photos/ds=2026-01-31"""
    tables: str
    """URI of the folder of tables."""
    ds: str
    """Logical date of the night, YYYY-MM-DD; its rows are replaced as a whole."""
    model: str
    """The model: an artifact folder, or models:/NAME/VERSION or models:/NAME@ALIAS."""
    decoding: DecodingConfig
    """How to decode; the model's own options by default."""
    table: str = ""
    """Name of the table, by default the task's: nights of two models of one kind need two."""
    tracking: Mlflow = field(default_factory=MlflowOptions)
    night: Nightly = field(default_factory=NightOptions)


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Parses, checks everything that can be checked, runs."""
    task, rest = cli.positional(argv, "task", list(TASKS), "hybrid infer")
    hybrid = TASKS[task]
    tracking = MlflowOptions(cli.peek(rest, "--mlflow") or "")
    model = cli.peek(rest, "--model")
    if model and model.startswith("models:/") and "--dry-run" in rest:
        server.check_there(tracking.uri)
    artifact = None if model is None else _artifact(model, hybrid, tracking.uri)
    decoding = decoding_of(hybrid)() if artifact is None else artifact.decoding
    options = cli.parse(
        InferOptions, rest, f"hybrid infer {task}", f"Run a {hybrid} over shards into a night of `{task}`.",
        InferOptions(MISSING, MISSING, MISSING, MISSING, decoding),
    )  # fmt: skip
    if artifact is None:
        raise UsageError("--model is needed: an artifact folder or models:/NAME@ALIAS")
    from pipelines.nights.commit import Partition
    from pipelines.nights.tables import check_name

    check_ds(options.ds)
    name = options.table or task
    check_name(name, task)
    options.night.check()
    options.night.source.windows.check_for(artifact.config)
    check_given(options.input)
    for address in options.input:
        places.check_apart({"input": address}, "tables", [storage.join(options.tables, name)])
    partition = Partition.of(options.tables, name, options.ds)
    return run(options.input, partition, artifact, options.decoding, options.night, tracking.uri)


def _artifact(model: str, hybrid: str, tracking_uri: str) -> Artifact:
    from pipelines.models import artifacts

    return artifacts.read(model, hybrid, tracking_uri)


def check_given(addresses: Sequence[str]) -> None:
    """Refuses an option without a value, and an empty one.

    Raises:
        UsageError: says what it wants.
    """
    if not addresses or not all(addresses):
        raise UsageError("--input is empty: give one or more folders, patterns or objects")


def run(
    given: Sequence[str],
    partition: Partition,
    artifact: Artifact,
    decoding: DecodingConfig,
    options: NightOptions,
    tracking_uri: str,
) -> dict[str, Any]:
    """One night, with its MLflow run; or what it would be.

    The caller has checked options, names, and that input and tables lie apart.

    Raises:
        NoShardsError: there is no input.
        UsageError: input or tables cannot be used.
        StorageError: the store kept failing.
        RefusedError, RuntimeError: see `pipelines.nights.infer`.
    """
    from pipelines.models.session import Inference
    from pipelines.nights import infer, preview
    from pipelines.nights.infer import Night
    from pipelines.reading.manifests import list_input

    jail.ensure()
    limits, cut = options.work.limits, options.source.windows.cut_for(artifact.config)
    listing = list_input(given, options.source.named, limits, cut is not None)
    night = Night(
        shards=listing.shards,
        partition=partition,
        inference=Inference(artifact, decoding, limits, options.source.keep, cut),
        rules=options.rules,
        retention=options.retention,
        skipped=listing.skipped,
    )
    if not options.dry_run:
        storage.check_writable(partition.tables)
    seen = infer.check(night)
    if options.dry_run:
        with connection.on_demand():
            foreseen = preview.preview(night, options.work.resources, tracking_uri)
        counts = {"skipped": len(listing.skipped), **asdict(foreseen)}
        return {"task": partition.name, "dry_run": True, **counts, "model": artifact.model}
    tracker = Tracker(tracking_uri)
    params = {
        "input": " ".join(given),
        "tables": partition.tables,
        "ds": partition.ds,
        "model": artifact.model,
        "model_version": artifact.version,
        "fingerprint": night.fingerprint,
        "decoding": vars(decoding),
    }
    with connection.on_demand(), logs.about(task=partition.name, ds=partition.ds):
        tracker.start(f"{partition.name} {partition.ds}", params, {"hybrid.job": "infer"})
        try:
            with logs.about(run=tracker.run_id):
                summary = infer.infer(night, options.work.resources, tracker, seen)
        except BaseException:
            tracker.finish(succeeded=False)
            raise
        log_night(tracker, summary)
    return {"task": partition.name, **asdict(summary), "mlflow": shown(tracking_uri), "mlflow_run_id": tracker.run_id}


def log_night(tracker: Tracker, summary: NightSummary) -> None:
    """Rows, errors by reason, rows/s and seconds by stage as metrics; the summary as a file."""
    metrics = {name: getattr(summary, name) for name in NUMBERS}
    metrics |= {f"errors/{kind}": count for kind, count in summary.errors.items()}
    metrics |= {f"seconds/{name}": value for name, value in summary.seconds.items()}
    tracker.log_metrics(metrics)
    tracker.log_text(json.dumps(asdict(summary), indent=2), "summary.json")
    tracker.finish()


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
