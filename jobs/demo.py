"""`hybrid demo`: the whole line on small data made here, from shards to SQL, for three hybrids side by side.

What reads, computes and writes is imported where it is used: a help text does not wait for it.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import forkserver
from typing import Any

from hybrid_models import TABLES, interface_of
from hybrid_models.errors import UsageError
from jobs import evaluate, infer, promote, report, train
from jobs.command import cli
from jobs.command.errors import EndedError
from jobs.command.options import JudgingOptions, MlflowOptions, NightOptions, SourceOptions, WindowOptions, WorkOptions
from jobs.recipes import RECIPES
from pipelines import storage
from pipelines.cluster import connection, logs
from pipelines.cluster.resources import Resources
from pipelines.datasets.demo.nights import SHOT_SECONDS
from pipelines.models import registry, server
from pipelines.reading.sandbox import jail
from pipelines.secrets import shown
from pipelines.storage import seal
from pipelines.training.recipe import TrainConfig

log = logging.getLogger(__name__)
NIGHTS = ("2026-01-01", "2026-01-02")
EXAMPLES = 3
NIGHT_ROWS, ROWS_PER_SHARD, SEED = 90, 2000, 0
SMALL = WorkOptions(Resources(min_actors=1, threads=1))
"""A second process would take longer to start than it works, and a second thread makes no small net faster."""
CPUS = 4
"""Of a cluster that is started here, also where there are fewer: three trainings and what else is going on take a share
each, and while one waits for Ray to start a process, the others compute."""
PRELOADED = ("hybrid_models.contract", "mlflow", "pipelines.nights.report")
"""What takes seconds to import, and each process needs. Not Ray, which settles then how it asks for a cluster's token,
before there is one."""


@dataclass(frozen=True)
class DemoTask:
    """One hybrid of the demo: its recipe, its data, and what it is judged by."""

    recipe: str
    dataset: str
    metric: str
    columns: str
    """What to show of its table."""
    window_seconds: float = 0.0
    """Into what windows its nights' clips are cut."""


TASKS = (
    DemoTask("captioner-demo", "scenes", "cider_d", "caption, score", SHOT_SECONDS),
    DemoTask("nowcaster-demo", "digits", "mse", "lead_minutes, mean, unit"),
    DemoTask("translator-demo", "sentences", "bleu", "source, translation"),
)


