"""How a night's files are laid out, and what the questions of docs/querying.md cost then.

    python -m tests.benchmarks.layout [VARIANT ...] [--rows 200000] [--nowcasts 1500] [--store disk|s3]

Half of the rows are captions, in tars of a thousand photographs, half translations, in files of a hundred thousand
lines; nowcasts are of 64 x 64 pixels, a quarter of a megabyte each. A night's own functions write them, a block of 256
rows at a time, commit them, and put them together as `hybrid tables compact` does. Each variant changes what
Parquet is asked for, the order of rows in a file, how many of them lie together, or what the log says; `before` has
dictionaries, as files had at first. Then the questions are asked of each variant, as staged and as put together, by
`hybrid query`, by pyarrow and by Polars as in docs/querying.md, in turn, `--rounds` times.

On a disk seconds of CPU are told, medians; on a local S3 server requests and bytes, which a relay before it counts.
Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal
from unittest import mock
from urllib.parse import urlsplit

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro
from deltalake import DeltaTable
from deltalake.transaction import AddAction

from hybrid_models import HYBRIDS, TABLES
from pipelines import storage
from pipelines.nights import commit, compaction, query
from pipelines.nights.commit import Partition
from pipelines.reading.shards import Shard
from pipelines.reading.units import Part, placed
from pipelines.staging import checks, contents, joining
from pipelines.staging.pieces import list_pieces, table_schema
from pipelines.staging.sink import StageSink
from tests.benchmarks.scale import Options as Place
from tests.benchmarks.scale import store

DS = "2026-01-31"
BLOCK, TAR, LINES = 256, 1000, 100_000
WORDS, SIDE, LEADS, MAPS = 6_000, 64, 12, 64
EVENT = 256
"""Nowcasts of a file of radar; as many as have 16 MiB are a block."""
SOME = 100
BAD = 0.0005
"""The share of error rows."""
STATES = ("staged", "compacted")
RAIN = "list_max(list_filter(max_mm_h, lambda rain, i: lead_minutes[i] <= 30))"


@dataclass(frozen=True)
class Variant:
    """What is done in another way."""

    parquet: Mapping[str, Any] = field(default_factory=dict)
    """Options of pyarrow's writer."""
    sort: str = ""
    """Rows of a file in the order of this column."""
    together: int = 0
    """Bytes of rows that lie together in a file that was made of others."""
    bounds: bool = False
    """The log says what a file's ids and scores lie between."""


FEW = ["sample_id", "score", "status", "error"]
VARIANTS = {
    "before": Variant({"use_dictionary": True}),
    "now": Variant(),
    "few statistics": Variant({"write_statistics": FEW}),
    "no statistics": Variant({"write_statistics": False}),
    "page index": Variant({"write_page_index": True}),
    "zstd 3": Variant({"compression_level": 3}),
    "zstd 9": Variant({"compression_level": 9}),
    "groups of 8 rows": Variant({"row_group_size": 8}),
    "groups of 1 MiB": Variant(together=1 << 20),
    "groups of 4 MiB": Variant(together=4 << 20),
    "by score": Variant(sort="score"),
    "bounds in the log": Variant(bounds=True),
}


@dataclass(frozen=True)
class Options:
    """What to measure."""

    variants: tyro.conf.Positional[tuple[str, ...]] = ()
    """By name; all by default."""
    rows: int = 200_000
    """Of captions and translations together."""
    nowcasts: int = 1_500
    """How many."""
    store: Literal["disk", "s3"] = "disk"
    """Where the tables lie."""
    rounds: int = 3
    """How often each question is asked."""


Blocks = Mapping[str, Sequence[tuple[Shard, Sequence[pa.Table]]]]
"""Of each table, by hybrid: shards, and the blocks of rows that they become."""
Ask = Callable[[str], int]
"""How many rows a folder of tables answers."""


@dataclass
class Counted:
    """What passes between a client and a server."""

    requests: int = 0
    bytes: int = 0
    """Of answers."""


