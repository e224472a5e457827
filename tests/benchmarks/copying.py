"""How long a node takes to copy the prepared samples of a training from a store far away.

    python -m tests.benchmarks.copying [--pieces 1000] [--rows 50] [--milliseconds 20] [--at-once 16]

So many pieces with so many rows of one KiB lie on a local S3 server whose every answer takes so many milliseconds more;
`PreparedSamples` copies them. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
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
from pipelines.staging.pieces import Piece
from pipelines.training import prepared
from pipelines.training.prepared import PreparedSamples, SampleIndex
from tests.servers import BUCKET, S3Server

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
            wall, cpu = time.perf_counter(), time.process_time()
            samples = PreparedSamples(SampleIndex.of(pieces), scratch)
            samples.fetch(np.arange(len(samples)))
            took = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        finally:
            server.kill()
        assert len(samples) == options.pieces * options.rows
        samples.remove()
    print(json.dumps({**vars(options), **{name: round(value, 2) for name, value in took.items()}}))


def put(number: int, rows: int) -> Piece:
    """A staged piece."""
    shard = f"{number:06d}"
    columns = {"shard": [shard] * rows, "index": range(rows), "length": [1] * rows, "sample": [ROW] * rows}
    content = io.BytesIO()
    pq.write_table(pa.table(columns), content, compression="zstd")
    uri = f"s3://{BUCKET}/pieces/{shard}.parquet"
    storage.write_bytes(uri, content.getvalue())
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
