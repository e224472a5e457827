"""`hybrid nightly TASK`: what a scheduler runs every night: find the shards, infer with the champion, report.

What reads, computes and writes is imported where it is used: a help text does not wait for it.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from tyro import MISSING

from hybrid_models.errors import UsageError
from jobs import infer, report
from jobs.command import cli
from jobs.command.errors import EndedError
from jobs.command.options import TASKS, Mlflow, MlflowOptions, Nightly, NightOptions, check_ds
from pipelines import places, storage
from pipelines.cluster import connection, logs
from pipelines.models import registry, server
from pipelines.models.registry import CHAMPION
from pipelines.models.tracking import Tracker
from pipelines.reading.sandbox import jail
from pipelines.secrets import shown
from pipelines.storage import seal

if TYPE_CHECKING:
    from pipelines.models.artifacts import Artifact
    from pipelines.nights.commit import Partition

log = logging.getLogger(__name__)
ALL_TASKS = "--all-tasks"
DAY = datetime.timedelta(days=1)
MAX_NIGHTS = 3660


@dataclass(frozen=True)
class NightlyOptions:
    """What `hybrid nightly` needs to know. In patterns `{ds}` stands for the night and `{task}` for the task."""

    input: tuple[str, ...]
    """Patterns of a night's shards or photographs: s3://lake/photos/ds={ds}; with --all-tasks each needs {task}."""
    tables: str
    """URI of the folder of tables."""
    ds: str = ""
    """Logical date of the night: YYYY-MM-DD, or today or yesterday (UTC)."""
    backfill: str = ""
    """Instead of --ds: every night of FIRST..LAST, oldest first, with late shards and the champion of now."""
    catch_up: int = 0
    """Before --ds, the nights among so many days before it that have no rows yet, oldest first."""
    model: str = ""
    """The model; models:/NAME@champion by default, whose NAME is the hybrid's."""
    table: str = ""
    """Name of the table, by default the task's: nights of two models of one kind need two."""
    references: str = ""
    """Pattern of shards, or of manifests, with references, on which the model is judged, too; none are needed."""
    report: bool = True
    """Write the page about each night, TABLES/reports/DS.html, and keep it with the night's MLflow runs."""
    require_input: bool = False
    """A night without shards is an error instead of a note."""
    tracking: Mlflow = field(default_factory=MlflowOptions)
    night: Nightly = field(default_factory=NightOptions)


@dataclass(frozen=True)
class Unit:
    """One night of one task."""

    task: str
    partition: Partition

    @classmethod
    def of(cls, task: str, ds: str, options: NightlyOptions) -> Unit:
        """In the table that the options name."""
        from pipelines.nights.commit import Partition

        return cls(task, Partition.of(options.tables, options.table or task, ds))

    def fill(self, pattern: str) -> str:
        """The pattern for this night."""
        return pattern.replace("{ds}", self.partition.ds).replace("{task}", self.task)


@dataclass(frozen=True)
class Problem:
    """What is not done, and why."""

    what: str
    ds: str
    exit_code: int
    problem: str

    @classmethod
    def of(cls, what: str, ds: str, error: Exception) -> Problem:
        """As the command line tells of an error."""
        return cls(what, ds, *cli.outcome(error))


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Parses, checks everything that can be checked, then does night after night."""
    chosen, rest = tasks(argv)
    options = cli.parse(
        NightlyOptions, rest, f"hybrid nightly {chosen[0] if len(chosen) == 1 else ALL_TASKS}",
        "Find a night's shards, infer with the champion, evaluate, report.",
        NightlyOptions(MISSING, MISSING),
    )  # fmt: skip
    check(options, chosen)
    jail.ensure()
    dates = nights(options)
    check_places(options, chosen, dates)
    tracking_uri = options.tracking.uri
    if options.night.dry_run or not options.model or options.model.startswith("models:/"):
        server.check_there(tracking_uri)  # a database that is made now has no models
    if not options.night.dry_run:
        storage.check_writable(options.tables)
        for ds in dates if options.report else ():
            storage.check_replaceable(report.page_of(options.tables, ds), seal.is_sealed, report.WAY_OUT)
    champions, problems = ready(options, chosen, tracking_uri)
    if len(chosen) == 1:  # of several, some may read no clips
        options.night.source.windows.check_for(champions[chosen[0]].config)
    wanted = [Unit.of(task, ds, options) for ds in dates for task in champions]
    units = [unit for unit in wanted if is_due(unit, dates[-1], options)]
    return run(units, options, champions, tracking_uri, problems)


def ready(
    options: NightlyOptions, chosen: Sequence[str], tracking_uri: str
) -> tuple[dict[str, Artifact], list[Problem]]:
    """The champions of the tasks that can be done, and what keeps others from being done. Of all tasks, those are meant
    that there are models for.

    Raises:
        UsageError, ConnectionError, StorageError: none can be done.
    """
    from pipelines.models import artifacts
    from pipelines.nights import ownership
    from pipelines.staging.pieces import table_schema

    champions: dict[str, Artifact] = {}
    problems: list[Problem] = []
    if len(chosen) > 1:
        chosen = [task for task in chosen if registry.versions(tracking_uri, [TASKS[task]])] or chosen
    for task in chosen:
        try:
            model = options.model or f"models:/{TASKS[task]}@{CHAMPION}"
            champion = artifacts.read(model, TASKS[task], tracking_uri)
            ownership.check(
                storage.join(options.tables, options.table or task), table_schema(champion.interface.payload_schema)
            )
        except (UsageError, ConnectionError, storage.StorageError) as error:
            if task == chosen[-1] and not champions:
                raise
            problems.append(Problem.of(task, "", error))
            log.error("%s cannot be done: %s", task, problems[-1].problem)
        else:
            champions[task] = champion
    return champions, problems


def tasks(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The tasks that the command names, and its options."""
    if ALL_TASKS in argv:
        return list(TASKS), [word for word in argv if word != ALL_TASKS]
    task, rest = cli.positional(argv, f"task (or {ALL_TASKS})", list(TASKS), "hybrid nightly")
    return [task], rest