def main(options: Options) -> None:
    """Measures and prints."""
    chosen = options.variants or tuple(VARIANTS)
    blocks = {**texts(options.rows // 2), "nowcaster": rain(options.nowcasts)}
    with tempfile.TemporaryDirectory() as scratch, store(Place(store=options.store), scratch) as root:
        counted = Counted()
        written = {}
        for number, name in enumerate(chosen):
            place = storage.join(root, str(number))
            with varied(VARIANTS[name]):
                written[name] = {state: laid(storage.join(place, state), blocks, state) for state in STATES}
        if options.store == "s3":
            relay(counted)
        places = {
            f"{name}, {state}": storage.join(root, str(number), state)
            for number, name in enumerate(chosen)
            for state in STATES
        }
        asked = measured(places, options, counted)
        asked["writing"] = writing(chosen, blocks, options.rounds, scratch) if options.store == "disk" else {}
    lines = [f"{json.dumps(name)}: {json.dumps(told)}" for name, told in {**vars(options), **written, **asked}.items()]
    print("{" + ",\n".join(lines) + "}")


def measured(places: Mapping[str, str], options: Options, counted: Counted) -> dict[str, dict[str, Any]]:
    """Of each question and place: the rows of the answer, and what it cost."""
    found: dict[str, dict[str, Any]] = {}
    for question, ask in questions(options.rows // 2).items():
        costs: dict[str, list[float]] = defaultdict(list)
        told: dict[str, Any] = {}
        for _ in range(options.rounds if options.store == "disk" else 1):
            for name, place in places.items():
                before, cpu = Counted(**vars(counted)), time.process_time()
                rows = ask(place)
                costs[name].append(time.process_time() - cpu)
                told[name] = {"rows": rows}
                if options.store == "s3":
                    told[name] |= {
                        "requests": counted.requests - before.requests,
                        "mb": round((counted.bytes - before.bytes) / 1e6, 2),
                    }
        if options.store == "disk":
            for name, seconds in costs.items():
                told[name]["cpu"] = round(statistics.median(seconds), 3)
        found[question] = told
    return found


# ---- rows ----------------------------------------------------------------------------------------------------------
def texts(rows: int) -> Blocks:
    """Captions and translations, so many of each."""
    draw = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnop"))
    words = np.array(["".join(draw.choice(letters, draw.integers(3, 9))) for _ in range(WORDS)] + ["dog"])
    usual = 1 / np.arange(1, WORDS + 2)
    usual /= usual.sum()

    def sentences(length: int) -> list[str]:
        lengths = draw.integers(length - 4, length + 5, rows)
        chosen = words[draw.choice(len(words), int(lengths.sum()), p=usual)]
        ends = np.cumsum(lengths)
        return [" ".join(chosen[end - length : end]) for end, length in zip(ends, lengths, strict=True)]

    scores = (-np.abs(draw.normal(1.3, 0.9, rows))).astype(np.float32)
    captions = {"caption": sentences(11), "score": scores, "caption_tokens": draw.integers(8, 16, rows)}
    translations = {
        "source": sentences(14), "translation": sentences(13), "score": draw.permutation(scores),
        "source_tokens": draw.integers(10, 20, rows), "target_tokens": draw.integers(10, 20, rows),
    }  # fmt: skip
    ids = [f"{number:09d}" for number in range(rows)]
    lines = [f"part-{number // LINES:07d}.txt:{number % LINES}" for number in range(rows)]
    return {
        "captioner": shards("captioner", "s3://lake/photos/part-{:07d}.tar", TAR, BLOCK, ids, captions),
        "translator": shards("translator", "s3://lake/sentences/part-{:07d}.txt", LINES, BLOCK, lines, translations),
    }


def rain(rows: int) -> Sequence[tuple[Shard, Sequence[pa.Table]]]:
    """Nowcasts: showers that move, dry elsewhere."""
    draw = np.random.default_rng(1)
    waves = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.rfftfreq(SIDE), indexing="ij"))
    fields = []
    for _ in range(MAPS):
        noise = np.fft.rfft2(draw.normal(size=(SIDE, SIDE))) / (0.02 + waves) ** 1.5
        field_ = np.fft.irfft2(noise, (SIDE, SIDE))
        fields.append(np.maximum(0, 8 * (field_ / field_.std() - 0.8)))

    def frames() -> np.ndarray:
        start = np.roll(fields[draw.integers(MAPS)], draw.integers(SIDE, size=2), (0, 1)) * draw.uniform(0.2, 1.6)
        return np.stack([np.roll(start, 2 * lead, 1) * 0.97**lead for lead in range(LEADS)]).astype(np.float16)

    maps = [frames() for _ in range(rows)]
    thresholds = [0.1, 1.0, 5.0]
    columns = {
        "step_minutes": [5.0] * rows, "lead_minutes": [[5.0 * (lead + 1) for lead in range(LEADS)]] * rows,
        "mean_mm_h": [each.mean((1, 2), np.float32) for each in maps],
        "max_mm_h": [each.max((1, 2)).astype(np.float32) for each in maps],
        "wet_fraction": [(each > 0.1).mean((1, 2), np.float32) for each in maps],
        "frames": [each.tobytes() for each in maps], "frames_shape": [[LEADS, SIDE, SIDE]] * rows,
        "thresholds_mm_h": [thresholds] * rows, "probability": [chances(each, thresholds).tobytes() for each in maps],
        "unit": ["mm/h"] * rows,
    }  # fmt: skip
    columns |= {"mean": columns["mean_mm_h"], "max": columns["max_mm_h"]}
    size = len(columns["frames"][0]) + len(columns["probability"][0])
    ids = [f"event-{number // EVENT}/{number % EVENT}" for number in range(rows)]
    block = (16 << 20) // size
    return shards("nowcaster", "s3://lake/radar/event-{:07d}.nc", EVENT, block, ids, columns)


def chances(frames: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Per cent that there is at least so much."""
    above = frames[:, None].astype(np.float32) - np.array(thresholds, np.float32)[:, None, None]
    return np.round(100 / (1 + np.exp(-np.clip(above, -30, 30)))).astype(np.uint8)


def shards(
    hybrid: str, name: str, long: int, block: int, ids: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> list[tuple[Shard, list[pa.Table]]]:
    """The blocks of all shards, with their lineage."""
    schema = table_schema(HYBRIDS[hybrid].payload_schema)
    bad = np.random.default_rng(2).random(len(ids)) < BAD
    found = []
    for start in range(0, len(ids), long):
        stop = min(start + long, len(ids))
        shard = Shard(name.format(start // long), 1 << 20, "etag")
        own = []
        for first in range(start, stop, block):
            rows = slice(first, min(first + block, stop))
            table = lineage(shard, rows, start, stop, bad[rows]) | {
                name: [None if wrong else value for wrong, value in zip(bad[rows], values[rows], strict=True)]
                for name, values in columns.items()
            }
            table["sample_id"] = ids[rows]
            count = len(ids[rows])
            arrays = [pa.array(table.get(each.name, [None] * count), each.type) for each in schema]
            own.append(placed(pa.table(arrays, schema=schema), Part(shard, shard.key)))
        found.append((shard, own))
    return found


def lineage(shard: Shard, rows: slice, start: int, stop: int, bad: np.ndarray) -> dict[str, Sequence[Any]]:
    """The columns that all tables have."""
    count = rows.stop - rows.start
    message = f"ImageDecodeError: cannot identify image file of {shard.uri}"
    return {
        "status": ["error" if wrong else "ok" for wrong in bad],
        "error": [message if wrong else None for wrong in bad],
        "shard": [shard.uri] * count, "index": range(rows.start - start, rows.stop - start),
        "last": [number == stop - 1 for number in range(rows.start, rows.stop)],
        "model": ["models:/a-model/3"] * count, "model_version": ["3"] * count,
        "fingerprint": ["0123456789abcdef" * 4] * count, "run_id": ["f" * 32] * count,
        "created_at": [datetime.now(UTC)] * count,
    }  # fmt: skip


# ---- files ---------------------------------------------------------------------------------------------------------
@contextmanager
def varied(variant: Variant) -> Iterator[None]:
    """A night's functions as a variant has them."""
    write_table, writer, add = pq.write_table, pq.ParquetWriter, commit._add_actions

    def write(rows: pa.Table, where: Any, **given: Any) -> None:
        rows = rows.sort_by(variant.sort) if variant.sort in rows.schema.names else rows
        write_table(rows, where, **{**given, **variant.parquet})

    def opened(where: Any, schema: pa.Schema, **given: Any) -> Any:
        more = {name: value for name, value in variant.parquet.items() if name != "row_group_size"}
        return writer(where, schema, **{**given, **more})

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(pq, "write_table", write))
        if variant.parquet:
            stack.enter_context(mock.patch.object(pq, "ParquetWriter", opened))
        if variant.together:
            stack.enter_context(mock.patch.object(joining, "ROWS_BYTES", variant.together))
        if variant.bounds:
            told = mock.patch.object(commit, "_add_actions", lambda *given: bounded(add(*given), given[0]))
            stack.enter_context(told)
        yield


def bounded(actions: Sequence[AddAction], partition: Partition) -> list[AddAction]:
    """The same files, of which the log says more."""
    found = []
    for action in actions:
        with storage.open_input(storage.join(partition.table, action.path)) as stream:
            file = pq.ParquetFile(stream)
            rows = file.read(columns=[name for name in ("sample_id", "score") if name in file.schema_arrow.names])
        ranges = {name: pc.min_max(rows[name]).as_py() for name in rows.column_names}
        stats = json.loads(action.stats)
        stats["minValues"] = {name: each["min"] for name, each in ranges.items()}
        stats["maxValues"] = {name: each["max"] for name, each in ranges.items()}
        stats["nullCount"] |= {name: rows[name].null_count for name in ranges}
        found.append(
            AddAction(
                action.path, action.size, action.partition_values, action.modification_time, True, json.dumps(stats)
            )
        )
    return found


def writing(chosen: Sequence[str], blocks: Blocks, rounds: int, scratch: str) -> dict[str, dict[str, float]]:
    """Seconds of CPU that the first `SOME` blocks of each table take to be written, by each variant in turn."""
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in chosen}
    for _ in range(rounds):
        for name in chosen:
            for hybrid, own in blocks.items():
                sink = StageSink(storage.join(scratch, "written"), table_schema(HYBRIDS[hybrid].payload_schema))
                some = [table for _, tables in own for table in tables][:SOME]
                with varied(VARIANTS[name]):
                    cpu = time.process_time()
                    for table in some:
                        sink.write([table], None)
                    found[name][TABLES[hybrid]].append(time.process_time() - cpu)
    return {
        name: {table: round(statistics.median(seconds), 3) for table, seconds in each.items()}
        for name, each in found.items()
    }


