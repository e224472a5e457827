"""How long a node takes to copy the prepared samples of a training from a store far away.

    python -m tests.benchmarks.copying [--pieces 1000] [--rows 50] [--milliseconds 20] [--at-once 16] [--nodes 1]

So many pieces with so many rows of one KiB lie on a local S3 server whose every answer takes so many milliseconds more.
What the driver reads of them is timed, and the copy that a node in the middle makes for three epochs, if each of so
many nodes has one worker with 64 samples of every batch. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import s3fs
import tyro

from pipelines import storage
from pipelines.reading.samples import pack
from pipelines.staging import prepared
from pipelines.staging.pieces import Piece
from pipelines.staging.prepared import PreparedSamples, SampleIndex
from pipelines.training.batches import plan_epoch, share
from tests.servers import BUCKET, S3Server

BATCH, EPOCHS = 64, 3
ROW = pack({"noise": np.random.default_rng(0).integers(0, 256, 1024, np.uint8)})


@dataclass(frozen=True)
class Options:
    """What to measure."""

    pieces: int = 1000
    """How many."""
    rows: int = 50
    """Of each."""
    milliseconds: float = 20.0
    """By which each answer is late."""
    at_once: int = prepared.READERS
    """Pieces that are read at once."""
    nodes: int = 1
    """Which share the samples."""


def main(options: Options) -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as scratch:
        server = S3Server(Path(scratch) / "s3").start()
        os.environ.update(server.env())
        try:
            with ThreadPoolExecutor(16) as threads:
                pieces = list(threads.map(lambda number: put(number, options.rows), range(options.pieces)))
            delay(options.milliseconds / 1000)
            prepared.READERS = options.at_once
            with timed("index") as indexed:
                index = SampleIndex.of(pieces)
            assert len(index) == options.pieces * options.rows
            read = np.unique(np.concatenate([seen(index, epoch, options.nodes) for epoch in range(EPOCHS)]))
            samples = PreparedSamples(index, scratch)
            with timed("copy") as copied:
                samples.fetch(read)
        finally:
            server.kill()
        samples.remove()
    part = len(np.unique(index.pieces_of(read))) / len(pieces)
    print(json.dumps({**vars(options), **indexed, **copied, "part": round(part, 3)}))


@contextmanager
def timed(name: str) -> Iterator[dict[str, float]]:
    """Seconds of the clock, and of CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    took: dict[str, float] = {}
    yield took
    took[f"{name}_seconds"] = round(time.perf_counter() - wall, 2)
    took[f"{name}_cpu"] = round(time.process_time() - cpu, 2)


def seen(index: SampleIndex, epoch: int, nodes: int) -> np.ndarray:
    """The samples that the worker in the middle sees in an epoch."""
    plan = plan_epoch(index.lengths, BATCH * nodes, 0, epoch)
    return np.concatenate([share(batch, index.places, nodes // 2, nodes) for batch in plan])


def put(number: int, rows: int) -> Piece:
    """A staged piece."""
    shard = f"{number:06d}"
    columns = {"shard": [shard] * rows, "index": range(rows), "length": [1] * rows, "sample": [ROW] * rows}
    content = io.BytesIO()
    pq.write_table(pa.table(columns), content, compression="zstd")
    uri = f"s3://{BUCKET}/pieces/{shard}.parquet"
    storage.write_bytes(uri, content.getvalue(), storage.anything)
    return Piece(storage.info(uri), 0, rows, end=True)


def delay(seconds: float) -> None:
    """Lets every call of s3fs take so much longer."""
    call = s3fs.S3FileSystem._call_s3

    async def late(self: s3fs.S3FileSystem, *args: Any, **options: Any) -> Any:
        await asyncio.sleep(seconds)
        return await call(self, *args, **options)

    s3fs.S3FileSystem._call_s3 = late


if __name__ == "__main__":
    main(tyro.cli(Options))
