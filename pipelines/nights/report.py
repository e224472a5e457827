"""The page about a night: what was written, what was bad and why, how fast it was, and some of it to look at.

One self-contained HTML file without scripts: it works without a network, and text from captions, keys and sentences
cannot become markup (Jinja2 escapes all of it, and the page's own policy forbids scripts).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalake import DeltaTable
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hybrid_models.errors import UsageError
from pipelines import secrets, storage
from pipelines.cluster import words
from pipelines.models import registry, server
from pipelines.models.forecasts import NO_COVERAGE, RAIN_COLOURS, RAIN_MM_H
from pipelines.nights import ownership, query, tables
from pipelines.nights.figures import Figure, figures
from pipelines.reading.sandbox import jail

if TYPE_CHECKING:
    from mlflow.entities import Run

log = logging.getLogger(__name__)
TEMPLATE = "report.html"
REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>\d+)")
NIGHTS_SHOWN = 14
ERROR_EXAMPLES = 50
STAGES = {
    "total_wall": "whole run",
    "stage_wall": "reading and predicting",
    "pack_wall": "merging small files",
    "commit_wall": "committing",
    "decode": "decoding (all processes together)",
    "predict": "predicting (all processes together)",
    "write": "writing (all processes together)",
}
"""What the page calls the times of a run."""


@dataclass(frozen=True)
class Past:
    """A night in the history of a table; its speed where MLflow knows it."""

    ds: str
    rows: int
    errors: int | None
    """None where an earlier version wrote the night, which did not tell."""
    run_id: str
    """That of its newest rows; empty where they have none."""
    rows_per_second: float | None = None


@dataclass(frozen=True)
class Reason:
    """A kind of error of the night, with its first rows: `sample_id`, `place` (of the object or shard), `error`."""

    kind: str
    count: int
    examples: Sequence[Mapping[str, str]]


@dataclass
class Section:
    """What a page says of one table's night."""

    table: str
    rows: int
    errors: int
    lost: int
    """Rows that are lost with an error row, beyond `rows`."""
    shards: int
    model: str
    run_id: str
    version: int
    stored_bytes: int
    history: Sequence[Past]
    reasons: Sequence[Reason]
    seconds: Mapping[str, float] = field(default_factory=dict)
    """By stage, where MLflow knows them."""
    model_link: str = ""
    run_link: str = ""
    forced: str = ""
    """Why the model was promoted by `--force`; empty where it passed the gate."""
    figures: Sequence[Figure] = ()
    note: str = ""
    """Why there is nothing to look at."""
    jail: str = ""
    """The decoding jails in which the rows were decoded, where the table's log has the commit."""
    skipped: int = 0
    """Objects at the input that nothing reads, and the first of them."""
    skipped_names: Sequence[str] = ()

    @property
    def fastest(self) -> float:
        """Most rows/s of the nights; 0 where none is known."""
        return max((night.rows_per_second or 0.0 for night in self.history), default=0.0)


def report(
    tables_uri: str, names: Sequence[str], ds: str, tracking_uri: str, examples: int
) -> tuple[str, list[Section]]:
    """The page about a night, as HTML, and what it says by table.

    Args:
        tables_uri: the folder of tables.
        names: the tables.
        ds: the night.
        tracking_uri: MLflow, which knows the speeds and the models; what it does not answer is left out.
        examples: how many rows of each table are shown at most.

    Raises:
        UsageError: no table has this night.
        StorageError: the store kept failing.
    """
    sections = [section for name in names if (section := _section(tables_uri, name, ds))]
    if not sections:
        raise UsageError(
            f"no table at {tables_uri} has rows of {ds}: `hybrid tables --tables {tables_uri}` lists nights"
        )
    others = set(names) - {section.table for section in sections}
    absent = {name: before for name in sorted(others) if (before := _before(tables_uri, name, ds))}
    _ask_mlflow(sections, tracking_uri)
    for section in sections:
        if section.rows == section.errors:
            section.note = "No row was predicted."
        else:
            shown = figures(tables_uri, section.table, section.model, ds, tracking_uri, examples)
            section.figures, section.note = shown
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template(TEMPLATE).render(
        ds=ds, tables=secrets.shown(tables_uri), sections=sections, absent=absent,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        rain=list(zip(RAIN_MM_H, RAIN_COLOURS, strict=True)), grey=NO_COVERAGE, size=words.size, number=words.number,
        whole_jail=jail.WHOLE, stages=STAGES,
    )  # fmt: skip
    return page, sections


# ---- what the table says -----------------------------------------------------------------------------------------
def _before(tables_uri: str, name: str, ds: str) -> str:
    """The night before this one that a table has, if it lacks this one; else nothing."""
    table = _table(tables_uri, name)
    nights = {night.ds for night in tables.nights(table)} if table is not None else set()
    return "" if ds in nights else max((night for night in nights if night < ds), default="")