def check(options: NightlyOptions, chosen: Sequence[str]) -> None:
    """Refuses options that do not go together.

    Raises:
        UsageError: says which.
    """
    from pipelines.nights.tables import check_name

    if bool(options.ds) == bool(options.backfill):
        raise UsageError("--ds is needed, a date or today or yesterday; or --backfill FIRST..LAST")
    if options.catch_up < 0 or (options.catch_up and options.backfill):
        raise UsageError("--catch-up must be 0 or more, and goes with --ds only: --backfill does every night anyway")
    infer.check_given(options.input)
    for pattern in options.input:
        if "{ds}" not in pattern:
            raise UsageError(f"--input {pattern} has no {{ds}}: every night would have the same shards")
    if len(chosen) > 1:
        inputs = [("--input", pattern) for pattern in options.input]
        for name, pattern in (*inputs, ("--references", options.references)):
            if pattern and "{task}" not in pattern:
                raise UsageError(f"{name} {pattern} has no {{task}}: {ALL_TASKS} would give all the same shards")
        for name, given in (("--model", options.model), ("--table", options.table)):
            if given:
                raise UsageError(f"{name} is of one task: leave it out with {ALL_TASKS}")
    elif options.table:
        check_name(options.table, chosen[0])
    options.night.check()


def check_places(options: NightlyOptions, chosen: Sequence[str], dates: Sequence[str]) -> None:
    """Refuses shards and references of any night in the folders that are written.

    Raises:
        UsageError: names them.
    """
    given = [*(("input", pattern) for pattern in options.input), ("references", options.references)]
    patterns = [(name, pattern) for name, pattern in given if pattern]
    more = [name for name, used in (("evaluations", options.references), ("reports", options.report)) if used]
    own = [options.table] if options.table else chosen
    written = [storage.join(options.tables, folder) for folder in (*own, *more)]
    for unit in (Unit.of(task, ds, options) for ds in dates for task in chosen):
        for name, pattern in patterns:
            places.check_apart({name: unit.fill(pattern)}, "tables", written)


def nights(options: NightlyOptions) -> list[str]:
    """The dates in question, oldest first.

    Raises:
        UsageError: a date is none, or a range is turned round or too long.
    """
    if options.backfill:
        first, dots, last = options.backfill.partition("..")
        if not dots:
            raise UsageError(f"--backfill '{options.backfill}' is not a range: write FIRST..LAST, two dates")
        start, end = (check_ds(date, "--backfill") for date in (first, last))
        if start > end:
            raise UsageError(f"--backfill {first}..{last} is turned round: write {last}..{first}")
    else:
        end = _date(options.ds)
        start = datetime.date.fromordinal(max(1, end.toordinal() - min(options.catch_up, MAX_NIGHTS)))
    count = (end - start).days + 1
    if count > MAX_NIGHTS:
        raise UsageError(f"{start}..{end} are {count} nights, at most {MAX_NIGHTS} are done at once")
    return [(start + number * DAY).isoformat() for number in range(count)]


def _date(ds: str) -> datetime.date:
    today = datetime.datetime.now(datetime.UTC).date()
    named = {"today": today, "yesterday": today - DAY}
    return named[ds] if ds in named else check_ds(ds)