@dataclass(frozen=True)
class DemoOptions:
    """What `hybrid demo` needs to know."""

    out: str = "./demo-out"
    """Folder for everything that the demo writes."""
    storage: str = ""
    """URI for data, runs and tables instead of the folder, such as s3://bucket/prefix"""
    scenes: int = 1600
    """Training images."""
    digits: int = 800
    """Training sequences of moving digits."""
    sentences: int = 3000
    """Training sentence pairs."""
    epochs: int = 0
    """Epochs of each training instead of the recipes' own."""


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Makes the data, then takes each hybrid through training, judgement, promotion, two nights and a query."""
    options = cli.parse(DemoOptions, argv, "hybrid demo", "From shards to SQL with three hybrids, on small data.")
    from pipelines.datasets.demo import data
    from pipelines.nights import ownership
    from pipelines.staging.pieces import table_schema

    jail.ensure()
    started = time.perf_counter()
    out = storage.absolute(options.out)
    if not storage.is_local(out):
        raise UsageError(
            f"`out` {out} is no folder of this machine, where MLflow's file goes: name a store by `storage`"
        )
    lake = storage.absolute(options.storage) if options.storage else out
    mlflow = server.default_uri() if os.environ.get("MLFLOW_TRACKING_URI") else f"sqlite:///{out}/mlflow.db"
    for folder in {out, lake}:
        storage.check_writable(folder)
    rows = {task.dataset: getattr(options, task.dataset) for task in TASKS}
    data.check(rows, NIGHT_ROWS)
    tables, place = storage.join(lake, "tables"), storage.join(lake, "data")
    _check_same(lake, rows, options.epochs)
    for hybrid in (RECIPES[task.recipe]().hybrid for task in TASKS):
        ownership.check(storage.join(tables, TABLES[hybrid]), table_schema(interface_of(hybrid).payload_schema))
    storage.check_replaceable(report.page_of(tables, NIGHTS[-1]), seal.is_sealed, report.WAY_OUT)
    _preload()
    with connection.connect(quiet=True, cpus=CPUS), _processes() as pool:
        log.info("making small data sets in %s", place)
        making = {name: partial(_make_data, name, place, count) for name, count in rows.items()}
        _all(pool, {**making, "MLflow": partial(server.make_ready, mlflow)})
        log.info("training %s, side by side", ", ".join(task.recipe for task in TASKS))
        taking = {task.recipe: partial(_one, task, lake, mlflow, options.epochs) for task in TASKS}
        tasks = dict(_all(pool, taking))
        (page,) = _all(pool, {"report": partial(_page, tables, mlflow)})
    _show(tables)
    seconds = round(time.perf_counter() - started, 1)
    mlflow_command = shown(f"mlflow server --backend-store-uri {mlflow}" if "://" in mlflow else mlflow)
    log.info('done in %.0f s. Tables: %s. Ask them: hybrid query "SELECT …" --tables %s', seconds, tables, tables)
    log.info("curves and models: %s. The page about a night: %s", mlflow_command, page)
    return {
        "tables": tables,
        "mlflow": shown(mlflow),
        "mlflow_command": mlflow_command,
        "report": page,
        "seconds": seconds,
        "tasks": tasks,
    }


def _check_same(lake: str, rows: Mapping[str, int], epochs: int) -> None:
    """Refuses to go on with an earlier demo's trainings on other data, which would take the place of theirs.

    Raises:
        UsageError: names what it was made with.
    """
    from pipelines.datasets.writer import read_manifest
    from pipelines.training import runs

    for task in TASKS:
        try:
            told = json.loads(storage.read_text(storage.join(lake, "runs", task.recipe, runs.STATE)))
            was = int(told["config"]["train"]["epochs"])
        except (FileNotFoundError, ValueError, LookupError, TypeError):  # training tells of one that is damaged
            continue
        made = read_manifest(storage.join(lake, "data", task.dataset))
        pairs: dict[str, tuple[Any, int]] = {"epochs": (was, _training(task, epochs).epochs)}
        if made is not None:
            pairs[task.dataset] = (made.options.get("train"), rows[task.dataset])
        if differ := [name for name, (theirs, ours) in pairs.items() if theirs != ours]:
            theirs, ours = pairs[differ[0]]
            raise UsageError(
                f"{lake} holds a demo whose `{task.recipe}` was made with `{differ[0]}` {theirs}, not {ours}: "
                "use another `out`"
            )


def _training(task: DemoTask, epochs: int) -> TrainConfig:
    recipe = RECIPES[task.recipe]()
    return recipe.train if not epochs else replace(recipe.train, epochs=epochs)


def _preload() -> None:
    """Begins to load libraries, in a process of which those of the tasks fork."""
    forkserver.set_forkserver_preload(list(PRELOADED))
    forkserver.ensure_running()


@contextmanager
def _processes() -> Iterator[Executor]:
    """A process for each task that the cluster has room for beside the others."""
    count = connection.side_by_side(len(TASKS))
    with ProcessPoolExecutor(count, multiprocessing.get_context("forkserver"), logs.configure) as pool:
        yield pool


@dataclass(frozen=True)
class Failure:
    """What some work in one of the processes came to instead of a result; exceptions may not come back whole."""

    exit_code: int
    message: str


def _all(pool: Executor, works: Mapping[str, Callable[[], Any]]) -> list[Any]:
    """What comes of several works in the processes, when all have ended.

    Raises:
        EndedError: one of them failed; names it.
    """
    cluster = connection.for_others()
    running = [pool.submit(_guarded, name, cluster, work) for name, work in works.items()]
    try:
        results = [each.result() for each in running]
    except BrokenProcessPool:
        lack = "for lack of memory perhaps: with smaller `scenes`, `digits` and `sentences` it takes less"
        raise EndedError(cli.FAILED, cli.with_flags(f"failed: a process was killed, {lack}")) from None
    for result in results:
        if isinstance(result, Failure):
            raise EndedError(result.exit_code, result.message)
    return results


def _guarded(name: str, cluster: Mapping[str, str], work: Callable[[], Any]) -> Any | Failure:
    os.environ.update(cluster)
    try:
        return work()
    except Exception as error:
        code, message = cli.outcome(error)
        log.error("%s: %s", name, message, exc_info=cli.traced(error))
        return Failure(code, f"{name}: {message}")


def _make_data(name: str, place: str, rows: int) -> None:
    from pipelines.datasets.demo import data

    data.prepare_one(name, place, rows, NIGHT_ROWS, ROWS_PER_SHARD, SEED)


def _page(tables: str, mlflow: str) -> str:
    return str(report.write(tables, NIGHTS[-1], report.page_of(tables, NIGHTS[-1]), mlflow)["out"])


def _one(task: DemoTask, lake: str, mlflow: str, epochs: int) -> tuple[str, dict[str, Any]]:
    with connection.connect(quiet=True):
        return _take_through(task, lake, mlflow, epochs)


def _take_through(task: DemoTask, lake: str, mlflow: str, epochs: int) -> tuple[str, dict[str, Any]]:
    """Trains, judges and runs one hybrid; returns its table's name and what came of it."""
    from pipelines.models import artifacts
    from pipelines.nights.commit import Partition

    recipe = RECIPES[task.recipe]()
    place, tables = storage.join(lake, "data", task.dataset), storage.join(lake, "tables")
    trained = train.run(
        task.recipe, recipe.hybrid,
        train.TrainOptions(
            place, recipe.model, recipe.decoding, _training(task, epochs), recipe.limits, storage=lake,
            tracking=MlflowOptions(mlflow), resources=SMALL.resources,
        ),
    )  # fmt: skip
    artifact = artifacts.read(trained["model"], recipe.hybrid, mlflow)
    test = storage.join(place, "test")
    # Pictures of the same model are with its training.
    wanted = evaluate.EvaluateOptions(
        trained["model"], test, artifact.decoding, judging=JudgingOptions(lake), pictures=0, work=SMALL
    )
    judged = evaluate.run(wanted, artifact, mlflow)
    value, baseline = judged["metrics"][task.metric], judged["baseline"][task.metric]
    log.info("%s on held-out data: %s %.3f, baseline (%s) %.3f", recipe.hybrid, task.metric, value,
             judged["baseline"]["name"], baseline)  # fmt: skip
    model = trained["model"]
    if registry.champion(mlflow, recipe.hybrid) is None:  # never in place of a model that somebody's nights use
        model = _promoted(recipe.hybrid, model, test, lake, mlflow)
    chosen = artifacts.read(model, recipe.hybrid, mlflow)
    nights = []
    for ds in NIGHTS:
        shards = storage.join(place, "night", f"ds={ds}")
        source = SourceOptions(windows=WindowOptions(task.window_seconds))
        partition = Partition.of(tables, TABLES[recipe.hybrid], ds)
        night = infer.run([shards], partition, chosen, chosen.decoding, NightOptions(source=source, work=SMALL), mlflow)
        log.info("%s ds=%s: %d rows, errors %s", night["task"], ds, night["rows"], night["errors"] or "none")
        nights.append({key: night[key] for key in ("ds", "rows", "ok", "errors", "version", "changed")})
    return TABLES[recipe.hybrid], {
        "rows": sum(night["rows"] for night in nights),
        "metric": task.metric,
        "value": value,
        "baseline": baseline,
        "model": chosen.model,
        "nights": nights,
    }


def _promoted(hybrid: str, model: str, test: str, lake: str, mlflow: str) -> str:
    """The champion, if the model beats its baseline; otherwise the model itself."""
    from pipelines.staging.checks import RefusedError

    try:
        promote.run(hybrid, promote.PromoteOptions(test, judging=JudgingOptions(lake), work=SMALL), model, mlflow)
    except RefusedError as refusal:  # of a training made shorter by its options
        log.warning("%s", cli.with_flags(str(refusal)))
        return model
    return f"models:/{hybrid}@{registry.CHAMPION}"


def _show(tables: str) -> None:
    """A few rows of each table."""
    from pipelines.nights import query

    names = list(TABLES.values())
    for task in TASKS:
        table = TABLES[RECIPES[task.recipe]().hybrid]
        sql = f"SELECT sample_id, {task.columns} FROM {table} ORDER BY ds, sample_id LIMIT {EXAMPLES}"
        rows = query.query(sql, tables, names)
        print(f"\n{sql}", file=sys.stderr)
        print(query.render(rows), file=sys.stderr)


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