def laid(place: str, blocks: Blocks, state: str) -> dict[str, Any]:
    """Puts the tables there; of each, what its files are like."""
    return {TABLES[hybrid]: one(place, hybrid, own, state) for hybrid, own in blocks.items()}


def one(place: str, hybrid: str, blocks: Sequence[tuple[Shard, Sequence[pa.Table]]], state: str) -> dict[str, Any]:
    partition = Partition.of(place, TABLES[hybrid], DS)
    folder = storage.join(partition.folder, "0123456789ab")
    schema = table_schema(HYBRIDS[hybrid].payload_schema)
    for _, tables in blocks:
        for table in tables:
            StageSink(folder, schema).write([table], None)
    pieces = checks.verify([shard for shard, _ in blocks], folder)
    told = contents.each(pieces)
    known = [replace(piece, bad=each.bad) for piece, each in zip(pieces, told, strict=True)]
    commit.commit_night(partition, known, schema, {"run_id": "run"})
    if state == "compacted":
        compaction.compact(partition.table, ds=DS)
    return sizes(partition)


def sizes(partition: Partition) -> dict[str, Any]:
    """Of a night."""
    paths = partition.files()
    root = storage.absolute(partition.table)
    files = [file for own in list_pieces(storage.join(partition.folder, "0123456789ab")).values() for file in own]
    used = sorted({piece.file for piece in files if piece.file.uri.removeprefix(f"{root}/") in paths}, key=str)
    ends = [end for end in storage.read_ends(used, contents.FOOTER_BYTES) if end is not None]
    log = storage.list_files(storage.join(root, "_delta_log"))
    newest = max(file.name for file in log if file.name.endswith(".json"))
    lines = storage.read_text(storage.join(root, "_delta_log", newest)).splitlines()
    added = [len(line) for line in lines if line.startswith('{"add"')]
    return {
        "files": len(used),
        "kb": round(sum(file.size for file in used) / len(used) / 1000, 1),
        "footer_kb": round(sum(int.from_bytes(end[-8:-4], "little") for end in ends) / len(ends) / 1000, 1),
        "log_bytes": round(statistics.mean(added)),
    }


