"""Where staged rows are written: a Ray Data sink that puts one Parquet object for each piece of a shard."""

from __future__ import annotations

import io
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import Datasink
from ray.data.block import BlockAccessor

from pipelines import storage
from pipelines.cluster import counters
from pipelines.reading.shards import Shard
from pipelines.staging.checks import kinds_of
from pipelines.staging.pieces import TIMINGS, shard_key


class StageSink(Datasink[dict[str, float]]):
    """Ray Data sink that puts one Parquet object per contiguous piece of a shard; a retried task overwrites its own.

    After the write, `written` sums up what all tasks report: rows, bytes, seconds by stage.

    Args:
        folder: URI of the staging folder.
        shards: what is staged.
        schema: columns of the files.
        name: how Ray's metrics call it; without one nothing is counted.
    """

    def __init__(self, folder: str, shards: Sequence[Shard], schema: pa.Schema, name: str = "") -> None:
        self._folder = folder
        self._name = name
        self._keys = {shard.uri: shard_key(shard) for shard in shards}
        self._schema = schema
        self.written: dict[str, float] = defaultdict(float)

    def write(self, blocks: Iterable[Any], ctx: Any) -> dict[str, float]:
        """Writes the rows of these blocks; returns counts and seconds."""
        started = time.perf_counter()
        done: dict[str, float] = defaultdict(float)
        tables = [table for table in (BlockAccessor.for_block(block).to_arrow() for block in blocks) if len(table)]
        if not tables:
            return dict(done)
        table = pa.concat_tables(tables).sort_by([("shard", "ascending"), ("index", "ascending")])
        for first, stop in _runs(table):
            done["bytes"] += self._put(table.slice(first, stop - first))
        done["rows"] = len(table)
        for name in TIMINGS:
            if name in table.column_names:
                done[name] = pa.compute.sum(table[name]).as_py() or 0.0
        done["write_seconds"] = time.perf_counter() - started
        if self._name:
            seconds = {stage: done.get(f"{stage}_seconds", 0.0) for stage in ("decode", "predict", "write")}
            counters.count_staged(self._name, len(table), kinds_of(table["error"]), seconds, int(done["bytes"]))
        return dict(done)

    def _put(self, rows: pa.Table) -> int:
        first, stop = rows["index"][0].as_py(), rows["index"][-1].as_py() + 1
        end = "-end" if rows["last"][-1].as_py() else ""
        name = f"{self._keys[rows['shard'][0].as_py()]}-{first:08d}-{stop:08d}{end}.parquet"
        buffer = io.BytesIO()
        pq.write_table(rows.select(self._schema.names).cast(self._schema), buffer, compression="zstd")
        storage.write_bytes(storage.join(self._folder, name), buffer.getvalue())
        return buffer.tell()

    def on_write_complete(self, write_result: Any) -> None:
        """Adds up what the tasks returned."""
        for done in write_result.write_returns:
            for name, value in done.items():
                self.written[name] += value


def _runs(table: pa.Table) -> list[tuple[int, int]]:
    """Slices of a sorted table in which the shard is one and the index has no gap."""
    shards, index = table["shard"].to_pylist(), table["index"].to_pylist()
    cuts = [i for i in range(1, len(index)) if shards[i] != shards[i - 1] or index[i] != index[i - 1] + 1]
    return list(zip([0, *cuts], [*cuts, len(index)], strict=True))