def is_due(unit: Unit, tonight: str, options: NightlyOptions) -> bool:
    """Whether a night is to be done: one to catch up with is not, if it has rows already."""
    return bool(options.backfill) or unit.partition.ds == tonight or not unit.partition.files()


def run(
    units: Sequence[Unit],
    options: NightlyOptions,
    champions: Mapping[str, Artifact],
    tracking_uri: str,
    before: Sequence[Problem] = (),
) -> dict[str, Any]:
    """Night after night; one that fails does not keep the others from being done.

    Raises:
        EndedError: not all of them are done; with the summary of those that are.
    """
    done: list[dict[str, Any]] = []
    problems = list(before)
    reports: list[str] = []

    @contextmanager
    def noting(what: str, ds: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            problems.append(Problem.of(what, ds, error))
            log.error("%s ds=%s: %s", what, ds, problems[-1].problem, exc_info=cli.traced(error))

    with connection.on_demand():
        for ds, tonight in groupby(units, lambda unit: unit.partition.ds):
            written: list[dict[str, Any]] = []
            for unit in tonight:
                champion = champions[unit.task]
                with logs.about(task=unit.task, ds=ds), noting(unit.task, ds):
                    night = one(unit, options, champion, tracking_uri)
                    done.append(night)
                    if night.get("rows"):  # which a dry run does not know
                        written.append(night)
                        with noting(f"evaluation of {unit.task}", ds):
                            night |= _judge(unit, options, champion, Tracker(tracking_uri, night["mlflow_run_id"]))
            if options.report and written:
                with noting("report", ds):
                    reports.append(_report(ds, options, [night["mlflow_run_id"] for night in written], tracking_uri))
    told = [asdict(problem) for problem in problems]
    summary = {"nights": done, "problems": told, "reports": reports, "mlflow": shown(tracking_uri)}
    if not problems:
        return summary
    worst = min(problems, key=lambda problem: cli.CODES.index(problem.exit_code))
    which = f"{worst.what} ds={worst.ds}" if worst.ds else worst.what
    raise EndedError(worst.exit_code, f"{len(done)} of {len(units)} nights are done; {which}: {worst.problem}", summary)


def one(unit: Unit, options: NightlyOptions, champion: Artifact, tracking_uri: str) -> dict[str, Any]:
    """One night's rows; a note where there are no shards."""
    from pipelines.reading.shards import NoShardsError

    try:
        given = [unit.fill(pattern) for pattern in options.input]
        night = infer.run(given, unit.partition, champion, champion.decoding, options.night, tracking_uri)
    except NoShardsError as error:
        if options.require_input:
            raise
        log.info("%s ds=%s: nothing to do: %s", unit.task, unit.partition.ds, error)
        return {"task": unit.task, "ds": unit.partition.ds, "rows": 0, "changed": False, "note": str(error)}
    if not options.night.dry_run:
        log.info("%s ds=%s: %d rows, errors %s", unit.task, night["ds"], night["rows"], night["errors"] or "none")
    return night


def _judge(unit: Unit, options: NightlyOptions, champion: Artifact, tracker: Tracker) -> dict[str, Any]:
    """`evaluation`: the model's metrics on a night's references, also in its MLflow run; nothing without references."""
    if not options.references:
        return {}
    from pipelines.judging import evaluate
    from pipelines.judging.evaluate import Evaluation
    from pipelines.models.session import Inference
    from pipelines.reading.manifests import list_references
    from pipelines.reading.shards import NoShardsError

    limits, cut = options.night.work.limits, options.night.source.windows.cut_for(champion.config)
    try:
        shards = list_references(unit.fill(options.references), options.night.source.named, limits, cut is not None)
    except NoShardsError as error:
        log.info("%s ds=%s: not evaluated: %s", unit.task, unit.partition.ds, error)
        return {}
    job = Evaluation(shards, options.tables, Inference.of(champion, limits, cut))
    result = evaluate.evaluate(job, options.night.work.resources)
    tracker.log_metrics({f"evaluation/{name}": value for name, value in result.metrics.items()})
    tracker.log_text(json.dumps(asdict(result), indent=2), "evaluation.json")
    return {"evaluation": {"samples": result.samples, "errors": result.errors, **result.metrics}}


def _report(ds: str, options: NightlyOptions, run_ids: Sequence[str | None], tracking_uri: str) -> str:
    """The page about a night, also in its MLflow runs; returns its URI."""
    page = report.write(options.tables, ds, report.page_of(options.tables, ds), tracking_uri)["out"]
    content = storage.read_bytes(page)
    for run_id in run_ids:
        Tracker(tracking_uri, run_id).log_file(content, "report.html")
    return str(page)


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
