"""The page about a night: what was written, what was bad and why, how fast it was, and some of it to look at.

One self-contained HTML file without scripts: it works without a network, and text from captions, keys and sentences
cannot become markup (Jinja2 escapes all of it, and the page's own policy forbids scripts).
"""

from __future__ import annotations

import base64
import io
import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import singledispatch
from pathlib import Path
from typing import Any

from deltalake import DeltaTable
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from mlflow.entities import Run
from PIL import Image

from hybrid_models.errors import UsageError
from hybrid_models.explanations import Alignment, Explanation, Forecast, Gaze
from hybrid_models.inputs import Sample
from pipelines import storage
from pipelines.models import artifacts, tracking
from pipelines.models.artifacts import Artifact
from pipelines.models.pictures import LOOKED_AT, NO_COVERAGE, RAIN_COLOURS, RAIN_MM_H, evenly, side_by_side
from pipelines.nights import query, tables
from pipelines.nights.infer import decode_step
from pipelines.reading.guard import guarded
from pipelines.reading.limits import Limits
from pipelines.reading.readers import ReadOptions
from pipelines.reading.samples import unpack
from pipelines.reading.shards import Shard

log = logging.getLogger(__name__)
TEMPLATE = "report.html"
NIGHTS_SHOWN = 14
ERROR_EXAMPLES = 3
LEADS_TOLD = 4
SHARDS_READ = 4
"""Of a night's shards, as many are read again for what is shown of them."""
JPEG_QUALITY = 80


@dataclass(frozen=True)
class Past:
    """A night in the history of a table; its speed where MLflow knows it."""

    ds: str
    rows: int
    errors: int
    run_id: str
    rows_per_second: float | None = None


@dataclass(frozen=True)
class Reason:
    """A kind of error of the night, with some of its rows: `sample_id`, `shard`, `error`."""

    kind: str
    count: int
    examples: Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Figure:
    """Something to look at: the row as the table has it, and what the model shows of its way there."""

    row: Mapping[str, Any]
    kind: str
    """Which part of the template draws it."""
    content: Mapping[str, Any]


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
    figures: Sequence[Figure] = ()
    note: str = ""
    """Why there is nothing to look at."""

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
    _ask_mlflow(sections, tracking_uri)
    for section in sections:
        section.figures, section.note = _figures(tables_uri, section, ds, tracking_uri, examples)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template(TEMPLATE).render(
        ds=ds, tables=tracking.shown(tables_uri), sections=sections, made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        rain=list(zip(RAIN_MM_H, RAIN_COLOURS, strict=True)), grey=NO_COVERAGE, size=_size, number=_number,
    )  # fmt: skip
    return page, sections


# ---- what the table says -----------------------------------------------------------------------------------------
def _section(tables_uri: str, name: str, ds: str) -> Section | None:
    table = _table(tables_uri, name)
    stored = {night.ds: night for night in tables.nights(table)} if table is not None else {}
    if table is None or ds not in stored:
        return None

    lost = "sum(lost_rows)" if any(field.name == "lost_rows" for field in table.schema().fields) else "0"
    recent = [night for night in sorted(stored) if night <= ds][-NIGHTS_SHOWN:]
    nights = query.query(
        f"SELECT ds, count(*) AS n, count(*) FILTER (status = 'error') AS errors, count(DISTINCT shard) AS shards, "
        f"coalesce({lost}, 0)::BIGINT AS lost, "
        f"arg_max(model, created_at) AS model, arg_max(run_id, created_at) AS run FROM {name}_all "
        "WHERE ds >= ? AND ds <= ? GROUP BY ds ORDER BY ds",
        tables_uri, [name], parameters=(recent[0], ds),
    ).to_pylist()  # fmt: skip
    reasons = query.query(
        "SELECT split_part(error, ':', 1) AS kind, count(*) AS n, arg_min({'sample_id': sample_id, 'shard': shard, "
        f"'error': error}}, (shard, index), {ERROR_EXAMPLES}) AS examples FROM {name}_all "
        "WHERE ds = ? AND status = 'error' GROUP BY kind ORDER BY n DESC, kind",
        tables_uri, [name], parameters=(ds,),
    ).to_pylist()  # fmt: skip
    this = nights[-1]
    return Section(
        name, this["n"], this["errors"], this["lost"], this["shards"], this["model"], this["run"], table.version(),
        stored[ds].bytes,
        [Past(night["ds"], night["n"], night["errors"], night["run"]) for night in nights],
        [Reason(row["kind"], row["n"], row["examples"]) for row in reasons],
    )  # fmt: skip


def _table(tables_uri: str, name: str) -> DeltaTable | None:
    """The table, if it is one of ours: the page is about the others then."""
    uri = storage.join(tables_uri, name)
    try:
        table = tables.open_table(uri)
        if table is not None:
            tables.check_ours(table, uri)
    except UsageError as error:
        log.warning("left out of the report: %s", error)
        return None
    return table


# ---- what MLflow says --------------------------------------------------------------------------------------------
def _ask_mlflow(sections: Sequence[Section], uri: str) -> None:
    """Adds speeds, seconds by stage and links; a page without them is better than none."""
    try:
        client = tracking.client(uri)
        for section in sections:
            runs = {past.run_id: tracking.find_run(client, past.run_id) for past in section.history}
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
            if uri.startswith("http"):
                _add_links(section, f"{tracking.without_login(uri)}/#", runs[section.run_id])
    except tracking.UNREACHABLE as error:
        log.warning("the report has no speeds: %s", tracking.refused("tell how fast nights were", uri, error))


