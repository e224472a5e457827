"""Something to look at on the page about a night: some of its rows, and what the model shows of its way to each."""

from __future__ import annotations

import base64
import io
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from hybrid_models.errors import UsageError
from hybrid_models.explanations import Alignment, Explanation, Forecast, Gaze
from hybrid_models.inputs import Sample
from pipelines import storage
from pipelines.models import artifacts, server
from pipelines.models.forecasts import evenly, side_by_side
from pipelines.models.pictures import LOOKED_AT, clock, lit, strip
from pipelines.models.session import Inference
from pipelines.nights import query, tables
from pipelines.reading.samples import unpack
from pipelines.reading.sandbox.guard import guarded
from pipelines.reading.shards import Shard, lone

log = logging.getLogger(__name__)
LEADS_TOLD = 4
SHARDS_READ = 4
"""Of a night's shards, as many are read again for what is shown of them."""
JPEG_QUALITY = 80
TILE = 64
"""Pixels of the side of a picture for one word."""


@dataclass(frozen=True)
class Figure:
    """Something to look at: the row as the table has it, and what the model shows of its way there."""

    row: Mapping[str, Any]
    kind: str
    """Which part of the template draws it."""
    content: Mapping[str, Any]


def figures(
    tables_uri: str, table: str, model: str, ds: str, tracking_uri: str, count: int
) -> tuple[list[Figure], str]:
    """Some good rows of a night with what the model shows of them, or why there are none."""
    try:
        rows = _own(tables_uri, _choose(tables_uri, table, ds, count))
        artifact = artifacts.read(model, None, tracking_uri)
        inference = Inference.noted(artifact, _metadata(tables_uri, table, ds))
        samples = _samples(rows, inference)
        known = [row for row in rows if _place(row) in samples]
        explained = inference.load().explain([samples[_place(row)] for row in known])
        return [Figure(row, *element(shown, row)) for row, shown in zip(known, explained, strict=True)], ""
    except Exception as error:  # pictures are the least of a page: whatever keeps them away is said instead
        log.warning("%s ds=%s: nothing to look at: %s", table, ds, error)
        return [], f"Nothing to look at: {server.first_line(error)}"


def _own(tables_uri: str, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of the kind of store that the table is in. Who can write to a bucket can write rows that name a file of
    whoever makes the page, or an address on the web.

    Raises:
        UsageError: there are others only.
    """
    own = [row for row in rows if storage.scheme(_place(row)[0]) == storage.scheme(tables_uri)]
    if rows and not own:
        raise UsageError(f"its rows are of another kind of store than {tables_uri}: a page reads none of them")
    return own


def _metadata(tables_uri: str, name: str, ds: str) -> dict[bytes, bytes]:
    """What the files of a night keep beside their rows; all of them the same."""
    uri = storage.join(tables_uri, name)
    table = tables.open_table(uri)
    assert table is not None
    with storage.open_input(storage.join(uri, min(tables.night_files(table, ds)))) as stream:
        return dict(pq.read_schema(stream).metadata or {})


def _choose(tables_uri: str, name: str, ds: str, count: int) -> list[dict[str, Any]]:
    """Good rows from the beginnings of some shards, evenly spread; only these shards are read again."""

    def ask(sql: str, *parameters: Any) -> list[dict[str, Any]]:
        return list(query.query(sql, tables_uri, [name], parameters=parameters, dates=(ds, ds)).to_pylist())

    where = f'FROM "{name}" WHERE ds = ? AND index < {LOOKED_AT}'
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


def _samples(rows: Sequence[Mapping[str, Any]], inference: Inference) -> dict[tuple[str, int], Sample]:
    """The decoded samples of these rows by `_place`, as far as they still are where they were.

    A `sample_id` is unique in its shard at most.
    """
    decode = inference.decode()
    wanted: dict[str, dict[int, str]] = defaultdict(dict)
    for row in rows:
        uri, index = _place(row)
        wanted[uri][index] = row["sample_id"]
    alone = {row["object"] for row in rows if row.get("object")}
    found: dict[tuple[str, int], Sample] = {}
    for uri, names in wanted.items():
        shard = lone(uri, decode.cut is not None, min(names)) if uri in alone else _shard(uri)
        for block in guarded(shard, decode.options(), decode, max(names) + 1):
            for row in block.select(["index", "sample_id", "sample"]).to_pylist():
                index = row["index"]
                same = index in names and (uri in alone or names[index] == row["sample_id"])
                if same and row["sample"] is not None:
                    found[uri, index] = unpack(row["sample"])
    return found


def _place(row: Mapping[str, Any]) -> tuple[str, int]:
    """Where a row comes from: a shard and the position there, or a lone object and the number of a window of it."""
    if not row.get("object"):
        return row["shard"], row["index"]
    return row["object"], 0 if row.get("start_seconds") is None else row["index"]


def _shard(uri: str) -> Shard:
    file = storage.info(uri)
    return Shard(file.uri, file.size, file.etag)


@singledispatch
def element(explanation: Explanation, row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Which part of the template shows an explanation, and what it needs for that."""
    raise TypeError(f"cannot draw {type(explanation).__name__}")


@element.register
def _gaze(shown: Gaze, row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    image = _jpeg(Image.fromarray(strip(shown.frames)))
    times = [] if shown.times is None else [clock(time) for time in shown.times.tolist()]
    words = [] if shown.frame_weights is None else _lines(shown.words, shown.frame_weights)
    tiles = [] if words else _tiles(shown)
    return "photograph", {"image": image, "said": shown.said, "times": times, "lines": words, "tiles": tiles}


def _tiles(shown: Gaze) -> list[tuple[str, str]]:
    """Each word with the photograph, or the clip's middle frame, lit where it looked; none without attention."""
    if shown.weights is None:
        return []
    middle = np.asarray(Image.fromarray(shown.frames[len(shown.frames) // 2]).resize((TILE, TILE)))
    pairs = zip(shown.words, shown.weights, strict=True)
    return [(word, _jpeg(Image.fromarray(lit(middle, weights)))) for word, weights in pairs]


def _jpeg(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return _data_uri("image/jpeg", buffer.getvalue())


@element.register
def _alignment(shown: Alignment, row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if shown.weights is None:
        return "alignment", {"source": shown.source, "lines": []}
    return "alignment", {"source": shown.source, "lines": _lines(shown.target, shown.weights)}


def _lines(words: Sequence[str], weights: np.ndarray) -> list[tuple[str, list[float]]]:
    """Each word with where it looked, `weights` [words,places]."""
    return [(word, [round(float(weight), 3) for weight in line]) for word, line in zip(words, weights, strict=True)]


@element.register
def _forecast(shown: Forecast, row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    # Nights of an earlier version have the columns of rain alone, which were filled for video, too.
    told = {
        "mean": row.get("mean") or row["mean_mm_h"],
        "max": row.get("max") or row["max_mm_h"],
        "wet": row["wet_fraction"],
    }
    leads = [
        {"minutes": shown.lead_minutes[i], **{name: values and values[i] for name, values in told.items()}}
        for i in evenly(len(shown.lead_minutes), LEADS_TOLD)
    ]
    animation = _data_uri("image/gif", side_by_side(shown))
    return "nowcast", {"animation": animation, "leads": leads, "unit": shown.unit}


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