def _section(tables_uri: str, name: str, ds: str) -> Section | None:
    table = _table(tables_uri, name)
    stored = {night.ds: night for night in tables.nights(table)} if table is not None else {}
    if table is None or ds not in stored:
        return None

    columns = {field.name for field in table.schema().fields}  # earlier versions have fewer
    lost = "sum(lost_rows)" if "lost_rows" in columns else "0"
    place = "coalesce(object, shard)" if "object" in columns else "shard"
    recent = [night for night in sorted(stored) if night <= ds][-NIGHTS_SHOWN:]
    (this,) = query.query(
        f"SELECT count(*) AS n, count(*) FILTER (status = 'error') AS errors, count(DISTINCT shard) AS shards, "
        f"coalesce({lost}, 0)::BIGINT AS lost, "
        f"arg_max(model, created_at) AS model, arg_max(run_id, created_at) AS run FROM {name}_all WHERE ds = ?",
        tables_uri, [name], parameters=(ds,), dates=(ds, ds),
    ).to_pylist()  # fmt: skip
    commits = _commits(storage.join(tables_uri, name), table.version(), recent)
    note = commits.get(ds, {})
    runs = {**{night: each.get("run_id", "") for night, each in commits.items()}, ds: this["run"]}
    runs |= _written_by(tables_uri, name, [night for night in recent if not runs.get(night)])
    reasons = query.query(
        "SELECT split_part(error, ':', 1) AS kind, count(*) AS n, arg_min({'sample_id': sample_id, "
        f"'place': {place}, 'error': error}}, (shard, index), {ERROR_EXAMPLES}) AS examples FROM {name}_all "
        "WHERE ds = ? AND error IS NOT NULL GROUP BY kind ORDER BY n DESC, kind",
        tables_uri, [name], parameters=(ds,), dates=(ds, ds),
    ).to_pylist()  # fmt: skip
    return Section(
        name, this["n"], this["errors"], this["lost"], this["shards"], this["model"] or "", this["run"],
        table.version(), stored[ds].bytes,
        [Past(night, stored[night].rows, stored[night].bad, runs.get(night, "")) for night in recent],
        [Reason(row["kind"], row["n"], row["examples"]) for row in reasons],
        jail=note.get("jail", ""),
        skipped=int(note.get("skipped", 0)),
        skipped_names=json.loads(note.get("skipped_names", "[]")),
    )  # fmt: skip


def _commits(uri: str, version: int, nights: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the commit of each of these nights says of itself, as far as the table's log has it; nothing of a night that
    was brought back."""
    wanted, found = set(nights), dict[str, dict[str, Any]]()
    try:
        for _, told in tables.commit_notes(uri, version):
            restored, night = "restored" in told, told.get("ds")
            if night in wanted - set(found) and "rewritten" not in told:
                found[night] = {} if restored else told
            if len(found) == len(wanted) or (restored and night is None):  # before that, all was as it is not now
                break
    except ValueError as error:
        log.warning("%s: an entry of its log is damaged: rows tell which runs wrote earlier nights: %s", uri, error)
    return found


def _written_by(tables_uri: str, name: str, nights: Sequence[str]) -> dict[str, str]:
    """The run that wrote the newest rows of each of these nights, as the rows tell: of nights whose commits the log
    forgot, or that were brought back."""
    if not nights:
        return {}
    told = query.query(
        f"SELECT ds, arg_max(run_id, created_at) AS run FROM {name}_all WHERE list_contains(?, ds) GROUP BY ds",
        tables_uri, [name], parameters=(list(nights),), dates=(nights[0], nights[-1]),
    ).to_pylist()  # fmt: skip
    return {row["ds"]: row["run"] or "" for row in told}


def _table(tables_uri: str, name: str) -> DeltaTable | None:
    """The table, if it is one of ours: the page is about the others then."""
    uri = storage.join(tables_uri, name)
    try:
        table = tables.open_table(uri)
        if table is not None:
            ownership.check_ours(table, uri)
    except UsageError as error:
        log.warning("left out of the report: %s", error)
        return None
    return table


# ---- what MLflow says --------------------------------------------------------------------------------------------
def _ask_mlflow(sections: Sequence[Section], uri: str) -> None:
    """Adds speeds, seconds by stage and links; a page without them is better than none."""
    try:
        client = server.client(uri)
        for section in sections:
            ids = {past.run_id for past in section.history if past.run_id}
            runs = {run_id: server.find_run(client, run_id) for run_id in ids}
            metrics = {name: run.data.metrics for name, run in runs.items() if run is not None}
            section.history = [
                replace(past, rows_per_second=metrics.get(past.run_id, {}).get("rows_per_second"))
                for past in section.history
            ]
            section.seconds = {
                name.removeprefix("seconds/"): value
                for name, value in sorted(metrics.get(section.run_id, {}).items())
                if name.startswith("seconds/")
            }
            section.forced = _forced(section.model, uri)
            if uri.startswith("http"):
                _add_links(section, f"{secrets.without_login(uri)}/#", runs[section.run_id])
    except server.unreachable() as error:
        log.warning("the report has no speeds: %s", server.refused("tell how fast nights were", uri, error))


def _forced(model: str, uri: str) -> str:
    """Why a registered model was promoted by `--force`; empty where it was not."""
    if not (match := REGISTERED.fullmatch(model)):
        return ""
    promotions = [one.promotion for one in registry.versions(uri, [match["name"]]) if one.version == match["version"]]
    return next((str(decision["forced"]) for decision in promotions if decision.get("promoted")), "")


def _add_links(section: Section, root: str, run: Run | None) -> None:
    if run is not None:
        section.run_link = f"{root}/experiments/{run.info.experiment_id}/runs/{section.run_id}"
    if match := REGISTERED.fullmatch(section.model):
        section.model_link = f"{root}/models/{match['name']}/versions/{match['version']}"