def _add_links(section: Section, root: str, run: Run | None) -> None:
    if run is not None:
        section.run_link = f"{root}/experiments/{run.info.experiment_id}/runs/{section.run_id}"
    if section.model.startswith("models:/"):
        _, hybrid, version = section.model.split("/")
        section.model_link = f"{root}/models/{hybrid}/versions/{version}"


# ---- something to look at ----------------------------------------------------------------------------------------
def _figures(tables_uri: str, section: Section, ds: str, tracking_uri: str, count: int) -> tuple[list[Figure], str]:
    """Some good rows of the night with what the model shows of them, or why there are none."""
    if section.rows == section.errors:
        return [], "No row was predicted."
    try:
        rows = _choose(tables_uri, section.table, ds, count)
        artifact = artifacts.read(section.model, None, tracking_uri)
        samples = _samples(rows, artifact)
        known = [row for row in rows if (row["shard"], row["index"]) in samples]
        explained = _explain(artifact, [samples[row["shard"], row["index"]] for row in known])
        return [Figure(row, *draw(shown, row)) for row, shown in zip(known, explained, strict=True)], ""
    except Exception as error:  # pictures are the least of a page: whatever keeps them away is said instead
        log.warning("%s ds=%s: nothing to look at: %s", section.table, ds, error)
        return [], f"Nothing to look at: {tracking.first_line(error)}"


def _explain(artifact: Artifact, samples: Sequence[Sample]) -> list[Explanation]:
    return artifact.load().eval().explain(samples, artifact.decoding) if samples else []


def _choose(tables_uri: str, name: str, ds: str, count: int) -> list[dict[str, Any]]:
    """Good rows from the beginnings of some shards, evenly spread; only these shards are read again."""

    def ask(sql: str, *parameters: Any) -> list[dict[str, Any]]:
        return query.query(sql, tables_uri, [name], parameters=parameters).to_pylist()

    where = f"FROM {name} WHERE ds = ? AND index < {LOOKED_AT}"
    shards = [row["shard"] for row in ask(f"SELECT DISTINCT shard {where} ORDER BY shard", ds)]
    some = [shards[i] for i in evenly(len(shards), min(count, SHARDS_READ))]
    places = ask(f"SELECT shard, index {where} AND list_contains(?, shard) ORDER BY shard, index", ds, some)
    chosen: list[dict[str, Any]] = []
    for number, shard in enumerate(some):
        own = [place for place in places if place["shard"] == shard]
        chosen += [own[i] for i in evenly(len(own), count * (number + 1) // len(some) - len(chosen))]
    return ask(
        f"SELECT * {where} AND list_contains(?, {{'shard': shard, 'index': index}}) ORDER BY shard, index", ds, chosen
    )


def _samples(rows: Sequence[Mapping[str, Any]], artifact: Artifact) -> dict[tuple[str, int], Sample]:
    """The decoded samples of these rows, by shard and index, as far as their shards still have them where they were.

    A `sample_id` is unique in its shard at most.
    """
    limits = Limits()
    decode = decode_step(artifact, limits)
    options = ReadOptions(decode.preprocess.window, limits=limits)
    wanted: dict[str, dict[int, str]] = defaultdict(dict)
    for row in rows:
        wanted[row["shard"]][row["index"]] = row["sample_id"]
    found: dict[tuple[str, int], Sample] = {}
    for uri, names in wanted.items():
        file = storage.info(uri)
        for block in guarded(Shard(file.uri, file.size, file.etag), options, decode):
            for row in block.select(["index", "sample_id", "sample"]).to_pylist():
                if names.get(row["index"]) == row["sample_id"] and row["sample"] is not None:
                    found[uri, row["index"]] = unpack(row["sample"])
            if block["index"][-1].as_py() >= max(names):
                break
    return found


@singledispatch
def draw(explanation: Explanation, row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """How the template draws an explanation, and what it needs for that."""
    raise TypeError(f"cannot draw {type(explanation).__name__}")


@draw.register
def _gaze(shown: Gaze, row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    buffer = io.BytesIO()
    Image.fromarray(shown.image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return "photograph", {"image": _data_uri("image/jpeg", buffer.getvalue())}


@draw.register
def _alignment(shown: Alignment, row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    weights = [[round(float(weight), 3) for weight in line] for line in shown.weights]
    return "alignment", {"source": shown.source, "lines": list(zip(shown.target, weights, strict=True))}


@draw.register
def _forecast(shown: Forecast, row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    leads = [
        {"minutes": shown.lead_minutes[i], **{name: row[name][i] for name in ("mean_mm_h", "max_mm_h", "wet_fraction")}}
        for i in evenly(len(shown.lead_minutes), LEADS_TOLD)
    ]
    animation = _data_uri("image/gif", side_by_side(shown))
    return "nowcast", {"animation": animation, "leads": leads, "unit": shown.unit}


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _size(count: float) -> str:
    """Bytes for people."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(len(units) - 1, int(math.log(max(count, 1), 1024)))
    return f"{_number(count / 1024**power)} {units[power]}"


def _number(value: float) -> str:
    """Three digits that count, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