# ---- questions -----------------------------------------------------------------------------------------------------
def questions(rows: int) -> dict[str, Ask]:
    """Those of docs/querying.md, and for one row, one map, and the errors of a night."""
    one, map_ = f"{rows // 2:09d}", f"event-1/{EVENT // 2}"
    dogs, low, wet = "caption LIKE '%dog%'", "score < -4", f"SELECT sample_id, {RAIN} AS most FROM nowcasts"
    return {
        "dogs, hybrid query": sql("captions", f"SELECT sample_id, caption FROM captions WHERE ds = ? AND {dogs}"),
        "dogs by error, hybrid query": sql(
            "captions", f"SELECT sample_id, caption FROM captions_all WHERE ds = ? AND error IS NULL AND {dogs}"
        ),
        "dogs, Polars": polars("captions", pl.col("caption").str.contains("dog"), "caption"),
        "dogs, pyarrow": arrow("captions", pc.match_substring(pc.field("caption"), "dog"), "caption"),
        "scores, hybrid query": sql(
            "translations", f"SELECT sample_id, translation, score FROM translations WHERE ds = ? AND {low}"
        ),
        "scores, Polars": polars("translations", pl.col("score") < -4, "translation", "score"),
        "scores, pyarrow": arrow("translations", pc.field("score") < -4, "translation", "score"),
        "one id, hybrid query": sql("captions", f"SELECT * FROM captions WHERE ds = ? AND sample_id = '{one}'"),
        "one id, Polars": polars("captions", pl.col("sample_id") == one, "caption", "score"),
        "one id, pyarrow": arrow("captions", pc.field("sample_id") == one, "caption", "score"),
        "errors by status, hybrid query": sql(
            "captions", "SELECT sample_id, error FROM captions_all WHERE ds = ? AND status = 'error'"
        ),
        "errors by error, hybrid query": sql(
            "captions", "SELECT sample_id, error FROM captions_all WHERE ds = ? AND error IS NOT NULL"
        ),
        "rain, hybrid query": sql("nowcasts", f"{wet} WHERE ds = ? AND most > 20"),
        "rain, Polars": polars("nowcasts", pl.col("max_mm_h").list.head(6).list.max() > 20, "max_mm_h"),
        "one map, hybrid query": sql(
            "nowcasts", f"SELECT frames, probability FROM nowcasts WHERE ds = ? AND sample_id = '{map_}'"
        ),
        "one map, Polars": polars("nowcasts", pl.col("sample_id") == map_, "frames", "probability"),
        "one map, pyarrow": arrow("nowcasts", pc.field("sample_id") == map_, "frames", "probability"),
    }


