"""Shards as a Ray Data source: one read task per shard, which reads and decodes it under guard."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.sandbox.guard import guarded
from pipelines.reading.sandbox.protocol import Step
from pipelines.reading.shards import Shard


class ShardDatasource(Datasource):
    """Ray Data source with one read task per shard, so that a shard is the unit of reading, retrying and reuse.

    Made on a cluster: what tasks have in common lies in its object store.

    Args:
        shards: what to read.
        options: how.
        step: what becomes of the raw rows where they are read.
        schema: columns of what `step` gives.
    """

    def __init__(self, shards: list[Shard], options: ReadOptions, step: Step, schema: pa.Schema) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shards, self._schema = shards, schema
        self._given = ray.put((options, step))

    def get_name(self) -> str:
        """The name that Ray's progress bars show."""
        return "Shards"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all shards together."""
        return sum(shard.size for shard in self._shards)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task per shard, whatever parallelism Ray would like."""
        return [self._task(shard, per_task_row_limit) for shard in self._shards]

    def _task(self, shard: Shard, row_limit: int | None) -> ReadTask:
        metadata = BlockMetadata(num_rows=None, size_bytes=shard.size, input_files=(shard.uri,), exec_stats=None)
        return ReadTask(partial(_read, shard, self._given), metadata, schema=self._schema, per_task_row_limit=row_limit)


def _read(shard: Shard, given: ray.ObjectRef[tuple[ReadOptions, Step]]) -> Iterator[pa.Table]:
    """A task. What all have in common, a vocabulary for one, is a hundred times as large as a task of its own."""
    options, step = ray.get(given)
    return guarded(shard, options, step)
