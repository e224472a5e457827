"""`hybrid demo`: the whole line on small data made here, from shards to SQL, for the three hybrids."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hybrid_models import TABLES
from jobs import cli, evaluate, infer, promote, report, train
from jobs.options import JudgingOptions, MlflowOptions, SourceOptions, WindowOptions, WorkOptions
from jobs.recipes import RECIPES
from pipelines import storage
from pipelines.cluster import connection
from pipelines.cluster.resources import Resources
from pipelines.datasets.demo.data import SHOT_SECONDS, prepare_demo
from pipelines.models import artifacts, registry
from pipelines.models.tracking import default_uri
from pipelines.nights import query
from pipelines.secrets import shown
from pipelines.staging.checks import RefusedError

log = logging.getLogger(__name__)
NIGHTS = ("2026-01-01", "2026-01-02")
EXAMPLES = 3
SMALL = WorkOptions(Resources(actors=1))
"""Starting a second model process would take longer than such a night."""


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
    scenes: int = 2000
    """Training images."""
    digits: int = 1500
    """Training sequences of moving digits."""
    sentences: int = 4000
    """Training sentence pairs."""
    epochs: int = 0
    """Epochs of each training instead of the recipes' own."""


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Makes the data, then takes each hybrid through training, judgement, promotion, two nights and a query."""
    options = cli.parse(DemoOptions, argv, "hybrid demo", "From shards to SQL with three hybrids, on small data.")
    started = time.perf_counter()
    out = storage.absolute(options.out)
    lake = storage.absolute(options.storage) if options.storage else out
    mlflow = default_uri() if os.environ.get("MLFLOW_TRACKING_URI") else f"sqlite:///{out}/mlflow.db"
    storage.check_writable(lake)
    log.info("making small data sets in %s/data", lake)
    prepare_demo(
        storage.join(lake, "data"), options.scenes, options.digits, options.sentences,
        night_rows=90, rows_per_shard=500, seed=0,
    )  # fmt: skip
    with connection.connect(quiet=True):
        tasks = {}
        for task in TASKS:
            name, result = _take_through(task, lake, mlflow, options.epochs)
            tasks[name] = result
    tables = storage.join(lake, "tables")
    _show(tables)
    page = report.write(tables, NIGHTS[-1], "", mlflow)["out"]
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


def _take_through(task: DemoTask, lake: str, mlflow: str, epochs: int) -> tuple[str, dict[str, Any]]:
    """Trains, judges and runs one hybrid; returns its table's name and what came of it."""
    recipe = RECIPES[task.recipe]()
    data, tables = storage.join(lake, "data", task.dataset), storage.join(lake, "tables")
    training = recipe.train if not epochs else replace(recipe.train, epochs=epochs)
    log.info("training %s", task.recipe)
    trained = train.run(
        task.recipe, recipe.hybrid,
        train.TrainOptions(
            data, recipe.model, recipe.decoding, training, recipe.limits, storage=lake, tracking=MlflowOptions(mlflow)
        ),
    )  # fmt: skip
    artifact = artifacts.read(trained["model"], recipe.hybrid, mlflow)
    test = storage.join(data, "test")
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
        shards = storage.join(data, "night", f"ds={ds}")
        source = SourceOptions(windows=WindowOptions(task.window_seconds))
        options = infer.InferOptions(shards, tables, ds, model, chosen.decoding, source=source, work=SMALL)
        night = infer.run(options, chosen, mlflow)
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
    try:
        promote.run(hybrid, promote.PromoteOptions(test, judging=JudgingOptions(lake), work=SMALL), model, mlflow)
    except RefusedError as refusal:  # of a training made shorter by its options
        log.warning("%s", cli.with_flags(str(refusal)))
        return model
    return f"models:/{hybrid}@{registry.CHAMPION}"


def _show(tables: str) -> None:
    """A few rows of each table."""
    names = list(TABLES.values())
    for task in TASKS:
        table = TABLES[RECIPES[task.recipe]().hybrid]
        sql = f"SELECT sample_id, {task.columns} FROM {table} ORDER BY ds, sample_id LIMIT {EXAMPLES}"
        rows = query.query(sql, tables, names)
        print(f"\n{sql}", file=sys.stderr)
        print(query.render(rows), file=sys.stderr)


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