def sql(table: str, text: str) -> Ask:
    """By `hybrid query`."""
    return lambda place: len(query.query(text, place, [table], parameters=[DS], dates=(DS, DS)))


def polars(table: str, wanted: pl.Expr, *columns: str) -> Ask:
    """By Polars."""

    def ask(place: str) -> int:
        options = {name.lower(): value for name, value in os.environ.items() if name.startswith("AWS_")}
        rows = pl.scan_delta(storage.join(place, table), storage_options=options)
        night = rows.filter(pl.col("ds") == DS, pl.col("status") == "ok")
        return night.filter(wanted).select("sample_id", *columns).collect().height

    return ask


def arrow(table: str, wanted: pc.Expression, *columns: str) -> Ask:
    """By pyarrow, which pandas reads with."""

    def ask(place: str) -> int:
        night = (pc.field("ds") == DS) & (pc.field("status") == "ok") & wanted
        dataset = DeltaTable(storage.join(place, table)).to_pyarrow_dataset()
        return int(dataset.to_table(columns=["sample_id", *columns], filter=night).num_rows)

    return ask


# ---- the relay -----------------------------------------------------------------------------------------------------
def relay(counted: Counted) -> None:
    """Lets all that comes read through a relay that counts, for as long as this process lives."""
    upstream = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    ready: list[int] = []
    started = threading.Event()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Callable[[bytes], None]) -> None:
        while data := await reader.read(1 << 16):
            count(data)
            writer.write(data)
            await writer.drain()
        writer.close()

    def asked(data: bytes) -> None:
        counted.requests += data.count(b" HTTP/1.1\r\n")

    def answered(data: bytes) -> None:
        counted.bytes += len(data)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upper_reader, upper_writer = await asyncio.open_connection(upstream.hostname, upstream.port)
        await asyncio.gather(
            copy(reader, upper_writer, asked), copy(upper_reader, writer, answered), return_exceptions=True
        )

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        ready.append(server.sockets[0].getsockname()[1])
        started.set()
        await server.serve_forever()

    threading.Thread(target=lambda: asyncio.run(run()), daemon=True).start()
    started.wait()
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{ready[0]}"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
